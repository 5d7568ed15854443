"""Reports are built for days that are over, once, whoever asks how often."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from piggybank import reports
from piggybank.jobs import reports as job
from piggybank.jobs.work import Work
from tests.wallet.conftest import Past


def at_ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000)


TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


async def through(sql: asyncpg.Connection) -> date | None:
    found: date | None = await sql.fetchval("SELECT reports_through FROM installation")
    return found


async def rows(sql: asyncpg.Connection) -> list[tuple[UUID, date, str, int, int, int]]:
    found = await sql.fetch("SELECT account_id, day, kind, count, credit, debit FROM reports ORDER BY account_id, day, kind")
    return [tuple(row) for row in found]


async def test_days_are_caught_up_and_empty_stretches_are_skipped(work: Work, sql: asyncpg.Connection) -> None:
    past = Past(sql)
    account_id = await past.account()
    days = [TODAY - timedelta(days=500), TODAY - timedelta(days=499), TODAY - timedelta(days=3)]
    for day in days:
        await past.post(account_id, [(at_ms(day), 100), (at_ms(day) + 5, 40), (at_ms(day) + 86_399_999, -60)])
    await past.post(account_id, [(at_ms(TODAY), 9)])
    assert await job.build(work) == 3
    expected = []
    for day in days:
        expected += [(account_id, day.date(), "deposit", 2, 140, 0), (account_id, day.date(), "withdrawal", 1, 0, 60)]
    assert await rows(sql) == expected
    assert await through(sql) in (TODAY.date() - timedelta(days=1), TODAY.date() - timedelta(days=2))  # the margin after midnight
    assert await job.build(work) == 0
    assert await rows(sql) == expected


async def test_two_workers_build_each_day_once(work: Work, sql: asyncpg.Connection) -> None:
    past = Past(sql)
    account_id = await past.account()
    await past.post(account_id, [(at_ms(TODAY - timedelta(days=10 - number)), 1) for number in range(9)])
    for _ in range(3):  # one that finds another at it leaves it to them
        await asyncio.gather(*(job.build(work) for _ in range(4)))
    assert [(row[1], row[3]) for row in await rows(sql)] == [(TODAY.date() - timedelta(days=10 - number), 1) for number in range(9)]


async def test_a_day_is_not_over_before_its_margin(work: Work, sql: asyncpg.Connection) -> None:
    past = Past(sql)
    day = datetime(2026, 3, 1, tzinfo=UTC)
    await past.post(await past.account(), [(at_ms(day) + 7, 1)])
    over = day + timedelta(days=1, minutes=reports.MARGIN_MINUTES)
    async with work.db.write() as write:
        assert not await reports.build_next_day(write, over - timedelta(seconds=1))
    assert await rows(sql) == []
    async with work.db.write() as write:
        assert await reports.build_next_day(write, over)
    assert len(await rows(sql)) == 1
    assert await through(sql) == day.date()


async def test_a_day_waits_for_who_still_writes(work: Work, sql: asyncpg.Connection) -> None:
    past = Past(sql)
    await past.post(await past.account(), [(at_ms(TODAY - timedelta(days=2)), 1)])
    writer = await asyncpg.connect(work.settings.database_url)
    async with writer.transaction():
        await writer.execute("INSERT INTO effects (bucket, source, effect, transaction_id) VALUES (1, 'a', 'b', gen_random_uuid())")
        async with work.db.write() as write:  # the writer began before this midnight is over
            assert not await reports.build_next_day(write, datetime.now(UTC) + timedelta(days=1))
    assert await rows(sql) == []
    await writer.close()
    async with work.db.write() as write:
        assert await reports.build_next_day(write, datetime.now(UTC) + timedelta(days=1))


async def test_an_installation_without_transactions(work: Work, sql: asyncpg.Connection) -> None:
    assert await job.build(work) == 0
    assert await rows(sql) == []


async def test_a_failure_leaves_the_day_as_it_was(work: Work, sql: asyncpg.Connection) -> None:
    past = Past(sql)
    await past.post(await past.account(), [(at_ms(TODAY - timedelta(days=2)), 1)])

    async def fail_after_building() -> None:
        async with work.db.write() as write:
            assert await reports.build_next_day(write, datetime.now(UTC))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail_after_building()
    assert (await rows(sql), await through(sql)) == ([], None)
