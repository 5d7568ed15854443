"""Ids: their bucket, their time, their order."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from piggybank import ids

BUCKET = st.integers(0, ids.BUCKETS - 1)
NOW_NS = st.integers(0, 4_000_000_000 * 10**9)


@given(BUCKET, NOW_NS)
def test_an_id_carries_its_bucket_and_its_time(bucket: int, now_ns: int) -> None:
    made = ids.new_id(bucket, now_ns)
    assert (made.version, made.variant) == (7, "specified in RFC 4122")
    assert ids.bucket_of(made) == bucket
    assert ids.time_of(made) == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=now_ns // 1_000_000)
    assert ids.first_id_at(ids.time_of(made)) <= made


@given(BUCKET, NOW_NS, st.text(), st.text())
def test_an_id_tells_what_it_was_made_for(bucket: int, now_ns: int, name: str, other: str) -> None:
    made = ids.new_id(bucket, now_ns, ids.mark_of(name))
    assert (ids.bucket_of(made), made.version, made.variant) == (bucket, 7, "specified in RFC 4122")
    assert ids.mark_in(made) == ids.mark_of(name)
    assert (ids.mark_in(made) == ids.mark_of(other)) is (name == other)


@given(BUCKET, NOW_NS, st.lists(st.integers(-(10**10), 10**10), max_size=50))
def test_following_ids_rise_whatever_the_clock_does(bucket: int, now_ns: int, steps: list[int]) -> None:
    last: UUID | None = None
    for step in steps:
        now_ns = max(0, now_ns + step)
        following = ids.following_id(last, bucket, now_ns)
        assert last is None or following > last
        assert (following.version, ids.bucket_of(following)) == (7, bucket)
        last = following


def test_a_hundred_thousand_ids_of_one_moment_rise_and_stay_well_formed() -> None:
    last = ids.new_id(255, 10**18)
    for _ in range(100_000):
        following = ids.following_id(last, 255, 0)
        assert following > last
        last = following
    assert (last.version, last.variant, ids.bucket_of(last)) == (7, "specified in RFC 4122", 255)


def test_a_forked_child_makes_ids_of_its_own() -> None:
    script = (
        "import os; from piggybank import ids; ids.random_64(); pid = os.fork(); "
        "print([ids.random_64() for _ in range(3)], flush=True); pid and os.waitpid(pid, 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first != second


def test_random_numbers_do_not_run_out_or_repeat() -> None:
    drawn = {ids.random_64() for _ in range(3 * ids.POOL_SIZE)}
    assert len(drawn) == 3 * ids.POOL_SIZE
    assert all(0 <= number < 2**64 for number in drawn)
