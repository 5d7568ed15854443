"""Many clients over few server connections, through Debian's PgBouncer: no error, and what they did is right."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import text

from piggybank.appliance import binaries, pooler
from piggybank.appliance.pooler import Observed
from piggybank.cache import Cache
from piggybank.db import engines
from piggybank.db.engines import Database
from piggybank.ledger import SYSTEM, Ledger, Submission, balances, commands
from piggybank.settings import Settings
from tests.conftest import Stores
from tests.ledger.conftest import new_account
from tests.poolers import pooled

SESSIONS = engines.POOL_KEPT  # of a process at once; and a lane
CONNECTING_AT_ONCE = 16


class Process:
    """What one process of ours is to the pooler: its sessions and its lane."""

    def __init__(self, settings: Settings, cache: Cache) -> None:
        self.db, self.cache = Database.of(settings), cache
        self.ledger = Ledger(self.db, cache)

    async def connect(self, account: UUID) -> None:
        """Open every connection that it will use."""
        await self.ledger.start()
        await self.deposit(account)
        async with AsyncExitStack() as stack:
            for _ in range(SESSIONS):
                await stack.enter_async_context(self.db.engine.connect())

    async def deposit(self, account: UUID) -> None:
        await self.ledger.submit(Submission(commands.Deposit(account_id=account, amount=10), SYSTEM, uuid4().hex))

    async def transfer(self, source: UUID, target: UUID) -> None:
        await self.ledger.submit(Submission(commands.Transfer(account_id=source, to_account=target, amount=1), SYSTEM, uuid4().hex))

    async def read(self, account: UUID) -> None:
        found = await balances.read_at(self.db, self.cache, account, datetime.now(UTC))
        assert found.balance > 0

    async def rename(self, account: UUID) -> None:
        async with self.db.write() as session:
            await session.execute(RENAME, {"id": account, "name": "pooled"})

    async def close(self) -> None:
        await self.ledger.stop()
        await self.db.close()


RENAME = text("UPDATE accounts SET name = :name WHERE id = :id")


@contextmanager
def watched(url: str, stores: Stores) -> Iterator[list[Observed]]:
    """What the pooler says of itself, again and again during the block."""
    seen: list[Observed] = []
    done = threading.Event()
    psql = binaries.postgres(stores.embedded.dir, stores.embedded.user) / "psql"

    def watch() -> None:
        while not done.is_set():
            seen.append(pooler.observed(url, psql, stores.embedded.user))
            done.wait(0.2)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


async def mixed_load(settings: Settings, stores: Stores, *, processes: int, rounds: int) -> list[Observed]:
    """Deposits, transfers, reads and a write from so many processes; their books are checked at the end."""
    sql = await asyncpg.connect(settings.owner_database_url)
    accounts = [await new_account(sql) for _ in range(processes)]
    cache = Cache(settings.cache_url)
    made = [Process(settings, cache) for _ in range(processes)]
    gate = asyncio.Semaphore(CONNECTING_AT_ONCE)

    async def connect(process: Process, account: UUID) -> None:
        async with gate:
            await process.connect(account)

    async def work(number: int) -> None:
        process, account, other = made[number], accounts[number], accounts[number - 1]
        for _ in range(rounds):
            reads = [process.read(account) for _ in range(SESSIONS - 1)]
            await asyncio.gather(process.deposit(account), process.transfer(account, other), process.rename(account), *reads)

    try:
        await asyncio.gather(*(connect(process, account) for process, account in zip(made, accounts, strict=True)))
        with watched(settings.pooler_url, stores) as seen:
            await asyncio.gather(*(work(number) for number in range(processes)))
    finally:
        await asyncio.gather(*(process.close() for process in made))
        await cache.close()
    assert await sql.fetchval("SELECT sum(balance)::bigint FROM accounts") == 10 * processes * (rounds + 1)
    assert await sql.fetchval("SELECT count(*) FROM transactions") == processes * (3 * rounds + 1)
    await sql.close()
    return seen


@pytest.mark.parametrize("prepared", [False, True])
async def test_60_clients_over_5_server_connections(fresh_settings: Settings, stores: Stores, open_path: Path, *, prepared: bool) -> None:
    """Named statements only by a PgBouncer that keeps them; Debian 12's does not."""
    if prepared and not pooler.prepares():
        pytest.skip("NOT RUN: the pgbouncer of this machine is older than 1.21")
    with pooled(fresh_settings, open_path / "pooler", clients=100, servers=5, prepared=prepared) as settings:
        seen = await mixed_load(settings, stores, processes=10, rounds=5)
    assert max(one.clients_active + one.clients_waiting for one in seen) >= 10 * (SESSIONS + 1)
    assert max(one.servers for one in seen) <= 5
    assert {(one.mode, one.clients_max, one.servers_max) for one in seen} == {("transaction", 100, 5)}


@pytest.mark.deep
async def test_1000_clients_over_50_server_connections(fresh_settings: Settings, stores: Stores, open_path: Path) -> None:
    with pooled(fresh_settings, open_path / "pooler", clients=1_100, servers=50) as settings:
        seen = await mixed_load(settings, stores, processes=167, rounds=10)
    assert max(one.clients_active + one.clients_waiting for one in seen) >= 1_000
    assert max(one.servers for one in seen) <= 50
