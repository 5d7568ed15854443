"""Over HTTP, two web processes under load: nothing that was answered is lost, and nothing happens twice."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import httpx
import msgspec
import pytest

from tests.conftest import Server, start_server
from tests.durability.conftest import WAITERS, waits
from tests.ledger.conftest import new_account
from tests.standbys import Replicated, Standby, replicated, until

CLIENTS = 16
BEFORE = 60  # answered deposits, before anything happens to the standbys
PATIENCE_S = 60


class Load:
    """Clients that deposit 1 again and again, and remember which keys were answered."""

    def __init__(self, servers: list[Server], accounts: list[UUID]) -> None:
        self.accounts = accounts
        self.answered: dict[str, UUID] = {}  # key -> account, where the answer was 201
        self.unsure: dict[str, UUID] = {}  # where it was not
        self.refused: set[str] = set()
        self._clients: list[asyncio.Task[None]] = []
        self._stopping = False
        self._servers = servers
        self._http = httpx.AsyncClient(timeout=PATIENCE_S, limits=httpx.Limits(max_connections=4 * CLIENTS))

    def start(self) -> None:
        self._stopping = False
        self._clients = [asyncio.create_task(self._client(number)) for number in range(CLIENTS)]

    async def stop(self) -> None:
        """Each client ends with the answer that it waits for."""
        self._stopping = True
        await asyncio.gather(*self._clients)

    async def deposit(self, key: str, account: UUID, number: int = 0) -> httpx.Response:
        server = self._servers[number % len(self._servers)]
        return await self._http.post(
            f"{server.url}/v1/accounts/{account}/deposits",
            json={"amount": 1, "method": "direct"},
            headers={**self._servers[0].headers, "Idempotency-Key": key},
        )

    async def _client(self, number: int) -> None:
        while not self._stopping:
            key, account = uuid4().hex, self.accounts[number % len(self.accounts)]
            self.unsure[key] = account
            try:
                answer = await self.deposit(key, account, number)
            except httpx.TransportError:  # its server was killed
                return
            if answer.status_code == 201:
                self.answered[key] = self.unsure.pop(key)
            else:
                assert answer.status_code == 503, answer.text
                assert answer.headers["retry-after"]
                assert answer.json()["retryable"]
                self.refused.add(answer.json()["code"])
                await asyncio.sleep(0.1)

    async def has_answered(self, count: int) -> None:
        async def enough() -> bool:
            return len(self.answered) >= count

        await until(enough)

    async def close(self) -> None:
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await self._http.aclose()


@pytest.fixture
def cluster_to_kill(open_path: Path) -> Iterator[Replicated]:
    """A primary of this test's own: it does not outlive it."""
    with replicated(open_path) as made:
        yield made


@pytest.fixture
def servers(cluster_to_kill: Replicated) -> Iterator[list[Server]]:
    """Two web processes, and no worker in them whose heartbeat waits for a standby, too."""
    made: list[Server] = []
    settings = msgspec.structs.replace(cluster_to_kill.settings, worker_processes=1)
    try:
        made.extend(start_server(settings) for _ in range(2))
        assert made[0].token
        yield made
    finally:
        for server in made:
            server.kill()


@pytest.fixture
async def load(cluster_to_kill: Replicated, servers: list[Server]) -> AsyncIterator[Load]:
    """Clients on both processes, and five accounts."""
    sql = await asyncpg.connect(cluster_to_kill.embedded.secrets.admin_url)
    accounts = [await new_account(sql) for _ in range(5)]
    await sql.close()
    made = Load(servers, accounts)
    yield made
    await made.close()


@pytest.mark.deep
async def test_both_standbys_paused_then_back_then_the_primary_lost(cluster_to_kill: Replicated, servers: list[Server], load: Load) -> None:
    cluster, accounts = cluster_to_kill, load.accounts
    load.start()
    await load.has_answered(BEFORE)

    for standby in cluster.standbys:
        standby.pause()
    await waits(cluster, len(servers))  # the lane of each process
    answered_until_now = set(load.answered)

    async def everybody_else_is_refused() -> bool:
        return "no_synchronous_standby" in load.refused

    await until(everybody_else_is_refused)
    late = set(load.answered) - answered_until_now
    assert len(late) <= CLIENTS  # answers that were on their way
    assert await cluster.value(WAITERS) == len(servers)
    assert all(server.process.poll() is None for server in servers)
    for standby in cluster.standbys:
        standby.resume()
    await load.has_answered(len(load.answered) + BEFORE)
    await load.stop()
    # whoever was not answered asks again with the same key: each is there once
    for key, account in load.unsure.items():
        assert (await load.deposit(key, account)).status_code == 201
    everything = {**load.answered, **load.unsure}
    assert await _keys_on(cluster, everything) == len(everything)
    assert await cluster.value("SELECT sum(balance)::bigint FROM accounts WHERE id = ANY($1)", accounts) == len(everything)

    # the primary dies under load, with both standbys behind: one stopped early, the other late
    before = len(load.answered)
    load.start()
    await load.has_answered(before + BEFORE)
    cluster.standbys[0].pause()
    await load.has_answered(before + 2 * BEFORE)
    cluster.standbys[1].pause()
    await waits(cluster, len(servers))
    await asyncio.to_thread(cluster.kill_primary)
    for server in servers:
        server.kill()
    for standby in cluster.standbys:
        standby.resume()
    await load.stop()
    best = await _most_advanced(cluster)
    await best.promote()
    missing = set(load.answered) - set(await best.value("SELECT array_agg(key) FROM idempotency_keys"))
    assert not missing
    for account in accounts:
        assert await best.value(
            "SELECT balance = (SELECT count(*) FROM transactions WHERE account_id = $1) FROM accounts WHERE id = $1", account
        )


async def _most_advanced(cluster: Replicated) -> Standby:
    received = {standby: await standby.received() for standby in cluster.standbys}
    return max(received, key=lambda standby: received[standby])


async def _keys_on(cluster: Replicated, keys: dict[str, UUID]) -> int:
    return int(await cluster.value("SELECT count(*) FROM idempotency_keys WHERE key = ANY($1)", list(keys)))
