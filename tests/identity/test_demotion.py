"""Who is taken the operator's role: with their sessions, and never the last one by mistake."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

from piggybank import errors
from piggybank.cache import Cache
from piggybank.db.engines import Database
from piggybank.identity import sessions, users
from piggybank.identity.tokens import Tokens
from piggybank.settings import Settings
from tests.identity.conftest import PASSWORD


@pytest.fixture
async def own(fresh_settings: Settings) -> AsyncIterator[Database]:
    """A database in which the operators are those of the test."""
    made = Database.of(fresh_settings)
    yield made
    await made.close()


async def operators(db: Database) -> list[str]:
    async with db.read() as read:
        return list((await read.scalars(text("SELECT email FROM users WHERE role = 'operator' ORDER BY email"))).all())


async def test_the_last_operator_stays_unless_told(own: Database, cache: Cache) -> None:
    tokens = Tokens(own, cache)
    for name in ("ada", "grace"):
        await users.create(own, users.Newcomer(email=f"{name}@example.com", password=PASSWORD), role="operator", actor="test")
    await users.create(own, users.Newcomer(email="alan@example.com", password=PASSWORD), role="user", actor="test")
    signed_in = await sessions.sign_in(own, tokens, "ada@example.com", PASSWORD)
    assert await users.demote(own, tokens, "Ada@Example.com", actor="cli", even_the_last=False) == 1
    with pytest.raises(errors.Unauthenticated):
        await tokens.authenticate(signed_in.token)
    with pytest.raises(errors.CannotProceed, match="the last operator"):
        await users.demote(own, tokens, "grace@example.com", actor="cli", even_the_last=False)
    for email in ("ada@example.com", "alan@example.com"):
        with pytest.raises(errors.CannotProceed, match="is no operator"):
            await users.demote(own, tokens, email, actor="cli", even_the_last=True)
    with pytest.raises(errors.UserNotFound):
        await users.demote(own, tokens, "nobody@example.com", actor="cli", even_the_last=True)
    assert await operators(own) == ["grace@example.com"]
    assert await users.demote(own, tokens, "grace@example.com", actor="cli", even_the_last=True) == 0
    assert await operators(own) == []
    async with own.read() as read:
        acts = (await read.execute(text("SELECT actor, details FROM audit_log WHERE action = 'user.demote' ORDER BY id"))).all()
    assert [tuple(row) for row in acts] == [("cli", {"sessions_ended": 1}), ("cli", {"sessions_ended": 0})]


async def test_of_two_who_go_at_once_one_stays(own: Database, cache: Cache) -> None:
    for name in ("ada", "grace"):
        await users.create(own, users.Newcomer(email=f"{name}@example.com", password=PASSWORD), role="operator", actor="test")
    gone = await asyncio.gather(
        *(users.demote(own, Tokens(own, cache), f"{name}@example.com", actor="cli", even_the_last=False) for name in ("ada", "grace")),
        return_exceptions=True,
    )
    assert sorted(type(one).__name__ for one in gone) == ["CannotProceed", "int"]
    assert len(await operators(own)) == 1
