"""The log on its way to the target: PostgreSQL puts closed segments into a spool, and whoever may sign in at the target takes them there.

A segment leaves the spool when it is whole at the target, so a target that is away loses nothing: the spool grows meanwhile, `doctor`
says so, and PostgreSQL keeps what the spool cannot take.
"""

import gzip
import io
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from piggybank import errors
from piggybank.appliance import store_files, system_user
from piggybank.appliance.backups.targets import Target

FOLDER = "wal"
SUFFIX = ".gz"
LEVEL = 1  # most of a segment that was closed early is zeros
_SEGMENT = re.compile(r"[0-9A-F]{24}")
_KEPT = re.compile(r"[0-9A-F]{24}|[0-9A-F]{8}\.history")


def spool_of(data_dir: Path) -> Path:
    """Where segments wait."""
    return data_dir / "stores" / store_files.WAL_SPOOL


def waiting(data_dir: Path) -> list[Path]:
    """The segments that are not at the target yet, the oldest first."""
    spool = spool_of(data_dir)
    return sorted(path for path in spool.iterdir() if not path.name.startswith(".")) if spool.is_dir() else []


def ship(data_dir: Path, target: Target, known: set[str], done: Callable[[str, datetime], None]) -> int:
    """Take what waits to the target; `known` names are there already. Calls `done` once with the newest segment; answers how many.

    Raises `errors.CannotProceed` where the target has another file of that name: two servers write to one target.
    """
    shipped, newest = 0, None
    for path in waiting(data_dir):
        if _KEPT.fullmatch(path.name):  # what is left are labels of backups, which theirs hold
            with os.fdopen(system_user.open_file(path, os.O_RDONLY), "rb") as file:  # the spool is the system user's
                content = file.read()
            _put(target, f"{FOLDER}/{path.name}{SUFFIX}", content, known)
            if _SEGMENT.fullmatch(path.name):
                newest = (path.name, datetime.fromtimestamp(path.stat().st_mtime, UTC))
        path.unlink()
        shipped += 1
    if newest is not None:
        done(*newest)
    return shipped


def _put(target: Target, name: str, content: bytes, known: set[str]) -> None:
    if name in known:
        with target.open(name) as there:
            if gzip.decompress(there.read()) == content:
                return
        raise errors.CannotProceed(
            what=f"{target.shown} has another {name}: a second server archives there",
            do="stop that one, or give it a target of its own; then piggybank backup create",
        )
    target.put(name, io.BytesIO(gzip.compress(content, LEVEL)))
    known.add(name)


def needed(names: list[str], first_wal: str) -> list[str]:
    """Of the target's names those that a base backup which begins with `first_wal` may need: every later segment of any history."""
    return [name for name in names if not _SEGMENT.fullmatch(segment(name)) or position(segment(name)) >= position(first_wal)]


def segment(name: str) -> str:
    """The segment that a file of the target is."""
    return name.removeprefix(f"{FOLDER}/").removesuffix(SUFFIX)


def position(name: str) -> str:
    """Where a segment lies, whatever its timeline."""
    return name[8:]
