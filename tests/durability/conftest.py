"""One primary with two synchronous standbys for the module; a test leaves both streaming."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import msgspec
import pytest

from piggybank.db.engines import Database
from piggybank.settings import Settings
from tests.ledger.conftest import new_account
from tests.standbys import Replicated, replicated, until

ANY_ONE = "ANY 1 (replica_1, replica_2)"
WAITERS = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
CANCEL_WAITERS = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@pytest.fixture(scope="package")
def cluster(open_folder: Path) -> Iterator[Replicated]:
    """A primary and two standbys, `ANY 1` of which confirms."""
    with replicated(open_folder) as made:
        yield made


@pytest.fixture
def local(cluster: Replicated) -> Settings:
    """The same installation with `durability = "local"`."""
    return msgspec.structs.replace(cluster.settings, durability="local")


@pytest.fixture
async def sql(cluster: Replicated) -> AsyncIterator[asyncpg.Connection]:
    """The superuser's connection to the primary."""
    connection = await asyncpg.connect(cluster.embedded.secrets.admin_url)
    yield connection
    with suppress(asyncpg.PostgresError):
        await connection.close()


@pytest.fixture
async def account(sql: asyncpg.Connection) -> UUID:
    """An empty account, confirmed by a standby."""
    return await new_account(sql)


@pytest.fixture
async def database(cluster: Replicated) -> AsyncIterator[Database]:
    """The application's connections."""
    made = Database.of(cluster.settings)
    yield made
    await made.close()


async def waits(cluster: Replicated, count: int = 1) -> None:
    """Until so many sessions wait for a standby."""

    async def seen() -> bool:
        return bool(await cluster.value(WAITERS) >= count)

    await until(seen)


@asynccontextmanager
async def nobody_is_synchronous(cluster: Replicated) -> AsyncIterator[None]:
    """They stream, and no commit waits for them."""

    async def seen() -> bool:
        return not await cluster.value("SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')")

    await cluster.synchronous("")
    try:
        await until(seen)
        yield
    finally:
        await cluster.synchronous(ANY_ONE)
        await cluster.streaming()


class Network:
    """The way to a server, which can swallow what is sent on the connections of now while they stay open."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._lost: set[asyncio.Task[None]] = set()
        self._pipes: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.url = ""

    def swallow(self) -> None:
        """What is connected now hears nothing any more, in both directions."""
        self._lost |= self._pipes

    async def open(self) -> asyncio.Server:
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        self.url = urlsplit(self._target)._replace(netloc=urlsplit(self._target).netloc.rpartition(":")[0] + f":{port}").geturl()
        return server

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parts = urlsplit(self._target)
        theirs, ours = await asyncio.open_connection(parts.hostname, parts.port)
        self._writers += (ours, writer)
        for source, sink in ((reader, ours), (theirs, writer)):
            self._pipes.add(asyncio.create_task(self._pump(source, sink)))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65_536):
                if asyncio.current_task() not in self._lost:
                    sink.write(data)
        if asyncio.current_task() not in self._lost:
            sink.close()

    async def close(self) -> None:
        for task in self._pipes:
            task.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)


@asynccontextmanager
async def swallowing(url: str) -> AsyncIterator[Network]:
    """A way to the server of `url` whose connections can be lost without a word."""
    network = Network(url)
    server = await network.open()
    yield network
    server.close()
    await network.close()
