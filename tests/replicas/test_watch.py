"""What a process knows of its replicas: fresh while nothing is missing, however long ago the last write was; else not."""

import asyncio
import time

import pytest
from sqlalchemy import text

from piggybank.appliance import store_files
from piggybank.db.engines import Database, Read, Seen
from piggybank.db.replicas import HEARTBEAT_MISSING_S, Introduction, Replica, Watch
from tests.replicas.conftest import NOWHERE, ROLE, Place, becomes, watched
from tests.standbys import Standby

LOOKS = 20
SEEN_FOR_S = 0.5


async def steady(answers: object, seen_for_s: float = SEEN_FOR_S) -> bool:
    """True when it is so in every moment that is looked at."""
    assert callable(answers)
    until = time.monotonic() + seen_for_s
    while time.monotonic() < until:
        if not answers():
            return False
        await asyncio.sleep(0.01)
    return True


async def link(standby: Standby, to: str) -> str:
    """Where it streams from, now another; it goes on answering whatever that is. Answers where it was before."""
    before = str(await standby.value("SELECT current_setting('primary_conninfo')"))
    await standby.value("ALTER SYSTEM SET primary_conninfo = '" + to.replace("'", "''") + "'")
    await standby.value("SELECT pg_reload_conf()")
    return before


@pytest.mark.parametrize("may_look", [True, False], ids=["by the primary's view", "by heartbeat"])
async def test_a_severed_link_is_noticed_and_an_idle_one_is_not(place: Place, may_look: bool) -> None:
    verb = "GRANT pg_read_all_stats TO" if may_look else "REVOKE pg_read_all_stats FROM"
    await place.cluster.value(f"{verb} {ROLE}")
    one, other = place.cluster.standbys
    async with watched(place) as db:
        await becomes(lambda: all(replica.fresh for replica in db.replicas))
        assert [replica.name for replica in db.replicas] == [one.name, other.name]
        primary = await link(one, NOWHERE)
        try:
            # where there is nothing to miss nothing is old yet; a write is missing there
            await place.cluster.value("SELECT pg_logical_emit_message(true, 'test', 'x', flush => true)")
            await becomes(lambda: [replica.fresh for replica in db.replicas] == [False, True])
            await link(one, primary)
            await becomes(lambda: all(replica.fresh for replica in db.replicas))
        finally:
            await link(one, primary)
            await place.cluster.value(f"GRANT pg_read_all_stats TO {ROLE}")


async def test_a_replica_that_has_replayed_all_is_fresh_however_old_that_is(place: Place) -> None:
    async with watched(place) as db:
        await becomes(lambda: all(replica.fresh for replica in db.replicas))
        written = await place.cluster.value("SELECT pg_current_wal_flush_lsn()::text")
        assert await steady(lambda: all(replica.there for replica in db.replicas))
        for replica in db.replicas:
            assert replica.shows_all_before > time.monotonic() - SEEN_FOR_S, "it was proven again since"
        # the primary's own number is of the last write, or is gone: it could not have told
        old = await place.cluster.value(
            "SELECT bool_and(replay_lag IS NULL OR replay_lsn >= $1::text::pg_lsn) FROM pg_stat_replication", written
        )
        assert old


def look(**changes: object) -> list[dict[str, object]]:
    """What the primary says of a replica `one` that has replayed all of it; `changes` to that."""
    said = {
        "timeline": "1",
        "written": 100,
        "readable": True,
        "name": "primary",
        "beat": "a",
        "application_name": "one",
        "streams": True,
        "replayed": 100,
    }
    return [said | changes]


async def unwatched() -> tuple[Watch, Replica]:
    replica = Replica("postgresql://nobody@127.0.0.1:1/none")
    replica.cluster_name, replica.there = "one", True
    return Watch(Database("postgresql://nobody@127.0.0.1:1/none"), [replica]), replica


async def test_a_replica_shows_what_was_written_before_the_last_look_that_it_has_passed() -> None:
    watch, replica = await unwatched()
    now = time.monotonic()
    for at, written, replayed, shows in (
        (now - 0.3, 100, 100, now - 0.3),
        (now - 0.2, 120, 110, now - 0.3),
        (now - 0.1, 130, 120, now - 0.2),
        (now, 130, 130, now),
    ):
        watch._seen(at, look(written=written, replayed=replayed))
        assert replica.shows_all_before == shows
    assert replica.fresh
    for wrong in ({"streams": False}, {"application_name": "other"}, {"streams": None, "replayed": None}):
        watch._seen(now, look(**wrong))
        assert not replica.fresh
        watch._seen(now, look())
        assert replica.fresh
    watch._seen(now, [*look(), *look(replayed=50)])
    assert replica.shows_all_before == now, "what was proven stays proven"
    watch._seen(now + 1, [*look(written=200, replayed=200), *look(replayed=150)])
    assert replica.shows_all_before == now, "two of one name: the one behind counts"
    watch._seen(now + 2, look(timeline="2", written=90, replayed=80))
    assert not replica.fresh, "positions of another history prove nothing"


async def test_a_replica_of_another_history_is_not_believed() -> None:
    watch, replica = await unwatched()
    now = time.monotonic()
    introduced = Introduction(name="one", follows=True, replayed=100, beat="a")
    watch._introduced(replica, introduced)
    assert not replica.fresh, "nobody has looked at the primary yet"
    watch._seen(now - HEARTBEAT_MISSING_S - 1, look(readable=False, beat="a"))
    watch._seen(now, look(readable=False, beat="b"))
    watch._introduced(replica, introduced)
    assert not replica.fresh, "the primary has gone on long ago"
    watch._introduced(replica, introduced._replace(beat="b"))
    assert replica.fresh
    watch._seen(now, look(readable=False, beat="c"))
    watch._introduced(replica, introduced._replace(beat="b"))
    assert replica.fresh, "a beat late, as it may be"
    watch._introduced(replica, introduced._replace(follows=False))
    assert not replica.fresh, "it is a primary itself"


async def test_servers_that_share_a_name_are_asked_themselves() -> None:
    """As CloudNativePG has it: `cluster_name` is the cluster's, and the standbys stream under names of their own."""
    watch, replica = await unwatched()
    now = time.monotonic()
    watch._seen(now, look(name="one", application_name="one-2"))
    introduced = Introduction(name="one", follows=True, replayed=90, beat="a")
    watch._introduced(replica, introduced)
    assert not replica.fresh, "it is behind"
    watch._introduced(replica, introduced._replace(replayed=100))
    assert replica.fresh
    watch._seen(now, look(name="one", application_name="one-2", timeline="2"))
    assert not replica.fresh


async def test_a_replay_that_stands_still_is_noticed_though_the_standby_confirms(place: Place) -> None:
    one, _ = place.cluster.standbys
    async with watched(place) as db:
        await becomes(lambda: all(replica.fresh for replica in db.replicas))
        await one.pause_replay()
        try:
            await place.cluster.value("SELECT pg_logical_emit_message(true, 'test', 'x', flush => true)")
            await becomes(lambda: [replica.fresh for replica in db.replicas] == [False, True])
        finally:
            await one.resume_replay()
        await becomes(lambda: all(replica.fresh for replica in db.replicas))


async def test_a_replica_that_hangs_or_dies_costs_no_answer(place: Place) -> None:
    one, other = place.cluster.standbys

    async def question(read: Read) -> Seen[str] | None:
        return Seen(1, str(await read.scalar(text("SELECT current_setting('cluster_name')"))))

    async with watched(place) as db:

        async def answer() -> str | None:
            return await db.ask(question, 1)

        await becomes(lambda: all(replica.fresh for replica in db.replicas))
        for _ in range(LOOKS):
            assert await answer() in (one.name, other.name)
        one.pause()
        try:
            answers = await asyncio.gather(*(answer() for _ in range(LOOKS)))
            assert set(answers) <= {other.name, store_files.FIRST_POSTGRES}
            await asyncio.to_thread(one.kill)
            assert await answer() in (other.name, "")
            await becomes(lambda: [replica.there for replica in db.replicas] == [False, True])
        finally:
            await asyncio.to_thread(one.kill)
            await asyncio.to_thread(one.start)
        await becomes(lambda: all(replica.fresh for replica in db.replicas))
        before = db.by_replica[one.name]
        assert one.name in [await answer() for _ in range(LOOKS)]
        assert db.by_replica[one.name] > before


async def test_an_answer_that_is_not_there_or_too_old_is_the_primarys(place: Place) -> None:
    async def old(read: Read) -> Seen[int] | None:
        follows = await read.scalar(text("SELECT pg_is_in_recovery()"))
        return Seen(1, 1) if follows else Seen(2, 2)

    async def missing(read: Read) -> Seen[int] | None:
        seen = await old(read)
        return None if seen is not None and seen.version == 1 else seen

    async with watched(place) as db:
        await becomes(lambda: all(replica.fresh for replica in db.replicas))
        assert (await db.ask(old, 1), await db.ask(old, 2), await db.ask(missing), await db.ask(old, None)) == (1, 2, 2, 2)
        assert db.by_primary == {"version": 1, "missing": 1, "cold": 1}
