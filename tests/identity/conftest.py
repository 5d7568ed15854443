"""What the tests of identity share: people with passwords, and tokens as another process sees them."""

from collections.abc import Awaitable, Callable
from uuid import uuid4

import pytest

from piggybank.cache import Cache
from piggybank.db.engines import Database
from piggybank.db.tables.people import User
from piggybank.identity import users
from piggybank.identity.tokens import Tokens

PASSWORD = "a sentence that is long"
MakeUser = Callable[..., Awaitable[User]]


@pytest.fixture
def tokens(db: Database, cache: Cache) -> Tokens:
    """A process that remembers nothing yet."""
    return Tokens(db, cache)


@pytest.fixture
def email() -> str:
    return f"{uuid4().hex[:12]}@example.com"


@pytest.fixture
def make_user(db: Database) -> MakeUser:
    """Makes users with the password PASSWORD."""

    async def make(email: str | None = None, role: str = "user") -> User:
        newcomer = users.Newcomer(email=email or f"{uuid4().hex[:12]}@example.com", password=PASSWORD)
        return await users.create(db, newcomer, role=role, actor="test")

    return make
