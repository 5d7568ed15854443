"""A real PgBouncer before a test's database, in transaction mode, as an appliance writes its files."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import asyncpg
import msgspec

from piggybank.appliance import pooler, processes, store_files, system_user
from piggybank.appliance.pooler import Target
from piggybank.appliance.processes import Program
from piggybank.settings import Settings
from tests.conftest import require, run_apart

START_TIMEOUT_S = 30
POLL_S = 0.05


@contextmanager
def pooled(settings: Settings, folder: Path, *, clients: int, servers: int, prepared: bool = False) -> Iterator[Settings]:
    """The same installation through a pooler; `folder` is one that the system user may enter. Skips without PgBouncer."""
    require("pgbouncer")
    program = shutil.which("pgbouncer")
    assert program is not None
    user = system_user.chosen()
    target = Target.of(settings.database_url, store_files.free_ports(1)[0], clients=clients, servers=servers)
    assert pooler.allow_files(target.clients, target.servers), "this machine allows too few open files"
    system_user.make_folder(folder, user)
    for name, text in (("pgbouncer.ini", pooler.ini(target, folder, prepared=prepared)), ("userlist.txt", pooler.userlist(target))):
        processes.write_file(folder / name, text, 0o600, user)
    running = processes.start(
        Program(name="pooler", argv=(program, str(folder / "pgbouncer.ini")), run_dir=folder, log=folder / "pooler.log", user=user)
    )
    way: Literal["transaction", "transaction+prepared"] = "transaction+prepared" if prepared else "transaction"
    through = msgspec.structs.replace(settings, pooler_url=pooler.url(target, settings.database_url), pooler=way)
    try:
        end = time.monotonic() + START_TIMEOUT_S
        while not run_apart(lambda: _answers(through.pooler_url)):
            assert running.alive() and time.monotonic() < end, (folder / "pooler.log").read_text()  # noqa: PT018 - one reason to stop
            time.sleep(POLL_S)
        yield through
    finally:
        running.stop()


async def _answers(url: str) -> bool:
    try:
        connection = await asyncpg.connect(url, statement_cache_size=0)
    except (OSError, asyncpg.PostgresError):
        return False
    await connection.close()
    return True
