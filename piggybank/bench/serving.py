"""The bench's server: the shipped one with the routes to compare with, in a folder of its own, on a free port of loopback."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from piggybank import errors
from piggybank import settings as settings_file
from piggybank.appliance import store_files, web
from piggybank.settings import Settings

START_TIMEOUT_S = 60
POLL_S = 0.1


class Server(Struct, frozen=True, kw_only=True):
    """Processes of the bench's server, on one port."""

    settings: Settings
    processes: list[subprocess.Popen[bytes]]

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
        with log.open("wb") as output:
            argv = [sys.executable, "-P", "-m", "piggybank.bench.server"]
            started = [subprocess.Popen(argv, env=environment, stdout=output, stderr=output) for _ in range(processes)]  # noqa: S603 - ourselves
        try:
            _wait_ready(own, started, log)
            yield Server(settings=own, processes=started)
        finally:
            for process in started:
                process.send_signal(signal.SIGTERM)
            for process in started:
                process.wait()


def _wait_ready(settings: Settings, started: list[subprocess.Popen[bytes]], log: Path) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    # every process has to listen: one answers for all, so the log is asked, too
    while not (web.is_ready(settings.listen, settings.port, tls=False) and log.read_text().count('"event":"started"') >= len(started)):
        if time.monotonic() > until or any(process.poll() is not None for process in started):
            said = log.read_text().strip()[-500:]
            raise errors.CannotProceed(what=f"the bench's server did not start: {said}", do="look with: piggybank doctor")
        time.sleep(POLL_S)
