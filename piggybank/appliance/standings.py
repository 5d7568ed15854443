"""How far the log of a PostgreSQL server goes, and in which history: what is compared before another one takes over."""

from typing import NamedTuple

# Whether all that was received is replayed, too: only then is the timeline the one of what was received last. And whether its own files are
# read to their end: a standby asks its primary for more only then, and before that it may have more on its disk than it says.
RECOVERING = (
    "SELECT pg_is_in_recovery(), coalesce(pg_last_wal_replay_lsn() >= pg_last_wal_receive_lsn(), true),"
    " NOT pg_is_in_recovery() OR pg_last_wal_receive_lsn() IS NOT NULL"
)
# The position and its timeline at one moment. Of a standby: how far it replayed or received, whichever is more, since after a start the
# receiver begins with a whole segment, behind what was replayed long ago.
IDENTIFY = "IDENTIFY_SYSTEM"


class Standing(NamedTuple):
    """What one server says of itself."""

    name: str
    in_recovery: bool
    replayed: bool  # all that it received
    read: bool  # its own files, to their end: `received` is all that it has
    timeline: int  # each promotion begins one: positions say something only within the same
    received: int  # bytes of WAL since the beginning, on its disk


class Ended(NamedTuple):
    """What the files of a server say that does not answer."""

    timeline: int  # 0: nothing can be read
    at: int | None  # where the log of a primary ends, in bytes; None: it was not stopped in order


def standing(name: str, recovering: str, identified: str) -> Standing:
    """By the answers to RECOVERING and IDENTIFY."""
    in_recovery, replayed, read = recovering.strip().split("|")
    _, timeline, position, *_ = identified.strip().split("|")
    return Standing(name, in_recovery == "t", replayed == "t", read == "t", int(timeline), _bytes(position))


def ended(control_data: str) -> Ended:
    """By what pg_controldata prints."""
    said = {key: value.strip() for key, value in (line.split(":", 1) for line in control_data.splitlines() if ":" in line)}
    # the second is newer from a promotion until the first checkpoint, and 0 afterwards
    timeline = max(int(said["Latest checkpoint's TimeLineID"]), int(said["Min recovery ending loc's timeline"]))
    in_order = said["Database cluster state"] == "shut down"  # not `in recovery`: then its log goes on beyond the checkpoint
    return Ended(timeline, _bytes(said["Latest checkpoint location"]) if in_order else None)


def _bytes(position: str) -> int:
    high, _, low = position.partition("/")
    return (int(high, 16) << 32) + int(low, 16)
