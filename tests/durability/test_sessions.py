"""The other door: what sessions commit waits for a standby, too, and nobody's patience cancels it."""

import asyncio
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import text

from piggybank import errors, ids
from piggybank.db import commits
from piggybank.db.engines import Database
from piggybank.settings import Settings
from piggybank.wallet import inbox
from tests.durability.conftest import CANCEL_WAITERS, WAITERS, nobody_is_synchronous, waits
from tests.standbys import Replicated

INSERT = text("INSERT INTO users (id, name) VALUES (:id, :name)")
NAMED = "SELECT count(*) FROM users WHERE name = $1"


async def sign_up(db: Database, name: str) -> None:
    async with db.write() as write:
        await write.execute(INSERT, {"id": ids.new_id(ids.new_bucket()), "name": name})


async def test_a_session_that_wrote_needs_a_standby_and_one_that_only_looked_does_not(cluster: Replicated, database: Database) -> None:
    name = uuid4().hex
    await sign_up(database, name)
    async with nobody_is_synchronous(cluster):
        with pytest.raises(errors.NoSynchronousStandby):
            await sign_up(database, uuid4().hex)
        async with database.write() as write:
            assert await write.scalar(text("SELECT name FROM users WHERE name = :name"), {"name": name}) == name
    await sign_up(database, uuid4().hex)


async def test_a_session_whose_commit_is_not_confirmed_has_an_unknown_outcome(
    cluster: Replicated, database: Database, sql: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "SESSION_WAIT_S", 1)
    late, cut_off, cancelled = (uuid4().hex for _ in range(3))
    for standby in cluster.standbys:
        standby.pause()
    try:
        with pytest.raises(errors.OutcomeUnknown):
            await sign_up(database, late)
        assert await cluster.value(WAITERS) == 1  # the server was not told to stop waiting

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):  # as a job is cut off
                await sign_up(database, cut_off)
        assert await cluster.value(WAITERS) == 2

        monkeypatch.setattr(commits, "SESSION_WAIT_S", 30)
        by_hand = asyncio.create_task(sign_up(database, cancelled))
        await waits(cluster, 3)
        await sql.fetchval(CANCEL_WAITERS)
        with pytest.raises(errors.OutcomeUnknown):
            await by_hand
    finally:
        for standby in cluster.standbys:
            standby.resume()
    await sign_up(database, uuid4().hex)  # its pool is well
    for name in (late, cut_off, cancelled):
        assert await sql.fetchval(NAMED, name) == 1


async def test_an_event_that_comes_again_is_taken_when_a_standby_has_it(
    cluster: Replicated, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "SESSION_WAIT_S", 1)
    body = b'{"id": "%s"}' % uuid4().hex.encode()
    assert await inbox.receive(database, "simulator", body, signed=False)
    for standby in cluster.standbys:
        standby.pause()
    try:
        with pytest.raises(errors.OutcomeUnknown):
            await inbox.receive(database, "simulator", body, signed=False)
    finally:
        for standby in cluster.standbys:
            standby.resume()
    assert not await inbox.receive(database, "simulator", body, signed=False)


async def test_local_durability_signs_up_while_no_standby_confirms(cluster: Replicated, local: Settings) -> None:
    db = Database.of(local)
    for standby in cluster.standbys:
        standby.pause()
    try:
        await sign_up(db, uuid4().hex)
    finally:
        for standby in cluster.standbys:
            standby.resume()
        await db.close()
