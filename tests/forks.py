"""Processes of ours whose imports are paid for once: a fork server has them, each `start` is a process of its own.

A start of `python -m piggybank serve` is 1.4 s of CPU, of which 1 s is importing; a test run starts some two hundred. What a
process does, its environment, its signals and its end are those of the command. `appliance`, `installer` and `images` start real ones.
"""

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

from piggybank.cli import main
from piggybank.settings import COUNTING_FOLDER

PRELOADED = [
    "tests.forks",
    "piggybank.app",
    "piggybank.worker",
    "piggybank.simulator",
    "piggybank.cli.serving",
    "piggybank.cli.people",
    "piggybank.cli.ledger",
]
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(PRELOADED)


class Forked:
    """What `subprocess.Popen` has, as far as tests use it."""

    def __init__(self, process: BaseProcess, words: tuple[str, ...]) -> None:
        assert process.pid is not None
        self._process = process
        self._words = words
        self.pid = process.pid

    def poll(self) -> int | None:
        """The exit code, or None while it runs; of a signal, its negative number."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The same when it has ended. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        ended = self._process.exitcode
        if ended is None:
            raise subprocess.TimeoutExpired(self._words, timeout or 0)
        return ended

    def send_signal(self, number: signal.Signals) -> None:
        """Send it, unless the process has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def start(words: tuple[str, ...], environment: Mapping[str, str], output: Path) -> Forked:
    """Start `piggybank ..`, in a session of its own, with both its outputs at the end of `output`."""
    return _start(words, environment, Path(os.devnull), output, output)


def run(words: tuple[str, ...], environment: Mapping[str, str], given: str, timeout: float) -> "subprocess.CompletedProcess[str]":
    """Run `piggybank ..` to its end. Raises subprocess.TimeoutExpired."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").write_text(given)
        process = _start(words, environment, folder / "in", folder / "out", folder / "err")
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(words, code, (folder / "out").read_text(), (folder / "err").read_text())


def _start(words: tuple[str, ...], environment: Mapping[str, str], given: Path, output: Path, problems: Path) -> Forked:
    folder = os.environ.pop(COUNTING_FOLDER, None)  # prometheus_client reads that when it is imported: not in the server of all
    try:
        forkserver.ensure_running()
    finally:
        os.environ.update({} if folder is None else {COUNTING_FOLDER: folder})
    process = _server.Process(target=_become, args=(words, dict(environment), given, output, problems))
    process.start()
    return Forked(process, words)


def _become(words: tuple[str, ...], environment: dict[str, str], given: Path, output: Path, problems: Path) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["piggybank", *words]
    appending = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, path, flags in ((0, given, os.O_RDONLY), (1, output, appending), (2, problems, appending)):
        opened = os.open(path, flags, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - multiprocessing has closed the other for good
    try:
        main(prog_name="piggybank")
    finally:
        atexit._run_exitfuncs()
