"""Two servers on one database of their own, people to sign in as, and a ledger that is a third process to the database."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

import asyncpg
import httpx
import pytest

from piggybank import checks
from piggybank.cache import Cache
from piggybank.db.engines import Database
from piggybank.identity import sessions, users
from piggybank.identity.tokens import Tokens
from piggybank.ledger import Outcome, Submission
from piggybank.settings import Settings
from tests.conftest import Server, Stores, _database_copy, _worker_number, run_apart, start_server, start_simulator
from tests.ledger.conftest import running_ledger

PASSWORD = "a long enough sentence, seldom used"
SUBMIT_TIMEOUT_S = 30

_T = TypeVar("_T")
Settle = Callable[[Submission], Outcome]


class Person(NamedTuple):
    """Somebody who is signed in."""

    id: str
    email: str
    headers: dict[str, str]


@pytest.fixture(scope="package")
def own_settings(stores: Stores, worker_id: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A database in which nobody breaks anything by SQL, so that `verify` may be asked about all of it."""
    with _database_copy(stores, tmp_path_factory.mktemp("prove"), 2 * _worker_number(worker_id) + 1) as made:
        yield made


@pytest.fixture(scope="package")
def pair(own_settings: Settings) -> Iterator[tuple[Server, Server]]:
    """Two server processes on one database, and a provider: what one has answered, the other knows."""
    first, second, simulator = start_server(own_settings), start_server(own_settings), start_simulator(own_settings)
    yield first, second
    first.stop()
    second.stop()
    simulator.stop()


@pytest.fixture(scope="package")
async def sql(own_settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """The owner's connection."""
    connection = await asyncpg.connect(own_settings.owner_database_url)
    yield connection
    await connection.close()


@pytest.fixture(scope="package")
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=SUBMIT_TIMEOUT_S) as client:
        yield client


@pytest.fixture(scope="package")
def settle(own_settings: Settings) -> Iterator[Settle]:
    """What the provider's jobs will do: commands that have no route, from a process of their own."""
    with _in_background() as run:
        ledger = running_ledger(own_settings)
        made = run(ledger.__aenter__())
        yield lambda submission: run(made.submit(submission))
        run(ledger.__aexit__(None, None, None))


@contextmanager
def _in_background() -> Iterator[Callable[[Coroutine[Any, Any, _T]], _T]]:
    """An event loop in a thread, for tests that are not asynchronous."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="background loop")
    thread.start()
    try:
        yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(SUBMIT_TIMEOUT_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def sign_in(settings: Settings, role: str) -> Person:
    """A new user of that role, with a session."""

    async def made() -> Person:
        db, cache = Database.of(settings), Cache(settings.cache_url)
        email = f"{role}.{uuid4().hex[:8]}@example.com"
        person = await users.create(db, users.Newcomer(email=email, password=PASSWORD), role=role, actor="test")
        session = await sessions.sign_in(db, Tokens(db, cache), email, PASSWORD)
        await db.close()
        await cache.close()
        return Person(str(person.id), email, {"Authorization": f"Bearer {session.token}"})

    return run_apart(made)


def findings(settings: Settings) -> list[checks.Finding]:
    """What `piggybank verify` has to say."""

    async def all_of_them() -> list[checks.Finding]:
        return [finding async for progress in checks.verify(settings.owner_database_url) for finding in progress.findings]

    return run_apart(all_of_them)
