"""A database of one's own, with months."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, date, datetime

import asyncpg
import pytest

from piggybank import checks, ids
from piggybank.db import partitions
from piggybank.settings import Settings
from tests.wallet.conftest import Past

WAIT_S = 60


def at(month: int, day: int = 1, hour: int = 0, year: int = 2026) -> datetime:
    return datetime(year, month, day, hour, tzinfo=UTC)


def ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000)


def month(number: int, year: int = 2026) -> date:
    return date(year, number, 1)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that has to come."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
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


def month_of(row_id: object) -> date:
    return partitions.month_of(ids.time_of(row_id))  # type: ignore[arg-type]  # a UUID of asyncpg's


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
