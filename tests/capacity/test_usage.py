"""A minute is recorded once and rightly, whoever records it; old minutes become hours, and hours go at last."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import pytest

from piggybank import ids, jobs
from piggybank.capacity import measuring, usage
from piggybank.capacity.measuring import CacheFigures, DatabaseFigures
from piggybank.jobs import capacity as job
from piggybank.jobs.work import Work
from tests.conftest import Stores
from tests.wallet.conftest import Past

TRIES = 50

NOW = datetime(2026, 6, 10, 12, 30, 15, tzinfo=UTC)
MINUTE = datetime(2026, 6, 10, 12, 29, tzinfo=UTC)
DATABASE = DatabaseFigures(
    connections=12, max_connections=100, replicas=2, lag_ms=4.0, database_bytes=9_000_000, transactions_bytes=1_000_000, users=3
)

SUMS = "SELECT sum(transactions) AS transactions, sum(minutes) AS minutes, max(busiest_minute) AS busiest FROM usage_minutes"


def cache(hits: int, misses: int) -> CacheFigures:
    return CacheFigures(used_bytes=1_000, max_bytes=4_000, hits_total=hits, misses_total=misses)


def at_ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000)


async def rows(sql: asyncpg.Connection) -> list[asyncpg.Record]:
    found: list[asyncpg.Record] = await sql.fetch("SELECT * FROM usage_minutes ORDER BY at, rolled")
    return found


async def record(work: Work, now: datetime, found: CacheFigures | None = None, **changes: Any) -> int:
    async with work.db.write() as write:
        looked = usage.Looked(database=msgspec.structs.replace(DATABASE, **changes), cache=found)
        return await usage.record(write, now, 0, looked)


async def test_a_minute_has_what_was_posted_in_it_and_what_the_stores_say(work: Work, sql: asyncpg.Connection) -> None:
    past = Past(sql)
    account_id = await past.account()
    edges = (at_ms(MINUTE) - 1, at_ms(MINUTE), at_ms(MINUTE) + 59_999, at_ms(MINUTE) + 60_000)
    await past.post(account_id, [(moment, 10) for moment in edges])
    assert await record(work, NOW, cache(100, 20)) == 1
    (row,) = await rows(sql)
    assert (row["at"], row["minutes"], row["rolled"], row["phase"]) == (MINUTE, 1, False, 0)
    assert (row["transactions"], row["busiest_minute"], row["connections"], row["lag_ms"]) == (2, 2, 12, 4.0)
    assert (row["cache_hits"], row["cache_hits_total"]) == (None, 100)  # one look tells no rate
    assert await record(work, NOW + usage.MINUTE, cache(190, 30)) == 1
    assert [(row["cache_hits"], row["cache_misses"]) for row in await rows(sql)] == [(None, None), (90, 10)]


async def test_who_comes_second_records_nothing(work: Work, sql: asyncpg.Connection) -> None:
    assert sorted(await asyncio.gather(*(record(work, NOW) for _ in range(4)))) == [0, 0, 0, 1]
    assert await record(work, NOW + timedelta(seconds=40)) == 0
    assert len(await rows(sql)) == 1


async def test_missed_minutes_are_counted_later_and_what_nobody_saw_stays_unknown(work: Work, sql: asyncpg.Connection) -> None:
    past = Past(sql)
    await record(work, NOW)
    await past.post(await past.account(), [(at_ms(MINUTE + 2 * usage.MINUTE), 5), (at_ms(MINUTE + 3 * usage.MINUTE), 5)])
    assert await record(work, NOW + 3 * usage.MINUTE) == 3
    assert [(row["transactions"], row["connections"]) for row in await rows(sql)] == [(0, 12), (0, None), (1, None), (1, 12)]
    assert await record(work, NOW + timedelta(days=1)) == usage.CAUGHT_UP_MINUTES + 1


@pytest.mark.parametrize(("hits", "misses"), [(5, 30), (200, 3)])
async def test_a_cache_that_began_anew_tells_no_rate(work: Work, sql: asyncpg.Connection, hits: int, misses: int) -> None:
    await record(work, NOW, cache(100, 20))
    await record(work, NOW + usage.MINUTE, cache(hits, misses))
    await record(work, NOW + 2 * usage.MINUTE, None)
    assert [(row["cache_hits"], row["cache_used_bytes"]) for row in await rows(sql)] == [(None, 1_000), (None, 1_000), (None, None)]


async def test_the_job_asks_the_real_stores(work: Work, sql: asyncpg.Connection) -> None:
    assert await job.record(work) == 1
    assert await job.record(work) <= 1  # unless a minute ended meanwhile
    row = (await rows(sql))[0]
    assert row["at"] <= usage.last_minute(datetime.now(UTC))
    assert row["max_connections"] == 100
    assert row["connections"] >= 2  # ours, and the owner's
    assert row["database_bytes"] > 1_000_000
    assert row["transactions_bytes"] > 0
    assert (row["users"], row["transactions"]) == (0, 0)
    assert row["cache_max_bytes"] >= row["cache_used_bytes"] > 0
    assert (row["replicas"], row["lag_ms"]) == (0, None)  # there are none, so nothing lags
    assert "record_usage" in jobs.JOBS
    assert "roll_up_usage" in jobs.JOBS


async def test_every_roles_connections_are_counted(work: Work, stores: Stores) -> None:
    count = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
    admin = await asyncpg.connect(stores.admin_url)
    more = [await asyncpg.connect(work.settings.owner_database_url) for _ in range(9)]
    try:
        for _ in range(TRIES):  # other tests share the server: it has to stand still while it is counted
            before = await admin.fetchval(count)
            async with work.db.read() as read:
                ours = (await measuring.database(read)).connections
            if ours == await admin.fetchval(count) == before:
                break
        assert ours == before
        assert ours > len(more)
    finally:
        for connection in (*more, admin):
            await connection.close()


async def test_a_cache_that_is_away_is_unknown(work: Work, sql: asyncpg.Connection) -> None:
    assert await measuring.cache("redis://127.0.0.1:1/0") is None
    away = msgspec.structs.replace(work, settings=msgspec.structs.replace(work.settings, cache_url="redis://127.0.0.1:1/0"))
    assert await job.record(away) == 1
    assert (await rows(sql))[0]["cache_used_bytes"] is None


async def test_old_minutes_become_hours_and_old_hours_go(work: Work, sql: asyncpg.Connection) -> None:
    await sql.execute(
        """
        INSERT INTO usage_minutes (at, phase, transactions, busiest_minute, connections, cache_hits, cache_misses, database_bytes)
        SELECT at, 0, 60, 60, extract(minute FROM at), 9, 1, 1000
        FROM generate_series($1::timestamptz - interval '8 days', $1::timestamptz - interval '1 minute', '1 minute') AS at
        """,
        NOW.replace(second=0),
    )
    await sql.execute(
        "UPDATE usage_minutes SET busiest_minute = 600, transactions = 600 WHERE at = $1", NOW.replace(second=0) - timedelta(days=8)
    )
    await sql.execute(
        "INSERT INTO usage_minutes (at, rolled, minutes, phase, transactions, busiest_minute) VALUES ($1, true, 60, 0, 1, 1)",
        NOW - timedelta(days=usage.KEPT_DAYS, minutes=1),
    )
    before = await sql.fetchrow(
        f"{SUMS} WHERE at > $1",
        NOW - timedelta(days=9),
    )
    async with work.db.write() as write:
        rolled = await usage.roll_up(write, NOW)
    assert rolled == 23 * 60 + 30 + 1
    after = await sql.fetchrow(SUMS)
    assert after == before
    hours = [row for row in await rows(sql) if row["rolled"]]
    assert len(hours) == 24
    assert (hours[0]["minutes"], hours[0]["transactions"], hours[0]["busiest_minute"], hours[0]["connections"]) == (
        30,
        29 * 60 + 600,
        600,
        59,
    )
    assert (hours[1]["minutes"], hours[1]["cache_hits"], hours[1]["database_bytes"]) == (60, 540, 1000)
    async with work.db.write() as write:
        assert await usage.roll_up(write, NOW) == 0
    assert await job.roll_up(work) >= 0


async def test_two_that_roll_up_at_once_lose_and_double_nothing(work: Work, sql: asyncpg.Connection) -> None:
    await sql.execute(
        "INSERT INTO usage_minutes (at, phase, transactions, busiest_minute)"
        " SELECT at, 0, 60, 60 FROM generate_series($1::timestamptz, $1::timestamptz + interval '1 day', '1 minute') AS at",
        NOW - timedelta(days=9),
    )

    async def roll() -> None:
        async with work.db.write() as write:
            await usage.roll_up(write, NOW)

    await asyncio.gather(*(roll() for _ in range(4)))
    assert await sql.fetchval("SELECT sum(minutes) FROM usage_minutes") == 24 * 60 + 1


async def test_days_have_sums_and_peaks_and_nothing_where_nothing_is_known(work: Work, sql: asyncpg.Connection) -> None:
    async with work.db.read() as read:
        assert await usage.days(read, NOW, 30) == []
    await record(work, NOW - timedelta(days=1), None, connections=40)
    await record(work, NOW, cache(1_000, 1_000))
    await record(work, NOW + usage.MINUTE, cache(1_900, 1_100), lag_ms=9.0)
    async with work.db.read() as read:
        yesterday, today = await usage.days(read, NOW, 30)
        assert await usage.days(read, NOW, 1) == [today]
    assert (yesterday.day, yesterday.connections, yesterday.cache_used_bytes, yesterday.cache_hit_rate) == (
        MINUTE.date() - timedelta(days=1),
        40,
        None,
        None,
    )
    assert (today.cache_hit_rate, today.lag_ms, today.minutes) == (0.9, 9.0, usage.CAUGHT_UP_MINUTES + 2)


async def test_a_minute_is_counted_by_one_stretch_of_the_index(work: Work, sql: asyncpg.Connection) -> None:
    past = Past(sql)
    account_id = await past.account()
    await past.post(account_id, [(at_ms(MINUTE) - 3_600_000 + 1_000 * number, 1) for number in range(5_000)])
    await sql.execute("ANALYZE transactions")
    explain = "EXPLAIN " + usage._COUNT.text.replace(":lowest", "$1").replace(":below", "$2")
    bounds = ids.first_id_at(MINUTE), ids.first_id_at(MINUTE + usage.MINUTE)
    plan = "\n".join(row[0] for row in await sql.fetch(explain, *bounds))
    assert "transactions_all_pkey" in plan
    assert "Seq Scan" not in plan
