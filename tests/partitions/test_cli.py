"""`piggybank partitions`, the job and the doctor, as an operator meets them."""

import asyncio
import json
from datetime import UTC, datetime

import asyncpg
import structlog

from piggybank import ids
from piggybank.appliance import doctor
from piggybank.cache import Cache
from piggybank.db import months, partitions
from piggybank.db.engines import Database
from piggybank.jobs import partitions as job
from piggybank.jobs.work import Work
from piggybank.ledger import Ledger
from piggybank.settings import Settings
from piggybank.wallet.provider import Provider
from tests.conftest import run_command
from tests.partitions.conftest import Books, at, findings, states


async def run(settings: Settings, *words: str, exit_code: int = 0) -> str:
    """What `piggybank partitions ..` says."""
    done = await asyncio.to_thread(run_command, settings, "partitions", *words)  # in this process others write to standard output, too
    assert done.returncode == exit_code, done.stdout + done.stderr
    return done.stdout + done.stderr


async def test_from_on_to_archived(fresh_settings: Settings, sql: asyncpg.Connection) -> None:
    assert (await run(fresh_settings, "list")).split()[-1] == "attached"
    assert "months are on; made transactions_2" in await run(fresh_settings, "enable")
    assert json.loads(await run(fresh_settings, "enable", "--json")) == {"made": []}
    assert json.loads(await run(fresh_settings, "ensure", "--json")) == {"made": [], "missing": []}
    items = json.loads(await run(fresh_settings, "list", "--json"))["items"]
    assert (
        [item["name"] for item in items]
        == list(await states(sql))
        == sorted(await states(sql), key=lambda name: name != "transactions_all")
    )
    assert items[0]["from"] is None
    assert items[0]["to"] == items[1]["from"]
    assert "is not over for 3 days yet" in await run(fresh_settings, "archive", items[0]["month"], exit_code=1)


async def test_detach_then_archive(fresh_settings: Settings, random_books: Books) -> None:
    assert "its rows are still in the table transactions_all" in await run(fresh_settings, "detach", "2026-01")
    assert (await states(random_books.sql))["transactions_all"] == "detached"
    assert await findings(fresh_settings) == []
    said = await run(fresh_settings, "archive", "2026-01")
    assert f"{fresh_settings.data_dir}/archive/transactions-2026-01.parquet" in said
    (first, *_) = json.loads(await run(fresh_settings, "list", "--json"))["items"]
    assert (first["state"], first["file"], first["to"]) == ("archived", "transactions-2026-01.parquet", "2026-02-01")
    await random_books.sql.execute("UPDATE accounts SET transactions_count = transactions_count + 1")
    assert "the ledger does not verify, so nothing is archived" in await run(fresh_settings, "archive", "2026-02", exit_code=1)


async def test_the_job_makes_months_or_says_that_they_are_missing(fresh_settings: Settings, sql: asyncpg.Connection) -> None:
    async def ensure(settings: Settings) -> tuple[int, list[str]]:
        db, cache = Database(settings.database_url), Cache(settings.cache_url)
        work = Work(settings, db, cache, Ledger(db, cache), Provider(settings, db))
        with structlog.testing.capture_logs() as logs:
            made = await job.ensure(work)
        await work.provider.close()
        await cache.close()
        await db.close()
        return made, [log["event"] for log in logs if log["log_level"] == "critical"]

    without_owner = Settings(
        **{**{name: getattr(fresh_settings, name) for name in fresh_settings.__struct_fields__}, "owner_database_url": ""}
    )
    assert await ensure(fresh_settings) == (0, [])  # months are off
    await months.enable(fresh_settings.owner_database_url, now=at(1, 15))
    assert await _looked_at(fresh_settings) == "broken"
    assert await ensure(without_owner) == (0, ["partitions_missing"])
    async with partitions.alone(fresh_settings.owner_database_url):  # another command is at it
        assert await ensure(fresh_settings) == (0, ["partitions_missing"])
    made, alerts = await ensure(fresh_settings)
    assert made >= 10
    assert alerts == []
    assert await ensure(without_owner) == (0, [])
    assert await _looked_at(fresh_settings) == "ok"
    assert max(ids.time_of(one.below) for one in await partitions.known(sql) if one.below) > datetime.now(UTC)


async def _looked_at(settings: Settings) -> str:
    (check,) = [check for check in await doctor.examine(settings) if check.name == "partitions"]
    return check.result
