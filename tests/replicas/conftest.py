"""A primary, two streaming standbys, and two web processes that read from them; each test leaves them as it found them."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from redis.asyncio import Redis

from piggybank.appliance import store_files
from piggybank.db.routing import Routed
from tests.conftest import Server, run_apart, start_server
from tests.ledger.conftest import new_account
from tests.standbys import Replicated, replicated, until

ROLE = store_files.APPLICATION_ROLE
TRIES_MAX = 200  # of a write, PAUSE_S apart
PAUSE_S = 0.1
NOWHERE = "host=127.0.0.1 port=1 user=nobody"
_ENTRY = re.compile(rf"^\S+ \S+ \S+ \[\d+\] (?={ROLE}@)", re.MULTILINE)
# what a client's read selects from; a posting's own reads have arrays of buckets
_READ = re.compile(r"LOG:  (?:statement|execute [^:]+):\s*SELECT.*?FROM (?:accounts|transactions|payments)", re.DOTALL)
_POSTING = re.compile(r"FOR NO KEY UPDATE|ANY\(\$1::smallint\[\]\)")


class Place:
    """The cluster, the servers and a client that spreads its requests over them."""

    def __init__(self, cluster: Replicated, servers: list[Server]) -> None:
        self.cluster = cluster
        self.servers = servers

    async def accounts(self, count: int) -> list[UUID]:
        """New ones, unknown to the cache, and already on the standbys."""
        sql = await asyncpg.connect(self.cluster.settings.owner_database_url)
        try:
            made = [await new_account(sql) for _ in range(count)]
        finally:
            await sql.close()
        await until(lambda: self._have(made[-1]))
        return made

    async def _have(self, account: UUID) -> bool:
        found = [await standby.value("SELECT true FROM accounts WHERE id = $1", account) for standby in self.cluster.standbys]
        return all(found)

    def sql_reads(self) -> dict[str, int]:
        """Reads that each server has written down, by its name."""
        names = ["postgres", *(standby.name for standby in self.cluster.standbys)]
        return {name: _reads_in(self.cluster.embedded.logs / f"{name}.log") for name in names}

    async def flush_cache(self) -> None:
        async with Redis.from_url(self.cluster.settings.cache_url) as redis:
            await redis.flushdb()

    async def delay(self, delay_ms: int) -> None:
        """Standbys show a commit so much later."""
        for standby in self.cluster.standbys:
            await standby.value(f"ALTER SYSTEM SET recovery_min_apply_delay = {delay_ms}")
            await standby.value("SELECT pg_reload_conf()")


def _reads_in(log: Path) -> int:
    entries = _ENTRY.split(log.read_text(errors="replace"))
    return sum(bool(_READ.search(entry)) and not _POSTING.search(entry) for entry in entries)


@pytest.fixture(scope="package")
def place(open_folder: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        cluster = stack.enter_context(replicated(open_folder / "replicas"))
        run_apart(lambda: cluster.value(f"ALTER ROLE {ROLE} SET log_statement = 'all'"))
        run_apart(lambda: cluster.value(f"GRANT pg_read_all_stats TO {ROLE}"))
        with ThreadPoolExecutor(2) as pool:
            servers = list(pool.map(start_server, [cluster.settings] * 2))
        for server in servers:
            stack.callback(server.stop)
        assert servers[0].token  # made while everything is there
        yield Place(cluster, servers)


class Client:
    """Writes to one server and reads from another; a write is tried again with its key, a read must be answered at once."""

    def __init__(self, place: Place) -> None:
        self._http = httpx.AsyncClient(timeout=30, headers=place.servers[0].headers, limits=httpx.Limits(max_connections=64))
        self._urls = [server.url for server in place.servers]
        self._turn = 0

    async def get(self, path: str, **query: object) -> Any:
        """From the server whose turn it is."""
        self._turn += 1
        answer = await self._http.get(self._urls[self._turn % len(self._urls)] + path, params={key: str(query[key]) for key in query})
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    async def send(self, path: str, body: dict[str, object], method: str = "POST") -> Any:
        """To the server after it."""
        key = uuid4().hex
        for _ in range(TRIES_MAX):
            self._turn += 1
            url = self._urls[self._turn % len(self._urls)] + path
            answer = await self._http.request(method, url, json=body, headers={"Idempotency-Key": key})
            if answer.status_code < 300:
                return answer.json()
            assert answer.json()["retryable"], answer.text
            await asyncio.sleep(PAUSE_S)
        raise AssertionError(f"{path} was never answered")

    async def reads(self) -> tuple[dict[str, int], dict[str, int]]:
        """What all servers say of where reads went: to replicas by name, to the primary by reason."""
        replicas: dict[str, int] = {}
        primary: dict[str, int] = {}
        for url in self._urls:
            said = (await self._http.get(f"{url}/v1/ops/status")).json()["reads"]
            for one in said["replicas"]:
                replicas[one["name"]] = replicas.get(one["name"], 0) + one["reads"]
            for why, count in said["primary"].items():
                primary[why] = primary.get(why, 0) + count
        return replicas, primary

    async def fresh(self) -> int:
        """How many replicas are fresh to every server."""
        counts: list[int] = []
        for url in self._urls:
            said = (await self._http.get(f"{url}/v1/ops/status")).json()["reads"]
            counts.append(sum(one["fresh"] for one in said["replicas"]))
        return min(counts)

    async def close(self) -> None:
        await self._http.aclose()


@pytest.fixture
async def client(place: Place) -> AsyncIterator[Client]:
    made = Client(place)
    yield made
    await made.close()


@pytest.fixture
async def warm(place: Place, client: Client) -> None:
    """Both standbys are fresh, and the cache is no longer cold."""
    [account] = await place.accounts(1)

    async def answered_by_a_replica() -> bool:
        before, _ = await client.reads()
        await client.get(f"/v1/accounts/{account}")
        after, _ = await client.reads()
        return await client.fresh() == len(place.cluster.standbys) and after != before

    await until(answered_by_a_replica)


@asynccontextmanager
async def watched(place: Place) -> AsyncIterator[Routed]:
    """The routing of a process, in this one."""
    settings = place.cluster.settings
    db = Routed(settings.database_url, settings.replica_urls)
    await db.start()
    try:
        yield db
    finally:
        await db.close()


async def becomes(seen: Callable[[], bool]) -> None:
    """Wait for something that needs no asking."""

    async def asked() -> bool:
        return seen()

    await until(asked)
