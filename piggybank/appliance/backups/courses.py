"""The way of a restore through the log at a target: which files it takes, whether one is missing, and up to when it comes.

PostgreSQL takes a missing file for the log's end, so who restores asks here first where the end is.
"""

import gzip
import io
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from msgspec import Struct

from piggybank.appliance import system_user
from piggybank.appliance.backups import timelines, wal
from piggybank.appliance.backups.manifests import Manifest
from piggybank.appliance.backups.targets import CHUNK_BYTES, Target
from piggybank.appliance.backups.timelines import Ancestry

WALDUMP_TIMEOUT_S = 120
_COMMIT = re.compile(r" COMMIT (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?) UTC")


class Course(Struct, frozen=True, kw_only=True):
    """`files`: by their names at the target, histories first; `segments`: of them, in order, up to the first that is missing."""

    files: list[str] = []
    segments: list[str] = []
    newest: str = ""  # segment; whoever came less far has not replayed all
    missing: str = ""  # the first file that is not there, although what comes after it is; empty: none
    is_given_up: bool = False  # the backup is of a history that was left before it was made: no log brings it further


def course(target: Target, manifest: Manifest, names: Iterable[str]) -> Course:
    """Of a base backup; `names` are what the target has of its cluster's log. Raises `errors.CannotProceed` where a history is damaged."""
    there = {wal.segment(name): name for name in names}
    histories = [word for word in sorted(there) if timelines.HISTORY.fullmatch(word)]
    began = timelines.timeline_of(manifest.next_wal or manifest.first_wal)
    timeline = timelines.newest_of(began, there)
    lineage = _lineage(target, timeline, there.get(timelines.history_of(timeline), ""))
    if manifest.next_wal and not lineage.has(manifest.next_wal):
        return Course(is_given_up=True)
    segments = [word for word in there if timelines.SEGMENT.fullmatch(word)]
    ours = {
        count: word for word in segments if lineage.has(word) and (count := timelines.number(word)) >= timelines.number(manifest.first_wal)
    }
    beyond = max(map(timelines.timeline_of, (*segments, *histories)), default=timeline)
    missing = timelines.history_of(timeline + 1) if beyond > timeline else ""
    newest = max(ours, default=0)
    first = timelines.number(manifest.next_wal) if manifest.next_wal else min(ours, default=0)
    whole_to = next((count for count in range(first, newest + 1) if count not in ours), None) if ours else None
    if whole_to is not None:
        missing = lineage.name_of(whole_to)
    return Course(
        files=[*(there[word] for word in histories), *(there[ours[count]] for count in sorted(ours))],
        segments=[there[ours[count]] for count in sorted(ours) if whole_to is None or count < whole_to],
        newest=ours.get(newest, ""),
        missing=missing,
    )


def last_commit(target: Target, found: Course, programs: Path) -> datetime | None:
    """When the last was made that a restore comes to; None: there is none after the backup. `programs`: those of its PostgreSQL.

    Raises `errors.CannotProceed` where the segment that has it is damaged.
    """
    program, user = programs / "pg_waldump", system_user.chosen()
    with tempfile.TemporaryDirectory(prefix="piggybank-") as folder:
        system_user.give(Path(folder), user, 0o700)
        for name in reversed(found.segments):
            path = Path(folder) / wal.segment(name)
            with path.open("wb") as file:
                _unpack(target, name, file)
            system_user.give(path, user, 0o600)
            said = system_user.run(
                user, str(program), "--rmgr=Transaction", str(path), check=False, environment={"TZ": "UTC"}, timeout_s=WALDUMP_TIMEOUT_S
            )  # it ends with 1 where the log does
            path.unlink()
            if commits := _COMMIT.findall(said.stdout):
                return datetime.fromisoformat(commits[-1]).replace(tzinfo=UTC)
    return None


def _unpack(target: Target, name: str, file: IO[bytes]) -> None:
    try:
        with target.open(name) as source, gzip.open(source) as plain:
            shutil.copyfileobj(plain, file, CHUNK_BYTES)
    except (EOFError, zlib.error, gzip.BadGzipFile) as cause:
        raise wal.damaged(name, str(cause)) from cause


def _lineage(target: Target, timeline: int, name: str) -> Ancestry:
    """`name`: of its history; empty: there is none, as of the first."""
    text = io.BytesIO()
    if name:
        _unpack(target, name, text)
    try:
        return Ancestry(timeline, text.getvalue().decode("ascii"))
    except ValueError as cause:
        raise wal.damaged(name, "it is no history") from cause
