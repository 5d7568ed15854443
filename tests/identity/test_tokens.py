"""A token is good until it is not, whatever the cache does."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from redis.asyncio import Redis
from sqlalchemy import func, select, text, update

from piggybank import errors
from piggybank.appliance import store_files
from piggybank.cache import Cache, Entry
from piggybank.db.engines import Database
from piggybank.db.tables.people import ApiKey, Session
from piggybank.identity import apikeys, sessions
from piggybank.identity.tokens import REMEMBERED_S, SESSION_PREFIX, Tokens, hash_of, new_token
from piggybank.jobs import outbox
from piggybank.jobs.work import Work
from piggybank.ledger import Ledger
from piggybank.settings import Settings
from piggybank.wallet.provider import Provider
from tests.identity.conftest import PASSWORD, MakeUser


@pytest.fixture
async def away(cache: Cache) -> AsyncIterator[Cache]:
    """A cache that nobody serves."""
    made = Cache(f"redis://127.0.0.1:{store_files.free_ports(1)[0]}/0")
    made.epoch = cache.epoch
    yield made
    await made.close()


async def refused(tokens: Tokens, token: str) -> bool:
    try:
        await tokens.authenticate(token)
    except errors.Unauthenticated:
        return True
    return False


async def flush(settings: Settings) -> None:
    async with Redis.from_url(settings.cache_url) as client:
        await client.flushdb()


async def test_a_session_from_its_start_to_its_end(db: Database, cache: Cache, tokens: Tokens, make_user: MakeUser) -> None:
    user = await make_user()
    assert user.email is not None
    signed_in = await sessions.sign_in(db, tokens, user.email, PASSWORD)
    assert signed_in.token.startswith(SESSION_PREFIX)
    assert len(signed_in.token) == len(SESSION_PREFIX) + 43
    principal = await tokens.authenticate(signed_in.token)
    assert (principal.kind, principal.role, principal.user_id, principal.token_id) == ("user", "user", user.id, signed_in.id)
    assert principal.actor == f"user:{user.id}"
    assert await Tokens(db, cache).authenticate(signed_in.token) == principal  # out of the cache

    await sessions.sign_out(db, tokens, principal)
    assert await refused(tokens, signed_in.token)
    assert await refused(Tokens(db, cache), signed_in.token)


async def test_only_the_hash_is_stored(db: Database, tokens: Tokens, make_user: MakeUser) -> None:
    user = await make_user()
    assert user.email is not None
    signed_in = await sessions.sign_in(db, tokens, user.email, PASSWORD)
    async with db.write() as write:
        key, token = await apikeys.create(write, name="backend", scopes=["ops:read"], actor="test")
    async with db.read() as read:
        assert await read.scalar(select(Session.token_hash).where(Session.id == signed_in.id)) == hash_of(signed_in.token)
        assert await read.scalar(select(ApiKey.token_hash).where(ApiKey.id == key.id)) == hash_of(token)
        rows = (
            await read.scalars(text("SELECT row_to_json(s)::text FROM sessions s UNION ALL SELECT row_to_json(k)::text FROM api_keys k"))
        ).all()
        logged = (await read.scalars(text("SELECT row_to_json(a)::text FROM audit_log a"))).all()
    for row in (*rows, *logged):
        assert signed_in.token not in row
        assert token not in row


@pytest.mark.parametrize(
    "token",
    ["", "x", "pbs_", "pbs_" + "a" * 42, "pbl_" + "a" * 43, "pbs_" + "é" * 43, new_token("pbs_"), new_token("pbk_")],
    ids=["empty", "letter", "prefix", "short", "link", "letters", "unknown-session", "unknown-key"],  # xdist: the same in every process
)
async def test_what_is_no_token_is_refused(tokens: Tokens, token: str) -> None:
    assert await refused(tokens, token)


async def test_another_process_refuses_within_a_second(db: Database, cache: Cache, tokens: Tokens, make_user: MakeUser) -> None:
    user = await make_user()
    assert user.email is not None
    token = (await sessions.sign_in(db, tokens, user.email, PASSWORD)).token
    other = Tokens(db, cache)
    principal = await other.authenticate(token)  # remembered there
    await sessions.sign_out(db, tokens, principal)
    await asyncio.sleep(REMEMBERED_S)
    assert await refused(other, token)


async def test_revoked_stays_revoked_when_the_cache_is_flushed(
    settings: Settings, db: Database, cache: Cache, tokens: Tokens, make_user: MakeUser
) -> None:
    user = await make_user()
    assert user.email is not None
    token = (await sessions.sign_in(db, tokens, user.email, PASSWORD)).token
    await sessions.sign_out(db, tokens, await tokens.authenticate(token))
    await flush(settings)
    assert await refused(tokens, token)
    assert await refused(Tokens(db, cache), token)


async def test_everything_works_with_the_cache_away(db: Database, away: Cache, make_user: MakeUser) -> None:
    here, there = Tokens(db, away), Tokens(db, away)
    user = await make_user()
    assert user.email is not None
    token = (await sessions.sign_in(db, here, user.email, PASSWORD)).token
    principal = await there.authenticate(token)
    await sessions.sign_out(db, here, principal)
    assert await refused(here, token)
    await asyncio.sleep(REMEMBERED_S)
    assert await refused(there, token)


async def test_the_sweep_buries_what_a_logout_could_not(
    settings: Settings, db: Database, cache: Cache, away: Cache, make_user: MakeUser
) -> None:
    user = await make_user()
    assert user.email is not None
    cut_off = Tokens(db, away)
    token = (await sessions.sign_in(db, cut_off, user.email, PASSWORD)).token
    principal = await Tokens(db, cache).authenticate(token)  # now the cache believes it
    await sessions.sign_out(db, cut_off, principal)
    await asyncio.sleep(outbox.OLDER_THAN_S)
    await outbox.sweep(Work(settings, db, cache, Ledger(db, cache), Provider(settings, db)))
    assert (await cache.read("token", hash_of(token).hex())).is_tombstone
    assert await refused(Tokens(db, cache), token)


async def test_a_slow_fill_cannot_replace_a_tombstone(db: Database, cache: Cache, tokens: Tokens, make_user: MakeUser) -> None:
    user = await make_user()
    assert user.email is not None
    signed_in = await sessions.sign_in(db, tokens, user.email, PASSWORD)
    key = hash_of(signed_in.token).hex()
    found = await cache.read("token", key)  # a slow process: it has the lease and has read the row
    assert found.lease
    principal = await Tokens(db, cache).authenticate(signed_in.token)
    await sessions.sign_out(db, tokens, principal)
    await cache.fill("token", found, Entry(key, 0, b'"still good"'), 60)
    assert (await cache.read("token", key)).is_tombstone
    assert await refused(Tokens(db, cache), signed_in.token)


async def test_a_session_expires_in_the_database_and_in_the_cache(db: Database, cache: Cache, tokens: Tokens, make_user: MakeUser) -> None:
    user = await make_user()
    assert user.email is not None
    signed_in = await sessions.sign_in(db, tokens, user.email, PASSWORD)
    until = datetime.now(UTC) + timedelta(seconds=2)
    async with db.write() as write:
        await write.execute(update(Session).where(Session.id == signed_in.id).values(expires_at=until))
    await tokens.authenticate(signed_in.token)  # into the cache and into the process
    await asyncio.sleep(until.timestamp() - time.time())
    assert await refused(tokens, signed_in.token)
    assert await refused(Tokens(db, cache), signed_in.token)


async def test_a_revoked_key_is_refused_and_stays_in_the_log(db: Database, cache: Cache, tokens: Tokens) -> None:
    async with db.write() as write:
        key, token = await apikeys.create(write, name="backend", scopes=["ops:read", "ops:read"], actor="test")
    principal = await tokens.authenticate(token)
    assert (principal.kind, principal.scopes, principal.name) == ("service", frozenset({"ops:read"}), "backend")
    assert principal.actor == f"key:{key.id}"
    await apikeys.revoke(db, tokens, key.id, actor="test")
    assert await refused(tokens, token)
    assert await refused(Tokens(db, cache), token)
    with pytest.raises(errors.NotFound):
        await apikeys.revoke(db, tokens, key.id, actor="test")
    async with db.read() as read:
        actions = await read.scalars(
            text("SELECT action FROM audit_log WHERE target = :target ORDER BY id").bindparams(target=f"key:{key.id}")
        )
        assert list(actions) == ["apikey.create", "apikey.revoke"]


async def test_one_user_has_a_bounded_number_of_sessions(
    db: Database, tokens: Tokens, make_user: MakeUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "SESSIONS_MAX", 3)
    user = await make_user()
    assert user.email is not None
    signed_in = [(await sessions.sign_in(db, tokens, user.email, PASSWORD)).token for _ in range(4)]
    assert [await refused(tokens, token) for token in signed_in] == [True, False, False, False]
    async with db.read() as read:
        in_force = select(func.count()).select_from(Session).where(Session.user_id == user.id, Session.revoked_at.is_(None))
        assert await read.scalar(in_force) == 3
