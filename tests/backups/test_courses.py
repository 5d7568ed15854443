"""Which files of a log a restore follows through promotions, and which missing one is seen."""

import gzip
import io
from collections.abc import Iterable
from pathlib import Path

import pytest

from piggybank import errors
from piggybank.appliance.backups import courses, wal
from piggybank.appliance.backups.courses import Course
from piggybank.appliance.backups.manifests import Manifest
from piggybank.appliance.backups.targets import Folder
from tests.backups.test_targets import manifest

FD, FE, FF, NEXT = "0000000100000000000000FD", "0000000100000000000000FE", "0000000100000000000000FF", "000000010000000100000000"
SECOND_FF, SECOND_NEXT = "0000000200000000000000FF", "000000020000000100000000"
THIRD_FF, THIRD_NEXT = "0000000300000000000000FF", "000000030000000100000000"
SECOND = "1\t0/FF0000A0\tno recovery target specified\n"  # it parted in FF
THIRD = SECOND + "2\t0/FF0001B8\tno recovery target specified\n"  # and the next one, too


@pytest.fixture
def target(tmp_path: Path) -> Folder:
    made = Folder(tmp_path)
    made.put("wal/7/00000002.history.gz", io.BytesIO(gzip.compress(SECOND.encode())))
    made.put("wal/7/00000003.history.gz", io.BytesIO(gzip.compress(THIRD.encode())))
    return made


def made(first: str = FD, following: str = FD) -> Manifest:
    found = manifest(1, 1, first)
    return Manifest(**{name: getattr(found, name) for name in found.__struct_fields__} | {"next_wal": following})


def course(target: Folder, names: Iterable[str], of: Manifest | None = None) -> Course:
    return courses.course(target, of or made(), [f"wal/7/{name}.gz" for name in names])


def segments(found: Course) -> list[str]:
    return [wal.segment(name) for name in found.segments]


def test_one_timeline(target: Folder) -> None:
    found = course(target, [FD, FE, FF, NEXT, "000000010000000000000003"])
    assert (segments(found), found.newest, found.missing) == ([FD, FE, FF, NEXT], NEXT, "")
    found = course(target, [FD, FF, NEXT])
    assert (segments(found), found.newest, found.missing) == ([FD], NEXT, FE)
    assert course(target, []) == course(target, ["000000010000000000000003"]) == Course()


def test_what_the_backup_was_followed_by_is_missing_too(target: Folder) -> None:
    """It holds the log from its first segment to its end, so that those need not be at the target: nothing archived them then."""
    assert course(target, [FF, NEXT], made(FD, FF)).missing == ""
    assert course(target, [FF, NEXT], made(FD, FE)).missing == FE
    assert course(target, [FF, NEXT], made(FD, "")).missing == "", "an older version does not say where it ended"


def test_the_segment_in_which_two_timelines_part_counts_in_the_newer_one(target: Folder) -> None:
    """What the old primary had put there, and nobody else had, is no end and no bridge."""
    history = "00000002.history"
    found = course(target, [FD, FE, SECOND_FF, SECOND_NEXT, history])
    assert (segments(found), found.newest, found.missing) == ([FD, FE, SECOND_FF, SECOND_NEXT], SECOND_NEXT, "")
    assert [wal.segment(name) for name in found.files] == [history, FD, FE, SECOND_FF, SECOND_NEXT]
    assert course(target, [FD, FE, FF, NEXT, SECOND_FF, SECOND_NEXT, history]).files == found.files
    found = course(target, [FD, FE, FF, NEXT, SECOND_NEXT, history])
    assert (segments(found), found.newest, found.missing) == ([FD, FE], SECOND_NEXT, SECOND_FF)
    found = course(target, [FD, SECOND_FF, SECOND_NEXT, history])
    assert (segments(found), found.missing) == ([FD], FE), "what the old primary closed and did not archive any more"
    found = course(target, [FD, FE, history])
    assert (segments(found), found.newest, found.missing) == ([FD, FE], FE, ""), "nothing of the new one has come yet"


def test_two_timelines_that_part_in_one_segment(target: Folder) -> None:
    found = course(target, [FD, FE, FF, SECOND_FF, THIRD_FF, THIRD_NEXT, "00000002.history", "00000003.history"])
    assert (segments(found), found.missing) == ([FD, FE, THIRD_FF, THIRD_NEXT], "")


def test_without_a_history_postgresql_does_not_follow(target: Folder) -> None:
    assert course(target, [FD, FE, SECOND_FF]).missing == "00000002.history"
    assert course(target, [FD, FE, THIRD_FF, "00000003.history"]).missing == "00000002.history"
    found = course(target, [SECOND_FF, SECOND_NEXT], made(SECOND_FF, SECOND_FF))
    assert (segments(found), found.missing) == ([SECOND_FF, SECOND_NEXT], ""), "a base backup has its own"


def test_a_backup_of_a_history_that_was_given_up(target: Folder) -> None:
    """Made on the old primary after the point from which another one went on."""
    assert course(target, [FD, FE, SECOND_FF, "00000002.history"], made(NEXT, NEXT)).is_given_up
    assert not course(target, [FD, FE, SECOND_FF, "00000002.history"], made(FE, FE)).is_given_up


def test_a_damaged_history_is_said(target: Folder) -> None:
    whole = SECOND.encode()
    for content in (gzip.compress(whole)[:-9], gzip.compress(whole[:4]), gzip.compress(bytes(64))):
        target.put("wal/7/00000002.history.gz", io.BytesIO(content))
        with pytest.raises(errors.CannotProceed, match=r"00000002\.history of the log is damaged"):
            course(target, [FD, SECOND_FF, "00000002.history"])
