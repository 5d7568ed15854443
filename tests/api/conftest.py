"""A client of the app in this process, and one token of each kind."""

import io
import logging
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple
from uuid import uuid4

import httpx
import pytest
import structlog
from litestar.testing import AsyncTestClient

from piggybank.app import create_app
from piggybank.cache import Cache
from piggybank.db.engines import Database
from piggybank.identity import apikeys, sessions, users
from piggybank.identity.tokens import Tokens
from piggybank.settings import Settings

PASSWORD = "a long enough sentence, seldom used"

Client = httpx.AsyncClient


class People(NamedTuple):
    """Headers of one of each."""

    user: dict[str, str]
    operator: dict[str, str]
    service: dict[str, str]  # every scope
    narrow: dict[str, str]  # a key that may read operations
    watching: dict[str, str]  # a key for Prometheus: the scope that opens least
    user_id: str
    user_email: str
    user_token: str


@pytest.fixture(scope="session")
async def client(settings: Settings) -> AsyncIterator[Client]:
    app = create_app(settings)
    async with AsyncTestClient(app) as made:
        yield made


@pytest.fixture(scope="session")
async def people(db: Database, cache: Cache) -> People:
    tokens = Tokens(db, cache)
    headers = {}
    for role in ("user", "operator"):
        email = f"{role}.{uuid4().hex[:8]}@example.com"
        person = await users.create(db, users.Newcomer(email=email, password=PASSWORD), role=role, actor="test")
        signed_in = await sessions.sign_in(db, tokens, email, PASSWORD)
        headers[role] = (email, str(person.id), signed_in.token)
    async with db.write() as write:
        _, wide = await apikeys.create(write, name="wide", scopes=list(apikeys.SCOPES), actor="test")
        _, narrow = await apikeys.create(write, name="narrow", scopes=["ops:read"], actor="test")
        _, watching = await apikeys.create(write, name="prometheus", scopes=["metrics:read"], actor="test")
    return People(
        user=bearer(headers["user"][2]),
        operator=bearer(headers["operator"][2]),
        service=bearer(wide),
        narrow=bearer(narrow),
        watching=bearer(watching),
        user_id=headers["user"][1],
        user_email=headers["user"][0],
        user_token=headers["user"][2],
    )


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """The lines of what runs in the test; logging is as before afterwards."""
    root, kept = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers, root.level
    stream = io.StringIO()
    yield stream
    root.handlers, root.level = handlers, level
    structlog.configure(**kept)
