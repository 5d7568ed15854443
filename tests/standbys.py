"""A primary of the test's own with real streaming standbys: pause them, kill them, promote one.

    with replicated(open_path) as cluster:          # module scope: open_folder
        cluster.settings                            # phase 2, replica_urls of both
        cluster.standbys[0].pause()                 # SIGSTOP: it neither confirms nor answers

The primary is started by the product's embedded path, the standbys by pg_basebackup with a slot each; `cluster_name` is the name that
`pg_stat_replication` shows. With `synchronous` a commit waits for any one of them.
"""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import psutil

from piggybank.appliance import binaries, processes, store_files, system_user
from piggybank.appliance.embedded import Embedded
from piggybank.appliance.processes import Program, Running
from piggybank.db import migrate, roles
from piggybank.settings import Settings
from tests.conftest import run_apart

START_TIMEOUT_S = 60
POLL_S = 0.05


class Standby:
    """One hot standby of the primary; `url` is the application role's on it."""

    def __init__(self, embedded: Embedded, number: int) -> None:
        self.name = f"replica_{number}"
        self.port = store_files.free_ports(1)[0]
        addresses = embedded.secrets.addresses()
        self.url, self.owner_url, self.admin_url = (
            url.replace(f":{embedded.secrets.postgres_port}/", f":{self.port}/")
            for url in (addresses["database_url"], addresses["owner_database_url"], embedded.secrets.admin_url)
        )
        self.folder = embedded.dir / self.name
        self._embedded = embedded
        self._bin = binaries.postgres(embedded.dir, embedded.user)
        self._running: Running | None = None

    def copy(self) -> None:
        """pg_basebackup through a slot of its own."""
        secrets = self._embedded.secrets
        system_user.make_folder(self.folder, self._embedded.user)
        system_user.run(
            self._embedded.user,
            str(self._bin / "pg_basebackup"),
            f"--pgdata={self.folder}",
            "--host=127.0.0.1",
            f"--port={secrets.postgres_port}",
            f"--username={store_files.ADMIN_ROLE}",
            "--checkpoint=fast",
            "--wal-method=stream",
            "--create-slot",
            f"--slot={self.name}",
            "--write-recovery-conf",
            environment={"PGPASSWORD": secrets.admin_password},
        )

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        self._running = processes.start(
            Program(
                name=self.name,
                argv=(
                    str(self._bin / "postgres"),
                    "-D",
                    str(self.folder),
                    "-c",
                    f"port={self.port}",
                    "-c",
                    f"cluster_name={self.name}",
                ),
                run_dir=self._embedded.run_dir,
                log=self._embedded.logs / f"{self.name}.log",
                user=self._embedded.user,
                stop_signal=signal.SIGINT,
                kill_signal=signal.SIGQUIT,
            )
        )
        until = time.monotonic() + START_TIMEOUT_S
        while not run_apart(lambda: _answers(self.admin_url)):
            assert self._running.alive(), self.log
            assert time.monotonic() < until, self.log
            time.sleep(POLL_S)

    @property
    def log(self) -> str:
        """The end of its log."""
        return (self._embedded.logs / f"{self.name}.log").read_text(errors="replace")[-4000:]

    def pause(self) -> None:
        """SIGSTOP to all of it: its connections stay open and nothing is confirmed."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9 of all of it, paused or not; `start` brings it back."""
        self._signal(signal.SIGKILL)
        if self._running is not None:
            self._running.wait(START_TIMEOUT_S)

    async def pause_replay(self) -> None:
        """It goes on receiving and confirming, and shows nothing newer."""
        await self.value("SELECT pg_wal_replay_pause()")

    async def resume_replay(self) -> None:
        """It catches up."""
        await self.value("SELECT pg_wal_replay_resume()")

    async def received(self) -> int:
        """How far its WAL goes, in bytes: what counts when the most advanced one is chosen."""
        return int(await self.value("SELECT coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0'::pg_lsn"))

    async def promote(self) -> None:
        """Make it a primary and wait until it is one; nobody confirms for it, so its commits wait for nobody."""
        await self.value("SELECT pg_promote(wait => true, wait_seconds => 60)")
        await self.value("ALTER SYSTEM SET synchronous_standby_names = ''")
        await self.value("SELECT pg_reload_conf()")

    async def value(self, query: str, *arguments: object) -> Any:
        """One value, as the superuser."""
        return await _value(self.admin_url, query, *arguments)

    def _signal(self, number: signal.Signals) -> None:
        if self._running is None:
            return
        with suppress(psutil.NoSuchProcess):
            postmaster = psutil.Process(self._running.pid)
            for process in (postmaster, *postmaster.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)


class Replicated:
    """A primary, its settings (phase 2) and its standbys."""

    def __init__(self, embedded: Embedded, settings: Settings, standbys: list[Standby]) -> None:
        self.embedded = embedded
        self.settings = settings
        self.standbys = standbys

    def kill_primary(self) -> None:
        """kill -9 of the primary and all of its processes."""
        running = self.embedded.running.pop("postgres")
        with suppress(psutil.NoSuchProcess):
            postmaster = psutil.Process(running.pid)
            for process in (postmaster, *postmaster.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        running.wait(START_TIMEOUT_S)

    def start_primary(self) -> None:
        """Start it again and wait until it takes connections."""
        self.embedded.ensure("postgres")
        self.embedded.wait_ready("postgres")

    async def value(self, query: str, *arguments: object) -> Any:
        """One value from the primary, as the superuser."""
        return await _value(self.embedded.secrets.admin_url, query, *arguments)

    async def synchronous(self, rule: str) -> None:
        """Set `synchronous_standby_names`, as in `ANY 1 (replica_1, replica_2)`; empty: commits wait for nobody."""
        await self.value(f"ALTER SYSTEM SET synchronous_standby_names = '{rule}'")
        await self.value("SELECT pg_reload_conf()")

    async def streaming(self, count: int | None = None) -> None:
        """Wait until so many standbys (else all) stream, and are synchronous where a rule is set."""
        wanted = len(self.standbys) if count is None else count

        async def seen() -> bool:
            return int(await self.value(STREAMING)) >= wanted

        await until(seen)


# With a rule set a standby counts once the primary has taken it for one of the quorum.
STREAMING = """
SELECT count(*)
FROM pg_stat_replication
WHERE state = 'streaming'
  AND (current_setting('synchronous_standby_names') = '' OR sync_state IN ('sync', 'quorum'))
"""


async def until(seen: Callable[[], Awaitable[bool]], timeout_s: float = START_TIMEOUT_S) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + timeout_s
    while not await seen():
        assert time.monotonic() < end, "it never became true"
        await asyncio.sleep(POLL_S)


@contextmanager
def replicated(folder: Path, count: int = 2, *, synchronous: bool = True, **changes: object) -> Iterator[Replicated]:
    """A primary with `count` standbys in an open folder, migrated, all streaming; `changes` to the settings."""
    embedded = Embedded(folder / "data")
    standbys: list[Standby] = []
    try:
        embedded.start()
        addresses = embedded.secrets.addresses()
        run_apart(lambda: migrate.upgrade(addresses["owner_database_url"], store_files.APPLICATION_ROLE))
        run_apart(lambda: roles.limit_role(addresses["owner_database_url"], store_files.APPLICATION_ROLE))
        for number in range(1, count + 1):
            standby = Standby(embedded, number)
            standbys.append(standby)
            standby.copy()
            standby.start()
        settings = msgspec.convert(
            {
                "data_dir": folder,
                "phase": 2,
                "rate_anonymous_per_minute": 0,
                "rate_sign_in_per_minute": 0,
                "rate_user_per_minute": 0,
                "simulator_key": embedded.secrets.simulator_key,
                "simulator_port": embedded.secrets.simulator_port,
                "replica_urls": [standby.url for standby in standbys],
                **addresses,
                **changes,
            },
            Settings,
        )
        made = Replicated(embedded, settings, standbys)
        if synchronous:
            run_apart(lambda: made.synchronous(f"ANY 1 ({', '.join(standby.name for standby in standbys)})"))
        run_apart(made.streaming)
        yield made
    finally:
        for standby in standbys:
            standby.kill()
        embedded.stop()


async def _value(url: str, query: str, *arguments: object) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query, *arguments)
    finally:
        await connection.close()


async def _answers(url: str) -> bool:
    try:
        return bool(await _value(url, "SELECT true"))
    except (OSError, asyncpg.PostgresError):
        return False
