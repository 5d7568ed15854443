"""One long-running process: start it, find it again, stop it.

A process outlives its supervisor, so who it is stands in `run/<name>.json`: pid, start time and command line. All three must match
before anything is adopted or signalled; a pid alone may be another program by now.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import psutil

from piggybank.appliance import system_user
from piggybank.appliance.system_user import SystemUser

START_TIME_TOLERANCE_S = 2.0  # the kernel counts from boot, and the clock may have been set since
LOG_MODE = 0o640


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """What to run; `name` is unique in the data folder."""

    name: str
    argv: tuple[str, ...]
    run_dir: Path
    log: Path
    user: SystemUser | None = None
    low_ports: bool = False  # may listen below 1024
    environment: Mapping[str, str] = {}
    mark: str = ""  # of what it was started with; another mark: it must be started again to see a change
    alone: bool = False  # no other program has its command line, whose last word is a folder or file of its own
    stop_signal: int = signal.SIGTERM
    kill_signal: int = signal.SIGKILL
    stop_timeout_s: float = 30.0

    @property
    def record(self) -> Path:
        return self.run_dir / f"{self.name}.json"


class Running:
    """A live process: our own child, or one adopted from a supervisor that died."""

    def __init__(self, program: Program, process: psutil.Process, child: subprocess.Popen[bytes] | None) -> None:
        self.program = program
        self.pid = process.pid
        self.adopted = child is None
        self.since = process.create_time()
        self.mark = program.mark
        self._process = process
        self._child = child

    def alive(self) -> bool:
        """False once it ended (a zombie that nobody reaps has ended, too)."""
        if self._child is not None:
            return self._child.poll() is None
        return is_live(self._process)

    @property
    def exit_code(self) -> int | None:
        return None if self._child is None else self._child.poll()

    def signal(self, number: int) -> None:
        """Send a signal if it is still that process."""
        if self.alive():
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                self._process.send_signal(number)

    def wait(self, timeout_s: float) -> bool:
        """True when it ended in time."""
        until = time.monotonic() + timeout_s
        while self.alive():
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    def stop(self) -> bool:
        """Ask, wait, then force. True when asking was enough."""
        self.signal(self.program.stop_signal)
        gently = self.wait(self.program.stop_timeout_s)
        if not gently:
            self.signal(self.program.kill_signal)
            if not self.wait(10):
                self.signal(signal.SIGKILL)
                self.wait(10)
        with contextlib.suppress(OSError):  # a record that stays is of a dead process
            if (known := look(self.program)) is None or known.pid == self.pid:  # not of who was started beside it
                self.program.record.unlink()
        return gently

    def write_record(self) -> None:
        """Say who it is: what `look` finds."""
        record = {"pid": self.pid, "started": self.since, "argv": self._process.cmdline(), "mark": self.mark}
        write_file(self.program.record, json.dumps(record) + "\n")  # ours: it says whom we may signal


class _Child(subprocess.Popen[bytes]):
    """A child that may outlive us on purpose, which Popen's destructor takes for a mistake."""

    def __del__(self) -> None:
        pass


def start(program: Program) -> Running:
    """Start it in a session of its own: a Ctrl-C at the terminal is the supervisor's to pass on."""
    log = system_user.open_file(program.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, LOG_MODE)
    try:
        system_user.give(log, program.user, LOG_MODE)
        child = _Child(  # our own programs
            program.argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            umask=0o077,
            env={**os.environ, **program.environment},
            **system_user.as_user(program.user, low_ports=program.low_ports),
        )
    finally:
        os.close(log)
    running = Running(program, psutil.Process(child.pid), child)
    record = {"pid": child.pid, "started": running.since, "argv": list(program.argv), "mark": program.mark}
    try:
        write_file(program.record, json.dumps(record) + "\n")
    except OSError:  # without a record nobody would find it again
        running.stop()
        raise
    return running


def find(program: Program) -> Running | None:
    """`look`, and a record of a dead process, or of a pid that is now another program, is cleared.

    One that is `alone` is found without a record, too: its supervisor was killed before that was written.
    """
    found = look(program) or (_like(program) if program.alone else None)
    if found is None:
        program.record.unlink(missing_ok=True)
    return found


def look(program: Program) -> Running | None:
    """The live process of that name, whoever started it."""
    try:
        record = json.loads(program.record.read_text(encoding="utf-8"))
        process = psutil.Process(int(record["pid"]))
        same = (
            is_live(process)
            and abs(process.create_time() - float(record["started"])) < START_TIME_TOLERANCE_S
            and process.cmdline() == list(record["argv"])  # not program.argv: an upgrade may have moved the program
        )
        found = Running(program, process, None) if same else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, psutil.Error):
        return None
    if found is not None:
        found.mark = str(record.get("mark", ""))
    return found


def _like(program: Program) -> Running | None:
    """The first of that user with that command line, wherever the program itself lies; its children may have it for a moment.

    Anybody may write such a line: who runs as another user is none of ours.
    """
    if not Path(program.argv[-1]).exists():  # its folder, or its configuration
        return None
    uid = os.geteuid() if program.user is None else program.user.uid

    def words(argv: Sequence[str]) -> tuple[str, ...]:
        return (Path(argv[0]).name, *argv[1:]) if argv else ()

    alike = [
        each
        for each in psutil.process_iter(["cmdline", "uids"])
        if words(each.info["cmdline"] or ()) == words(program.argv) and (each.info["uids"] or [None])[0] == uid and is_live(each)
    ]
    try:
        found = min((Running(program, each, None) for each in alike), key=lambda each: (each.since, each.pid), default=None)
        if found is not None:
            with contextlib.suppress(OSError):  # it is found again without
                found.write_record()
    except psutil.NoSuchProcess:
        return None
    return found


def is_live(process: psutil.Process) -> bool:
    """Running, and not a zombie."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def anybody_in(folder: Path) -> bool:
    """True when some live process works in that folder: PostgreSQL's processes all do."""
    return bool(in_folder(folder))


def in_folder(folder: Path) -> list[psutil.Process]:
    """The live processes that work in that folder."""
    return [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(folder) and is_live(process)]


def with_word(program: str, words: set[str]) -> list[psutil.Process]:
    """The live processes of that program that were started with one of the words."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        argv = process.info["cmdline"] or [""]
        if Path(argv[0]).name == program and words.intersection(argv) and is_live(process):
            found.append(process)
    return found


def end(find: Callable[[], list[psutil.Process]], timeout_s: float) -> list[psutil.Process]:
    """Kill what is found until nothing is; returns what stays."""
    until = time.monotonic() + timeout_s
    while (left := find()) and time.monotonic() < until:
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.05)
    return left


def write_file(path: Path, text: str, mode: int = 0o600, user: SystemUser | None = None) -> None:
    """Whole or not at all, and on the disk before it counts."""
    making = path.with_name(path.name + ".new")
    making.unlink(missing_ok=True)
    handle = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        system_user.give(file.fileno(), user, mode)
        os.fsync(file.fileno())
    making.rename(path)
