"""Who takes over archives what the old primary had not archived any more.

`archive_mode` is `on`: a standby marks what it gets as archived, since that is its primary's work. What the primary had closed and not
archived when it was lost would so be archived by nobody, and no restore comes over that hole, although all of it is on the standby. With
`always` nothing would be missing, but every standby would archive everything again. So, before a promotion, the marks are taken away of
what the database does not know to be at the backup target; what is there all the same is compared with it, and put there once.

A timeline has the next free number, as far as the server knows. Where a loss is accepted it may never have heard of one that another
server here began and archived; two of one number would be one log in which nobody finds the way. So it is told of all first.
"""

import os
from contextlib import suppress
from pathlib import Path
from subprocess import SubprocessError

from piggybank import errors
from piggybank.appliance import processes, store_files, system_user, topology
from piggybank.appliance.backups import timelines
from piggybank.appliance.backups.timelines import Ancestry
from piggybank.appliance.postgres import Postgres

DONE, READY = ".done", ".ready"  # PostgreSQL's marks, in `pg_wal/archive_status`
# before the first migration there is none
_NEWEST = "SELECT $$SELECT name FROM archived_wal$$ WHERE to_regclass('archived_wal') IS NOT NULL \\gexec\n"


def prepare(postgres: Postgres, name: str) -> None:
    """The promotion of the standby `name`, whose primary is given up.

    A log that cannot be cared for keeps nobody from taking over: a hole is seen later, and a new base backup begins after it.
    """
    for work in (tell_of_timelines, take_on):
        with suppress(errors.Error, OSError, ValueError, SubprocessError):
            work(postgres, name)


def tell_of_timelines(postgres: Postgres, name: str) -> None:
    """To the standby `name`: of all that any server here has heard of."""
    for other in topology.NODES:
        for path in sorted((postgres.dir / other / "pg_wal").glob("*.history")):
            place = postgres.dir / name / "pg_wal" / path.name
            if not place.exists():
                with os.fdopen(system_user.open_file(path, os.O_RDONLY), encoding="ascii") as file:
                    processes.write_file(place, file.read(), 0o600, postgres.user)


def take_on(postgres: Postgres, name: str) -> None:
    """Mark what the standby `name` is to archive when it is promoted."""
    log = postgres.dir / name / "pg_wal"
    standing = postgres.look(name)
    newest = postgres.psql(_NEWEST, name, store_files.DATABASE).strip()
    lineage = Ancestry(standing.timeline, _history(log, standing.timeline))
    for mark in sorted((log / "archive_status").glob(f"*{DONE}")):
        is_history, is_segment = timelines.HISTORY.fullmatch(mark.stem), timelines.SEGMENT.fullmatch(mark.stem)
        if is_history or (is_segment and lineage.has(mark.stem) and _is_missing(mark.stem, newest, standing.received)):
            with suppress(FileNotFoundError):  # it was not needed any more
                mark.rename(mark.with_suffix(READY))


def _is_missing(segment: str, newest: str, received: int) -> bool:
    """Whole, and not known to be at the target."""
    is_whole = timelines.begins_at(segment) + timelines.SEGMENT_BYTES <= received
    return is_whole and (not newest or timelines.number(segment) > timelines.number(newest))


def _history(log: Path, timeline: int) -> str:
    try:
        return (log / timelines.history_of(timeline)).read_text(encoding="ascii")
    except FileNotFoundError:  # the first has none
        return ""
