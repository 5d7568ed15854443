"""Who runs a data folder: the supervisor's lock and its card."""

import fcntl
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import psutil

import piggybank
from piggybank import errors
from piggybank.appliance import processes
from piggybank.settings import Settings


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor of a folder says about itself, in `run/supervisor.json`."""

    pid: int
    started: float
    argv: list[str]
    since: str
    url: str
    listen: str
    port: int
    tls: bool
    version: str
    state: str  # starting, running, stopping


class Lock:
    """Held for as long as a supervisor works on the folder; the kernel frees it whatever happens."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._handle = -1

    def __enter__(self) -> "Lock":
        """Raises `errors.AlreadyRunning`, which says who has it."""
        self._handle = os.open(self._data_dir / "run" / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            os.close(self._handle)
            card = read_card(self._data_dir)
            known: dict[str, Any] = {"pid": card.pid, "url": card.url, "since": card.since, "state": card.state} if card else {}
            raise errors.AlreadyRunning(data_dir=str(self._data_dir), **known) from cause
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._handle)


def write_card(settings: Settings, state: str) -> None:
    """Say who we are."""
    me = psutil.Process()
    card = Card(
        pid=me.pid,
        started=me.create_time(),
        argv=me.cmdline(),
        since=datetime.fromtimestamp(me.create_time(), UTC).isoformat(timespec="seconds"),
        url=settings.url,
        listen=settings.listen,
        port=settings.port,
        tls=bool(settings.tls_cert),
        version=piggybank.__version__,
        state=state,
    )
    processes.write_file(_card_path(settings.data_dir), json.dumps(msgspec.to_builtins(card)) + "\n", 0o644)


def read_card(data_dir: Path) -> Card | None:
    """The card of a live supervisor; None when there is none, or its pid is another program by now."""
    try:
        card = msgspec.json.decode(_card_path(data_dir).read_bytes(), type=Card)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    return card if runs(card) else None


def runs(card: Card) -> bool:
    """Whether the supervisor of that card still lives, be it only for its last steps."""
    try:
        process = psutil.Process(card.pid)
        started = process.create_time()
        return (
            processes.is_live(process) and abs(started - card.started) < processes.START_TIME_TOLERANCE_S and process.cmdline() == card.argv
        )
    except psutil.Error:
        return False


def remove_card(data_dir: Path) -> None:
    """At the end of a clean stop."""
    _card_path(data_dir).unlink(missing_ok=True)


def _card_path(data_dir: Path) -> Path:
    return data_dir / "run" / "supervisor.json"
