"""A database of one's own, with months."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from piggybank import archive, checks, ids, reports
from piggybank.db import months, partitions
from piggybank.db.engines import Database
from piggybank.settings import Settings
from tests.conftest import Stores, _database_copy, _worker_number
from tests.wallet.conftest import Past, Posted

WAIT_S = 60
JULY = datetime(2026, 7, 20, tzinfo=UTC)


def at(month: int, day: int = 1, hour: int = 0, year: int = 2026) -> datetime:
    return datetime(year, month, day, hour, tzinfo=UTC)


def ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000)


def month(number: int, year: int = 2026) -> date:
    return date(year, number, 1)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that has to come."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - it is not ours to set
            await asyncio.sleep(0.02)


async def findings(settings: Settings) -> list[str]:
    return [
        f"{finding.account_id} {finding.what}: {finding.stored} / {finding.derived}"
        async for progress in checks.verify(settings.owner_database_url)
        for finding in progress.findings
    ]


async def states(sql: asyncpg.Connection) -> dict[str, str]:
    return {partition.name: partition.state for partition in await partitions.known(sql)}


async def homes(sql: asyncpg.Connection) -> dict[str, int]:
    """How many rows are in which table."""
    return dict(await sql.fetch("SELECT tableoid::regclass::text, count(*) FROM transactions GROUP BY 1"))


@pytest.fixture
async def sql(fresh_settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """The owner's connection."""
    connection = await asyncpg.connect(fresh_settings.owner_database_url)
    yield connection
    await connection.close()


@pytest.fixture
def past(sql: asyncpg.Connection) -> Past:
    """Accounts with rows of any time."""
    return Past(sql)


class Books:
    """Accounts that moved money in each month of half a year, and what they should add up to. Months are on since January."""

    def __init__(self, settings: Settings, past: Past) -> None:
        self.settings = settings
        self.past = past
        self.sql = past.sql
        self.accounts: list[UUID] = []
        self.posted: dict[UUID, list[tuple[Posted, int]]] = {}  # with the balance after each

    async def open(self, count: int) -> None:
        for _ in range(count):
            account = await self.past.account()
            self.accounts.append(account)
            self.posted[account] = []

    async def move(self, account: UUID, amount: int, moment: datetime, transfer_id: UUID | None = None) -> UUID:
        (row,) = await self.past.post(account, [(ms(moment), amount)], transfer_id=transfer_id)
        self.posted[account].append((row, self.balance(account) + amount))
        return row.id

    async def transfer(self, source: UUID, target: UUID, amount: int, moment: datetime) -> None:
        transfer_id = ids.new_id(ids.bucket_of(source), ms(moment) * 1_000_000)
        await self.move(source, -amount, moment, transfer_id)
        await self.move(target, amount, moment, transfer_id)

    async def provider(self, account: UUID, amount: int, moment: datetime) -> UUID:
        """A deposit through the provider; its payment."""
        row_id, bucket = await self.move(account, amount, moment), ids.bucket_of(account)
        payment_id = ids.new_id(bucket, ms(moment) * 1_000_000)
        await self.sql.execute(
            "INSERT INTO payments"
            " (id, bucket, account_id, kind, method, status, amount, paid, provider, provider_id, transaction_id, updated_at)"
            " VALUES ($1, $2, $3, 'deposit', 'revio', 'completed', $4, $4, 'simulator', $5, $6, $7)",
            payment_id,
            bucket,
            account,
            amount,
            f"purchase-{payment_id}",
            row_id,
            moment,
        )
        await self._of_payment(row_id, payment_id, "deposit")
        return payment_id

    async def refund(self, account: UUID, payment_id: UUID, amount: int, moment: datetime) -> None:
        row_id = await self.move(account, -amount, moment)
        await self.sql.execute("UPDATE payments SET refunded = refunded + $2 WHERE id = $1", payment_id, amount)
        await self._of_payment(row_id, payment_id, "refund")

    async def _of_payment(self, row_id: UUID, payment_id: UUID, kind: str) -> None:
        await self.sql.execute("UPDATE transactions SET payment_id = $2, kind = $3 WHERE id = $1", row_id, payment_id, kind)
        effect = "INSERT INTO effects (bucket, source, effect, transaction_id) VALUES ($1, 'revio', $2, $3)"
        await self.sql.execute(effect, ids.bucket_of(row_id), f"{kind}:{row_id}", row_id)

    async def report(self, now: datetime) -> None:
        """Build the reports of all days before `now`, with the application's role."""
        db = Database(self.settings.database_url)
        more = True
        while more:
            async with db.write() as write:
                more = await reports.build_next_day(write, now)
        await db.close()

    def balance(self, account: UUID) -> int:
        return self.posted[account][-1][1] if self.posted[account] else 0

    async def archive(self, number: int, **options: Any) -> partitions.Partition:
        folder = self.settings.data_dir / archive.FOLDER
        return await archive.archive(self.settings.owner_database_url, folder, month(number), now=JULY, **options)


async def empty_books(settings: Settings, past: Past) -> Books:
    """Months from January to October 2026, and nothing in them."""
    await months.enable(settings.owner_database_url, now=at(1, 15))
    await partitions.ensure(settings.owner_database_url, now=JULY)
    return Books(settings, past)


async def moved_books(settings: Settings, past: Past) -> Books:
    """Six accounts, 240 random movements from January to July, all days reported."""
    books = await empty_books(settings, past)
    async with books.sql.transaction():  # one commit instead of a thousand
        await _move_at_random(books)
    await books.report(JULY)
    return books


@pytest.fixture
async def books(fresh_settings: Settings, past: Past) -> Books:
    return await empty_books(fresh_settings, past)


@pytest.fixture
async def random_books(fresh_settings: Settings, past: Past) -> Books:
    return await moved_books(fresh_settings, past)


@pytest.fixture(scope="module")
def settings_of_module(stores: Stores, worker_id: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A new database for the tests of a module: they only read."""
    with _database_copy(stores, tmp_path_factory.mktemp("data"), 2 * _worker_number(worker_id) + 1) as made:
        yield made


@pytest.fixture(scope="module")
async def past_of_module(settings_of_module: Settings) -> AsyncIterator[Past]:
    connection = await asyncpg.connect(settings_of_module.owner_database_url)
    yield Past(connection)
    await connection.close()


async def _move_at_random(books: Books) -> None:
    chance = random.Random(20260701)
    await books.open(6)
    payments: list[tuple[UUID, UUID, int]] = []
    days = [day for number in range(1, 8) for day in (at(number, 1), at(number, 15), at(number + 1, 1) - timedelta(days=1)) if day < JULY]
    for moment in sorted(chance.choice(days) + timedelta(milliseconds=chance.randrange(86_400_000)) for _ in range(240)):
        account, other = chance.sample(books.accounts[:5], 2)  # the sixth moves once only
        match chance.randrange(6):
            case 0 | 1:
                await books.move(account, chance.randrange(1, 10_000), moment)
            case 2:
                await books.move(account, -chance.randrange(1, 500), moment)
            case 3:
                await books.transfer(account, other, chance.randrange(1, 500), moment)
            case 4:
                amount = chance.randrange(100, 1_000)
                payments.append((account, await books.provider(account, amount, moment), amount))
            case _ if payments:
                account, payment_id, amount = payments.pop(chance.randrange(len(payments)))
                await books.refund(account, payment_id, amount // 2, moment)
    await books.move(books.accounts[5], 77, at(7, 19))
