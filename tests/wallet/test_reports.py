"""The summary against counting by hand, in zones with half hours and clock changes, whatever part of it was reported before."""

import random
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import asyncpg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import text

from piggybank import errors, reports
from piggybank.db.engines import Database
from piggybank.reports import By, PeriodSum
from piggybank.settings import Settings

from .conftest import Past, Posted

FIRST, LAST = datetime(2025, 10, 20, tzinfo=UTC), datetime(2026, 4, 10, tzinfo=UTC)
ZONES = (
    "UTC",
    "Asia/Kolkata",  # +05:30
    "Asia/Kathmandu",  # +05:45
    "Australia/Lord_Howe",  # half an hour of summer time
    "America/St_Johns",  # -03:30
    "Pacific/Chatham",  # +12:45
    "Europe/Berlin",
    "Atlantic/Azores",  # back from 01:00 to 00:00
    "Asia/Beirut",  # forward at midnight, back to 23:00
    "Africa/Cairo",
    "America/Havana",
    "America/Santiago",
    "Africa/Casablanca",
)
MINUTES = int((LAST - FIRST).total_seconds()) // 60
SET_THROUGH = text("UPDATE installation SET reports_through = :day")


class World(NamedTuple):
    """A user with accounts and all that was posted on them."""

    db: Database
    user_id: UUID
    currencies: dict[UUID, str]
    posted: dict[UUID, list[Posted]]


@pytest.fixture
async def world(fresh_settings: Settings) -> AsyncIterator[World]:
    connection = await asyncpg.connect(fresh_settings.owner_database_url)
    past, db, chance = Past(connection), Database.of(fresh_settings), random.Random(7)
    user_id = await past.user()
    currencies = {await past.account(user_id, currency): currency for currency in ("EUR", "EUR", "USD")}
    posted = {}
    for account_id in [*currencies, await past.account()]:  # and somebody else's
        moments = [
            int(FIRST.timestamp() * 1_000) + chance.randrange(MINUTES // 15) * 900_000 + chance.choice((-1, 0, 0, 1)) for _ in range(400)
        ]
        posted[account_id] = await past.post(
            account_id, [(moment, chance.choice((-1, 1)) * chance.randrange(1, 10**6)) for moment in sorted(moments)]
        )
    while await _built(db, LAST + timedelta(minutes=reports.MARGIN_MINUTES)):
        pass
    yield World(db, user_id, currencies, posted)
    await db.close()
    await connection.close()


async def _built(db: Database, now: datetime) -> bool:
    async with db.write() as write:
        return await reports.build_next_day(write, now)


moments = st.integers(0, MINUTES * 60_000).map(lambda ms: FIRST + timedelta(milliseconds=ms)) | st.integers(0, MINUTES // 30).map(
    lambda half_hours: FIRST + timedelta(minutes=30 * half_hours)
)


@given(
    between=st.tuples(moments, moments).map(sorted).filter(lambda pair: pair[0] < pair[1]),
    by=st.sampled_from(("day", "week", "month")),
    zone=st.sampled_from(ZONES).map(ZoneInfo),
    through=st.none() | st.dates(FIRST.date() - timedelta(days=1), LAST.date() - timedelta(days=1)),
    one=st.booleans(),
)
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_a_summary_is_what_counting_gives(
    world: World, between: list[datetime], by: By, zone: ZoneInfo, through: date | None, one: bool
) -> None:
    async with world.db.write() as write:
        await write.execute(SET_THROUGH, {"day": through})
    account_id = next(iter(world.currencies)) if one else None
    async with world.db.read() as read:
        found = await reports.summary(
            read, since=between[0], until=between[1], by=by, zone=zone, account_id=account_id, only_user=world.user_id
        )
    assert found is not None
    expected = counted(world, between[0], between[1], by, zone, account_id)
    assert {(period_of(sum_.start, by, zone), sum_.currency): as_counted(sum_) for sum_ in found.what if sum_.count} == expected
    covered = [(sum_.start, sum_.end) for sum_ in found.what if sum_.currency == "EUR"]
    assert (covered[0][0], covered[-1][1]) == (between[0], between[1])
    assert all(earlier[1] == later[0] for earlier, later in pairwise(covered))


def counted(
    world: World, since: datetime, until: datetime, by: By, zone: ZoneInfo, account_id: UUID | None
) -> dict[tuple[date, str], dict[str, list[int]]]:
    """(local first day of the period, currency) -> kind -> [count, credit, debit]."""
    sums: dict[tuple[date, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0, 0]))
    for one, currency in world.currencies.items():
        for row in world.posted[one] if account_id in (None, one) else ():
            moment = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=row.at_ms)
            if since <= moment < until:
                total = sums[period_of(moment, by, zone), currency][row.kind]
                total[0] += 1
                total[1] += max(row.amount, 0)
                total[2] += max(-row.amount, 0)
    return {key: dict(kinds) for key, kinds in sums.items()}


def period_of(moment: datetime, by: By, zone: ZoneInfo) -> date:
    day = moment.astimezone(zone).date()
    return {"day": day, "week": date.fromisocalendar(*day.isocalendar()[:2], 1), "month": day.replace(day=1)}[by]


def as_counted(one: PeriodSum) -> dict[str, list[int]]:
    assert one.net == one.credit - one.debit
    assert (one.count, one.credit, one.debit) == tuple(
        sum(values) for values in zip(*((kind.count, kind.credit, kind.debit) for kind in one.kinds), strict=True)
    )
    return {kind.kind: [kind.count, kind.credit, kind.debit] for kind in one.kinds}


async def test_what_is_asked_wrongly_is_refused(world: World) -> None:
    asked: dict[str, Any] = {"by": "day", "zone": ZoneInfo("UTC"), "account_id": None, "only_user": world.user_id}
    async with world.db.read() as read:
        for since, until in ((FIRST, FIRST), (LAST, FIRST), (FIRST, FIRST + timedelta(days=367)), (FIRST.replace(year=1969), FIRST)):
            with pytest.raises(errors.InvalidRequest):
                await reports.summary(read, since=since, until=until, **asked)
        assert await reports.summary(read, since=FIRST, until=LAST, **asked | {"account_id": uuid4()}) is None
        somebody_elses = next(account_id for account_id in world.posted if account_id not in world.currencies)
        assert await reports.summary(read, since=FIRST, until=LAST, **asked | {"account_id": somebody_elses}) is None
        assert await reports.summary(read, since=FIRST, until=LAST, **asked | {"only_user": uuid4()}) == (0, [])


async def test_months_of_a_year_follow_each_other() -> None:
    zone = ZoneInfo("America/St_Johns")
    found = reports.periods(datetime(2024, 1, 1, 3, 30, tzinfo=UTC), datetime(2025, 1, 1, 3, 30, tzinfo=UTC), "month", zone)
    assert [start.astimezone(zone).month for start, _ in found] == list(range(1, 13))
    assert all(start.astimezone(zone).day == 1 for start, _ in found)
