"""The log on its way to the target: PostgreSQL puts closed segments into a spool, and whoever may sign in at the target takes them there.

A segment leaves the spool when it is whole at the target, so a target that is away loses nothing, up to SPOOL_MAX_MIB or to a disk that
runs short: writes must not stop because backups do. What comes then is given up. The log has a hole from there on: what is before it can
be restored, and as soon as the target answers a new base backup begins after it. `doctor` says so meanwhile (HOLE_FILE).

A log is of one cluster, whose identifier names its folder at the target: a cluster that was made anew (from a dump, by pg_upgrade) counts
its segments from the beginning again.
"""

import gzip
import io
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from piggybank import errors
from piggybank.appliance import processes, store_files, system_user
from piggybank.appliance.backups.targets import Target
from piggybank.appliance.backups.timelines import HISTORY, SEGMENT, SEGMENT_BYTES, number
from piggybank.db.storage import MIB, RESERVE_MIB

FOLDER = "wal"
SUFFIX = ".gz"
SPOOL_MAX_MIB = 8 * 1024  # days of a bank that is not busy: what was closed early is mostly zeros, and compressed
SPOOL_LEAVES_MIB = 4 * RESERVE_MIB  # free on the disk; below RESERVE_MIB writes stop
HOLE_FILE = "wal-hole"  # in `stores/`, while the newest base backup cannot be brought to the end of the log


def spool_of(data_dir: Path) -> Path:
    """Where segments wait."""
    return data_dir / "stores" / store_files.WAL_SPOOL


def system_of(cluster: Path) -> str:
    """The identifier of a cluster, whether it runs or not: the first eight bytes of its control file."""
    with os.fdopen(system_user.open_file(cluster / "global" / "pg_control", os.O_RDONLY), "rb") as file:
        return str(struct.unpack("<Q", file.read(8))[0])


def folder_of(system: str) -> str:
    """Where the log of that cluster lies at a target."""
    return f"{FOLDER}/{system}"


def waiting(data_dir: Path) -> list[Path]:
    """The segments that are not at the target yet, the oldest first."""
    spool = spool_of(data_dir)
    return sorted(path for path in spool.iterdir() if not path.name.startswith(".")) if spool.is_dir() else []


def ship(
    data_dir: Path, target: Target, system: str, known: set[str], done: Callable[[str, datetime], None], most: int | None = None
) -> int:
    """Take what waits to the target, the `most` oldest; `known` names are there already. Calls `done` once with the newest segment;
    answers how many.

    Raises `errors.CannotProceed` where the target has another file of that name: two servers write to one target.
    """
    shipped, newest = 0, None
    for path in waiting(data_dir)[:most]:
        name = segment(path.name)
        if SEGMENT.fullmatch(name) or HISTORY.fullmatch(name):  # what is left are labels of backups, which theirs hold
            with os.fdopen(system_user.open_file(path, os.O_RDONLY), "rb") as file:  # the spool is the system user's
                content = file.read()
            _put(target, f"{folder_of(system)}/{name}{SUFFIX}", content, known)
            if SEGMENT.fullmatch(name):
                newest = (name, datetime.fromtimestamp(path.stat().st_mtime, UTC))
        path.unlink()
        shipped += 1
    if newest is not None:
        done(*newest)
    return shipped


def _put(target: Target, name: str, content: bytes, known: set[str]) -> None:
    if name in known:
        with target.open(name) as there:
            if gzip.decompress(there.read()) == gzip.decompress(content):
                return
        raise errors.CannotProceed(
            what=f"{target.shown} has another {name}: a second server archives there",
            do="stop that one, or give it a target of its own; then piggybank backup create",
        )
    target.put(name, io.BytesIO(content))
    known.add(name)


def give_up_beyond(data_dir: Path, *, max_mib: int = SPOOL_MAX_MIB, leaves_mib: int = SPOOL_LEAVES_MIB) -> int:
    """Delete the newest of what waits where the spool is larger than it may be, or the disk runs short; answers how many segments."""
    # a history takes no room, and without it nothing of a timeline can be restored
    found = [path for path in waiting(data_dir) if not HISTORY.fullmatch(segment(path.name))]
    size = sum(path.stat().st_size for path in found)
    gone = 0
    while found and (size > max_mib * MIB or shutil.disk_usage(spool_of(data_dir)).free < leaves_mib * MIB):
        path = found.pop()
        size -= path.stat().st_size
        path.unlink()
        gone += 1
    if gone:
        last = f"after {segment(found[-1].name)}" if found else "after what is at the target"
        note_hole(data_dir, f"the spool was full, and the log was given up {last} ({datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ})")
    return gone


def note_hole(data_dir: Path, why: str) -> None:
    """The newest base backup cannot be brought to the end of the log; empty: it can."""
    path = data_dir / "stores" / HOLE_FILE
    if why:
        processes.write_file(path, why + "\n", 0o640, system_user.ours(system_user.chosen()))
    else:
        path.unlink(missing_ok=True)


def noted_hole(data_dir: Path) -> str:
    """Why it cannot; empty: it can."""
    try:
        return (data_dir / "stores" / HOLE_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def needed(names: Iterable[str], first_wal: str) -> list[str]:
    """Of a cluster's names those that a base backup which begins with `first_wal` may need: every later segment of any history."""
    return [name for name in names if not SEGMENT.fullmatch(segment(name)) or number(segment(name)) >= number(first_wal)]


def check_whole(path: Path) -> None:
    """A fetched file. Raises `errors.CannotProceed` where it is cut off or altered: PostgreSQL would take that for the log's end."""
    size = 0
    try:
        with gzip.open(path) as plain:
            while chunk := plain.read(MIB):
                size += len(chunk)
    except (OSError, EOFError, zlib.error) as cause:
        raise damaged(path.name, str(cause)) from cause
    if SEGMENT.fullmatch(segment(path.name)) and size != SEGMENT_BYTES:
        raise damaged(path.name, f"{size} bytes of {SEGMENT_BYTES}")


def damaged(name: str, why: str) -> errors.CannotProceed:
    """What to say of such a file of the log."""
    return errors.CannotProceed(
        what=f"{segment(name)} of the log is damaged at the target: {why}",
        do="--until-hole restores what was committed before it; or take a later backup (piggybank backup list)",
    )


def segment(name: str) -> str:
    """The segment that a file of the target, or of the spool, is."""
    return name.rpartition("/")[2].removesuffix(SUFFIX)


def names_of(target: Target, system: str) -> Sequence[str]:
    """What the target has of a cluster's log."""
    return target.names(folder_of(system))
