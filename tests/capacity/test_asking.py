"""`piggybank capacity` and `GET /v1/ops/capacity` say the same of the same history."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import httpx
import msgspec
import pytest
from litestar.testing import AsyncTestClient

from piggybank.app import create_app
from piggybank.capacity.outlook import Outlook
from piggybank.identity import apikeys
from piggybank.jobs import capacity as job
from piggybank.jobs.work import Work
from piggybank.settings import Settings
from tests.conftest import command


@pytest.fixture
async def asked(own_settings: Settings, sql: asyncpg.Connection, work: Work) -> AsyncIterator[httpx.AsyncClient]:
    """As an API key that may look, of a web process without a worker inside."""
    async with work.db.write() as write:
        _, token = await apikeys.create(write, name="capacity", scopes=["ops:read"], actor="test")
    async with AsyncTestClient(create_app(msgspec.structs.replace(own_settings, worker_processes=1))) as client:
        client.headers["Authorization"] = f"Bearer {token}"
        yield client


async def fill(sql: asyncpg.Connection, days: int) -> None:
    """An hour a day that grows."""
    for number in range(days):
        at = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0) - timedelta(days=days - number)
        await sql.execute(
            "INSERT INTO usage_minutes (at, rolled, minutes, phase, transactions, busiest_minute, connections, max_connections, users)"
            " VALUES ($1, true, 60, 0, 600, 600, $2, 100, $3)",
            at,
            10 + number,
            500 + 10 * number,
        )


async def test_both_say_no_data_and_then_the_same(
    own_settings: Settings, sql: asyncpg.Connection, asked: httpx.AsyncClient, work: Work
) -> None:
    assert "no data" in (await asked.get("/v1/ops/capacity")).json()["says"]
    text = await asyncio.to_thread(command, own_settings, "capacity")
    assert "connections  " in text
    assert "no data: a worker writes down" in text
    await fill(sql, 20)
    await job.record(work)
    over_http = msgspec.json.decode((await asked.get("/v1/ops/capacity", params={"days": 40})).content, type=Outlook)
    printed = msgspec.json.decode(await asyncio.to_thread(command, own_settings, "capacity", "--json", "--days", "40"), type=Outlook)
    assert over_http == printed
    assert len(over_http.days) == 21
    connections = next(each for each in over_http.limits if each.name == "connections")
    assert connections.measured is not None
    assert connections.measured >= 29
    assert next(each for each in over_http.limits if each.name == "cache hit rate").measured is None  # it was asked too little


async def test_days_are_bounded(asked: httpx.AsyncClient, sql: asyncpg.Connection) -> None:
    for days in ("0", "401", "x"):
        assert (await asked.get("/v1/ops/capacity", params={"days": days})).status_code == 400
    await fill(sql, 5)
    assert len((await asked.get("/v1/ops/capacity", params={"days": 3})).json()["days"]) == 2
