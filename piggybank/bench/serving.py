"""The bench's server: the shipped one with the routes to compare with, in a folder of its own, on a free port of loopback."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import psutil
from msgspec import Struct

from piggybank import errors
from piggybank import settings as settings_file
from piggybank.appliance import store_files, web
from piggybank.settings import Settings

START_TIMEOUT_S = 60
POLL_S = 0.1
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Server(Struct, frozen=True, kw_only=True):
    """Processes of the bench's server, on one port. `stores`: the main process of each that runs on this machine, by name."""

    settings: Settings
    processes: list[subprocess.Popen[bytes]]
    stores: dict[str, int]
    log: Path

    def forget_log(self) -> None:
        """A line a request: minutes of load would fill a small disk."""
        os.truncate(self.log, 0)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.processes]


@contextmanager
def serving(database: Settings, *, processes: int = 1, jobs: bool = False) -> Iterator[Server]:
    """`database`: the settings of a filled one. `jobs`: with the job worker inside, where the queue is the bench's own."""
    with tempfile.TemporaryDirectory(prefix="piggybank-bench-") as folder:
        own = msgspec.structs.replace(
            database,
            data_dir=Path(folder),
            listen="127.0.0.1",
            port=store_files.free_ports(1)[0],
            public_url="",
            tls_cert="",
            tls_key="",
            web_processes=processes,
            worker_processes=0 if jobs and processes == 1 else 1,
            rate_service_per_minute=0,
            log_level="info",  # as an installation has it, and as the answers are counted by
            log_format="json",
            simulator_key="",  # no provider: nothing of this may reach one
            revio_key="",
        )
        kept = {name: value for name, value in os.environ.items() if not name.startswith(settings_file.PREFIX)}
        environment = kept | web.environment(own.data_dir) | settings_file.as_environment(own)
        log = Path(folder) / "server.log"
        started = [_start(environment, log) for _ in range(processes)]
        try:
            _wait_ready(own, started, log)
            yield Server(settings=own, processes=started, stores=_stores(own), log=log)
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.communicate()


def _start(environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """In a session of its own, since Ctrl-C is for us; its standard input ends when we do, and so does it."""
    argv = [sys.executable, "-P", "-m", "piggybank.bench.server", "--until-input-ends"]
    with log.open("ab") as output:  # appended to, so that it may be cut while it is written
        return subprocess.Popen(argv, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True)  # noqa: S603 - ourselves


def _wait_ready(settings: Settings, started: list[subprocess.Popen[bytes]], log: Path) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    # every process has to listen, and one answers for all
    while not (
        all(_listens(process.pid, settings.port) for process in started) and web.is_ready(settings.listen, settings.port, tls=False)
    ):
        if time.monotonic() > until or any(process.poll() is not None for process in started):
            said = log.read_text(errors="replace").strip()[-500:]
            raise errors.CannotProceed(what=f"the bench's server did not start: {said}", do="look with: piggybank doctor")
        time.sleep(POLL_S)


def _stores(settings: Settings) -> dict[str, int]:
    """Whoever listens where the settings say, as far as we may see it."""
    try:
        sockets = psutil.net_connections("tcp")
    except psutil.AccessDenied:  # macOS asks for root
        return {}
    listeners = {one.laddr.port: one.pid for one in sockets if one.status == psutil.CONN_LISTEN and one.laddr and one.pid}
    places = {
        "postgres": urlsplit(settings.database_url),
        "valkey": urlsplit(settings.cache_url.partition(",")[0]),
    }  # of a cluster the first
    return {name: listeners[place.port] for name, place in places.items() if place.hostname in LOOPBACK and place.port in listeners}


def _listens(pid: int, port: int) -> bool:
    try:
        sockets = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:  # it has ended, or is not ours to look into yet
        return False
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in sockets)
