"""Rows that are wrong, in a real database: the figure of each says so, and its alert fires."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import uuid4

import asyncpg
import msgspec
import pytest

from piggybank import ids, queues
from piggybank.cache import Cache
from piggybank.capacity import figures, usage, watching
from piggybank.capacity.figures import Figure
from piggybank.db.engines import Database
from piggybank.jobs import capacity
from piggybank.jobs.work import Work
from piggybank.ledger import Ledger
from piggybank.settings import Settings
from piggybank.wallet.provider import Provider
from tests.jobs.conftest import put
from tests.wallet.conftest import Past

AT_ONCE = 10_000.0  # a pace at which nothing has to last to fire
AGE_TOLERANCE_S = 0.1  # two clocks' roundings

Found = dict[str, Figure]


class Bank(NamedTuple):
    """A database of its own, since it is not mended: the owner's connection, and what a job is given."""

    sql: asyncpg.Connection
    work: Work


@pytest.fixture
async def bank(fresh_settings: Settings) -> AsyncIterator[Bank]:
    sql = await asyncpg.connect(fresh_settings.owner_database_url)
    db, cache = Database.of(fresh_settings), Cache(fresh_settings.cache_url)
    work = Work(fresh_settings, db, cache, Ledger(db, cache), Provider(fresh_settings, db))
    yield Bank(sql, work)
    await work.provider.close()
    await cache.close()
    await db.close()
    await sql.close()


def at_ns(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000) * 1_000_000


def ago(**length: float) -> datetime:
    return datetime.now(UTC) - timedelta(**length)


async def balance_without_a_side(sql: asyncpg.Connection, _: Work) -> None:
    account_id = await Past(sql).account()
    await sql.execute("ALTER TABLE accounts DROP CONSTRAINT accounts_double_entry")
    await sql.execute("UPDATE accounts SET balance = 250 WHERE id = $1", account_id)


async def transfer_without_a_side(sql: asyncpg.Connection, _: Work) -> None:
    past = Past(sql)
    await past.account()
    await past.post(await past.account(), [(at_ns(ago(minutes=1)) // 1_000_000, 40)], transfer_id=uuid4())


async def payments_of_which_nobody_knows(sql: asyncpg.Connection, _: Work) -> None:
    account_id = await Past(sql).account()
    bucket = ids.bucket_of(account_id)
    for kind, status in (("withdrawal", "unknown"), ("deposit", "unknown"), ("withdrawal", "processing"), ("withdrawal", "completed")):
        await sql.execute(
            "INSERT INTO payments (id, bucket, account_id, kind, method, provider, status, amount, updated_at)"
            " VALUES ($1, $2, $3, $4, 'revio', 'simulator', $5, 100, now())",
            *(ids.new_id(bucket), bucket, account_id, kind, status),
        )


async def event(sql: asyncpg.Connection, status: str, at: datetime, *, due: bool) -> None:
    await sql.execute(
        "INSERT INTO provider_events (id, body_hash, provider, body, status, due_at, updated_at)"
        " VALUES ($1, $2, 'simulator', '{}', $3, $4, now())",
        *(ids.new_id(0, at_ns(at)), uuid4().bytes, status, at if due else None),
    )


async def event_that_names_nothing(sql: asyncpg.Connection, _: Work) -> None:
    for status in ("unmatched", "applied", "ignored", "hint"):
        await event(sql, status, ago(hours=1), due=False)


async def old_event(sql: asyncpg.Connection, _: Work) -> None:
    await event(sql, "new", ago(seconds=200), due=True)
    await event(sql, "new", ago(seconds=5), due=True)
    await event(sql, "unmatched", ago(seconds=900), due=True)


async def old_news(sql: asyncpg.Connection, _: Work) -> None:
    for age_s in (5.0, 90.0):
        await put(sql, "ledger.posted", {}, age_s=age_s)


async def old_backup(sql: asyncpg.Connection, _: Work) -> None:
    for number, hours in enumerate((27, 50)):
        await sql.execute(
            "INSERT INTO backups (id, kind, target, started_at, finished_at, size_bytes) VALUES ($1, 'base', 'folder', $2, $2, 1)",
            *(f"backup-{number}", ago(hours=hours)),
        )


async def old_comparison(sql: asyncpg.Connection, _: Work) -> None:
    for status, hours in (("finished", 30), ("finished", 54), ("failed", 1), ("running", 1)):
        await sql.execute(
            "INSERT INTO reconciliations (id, provider, since, until, status) VALUES ($1, 'simulator', $2, $3, $4)",
            *(ids.new_id(0), ago(hours=hours + 24), ago(hours=hours), status),
        )


async def payment_that_was_never_compared(sql: asyncpg.Connection, _: Work) -> None:
    account_id = await Past(sql).account()
    bucket = ids.bucket_of(account_id)
    await sql.execute(
        "INSERT INTO payments (id, bucket, account_id, kind, method, provider, status, amount, updated_at)"
        " VALUES ($1, $2, $3, 'deposit', 'revio', 'simulator', 'completed', 100, now())",
        *(ids.new_id(bucket, at_ns(ago(hours=30))), bucket, account_id),
    )


async def months_that_end(sql: asyncpg.Connection, _: Work) -> None:
    """This month and the next have none: the rows of both would be refused."""
    end = ids.first_id_at(datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0))
    await sql.execute("ALTER TABLE transactions DETACH PARTITION transactions_all")
    await sql.execute(f"ALTER TABLE transactions ATTACH PARTITION transactions_all FOR VALUES FROM (MINVALUE) TO ('{end}')")


async def job_that_waits(_: asyncpg.Connection, asking: Work) -> None:
    queue = queues.open_queue(asking.settings.queue_url)
    try:
        for waited_s in (1, 400):
            job = await queue.enqueue("nobody_runs_it")
            assert job is not None
            job.queued -= 1_000 * waited_s
            await queue.redis.set(job.id, queue.serialize(job))
    finally:
        await queue.close()


async def nothing(_: asyncpg.Connection, __: Work) -> None:
    """The installation's settings are what is wrong."""


class Case(NamedTuple):
    """What is broken, and what is to be read then: a number, or an age by how long ago it was made."""

    wrong: Callable[[asyncpg.Connection, Work], Awaitable[None]]
    figure: str
    value: Figure | None
    alert: str
    aged: timedelta | None = None
    settings: dict[str, object] = {}


CASES = (
    Case(balance_without_a_side, "ledger_trial_balance_difference_minor", {"EUR": 250.0}, "TrialBalanceBroken"),
    Case(transfer_without_a_side, "ledger_trial_balance_difference_minor", {"EUR": 40.0}, "TrialBalanceBroken"),
    Case(payments_of_which_nobody_knows, "psp_unknown_payouts", 1.0, "UnknownPayouts"),
    Case(event_that_names_nothing, "psp_unmatched_events", 1.0, "UnmatchedEvents"),
    Case(months_that_end, "partitions_missing", 2.0, "MonthMissing"),
    Case(old_event, "ledger_inbox_oldest_age_seconds", None, "InboxStuck", aged=timedelta(seconds=200)),
    Case(old_news, "ledger_outbox_oldest_age_seconds", None, "OutboxStuck", aged=timedelta(seconds=90)),
    Case(old_backup, "backup_age_seconds", None, "BackupStale", aged=timedelta(hours=27)),
    Case(old_comparison, "reconciliation_age_seconds", None, "ReconciliationStale", aged=timedelta(hours=30)),
    Case(payment_that_was_never_compared, "reconciliation_age_seconds", None, "ReconciliationStale", aged=timedelta(hours=30)),
    Case(job_that_waits, "saq_oldest_job_age_seconds", None, "JobsStuck", aged=timedelta(seconds=400)),
    Case(nothing, "ledger_writes_refused", 1.0, "WritesRefused", settings={"phase": 2, "durability": "synchronous"}),
    Case(nothing, "ledger_commits_local", 1.0, "DurabilityLocal", settings={"phase": 2, "durability": "local"}),
)


async def noted(bank: Bank) -> tuple[Found, set[str]]:
    """What is written down of this minute, and the alerts that fire because of it alone."""
    await bank.sql.execute("TRUNCATE usage_minutes, alerts")
    await capacity.record(bank.work)
    return await look(bank)


async def look(bank: Bank) -> tuple[Found, set[str]]:
    at = await bank.sql.fetchval("SELECT max(at) FROM usage_minutes")
    async with bank.work.db.write(lasting=False) as write:
        await watching.watch(write, at, AT_ONCE)
    async with bank.work.db.read() as read:
        ((_, found),) = await usage.noted(read, at, at)
        return found.figures, {fired.name for fired in await watching.listed(read, "firing")}


@pytest.mark.parametrize("case", CASES, ids=[f"{case.figure} {case.wrong.__name__}" for case in CASES])
async def test_what_is_broken_shows_in_its_figure_and_fires_its_alert(bank: Bank, case: Case) -> None:
    _, firing = await noted(bank)
    assert case.alert not in firing
    settings = msgspec.structs.replace(bank.work.settings, **case.settings)
    broken = bank._replace(work=msgspec.structs.replace(bank.work, settings=settings))
    began = time.time()
    await case.wrong(*broken)
    found, firing = await noted(broken)
    value = found[case.figure]
    if case.aged is None:
        assert value == case.value
    else:
        assert isinstance(value, float)
        assert -AGE_TOLERANCE_S <= value - case.aged.total_seconds() <= time.time() - began + AGE_TOLERANCE_S
    assert case.alert in firing


async def test_what_postgresql_used_of_the_cpu_is_what_it_used_since_the_minute_before(bank: Bank) -> None:
    found, firing = await noted(bank)
    used = found["db_cpu_seconds"]
    assert isinstance(used, float)
    assert "DatabaseCpu" not in firing
    # as if all cores had worked for it for two minutes: so it fires, too, where one more ends just now
    before = used - 120.0 * figures.cores()
    await bank.sql.execute(
        "UPDATE usage_minutes"
        " SET at = at - interval '1 minute', figures = jsonb_set(figures, '{figures,db_cpu_seconds}', to_jsonb($1::float8))",
        before,
    )
    earlier = await bank.sql.fetchval("SELECT max(at) FROM usage_minutes")
    await capacity.record(bank.work)
    found, firing = await look(bank)
    gap_s = await bank.sql.fetchval("SELECT extract(epoch FROM max(at) - $1)::float8 FROM usage_minutes", earlier)
    now = found["db_cpu_seconds"]
    assert isinstance(now, float)
    assert now >= used
    assert found["db_cpu_ratio"] == pytest.approx((now - before) / (gap_s * figures.cores()))
    assert "DatabaseCpu" in firing
