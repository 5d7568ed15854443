"""Where a change fails, its files go back: `up` must not go on, later, with what did not come up.

Written in place, file by file: containers have these folders and files mounted, and would not see what takes their place.
"""

import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from installer.program import Failed

ENDED_BY = (signal.SIGTERM, signal.SIGHUP)  # as when the connection to this machine is lost


@contextmanager
def unless_done(paths: Iterable[Path], said: str) -> Iterator[None]:
    """These files are as they were where the block does not end well, which is then said."""
    before = {path: (path.read_bytes(), path.stat().st_mode & 0o777) if path.is_file() else None for path in paths}
    handlers = {number: signal.signal(number, _end) for number in ENDED_BY}
    try:
        yield
    except BaseException as cause:
        for path, was in before.items():
            _put_back(path, was)
        if isinstance(cause, Exception):
            raise Failed(f"{cause}\n  {said}") from cause
        print(f"\n  {said}", file=sys.stderr)
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _put_back(path: Path, was: tuple[bytes, int] | None) -> None:
    if was is None:
        path.unlink(missing_ok=True)
        return
    content, mode = was
    if not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=mode)
        path.write_bytes(content)
    path.chmod(mode)


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)
