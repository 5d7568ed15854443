"""Turning months on: under load, behind readers, interrupted, repeated."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from piggybank import errors, ids
from piggybank.appliance import binaries
from piggybank.cache import Cache
from piggybank.db import months, partitions
from piggybank.db.engines import Database
from piggybank.ledger import SYSTEM, Ledger, Submission, commands
from piggybank.ledger.idempotency import Answer
from piggybank.settings import Settings
from piggybank.wallet import history
from tests.ledger.conftest import new_account, running_ledger
from tests.partitions.conftest import at, findings, homes, month, ms, states, until
from tests.wallet.conftest import Past

ACCOUNTS = 20
WRITERS = 8
WRITES_AROUND = 200  # before and after the change

FILES = """
SELECT relname, relfilenode FROM pg_class
WHERE oid = 'transactions_all'::regclass OR oid IN (SELECT indexrelid FROM pg_index WHERE indrelid = 'transactions_all'::regclass)
ORDER BY relname
"""


class Load:
    """Writers through two ledgers and a reader of histories; whatever goes wrong ends it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.answered = self.read = 0
        self.slowest_s = 0.0
        self._stopping = False

    @asynccontextmanager
    async def running(self, sql: asyncpg.Connection) -> AsyncIterator["Load"]:
        accounts = [await new_account(sql) for _ in range(ACCOUNTS)]
        async with running_ledger(self.settings) as one, running_ledger(self.settings) as other, asyncio.TaskGroup() as tasks:
            for number in range(WRITERS):
                tasks.create_task(self._write((one, other)[number % 2], accounts, number))
            tasks.create_task(self._read(accounts))
            await self.more()
            yield self
            await self.more()
            self._stopping = True

    async def more(self) -> None:
        """Wait until it has gone on for a while."""
        answered, read = self.answered, self.read
        await until(lambda: self.answered >= answered + WRITES_AROUND and self.read > read)

    async def _write(self, ledger: Ledger, accounts: list[Any], number: int) -> None:
        count = 0
        while not self._stopping:
            account, other = accounts[(number + count) % ACCOUNTS], accounts[(number + count * 7 + 1) % ACCOUNTS]
            command: commands.Command = commands.Deposit(account_id=account, amount=100)
            if count % 3 == 2 and account != other:
                command = commands.Transfer(account_id=account, to_account=other, amount=1)
            began = asyncio.get_running_loop().time()
            outcome = await ledger.submit(Submission(command, SYSTEM, f"{number}-{count}", b"x"))
            self.slowest_s = max(self.slowest_s, asyncio.get_running_loop().time() - began)
            assert isinstance(outcome.decision, Answer | errors.InsufficientFunds), outcome
            self.answered += 1
            count += 1

    async def _read(self, accounts: list[Any]) -> None:
        db, cache = Database(self.settings.database_url), Cache("redis://127.0.0.1:1/0")  # each time from the database
        while not self._stopping:
            page = await history.page(db, cache, accounts[self.read % ACCOUNTS])
            for row in page.items[:1]:
                assert (await history.one(db, row.id)).id == row.id
            self.read += 1
        await cache.close()
        await db.close()


async def test_nothing_is_copied_and_no_write_fails(fresh_settings: Settings, sql: asyncpg.Connection) -> None:
    load = Load(fresh_settings)
    async with load.running(sql):
        before = await sql.fetch(FILES)
        made = await months.enable(fresh_settings.owner_database_url)
        assert await sql.fetch(FILES) == before
    assert len(made) >= partitions.MONTHS_AHEAD - 1
    assert set((await states(sql)).values()) == {"attached"}
    assert sum((await homes(sql)).values()) == await sql.fetchval("SELECT sum(transactions_count) FROM accounts")
    assert await findings(fresh_settings) == []
    assert await months.enable(fresh_settings.owner_database_url) == []


async def test_a_dump_and_a_long_read_are_waited_for(fresh_settings: Settings, sql: asyncpg.Connection, past: Past, tmp_path: Path) -> None:
    account = await past.account()
    await past.post(account, [(ms(at(1)) + number, 1) for number in range(5_000)])
    said: list[str] = []
    reader = await asyncpg.connect(fresh_settings.owner_database_url, server_settings={"application_name": "a long report"})
    pg_dump = binaries.postgres(tmp_path, None) / "pg_dump"
    with subprocess.Popen([pg_dump, fresh_settings.owner_database_url], stdout=subprocess.PIPE) as dump:  # noqa: ASYNC220 - nobody reads it
        await _until_it_holds(sql, "pg_dump")
        reading = reader.transaction()
        await reading.start()
        await reader.fetch("SELECT count(*) FROM transactions")
        async with Load(fresh_settings).running(sql) as load:
            enabling = asyncio.create_task(months.enable(fresh_settings.owner_database_url, tell=said.append))
            await until(lambda: any("pg_dump" in line and f"pid {dump.pid}" not in line for line in said))
            await load.more()
            assert not enabling.done()
            dump.kill()
            await until(lambda: "pg_dump" not in said[-1] and "a long report" in said[-1])
            assert f"pid {reader.get_server_pid()}" in said[-1]
            await load.more()
            assert not enabling.done()
            await reading.rollback()
            await enabling
    await reader.close()
    assert partitions.are_on(await partitions.known(sql))
    assert await findings(fresh_settings) == []


async def _until_it_holds(sql: asyncpg.Connection, application: str) -> None:
    held = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE relation = 'transactions_all'::regclass AND granted"
    async with asyncio.timeout(60):
        while not await sql.fetchval(f"{held} AND application_name = $1", application):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.05)


async def test_interrupted_anywhere_and_run_again(fresh_settings: Settings, sql: asyncpg.Connection, past: Past) -> None:
    await past.post(await past.account(), [(ms(at(1)), 5)])
    url, now = fresh_settings.owner_database_url, at(1, 15)
    blocker = await asyncpg.connect(url)
    for statement in ("SELECT 1", _CHECK.format(ids.first_id_at(at(2)))):  # ended before its first step, and after it
        async with blocker.transaction():
            await blocker.execute("SELECT count(*) FROM transactions")
            enabling = asyncio.create_task(months.enable(url, now=now))
            await asyncio.sleep(1)
            enabling.cancel()
            with suppress(asyncio.CancelledError):
                await enabling
        await sql.execute(statement)
    assert await partitions.begun(sql) == ids.first_id_at(at(2))
    assert await partitions.missing(sql, now) == [month(2)]  # what the CHECK would refuse
    assert await months.enable(url, now=now) == ["transactions_2026_02", "transactions_2026_03", "transactions_2026_04"]
    assert await partitions.begun(sql) is None
    # ended before the months were made
    for name in ("transactions_2026_03", "transactions_2026_04"):
        await sql.execute(f"DROP TABLE {name}")
    assert await months.enable(url, now=now) == ["transactions_2026_03", "transactions_2026_04"]
    await blocker.close()


_CHECK = "ALTER TABLE transactions_all ADD CONSTRAINT transactions_all_before CHECK (id < '{}') NOT VALID"


@pytest.mark.deep
async def test_what_an_interrupted_attempt_left_does_no_harm(fresh_settings: Settings, sql: asyncpg.Connection, past: Past) -> None:
    url = fresh_settings.owner_database_url
    await sql.execute(_CHECK.format(ids.first_id_at(at(2))))
    assert await partitions.ensure(url, now=at(1, 20)) == []  # what the job does
    assert await partitions.begun(sql) is None
    await past.post(await past.account(), [(ms(at(2, 3)), 5)])
    assert await partitions.missing(sql, at(1, 20)) == []
    await sql.execute(_CHECK.format(ids.first_id_at(at(3))))
    said: list[str] = []
    # the cutover of the attempt is too near by now: another one
    assert await months.enable(url, now=at(2, 28, 12), tell=said.append) == ["transactions_2026_04", "transactions_2026_05"]
    assert any("interrupted" in line for line in said)
    assert [partition.month for partition in await partitions.known(sql)] == [month(3), month(4), month(5)]


async def test_rows_of_the_future_are_told(fresh_settings: Settings, sql: asyncpg.Connection, past: Past) -> None:
    await past.post(await past.account(), [(ms(at(5)), 5)])
    with pytest.raises(errors.CannotProceed, match="a clock was far ahead"):
        await months.enable(fresh_settings.owner_database_url, now=at(1, 15))
    assert await partitions.begun(sql) is None


async def test_one_command_at_a_time(settings_of_module: Settings) -> None:
    async with partitions.alone(settings_of_module.owner_database_url):
        with pytest.raises(errors.CannotProceed, match="another command"):
            await months.enable(settings_of_module.owner_database_url)


async def test_months_are_made_ahead_without_a_gap(fresh_settings: Settings, sql: asyncpg.Connection, past: Past) -> None:
    url = fresh_settings.owner_database_url
    assert await partitions.ensure(url) == []  # months are off
    await months.enable(url, now=at(1, 15))
    assert await partitions.missing(sql, at(3, 31)) == []
    assert await partitions.missing(sql, at(4, 1)) == [month(5)]
    assert await partitions.missing(sql, at(8)) == [month(8), month(9)]
    assert await partitions.ensure(url, now=at(8, 2)) == [f"transactions_2026_{number:02}" for number in range(5, 12)]
    assert await partitions.ensure(url, now=at(8, 2)) == []
    assert await partitions.missing(sql, at(8)) == []
    account = await past.account()
    await past.post(account, [(ms(at(number, 1)) + offset, 10) for number in range(1, 12) for offset in (0, 86_400_000)])
    found = await homes(sql)
    assert found == {"transactions_all": 2} | {f"transactions_2026_{number:02}": 2 for number in range(2, 12)}
    assert await findings(fresh_settings) == []


async def test_the_application_may_only_insert_and_select(fresh_settings: Settings, sql: asyncpg.Connection) -> None:
    await months.enable(fresh_settings.owner_database_url)
    (name,) = [one.name for one in await partitions.known(sql) if one.month == partitions.after(partitions.month_of(datetime.now(UTC)))]
    application = await asyncpg.connect(fresh_settings.database_url)
    for statement in (f"UPDATE {name} SET amount = 1", f"DELETE FROM {name}", f"DROP TABLE {name}", f"INSERT INTO {name} DEFAULT VALUES"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await application.execute(statement)
    assert await partitions.known(application) == await partitions.known(sql)
    await application.close()
