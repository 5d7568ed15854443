"""Passwords: which are taken, how they are kept, how many are hashed at once."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from argon2 import PasswordHasher
from sqlalchemy import update

from piggybank import errors
from piggybank.db.engines import Database
from piggybank.db.tables.people import User
from piggybank.identity import passwords, sessions, users
from piggybank.identity.tokens import Tokens
from tests.identity.conftest import PASSWORD, MakeUser


@pytest.mark.parametrize(
    "password", ["short", "123456789", "x" * 257, "password123", "PASSWORD123", "1234567890", "a" * 40, "ada@example.com"]
)
def test_weak_passwords_are_refused(password: str) -> None:
    with pytest.raises(errors.WeakPassword):
        passwords.check(password, "ada@example.com")


@pytest.mark.parametrize("password", ["ten chars.", "correct horse battery staple", "Pässwörter sind gut", "x" * 128 + "y" * 128])
def test_others_are_taken(password: str) -> None:
    passwords.check(password, "ada@example.com")


async def test_a_hash_is_argon2id_and_only_its_password_matches() -> None:
    async with passwords.turn() as turn:
        stored = await turn.hash(PASSWORD)
        assert stored.startswith("$argon2id$")
        assert await turn.matches(stored, PASSWORD)
        assert not await turn.matches(stored, PASSWORD + " ")
        assert not await turn.matches(None, PASSWORD)
        assert not await turn.matches("no hash at all", PASSWORD)


async def test_nobodys_password_matches_nobody() -> None:
    async with passwords.turn() as turn:
        assert not await turn.matches(None, passwords._NOBODYS_PASSWORD)


async def test_an_old_hash_is_renewed_at_sign_in(db: Database, tokens: Tokens, make_user: MakeUser) -> None:
    user = await make_user()
    assert user.email is not None
    old = PasswordHasher(time_cost=1, memory_cost=8_192, parallelism=1).hash(PASSWORD)
    async with db.write() as write:
        await write.execute(update(User).where(User.id == user.id).values(password_hash=old))
    await sessions.sign_in(db, tokens, user.email, PASSWORD)
    async with db.read() as read:
        renewed = (await users.of_id(read, user.id)).password_hash
    assert renewed is not None
    assert renewed != old
    assert not passwords.is_outdated(renewed)
    await sessions.sign_in(db, tokens, user.email, PASSWORD)


async def test_too_many_at_once_are_told_to_come_back() -> None:
    async def wait_for_a_turn() -> None:
        async with passwords.turn():
            pass

    async with AsyncExitStack() as stack:
        for _ in range(passwords.CONCURRENT):
            await stack.enter_async_context(passwords.turn())
        waiting = [asyncio.create_task(wait_for_a_turn()) for _ in range(passwords.WAITING_MAX)]
        await asyncio.sleep(0)
        with pytest.raises(errors.Overloaded):
            await wait_for_a_turn()
        waiting[0].cancel()  # a caller who hangs up leaves their place
        await asyncio.sleep(0)
        waiting.append(asyncio.create_task(wait_for_a_turn()))
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in ended if result is not None] == [asyncio.CancelledError]
