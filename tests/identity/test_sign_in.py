"""Wrong passwords: counted, locked, forgotten; nobody learns whether an address is known."""

import asyncio

import pytest
from sqlalchemy import text

from piggybank import errors
from piggybank.db.engines import Database
from piggybank.identity import sessions, users
from piggybank.identity.passwords import CONCURRENT
from piggybank.identity.tokens import Tokens
from tests.identity.conftest import PASSWORD, MakeUser


async def attempt(db: Database, tokens: Tokens, email: str, password: str = "not the password") -> str:
    try:
        await sessions.sign_in(db, tokens, email, password)
    except errors.Error as said:
        return said.code
    return "signed in"


async def shift(db: Database, email: str, seconds: int) -> None:
    """Let time pass for the failures of an address."""
    moved = text(
        "UPDATE failed_sign_ins SET updated_at = updated_at - make_interval(secs => :seconds),"
        " locked_until = locked_until - make_interval(secs => :seconds) WHERE address_hash = sha256(CAST(:email AS text)::bytea)"
    )
    async with db.write() as write:
        await write.execute(moved, {"seconds": seconds, "email": email})


async def test_wrong_passwords_lock_and_unlocking_forgets_them(db: Database, tokens: Tokens, make_user: MakeUser) -> None:
    email = (await make_user()).email
    assert email is not None
    assert [await attempt(db, tokens, email) for _ in range(sessions.FAILURES_MAX)] == ["wrong_credentials"] * sessions.FAILURES_MAX
    assert await attempt(db, tokens, email) == "sign_in_locked"
    assert await attempt(db, tokens, email, PASSWORD) == "sign_in_locked"
    async with db.write() as write:
        await sessions.unlock(write, email)
    assert await attempt(db, tokens, email, PASSWORD) == "signed in"


async def test_an_unknown_address_is_answered_alike(db: Database, tokens: Tokens, make_user: MakeUser, email: str) -> None:
    known = (await make_user()).email
    assert known is not None
    attempts = sessions.FAILURES_MAX + 2
    assert [await attempt(db, tokens, email) for _ in range(attempts)] == [await attempt(db, tokens, known) for _ in range(attempts)]


async def test_a_user_without_a_password_cannot_sign_in(db: Database, tokens: Tokens, make_user: MakeUser) -> None:
    user = await make_user()
    assert user.email is not None
    async with db.write() as write:
        await write.execute(text("UPDATE users SET password_hash = NULL WHERE id = :id"), {"id": user.id})
    assert await attempt(db, tokens, user.email, "") == "wrong_credentials"
    assert await attempt(db, tokens, user.email, PASSWORD) == "wrong_credentials"


async def test_many_guesses_at_once_are_not_more_guesses(db: Database, tokens: Tokens, make_user: MakeUser) -> None:
    email = (await make_user()).email
    assert email is not None
    answers = await asyncio.gather(*(attempt(db, tokens, email) for _ in range(30)))
    compared = answers.count("wrong_credentials")
    assert sessions.FAILURES_MAX <= compared < sessions.FAILURES_MAX + CONCURRENT
    assert answers.count("sign_in_locked") == 30 - compared


async def test_a_lock_ends_and_counting_begins_anew(db: Database, tokens: Tokens, make_user: MakeUser) -> None:
    email = (await make_user()).email
    assert email is not None
    for _ in range(sessions.FAILURES_MAX):
        await attempt(db, tokens, email)
    await shift(db, email, sessions.LOCK_S)
    assert await attempt(db, tokens, email) == "wrong_credentials"
    assert await attempt(db, tokens, email) == "wrong_credentials"
    assert await attempt(db, tokens, email, PASSWORD) == "signed in"


async def test_old_failures_do_not_count(db: Database, tokens: Tokens, make_user: MakeUser) -> None:
    email = (await make_user()).email
    assert email is not None
    for _ in range(sessions.FAILURES_MAX - 1):
        await attempt(db, tokens, email)
    await shift(db, email, sessions.FAILURES_KEPT_S + 1)
    assert await attempt(db, tokens, email) == "wrong_credentials"
    assert await attempt(db, tokens, email, PASSWORD) == "signed in"


async def test_a_success_forgets_failures(db: Database, tokens: Tokens, make_user: MakeUser) -> None:
    email = (await make_user()).email
    assert email is not None
    for _ in range(2):
        for _ in range(sessions.FAILURES_MAX - 1):
            await attempt(db, tokens, email)
        assert await attempt(db, tokens, email, PASSWORD) == "signed in"


async def test_the_address_itself_is_not_in_the_count(db: Database, tokens: Tokens, email: str) -> None:
    await attempt(db, tokens, email)
    async with db.read() as read:
        rows = (await read.scalars(text("SELECT row_to_json(f)::text FROM failed_sign_ins f"))).all()
    assert rows
    assert not any(email in row for row in rows)


def test_one_address_has_one_spelling(email: str) -> None:
    assert {users.normalised(spelling) for spelling in (email, f" {email} ", email.upper(), email.title())} == {email}


@pytest.mark.parametrize(
    "address", ["", "ada", "ada@", "@example.com", "ada@example", "a b@example.com", "ada@exa mple.com", "ädä@example.com"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(errors.InvalidRequest):
        users.normalised(address)
