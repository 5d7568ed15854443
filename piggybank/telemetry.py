"""Logs: one JSON object a line, without secrets, tokens, e-mail addresses or bodies.

What must not be read is taken out of the finished line, so that it cannot matter how it got in: a field of ours, the text of an
exception, a library's own record. Nothing here logs a request's body, and tracebacks carry no local variables.
"""

import asyncio
import atexit
import logging
import re
import sys
import threading
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec
import structlog
from structlog.typing import FilteringBoundLogger, Processor, WrappedLogger

GATHER_S = 0.05
REDACTED = "[redacted]"
TEXT_MAX_CHARACTERS = 16_000  # a longer text in a line is cut: a runaway message must not fill the disk

_SECRET_FIELDS = frozenset({"authorization", "body", "cookie", "email", "new_password", "password", "secret", "token"})
_SECRETS = (
    (re.compile(r"\bpb([skl])_[\w-]{8,}"), rf"pb\1_{REDACTED}"),
    (re.compile(r"://[^/\s\"'@]*@"), f"://{REDACTED}@"),
    (re.compile(r"(?i)\bbearer\s+[^\s\"',]+"), f"Bearer {REDACTED}"),
    # looked for where a word begins only: else a long word without an @ is read once for each of its letters
    (re.compile(r"(?<![^\s\"'\\<>@:/,;()=\[\]])[^\s\"'\\<>@:/,;()=\[\]]+@[^\s\"'\\<>@:/,;()=\[\]]+"), REDACTED),
)
_QUIET = ("asyncio", "sqlalchemy.engine", "saq", "httpx")  # libraries that tell more than we want at `info`
_NOISY_BELOW = logging.WARNING
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO}
_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}
_gathers = False


class _Lines:
    """Where finished lines go. Under `gather` those that can wait are written together: a write for each was a sixth of a balance read.

    A warning and worse goes out at once, with what waited before it: the process may be about to end.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()  # worker threads log, too
        self._waiting: list[str] = []

    def info(self, line: str) -> None:
        loop = _gathering_loop()
        with self._lock:
            self._waiting.append(line + "\n")
            if loop is not None and len(self._waiting) == 1:
                loop.call_later(GATHER_S, self.flush)
        if loop is None:
            self.flush()

    def warning(self, line: str) -> None:
        with self._lock:
            self._waiting.append(line + "\n")
        self.flush()

    def flush(self) -> None:
        with self._lock:
            lines, self._waiting = self._waiting, []  # a write that fails loses these, and none that come later
            if lines:
                self._stream.write("".join(lines))
                self._stream.flush()

    debug = msg = info
    error = critical = exception = fatal = warning


class _Ours(logging.StreamHandler[TextIO]):
    """The handler that `configure` replaces when it is called again."""


def configure(level: str, form: str, stream: TextIO | None = None) -> None:
    """Send our lines and every library's to `stream` (standard error), as `json` or for a person at a `console`."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    target = sys.stderr if stream is None else stream
    lines, render = _Lines(target), _json if form == "json" else _console
    _sink.lines, _sink.render, _sink.threshold = lines, render, threshold
    atexit.register(lines.flush)
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_secret_fields,
    ]
    last: list[Processor] = [structlog.processors.format_exc_info, _cut, render]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=False,
    )
    handler = _Ours(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [*(other for other in root.handlers if not isinstance(other, _Ours)), handler]
    root.setLevel(threshold)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(threshold, _NOISY_BELOW))


def record(level: str, event: str, **fields: Any) -> None:
    """A line at `info` or `debug` without structlog's chain: one for every request, where that took a twelfth of a deposit.

    Fields are ours: none is secret by its name; the finished line is redacted like any other.
    """
    if _LEVELS[level] >= _sink.threshold:
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        line = _sink.render(None, level, {**fields, "event": event, "level": level, "timestamp": now})
        _sink.lines.info(line)


def gather() -> None:
    """From now on a line that can wait does, for GATHER_S, where an event loop runs: a busy server writes many at once."""
    global _gathers  # noqa: PLW0603 - one switch for one process
    _gathers = True


def _gathering_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop() if _gathers else None
    except RuntimeError:  # another thread, or before the loop
        return None


def logger(room: str) -> FilteringBoundLogger:
    """The logger of a part of the house; it follows `configure`, whenever that is called."""
    bound: FilteringBoundLogger = structlog.get_logger(room=room)
    return bound


def redact(text: str) -> str:
    """`text` without tokens, e-mail addresses and passwords in URLs."""
    if "@" in text or "pb" in text or "earer" in text:  # nearly every line ends here
        for pattern, replacement in _SECRETS:
            text = pattern.sub(replacement, text)
    return text


def _without_secret_fields(_: WrappedLogger, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name in _SECRET_FIELDS & event.keys():
        event[name] = REDACTED
    return event


def _cut(_: WrappedLogger, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name in ("event", "exception"):
        text = event.get(name, "")
        if len(text) > TEXT_MAX_CHARACTERS:
            event[name] = text[: TEXT_MAX_CHARACTERS // 2] + " [cut] " + text[-TEXT_MAX_CHARACTERS // 2 :]  # both ends tell most
    return event


def _json(_: WrappedLogger, __: str, event: MutableMapping[str, Any]) -> str:
    return redact(msgspec.json.encode(event, enc_hook=str).decode())


def _console(_: WrappedLogger, __: str, event: MutableMapping[str, Any]) -> str:
    trace = "".join(f"\n    {_escaped(line)}" for line in event.pop("exception", "").split("\n") if line)
    head = f"{event.pop('timestamp')} {event.pop('level'):7} {_escaped(event.pop('event'))}"
    rest = " ".join(f"{name}={_escaped(value)}" for name, value in event.items())
    return redact(f"{head}  {rest}{trace}")


def _escaped(value: object) -> str:
    """Without line breaks and what else moves a terminal: nobody who is named in a line may begin one of their own."""
    return str(value).translate(_CONTROLS)


class _Sink(msgspec.Struct):
    """Where `record` writes; `configure` sets it."""

    lines: _Lines
    render: Callable[[WrappedLogger, str, MutableMapping[str, Any]], str]
    threshold: int


_sink = _Sink(_Lines(sys.stderr), _json, logging.INFO)
