"""deploy/compose/postgres.sh itself, outside a container: with other folders, another port, and nobody named `postgres` to be let in by."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import asyncpg
import pytest

from piggybank.appliance import binaries, store_files, system_user
from tests.conftest import run_apart

PARTS = Path(__file__).parents[2] / "deploy" / "compose"
STARTED_WITHIN_S = 60
ROLES = {"OWNER_PASSWORD": "piggybank_owner", "APPLICATION_PASSWORD": "piggybank_app", "REPLICATION_PASSWORD": "piggybank_replication"}
FIRST = {name: f"first-{name.lower()}" for name in ROLES}


class Primary:
    def __init__(self, folder: Path) -> None:
        self.user = system_user.chosen()
        self.port = store_files.free_ports(1)[0]
        self.bin = binaries.postgres(folder, self.user)
        self.parts = folder / "parts"
        self.data, self.socket = folder / "data", folder / "s"
        for path in (self.parts, self.data, self.socket):
            system_user.make_folder(path, self.user)
        for name in ("postgres.sh", "postgresql.conf", "pg_hba.conf"):
            text = (PARTS / name).read_text(encoding="utf-8")
            for here, there in (
                ("/tmp", str(self.socket)),  # before the others, whose folders are below it
                ("/var/lib/postgresql/18", str(self.data)),
                ("/piggybank/p", f"{self.parts}/p"),
                ("listen_addresses = '*'", "listen_addresses = '127.0.0.1'"),
                ("port = 5432", f"port = {self.port}"),
                ("auth=peer", "auth=trust"),
                ("local all postgres peer", "local all postgres trust"),
            ):
                text = text.replace(here, there)
            (self.parts / name).write_text(text, encoding="utf-8")
            (self.parts / name).chmod(0o644)

    @contextmanager
    def running(self, passwords: dict[str, str], standbys: str = "") -> Iterator[None]:
        environment = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "PGPORT": str(self.port),
            "NODE": "postgres-1",
            "STANDBYS": standbys,
            "MAX_CONNECTIONS": "20",
            **passwords,
        }
        log = self.parts.parent / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                ["sh", str(self.parts / "postgres.sh")],
                env=environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
                cwd=self.data,
                user=self.user and self.user.uid,
                group=self.user and self.user.gid,
                extra_groups=self.user and [],
            )
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(STARTED_WITHIN_S)
            with suppress(ProcessLookupError):  # what runs beside the server ends with its container
                os.killpg(process.pid, signal.SIGKILL)

    def lets_in(self, role: str, password: str) -> bool:
        async def enter() -> bool:
            try:
                connection = await asyncpg.connect(
                    host="127.0.0.1", port=self.port, user=role, password=password, database="postgres", timeout=5
                )
            except (OSError, TimeoutError, asyncpg.PostgresError):
                return False
            await connection.close()
            return True

        return run_apart(enter)

    def wait_until_it_lets_in(self, passwords: dict[str, str]) -> None:
        until = time.monotonic() + STARTED_WITHIN_S
        while not all(self.lets_in(role, passwords[name]) for name, role in ROLES.items()):
            assert time.monotonic() < until, (self.parts.parent / "log").read_text(encoding="utf-8")
            time.sleep(0.2)


@pytest.mark.parametrize("standbys", ["", "postgres-2 postgres-3"])
def test_who_edits_the_passwords_and_starts_it_again_is_let_in_with_them(open_path: Path, standbys: str) -> None:
    """Also where commits wait for standbys that are not there, since they do not have the new password yet."""
    primary = Primary(open_path)
    with primary.running(FIRST):
        primary.wait_until_it_lets_in(FIRST)
    if standbys:
        [conf] = primary.data.glob("*/postgresql.auto.conf")
        conf.write_text(conf.read_text(encoding="utf-8") + 'synchronous_standby_names = \'ANY 1 ("postgres-2", "postgres-3")\'\n')
    second = {name: f"it's \\second $HOME {name}" for name in ROLES}
    with primary.running(second, standbys):
        primary.wait_until_it_lets_in(second)
        assert not any(primary.lets_in(role, FIRST[name]) for name, role in ROLES.items())
    said = (open_path / "log").read_text(encoding="utf-8")
    assert "second" not in said
    assert "first" not in said
