"""Logs of everything in the data folder: appended by whoever writes, rotated by the supervisor.

The writers hold their files open in append mode and outlive the supervisor, so a log is copied and then emptied; a pipe or a
renamed file would leave an orphan writing into nowhere.
"""

import json
import os
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

LOG_MAX_BYTES = 10 * 1024 * 1024
LOG_KEPT_FILES = 5
CRASHES = "crashes.log"


def rotate(folder: Path, max_bytes: int = LOG_MAX_BYTES) -> list[str]:
    """Rotate what has grown past the limit; returns the names."""
    rotated = []
    for path in sorted(folder.glob("*.log")):
        if not path.is_symlink() and path.stat().st_size > max_bytes:
            _rotate_one(path)
            rotated.append(path.name)
    return rotated


def _rotate_one(path: Path) -> None:
    making = path.with_name(f"{path.name}.new")
    making.unlink(missing_ok=True)
    status = path.stat()
    copy = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o640)
    source = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        with os.fdopen(copy, "wb") as writer, os.fdopen(source, "r+b") as reader:
            if os.geteuid() == 0:
                os.fchown(writer.fileno(), status.st_uid, status.st_gid)
            shutil.copyfileobj(reader, writer, 1024 * 1024)
            writer.flush()
            reader.truncate(0)
    except OSError:  # a full disk must not push the older ones out, try by try
        making.unlink(missing_ok=True)
        raise
    for number in range(LOG_KEPT_FILES - 1, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        if older.exists():
            older.rename(path.with_name(f"{path.name}.{number + 1}"))
    making.rename(path.with_name(f"{path.name}.1"))


def note_crash(folder: Path, name: str, pid: int, exit_code: int | None) -> None:
    """One line for a process that ended without being asked to."""
    line = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "name": name, "pid": pid, "exit_code": exit_code}
    handle = os.open(folder / CRASHES, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o640)
    with os.fdopen(handle, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def crashes_since(folder: Path, seconds: float) -> list[dict[str, object]]:
    """The noted crashes of the last so many seconds."""
    path = folder / CRASHES
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            crash = json.loads(line)
            if datetime.fromisoformat(crash["at"]).timestamp() > time.time() - seconds:
                found.append(crash)
        except (ValueError, KeyError, TypeError):
            continue
    return found
