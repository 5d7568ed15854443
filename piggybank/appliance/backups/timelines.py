"""Timelines of a log: each promotion begins one, and its segments have names of its own, while their numbers go on.

Of the segment in which two timelines part there may be two files: the old one's, with what the new one does not have, and the one that
counts. A `.history` says from where the ancestors of a timeline reach.
"""

import re
from collections.abc import Iterable

SEGMENT_BYTES = 16 * 1024 * 1024
SEGMENTS_OF_A_FILE = 0x100  # that the middle part of a name counts
SEGMENT = re.compile(r"[0-9A-F]{24}")
HISTORY = re.compile(r"([0-9A-F]{8})\.history")


class Ancestry:
    """One timeline, and those that it came from. Raises ValueError for what is no history."""

    def __init__(self, timeline: int, history: str = "") -> None:
        self.timeline = timeline
        self._begins: list[tuple[int, int]] = []  # the number of the first segment of each, the oldest first
        first = 0
        for line in history.splitlines():
            if line.strip() and not line.startswith("#"):
                ancestor, position, *_ = line.split()
                self._begins.append((first, int(ancestor)))
                first = bytes_of(position) // SEGMENT_BYTES
        self._begins.append((first, timeline))

    def name_of(self, count: int) -> str:
        """The segment of that number in this history."""
        timeline = [timeline for first, timeline in self._begins if first <= count][-1]
        return f"{timeline:08X}{count // SEGMENTS_OF_A_FILE:08X}{count % SEGMENTS_OF_A_FILE:08X}"

    def has(self, name: str) -> bool:
        """Whether that segment is one of it."""
        return self.name_of(number(name)) == name


def history_of(timeline: int) -> str:
    """The name of the file that says where a timeline came from."""
    return f"{timeline:08X}.history"


def timeline_of(name: str) -> int:
    """Of a segment or a history."""
    return int(name[:8], 16)


def number(name: str) -> int:
    """How many segments come before this one, whatever its timeline."""
    return int(name[8:16], 16) * SEGMENTS_OF_A_FILE + int(name[16:24], 16)


def begins_at(name: str) -> int:
    """The first byte of a segment, as a position in the log."""
    return number(name) * SEGMENT_BYTES


def newest_of(first: int, names: Iterable[str]) -> int:
    """The timeline that PostgreSQL follows from `first` on: the last one before the first whose history is missing."""
    there, timeline = set(names), first
    while history_of(timeline + 1) in there:
        timeline += 1
    return timeline


def bytes_of(position: str) -> int:
    """A position in the log, as PostgreSQL writes it."""
    high, _, low = position.partition("/")
    return (int(high, 16) << 32) + int(low, 16)
