"""Forgetting: what is old goes in slices, what is not stays."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import asyncpg
import pytest

from piggybank import ids
from piggybank.jobs import keys, people
from piggybank.jobs.work import Work


async def put_keys(sql: asyncpg.Connection, how_many: int, age: timedelta) -> None:
    await sql.execute(
        "INSERT INTO idempotency_keys (owner, created_at, bucket, actor, key, fingerprint, answer)"
        " SELECT $1, $2, 7, 's', gen_random_uuid()::text, '\\x00', '\\x00' FROM generate_series(1, $3)",
        uuid4(),
        datetime.now(UTC) - age,
        how_many,
    )


async def test_old_keys_go_in_slices_and_young_ones_stay(work: Work, sql: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "SLICE_ROWS", 100)
    await put_keys(sql, 350, timedelta(days=keys.KEPT_DAYS, minutes=1))
    await put_keys(sql, 40, timedelta(days=keys.KEPT_DAYS) - timedelta(minutes=1))
    assert await keys.prune(work) == 350
    assert await sql.fetchval("SELECT count(*) FROM idempotency_keys") == 40
    assert await keys.prune(work) == 0


async def test_keys_are_found_by_the_index(work: Work, sql: asyncpg.Connection) -> None:
    await put_keys(sql, 2_000, timedelta(days=1))
    await sql.execute("ANALYZE idempotency_keys")
    async with work.db.write() as write:
        await write.execute(keys._BY_INDEX)
        explain = type(keys._PRUNE)("EXPLAIN " + keys._PRUNE.text)
        plan = "\n".join((await write.scalars(explain, {"before": datetime.now(UTC), "limit": 10})).all())
    assert "idempotency_keys_age" in plan
    assert "Seq Scan" not in plan


async def test_ended_sessions_links_and_old_failures_go(work: Work, sql: asyncpg.Connection) -> None:
    user_id, now = ids.new_id(3), datetime.now(UTC)
    await sql.execute("INSERT INTO users (id) VALUES ($1)", user_id)
    for days in (-6, -1, 1, 60):  # since it ended
        ended = now - timedelta(days=days)
        await sql.execute(
            "INSERT INTO sessions (id, user_id, token_hash, expires_at) VALUES ($1, $2, $3, $4)", uuid4(), user_id, uuid4().bytes, ended
        )
        await sql.execute(
            "INSERT INTO links (id, token_hash, purpose, expires_at) VALUES ($1, $2, 'invite', $3)", uuid4(), uuid4().bytes, ended
        )
        await sql.execute(
            "INSERT INTO failed_sign_ins (address_hash, failures, updated_at) VALUES ($1, 1, $2)",
            uuid4().bytes,
            now - timedelta(days=abs(days)),
        )
    assert await people.prune(work) == 1 + 1 + 1
    counts = [await sql.fetchval(f"SELECT count(*) FROM {table}") for table in ("sessions", "links", "failed_sign_ins")]
    assert counts == [3, 3, 3]
    assert await people.prune(work) == 0
