"""The standbys that other tests lean on are real: they stream, fall behind, and one of them takes over."""

import asyncio
from pathlib import Path

import asyncpg
from sqlalchemy import text

from piggybank.db.engines import Database
from tests.standbys import replicated, until


async def test_standbys_stream_pause_and_take_over(open_path: Path) -> None:
    cluster = replicated(open_path)
    made = await asyncio.to_thread(cluster.__enter__)
    try:
        one, other = made.standbys
        assert await made.value("SELECT array_agg(application_name ORDER BY application_name) FROM pg_stat_replication") == [
            "replica_1",
            "replica_2",
        ]
        await made.value("CREATE TABLE seen (n int)")

        async def made_there() -> bool:
            return bool(await one.value("SELECT to_regclass('seen') IS NOT NULL"))

        await until(made_there)
        await one.pause_replay()
        await made.value("INSERT INTO seen VALUES (1)")

        async def shown() -> bool:
            return bool(await other.value("SELECT count(*) FROM seen") == 1)

        await until(shown)
        assert await one.value("SELECT count(*) FROM seen") == 0
        await one.resume_replay()

        for standby in made.standbys:
            standby.pause()
        waiting = asyncio.create_task(made.value("INSERT INTO seen VALUES (2)"))
        _, late = await asyncio.wait([waiting], timeout=1)
        assert late, "a commit waits while nobody confirms"
        for standby in made.standbys:
            standby.resume()
        await waiting

        # several addresses: sessions and the ledger's connection find the one that takes writes
        who, _, primary = made.settings.database_url.rpartition("@")
        hosts = [url.rpartition("@")[2].partition("/")[0] for url in (one.url, other.url)]
        db = Database(f"{who}@{','.join(hosts)},{primary}?target_session_attrs=read-write")
        async with db.write() as write:
            assert await write.scalar(text("SELECT pg_is_in_recovery()")) is False
        connection = await db.connect()
        assert await connection.fetchval("SELECT pg_is_in_recovery()") is False
        await connection.close()
        await db.close()

        await asyncio.to_thread(made.kill_primary)
        best = one if await one.received() >= await other.received() else other
        await best.promote()
        assert await best.value("SELECT count(*) FROM seen") == 2
        await best.value("INSERT INTO seen VALUES (3)")
    finally:
        await asyncio.to_thread(cluster.__exit__, None, None, None)


async def test_a_killed_standby_comes_back(open_path: Path) -> None:
    cluster = replicated(open_path, 1, synchronous=False)
    made = await asyncio.to_thread(cluster.__enter__)
    try:
        [standby] = made.standbys
        await asyncio.to_thread(standby.kill)
        try:
            await standby.value("SELECT 1")
        except (OSError, asyncpg.PostgresError):
            pass
        else:
            raise AssertionError("it still answers")
        await asyncio.to_thread(standby.start)
        await made.streaming()
    finally:
        await asyncio.to_thread(cluster.__exit__, None, None, None)
