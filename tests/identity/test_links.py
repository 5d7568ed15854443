"""One-time links: once, in time, and only for what they were made for."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from sqlalchemy import func, select, text

from piggybank import errors
from piggybank.db.engines import Database
from piggybank.db.tables.people import User
from piggybank.identity import links, resets, sessions, users
from piggybank.identity.tokens import Tokens, hash_of
from tests.identity.conftest import PASSWORD, MakeUser

NEW_PASSWORD = "another long sentence"


async def made(db: Database, purpose: links.Purpose, user: User | None = None) -> str:
    async with db.write() as write:
        return await links.create(write, purpose, user.id if user else None)


async def outcome(work: Coroutine[Any, Any, object]) -> str:
    try:
        await work
    except errors.Error as said:
        return said.code
    return "done"


async def test_an_operator_link_makes_one_operator(db: Database, tokens: Tokens, email: str) -> None:
    link = await made(db, "operator")
    newcomers = [users.Newcomer(email=f"{number}-{email}", password=PASSWORD) for number in range(2)]
    outcomes = await asyncio.gather(*(outcome(users.claim(db, newcomer, link)) for newcomer in newcomers))
    assert sorted(outcomes) == ["done", "link_invalid"]
    assert await outcome(users.claim(db, newcomers[0], link)) == "link_invalid"
    winner = newcomers[outcomes.index("done")].email
    assert winner is not None
    signed_in = await sessions.sign_in(db, tokens, winner, PASSWORD)
    assert (await tokens.authenticate(signed_in.token)).role == "operator"
    async with db.read() as read:
        assert await read.scalar(select(func.count()).select_from(User).where(User.email.in_([n.email for n in newcomers]))) == 1


async def test_a_link_is_not_used_up_by_a_mistake(db: Database, make_user: MakeUser, email: str) -> None:
    taken = (await make_user()).email
    link = await made(db, "operator")
    assert await outcome(users.claim(db, users.Newcomer(email=taken, password=PASSWORD), link)) == "email_taken"
    assert await outcome(users.claim(db, users.Newcomer(email=email, password="password123"), link)) == "weak_password"
    assert await outcome(users.claim(db, users.Newcomer(email=email, password=PASSWORD), link)) == "done"


async def test_a_reset_link_sets_one_password_and_ends_everything(db: Database, tokens: Tokens, make_user: MakeUser) -> None:
    user = await make_user()
    assert user.email is not None
    session = await sessions.sign_in(db, tokens, user.email, PASSWORD)
    link, older = await made(db, "reset", user), await made(db, "reset", user)
    for _ in range(sessions.FAILURES_MAX):
        assert await outcome(sessions.sign_in(db, tokens, user.email, "wrong")) == "wrong_credentials"
    outcomes = await asyncio.gather(*(outcome(resets.set_password(db, tokens, link, new)) for new in (NEW_PASSWORD, NEW_PASSWORD + "!")))
    assert sorted(outcomes) == ["done", "link_invalid"]
    won = (NEW_PASSWORD, NEW_PASSWORD + "!")[outcomes.index("done")]
    assert await outcome(tokens.authenticate(session.token)) == "unauthenticated"
    assert await outcome(sessions.sign_in(db, tokens, user.email, PASSWORD)) == "wrong_credentials"
    assert await outcome(sessions.sign_in(db, tokens, user.email, won)) == "done"
    assert await outcome(resets.set_password(db, tokens, older, NEW_PASSWORD)) == "link_invalid"


async def test_a_link_expires(db: Database, tokens: Tokens, make_user: MakeUser) -> None:
    link = await made(db, "reset", await make_user())
    async with db.write() as write:
        await write.execute(text("UPDATE links SET expires_at = now() WHERE token_hash = :hash"), {"hash": hash_of(link)})
    assert await outcome(resets.set_password(db, tokens, link, NEW_PASSWORD)) == "link_invalid"


@pytest.mark.parametrize("purpose", ["invite", "operator"])
async def test_a_link_is_good_for_its_purpose_only(db: Database, tokens: Tokens, email: str, purpose: links.Purpose) -> None:
    link = await made(db, purpose)
    newcomer = users.Newcomer(email=email, password=PASSWORD)
    assert await outcome(resets.set_password(db, tokens, link, NEW_PASSWORD)) == "link_invalid"
    if purpose == "invite":
        assert await outcome(users.claim(db, newcomer, link)) == "link_invalid"
    else:
        assert await outcome(users.sign_up(db, newcomer, invite=link, needs_invite=True)) == "link_invalid"


async def test_an_invite_lets_one_person_in(db: Database, email: str) -> None:
    invite = await made(db, "invite")

    def sign_up(number: int) -> Coroutine[Any, Any, str]:
        newcomer = users.Newcomer(email=f"{number}-{email}", password=PASSWORD)
        return outcome(users.sign_up(db, newcomer, invite=invite, needs_invite=True))

    assert sorted(await asyncio.gather(sign_up(1), sign_up(2))) == ["done", "link_invalid"]


async def test_one_address_is_one_user_even_at_once(db: Database, email: str) -> None:
    newcomer = users.Newcomer(email=email, password=PASSWORD)
    outcomes = await asyncio.gather(*(outcome(users.sign_up(db, newcomer, invite=None, needs_invite=False)) for _ in range(3)))
    assert sorted(outcomes) == ["done", "email_taken", "email_taken"]


async def test_only_the_hash_of_a_link_is_stored(db: Database) -> None:
    link = await made(db, "operator")
    async with db.read() as read:
        rows = (await read.scalars(text("SELECT row_to_json(l)::text FROM links l"))).all()
    assert rows
    assert not any(link in row for row in rows)
