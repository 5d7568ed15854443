"""One database for all of these tests, emptied before each: times of transactions are chosen here, so nobody else may post."""

from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from piggybank.cache import Cache
from piggybank.db.engines import Database
from piggybank.jobs.work import Work
from piggybank.ledger import Ledger
from piggybank.settings import Settings
from piggybank.wallet.provider import Provider
from tests import conftest


@pytest.fixture(scope="package")
def own_settings(stores: conftest.Stores, worker_id: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    number = 2 * conftest._worker_number(worker_id) + 1
    with conftest._database_copy(stores, tmp_path_factory.mktemp("capacity"), number) as made:
        yield made


@pytest.fixture
async def sql(own_settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """The owner's connection."""
    connection = await asyncpg.connect(own_settings.owner_database_url)
    await connection.execute("TRUNCATE usage_minutes, minute_shares, alerts, transactions, payments, accounts, users CASCADE")
    yield connection
    await connection.close()


@pytest.fixture
async def work(own_settings: Settings) -> AsyncIterator[Work]:
    """What a job is given; its ledger is not started, since nobody posts through it."""
    db, cache = Database(own_settings.database_url), Cache(own_settings.cache_url)
    made = Work(own_settings, db, cache, Ledger(db, cache), Provider(own_settings, db))
    yield made
    await made.provider.close()
    await cache.close()
    await db.close()
