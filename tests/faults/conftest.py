"""Stores that a test may kill, and clients that keep asking with the same key until they know."""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import msgspec
import pytest

from piggybank import checks
from piggybank.appliance import store_files
from piggybank.appliance.embedded import Embedded
from piggybank.db import migrate, roles
from piggybank.settings import Settings
from tests.conftest import Server, run_apart, start_server
from tests.ledger.conftest import new_account

TRIES_MAX = 400  # of one request, PAUSE_S apart
PAUSE_S = 0.1


class Place:
    """An installation of the test's own: its stores, its settings, two servers on one database."""

    def __init__(self, embedded: Embedded, settings: Settings) -> None:
        self.embedded = embedded
        self.settings = settings
        self.servers: list[Server] = []

    def start_servers(self, count: int = 2) -> None:
        self.servers = [start_server(self.settings) for _ in range(count)]

    def restart_server(self, number: int) -> None:
        self.servers[number] = start_server(self.settings, self.servers[number].settings.port)

    def kill_store(self, name: str, with_signal: signal.Signals) -> None:
        """Not asked to stop: SIGQUIT is PostgreSQL's `-m immediate`."""
        running = self.embedded.running.pop(name)
        os.kill(running.pid, with_signal)
        while running.alive():
            pass

    def start_store(self, name: str) -> None:
        self.embedded.ensure(name)
        self.embedded.wait_ready(name)

    async def accounts(self, count: int, currency: str = "EUR") -> list[UUID]:
        sql = await asyncpg.connect(self.settings.owner_database_url)
        try:
            return [await new_account(sql, currency) for _ in range(count)]
        finally:
            await sql.close()

    async def value(self, query: str, *arguments: object) -> Any:
        sql = await asyncpg.connect(self.settings.owner_database_url)
        try:
            return await sql.fetchval(query, *arguments)
        finally:
            await sql.close()

    async def differences(self) -> list[checks.Finding]:
        return [finding async for progress in checks.verify(self.settings.owner_database_url) for finding in progress.findings]


@contextmanager
def running_place(**changes: object) -> Iterator[Place]:
    """Stores that may be killed; `changes` to the settings."""
    folder = Path(tempfile.mkdtemp(prefix="piggybank-faults-", dir="/tmp" if os.geteuid() == 0 else None))
    folder.chmod(0o755)
    embedded = Embedded(folder / "data")
    embedded.start()
    addresses = embedded.secrets.addresses()
    run_apart(lambda: migrate.upgrade(addresses["owner_database_url"], store_files.APPLICATION_ROLE))
    run_apart(lambda: roles.limit_role(addresses["owner_database_url"], store_files.APPLICATION_ROLE))
    made = Place(embedded, msgspec.convert({"data_dir": folder, **addresses, **changes}, Settings))
    made.start_servers()
    assert made.servers[0].token  # made while the database is there
    yield made
    for server in made.servers:
        server.kill()
    embedded.stop()


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """Started once a module; a test leaves the stores running."""
    with running_place() as made:
        yield made


class Client:
    """Asks any of the servers; on a lost connection or a retryable answer it asks again, with the same key."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._http = httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=128))
        self.retries = 0

    async def post(self, path: str, body: dict[str, object], key: str, first: int = 0) -> httpx.Response:
        for number in range(TRIES_MAX):
            server = self._place.servers[(first + number) % len(self._place.servers)]
            response: httpx.Response | None
            try:
                response = await self._http.post(
                    server.url + path, json=body, headers={**self._place.servers[0].headers, "Idempotency-Key": key}
                )
            except httpx.TransportError:
                response = None
            if response is not None:
                if response.status_code < 400 or not response.json()["retryable"]:
                    return response
                assert "retry-after" in response.headers
            self.retries += 1
            await asyncio.sleep(PAUSE_S)
        pytest.fail(f"{path} with {key} was never answered")

    async def deposit(self, account: UUID, amount: int, key: str, first: int = 0) -> httpx.Response:
        return await self.post(f"/v1/accounts/{account}/deposits", {"amount": amount, "method": "direct"}, key, first)

    async def get(self, path: str, number: int = 0) -> httpx.Response:
        server = self._place.servers[number]
        return await self._http.get(server.url + path, headers=self._place.servers[0].headers)

    async def close(self) -> None:
        await self._http.aclose()


@pytest.fixture
async def client(place: Place) -> AsyncIterator[Client]:
    """A patient client."""
    made = Client(place)
    yield made
    await made.close()


def new_keys(count: int) -> list[str]:
    return [new_key() for _ in range(count)]


def new_key() -> str:
    return uuid4().hex
