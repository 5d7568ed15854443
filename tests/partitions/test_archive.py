"""A month goes into a file and out of the database, and nothing that it added up to is lost."""

import asyncio
import hashlib
import random
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pyarrow.parquet as pq
import pytest

from piggybank import archive, checks, errors, ids
from piggybank.archive.files import Manifest
from piggybank.db import partitions
from piggybank.settings import Settings
from tests.conftest import ROOT, environment
from tests.partitions.conftest import JULY, Books, at, findings, month, states, until
from tests.partitions.test_enable import Load

FIRST = ("transactions-2026-01.parquet", "transactions-2026-01.json")


def folder(settings: Settings) -> Path:
    return settings.data_dir / archive.FOLDER


async def test_month_after_month_everything_still_adds_up(fresh_settings: Settings, random_books: Books) -> None:
    sql, before = random_books.sql, await _rows(random_books.sql)
    assert await findings(fresh_settings) == []
    for number in range(1, 7):
        partition = await random_books.archive(number)
        assert (partition.state, partition.month) == ("archived", month(number))
        assert await findings(fresh_settings) == []
        balances = dict(await sql.fetch("SELECT id, balance FROM accounts"))
        assert balances == {account: random_books.balance(account) for account in random_books.accounts}
    assert await random_books.archive(3) == (await partitions.known(sql))[2]  # again: nothing to do
    kept = {row["id"]: row for number in range(1, 7) for row in _read(folder(fresh_settings) / f"transactions-2026-0{number}.parquet")}
    left = await _rows(sql)
    assert kept.keys().isdisjoint(left)
    assert {row_id: tuple(row.values()) for row_id, row in kept.items()} | left == before
    assert min(left) >= ids.first_id_at(at(7))
    await _check_manifest(fresh_settings, sql)
    # and life goes on
    for account in random_books.accounts:
        await random_books.move(account, 5, at(7, 20))
    assert await findings(fresh_settings) == []


async def _check_manifest(settings: Settings, sql: asyncpg.Connection) -> None:
    file, manifest_file = (folder(settings) / name for name in FIRST)
    manifest = msgspec.json.decode(manifest_file.read_bytes(), type=Manifest)
    rows = _read(file)
    assert (manifest.rows, manifest.amount) == (len(rows), sum(int(str(row["amount"])) for row in rows))
    assert (manifest.first_id, manifest.last_id) == (rows[0]["id"], rows[-1]["id"])
    assert sum(kind.rows for kind in manifest.kinds) == manifest.rows
    assert hashlib.sha256(file.read_bytes()).hexdigest() == manifest.sha256
    assert file.stat().st_size == manifest.bytes
    assert folder(settings).stat().st_mode & 0o077 == 0
    recorded = await sql.fetchrow("SELECT * FROM archived_months ORDER BY month LIMIT 1")
    assert (recorded["rows"], recorded["sha256"], recorded["file"]) == (manifest.rows, manifest.sha256, file.name)


async def _rows(sql: asyncpg.Connection) -> dict[UUID, tuple[object, ...]]:
    columns = "id, account_id, amount, balance_after, sequence, bucket, kind, system_account, transfer_id, payment_id, reverses"
    rows = await sql.fetch(f"SELECT {columns}, reference, description, metadata::text FROM transactions")
    return {row["id"]: tuple(row) for row in rows}


def _read(path: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = pq.read_table(path).to_pylist()
    return found


TAMPERED = {
    "a balance": "UPDATE account_checkpoints SET balance = balance + 1, clearing = clearing - 1",
    "a system column": "UPDATE account_checkpoints SET fees = fees + 1, clearing = clearing - 1",
    "a count": "UPDATE account_checkpoints SET count = count + 1, sequence = sequence + 1",
    "a missing one": "DELETE FROM account_checkpoints",
    "one that is nobody's": "UPDATE account_checkpoints SET account_id = gen_random_uuid()",
    "a payment": "UPDATE payment_checkpoints SET paid = paid + 1",
    "a payment that is missing": "DELETE FROM payment_checkpoints",
    "the rows of a month": "UPDATE archived_months SET rows = rows + 1",
    "a row after it": "DELETE FROM transactions WHERE id IN (SELECT id FROM transactions ORDER BY id LIMIT 1)",
}


async def test_verify_notices_what_was_tampered_with(fresh_settings: Settings, random_books: Books) -> None:
    await random_books.archive(1)
    await random_books.archive(2)
    assert await findings(fresh_settings) == []
    vanishing = random_books.sql.transaction()  # an account that nobody has any more is found by what it carries forward, too
    await vanishing.start()
    await random_books.sql.execute(TAMPERED["one that is nobody's"])
    assert await random_books.sql.fetch(checks._ORPHANS)
    await vanishing.rollback()
    for what, statement in TAMPERED.items():
        copies = {
            table: await _copy(random_books.sql, table) for table in ("account_checkpoints", "payment_checkpoints", "archived_months")
        }
        kept = await random_books.sql.fetchrow("SELECT * FROM transactions ORDER BY id LIMIT 1")
        await random_books.sql.execute(statement)
        assert await findings(fresh_settings), what
        for table, rows in copies.items():
            await random_books.sql.execute(f"DELETE FROM {table}")
            await random_books.sql.copy_records_to_table(table, records=rows)
        if not await random_books.sql.fetchval("SELECT count(*) FROM transactions WHERE id = $1", kept["id"]):
            await random_books.sql.copy_records_to_table("transactions", records=[kept], columns=list(kept.keys()))
        assert await findings(fresh_settings) == [], what


async def _copy(sql: asyncpg.Connection, table: str) -> list[asyncpg.Record]:
    return list(await sql.fetch(f"SELECT * FROM {table}"))


async def test_what_is_refused(fresh_settings: Settings, books: Books) -> None:
    await books.open(1)
    for number in (1, 2, 6, 7):
        await books.move(books.accounts[0], 10, at(number, 5))
    with pytest.raises(errors.CannotProceed, match="reports reach to nothing"):
        await books.archive(1)
    await books.report(JULY)
    with pytest.raises(errors.CannotProceed, match="2026-01 is older and not archived"):
        await books.archive(2)
    with pytest.raises(errors.CannotProceed, match="no partition of 2025-12"):
        await archive.archive(fresh_settings.owner_database_url, fresh_settings.data_dir / archive.FOLDER, month(12, 2025))
    payment_id = await books.past.payment(books.accounts[0], "pending", at(1, 31, 23))
    with pytest.raises(errors.CannotProceed, match=f"{payment_id}, created in 2026-01, is still open"):
        await books.archive(1)
    await books.sql.execute("UPDATE payments SET status = 'cancelled'")
    later = await books.past.payment(books.accounts[0], "pending", at(2, 1))  # of the next month
    await books.archive(1)
    await books.sql.execute("DELETE FROM payments WHERE id = $1", later)
    for number in range(2, 7):
        await books.archive(number)
    with pytest.raises(errors.CannotProceed, match="2026-07 is not over for 3 days"):
        await books.archive(7)
    with pytest.raises(errors.CannotProceed, match="2026-07 is not over for 3 days"):
        await archive.archive(fresh_settings.owner_database_url, fresh_settings.data_dir / archive.FOLDER, month(7), now=at(8, 3, 23))
    await books.report(at(8, 4, 1))
    await archive.archive(fresh_settings.owner_database_url, fresh_settings.data_dir / archive.FOLDER, month(7), now=at(8, 4))
    assert await findings(fresh_settings) == []


async def test_months_are_off(fresh_settings: Settings) -> None:
    with pytest.raises(errors.CannotProceed, match="months are off"):
        await archive.archive(fresh_settings.owner_database_url, fresh_settings.data_dir / archive.FOLDER, month(1))


@pytest.mark.deep
async def test_a_file_that_differs_stops_it(fresh_settings: Settings, random_books: Books) -> None:
    sql = random_books.sql
    await random_books.archive(1, keep_table=True)
    second = [folder(fresh_settings) / f"transactions-2026-02.{ending}" for ending in ("parquet", "json")]
    await sql.execute("CREATE TABLE hidden AS SELECT * FROM archived_months")

    async def refused(why: str) -> None:
        with pytest.raises(errors.CannotProceed, match=why):
            await random_books.archive(2)
        assert (await states(sql))["transactions_2026_02"] == "attached"
        assert await findings(fresh_settings) == []

    # the file and manifest of a run that ended before its mark
    blocker = await asyncpg.connect(fresh_settings.owner_database_url)
    async with blocker.transaction():
        await blocker.execute("LOCK TABLE account_checkpoints")
        task = asyncio.create_task(random_books.archive(2))
        await until(second[1].exists)
        await _cancelled(task)
    await blocker.close()
    whole = second[0].read_bytes()
    second[0].write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    await refused("not what its manifest says")
    second[0].unlink()
    await refused("not what its manifest says")
    second[0].write_bytes(whole)
    row = await sql.fetchrow("SELECT id, reference FROM transactions_2026_02 ORDER BY id LIMIT 1")
    await sql.execute("UPDATE transactions SET reference = 'other' WHERE id = $1", row["id"])
    await refused("differs from the table")
    await sql.execute("UPDATE transactions SET reference = $2 WHERE id = $1", *row)
    second[1].write_text("{}")
    await refused("not a manifest")
    second[1].unlink()  # a file without a manifest is one that was not finished
    second[0].write_bytes(b"half a file")
    assert (await random_books.archive(2)).state == "archived"
    assert second[0].read_bytes() == whole
    assert await findings(fresh_settings) == []


async def _cancelled(task: asyncio.Task[object]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.mark.deep
async def test_rows_that_came_late_are_never_dropped(random_books: Books) -> None:
    sql = random_books.sql
    await random_books.archive(1, keep_table=True)
    assert (await states(sql))["transactions_all"] == "detached"
    await sql.execute(
        "INSERT INTO transactions_all (id, account_id, amount, balance_after, sequence, bucket, kind, system_account)"
        " VALUES ($1, $1, 1, 1, 1, 0, 'deposit', 'clearing')",
        ids.new_id(0, int(at(1, 9).timestamp()) * 10**9),
    )
    with pytest.raises(errors.CannotProceed, match="It is kept, detached"):
        await random_books.archive(1)
    await sql.execute("DELETE FROM transactions_all WHERE id = account_id")
    assert (await random_books.archive(1)).state == "archived"


@pytest.mark.deep
async def test_ended_while_it_waits_and_run_again(fresh_settings: Settings, random_books: Books) -> None:
    """Interrupted when the month is marked and a long read keeps the partition."""
    sql, said = random_books.sql, list[str]()
    reader = await asyncpg.connect(fresh_settings.owner_database_url, server_settings={"application_name": "a long report"})
    reading = reader.transaction(isolation="repeatable_read")
    await reading.start()
    await reader.fetch("SELECT count(*) FROM transactions")
    task = asyncio.create_task(random_books.archive(1, tell=said.append))
    await until(lambda: any("a long report" in line for line in said))
    assert (await states(sql))["transactions_all"] == "detaching"
    assert await findings(fresh_settings) == []  # half-way: the month counts by its checkpoints
    assert await reader.fetchval("SELECT count(*) FROM transactions WHERE id < $1", ids.first_id_at(at(2))) > 0
    await _cancelled(task)
    await reading.rollback()
    await reader.close()
    assert (await states(sql))["transactions_all"] == "detaching"
    assert (await random_books.archive(1)).state == "archived"
    assert await findings(fresh_settings) == []


@pytest.mark.deep
async def test_an_empty_month(fresh_settings: Settings, books: Books) -> None:
    await books.report(JULY)
    assert [(await books.archive(number)).rows for number in range(1, 7)] == [0] * 6
    await books.open(1)
    await books.move(books.accounts[0], 5, JULY - timedelta(days=1))
    assert await findings(fresh_settings) == []
    assert await books.sql.fetchval("SELECT count(*) FROM account_checkpoints WHERE account_id = $1", uuid4()) == 0


async def test_people_pay_meanwhile(fresh_settings: Settings, random_books: Books) -> None:
    await partitions.ensure(fresh_settings.owner_database_url)  # they pay today
    async with Load(fresh_settings).running(random_books.sql) as load:
        for number in (1, 2):
            await random_books.archive(number)
            await load.more()
    assert await findings(fresh_settings) == []


@pytest.mark.deep
async def test_killed_again_and_again(fresh_settings: Settings, random_books: Books) -> None:
    """kill -9 at any moment of the command; what is run again in the end finishes, and nothing is lost."""
    chance, before = random.Random(4), await _rows(random_books.sql)
    words = [sys.executable, "-m", "piggybank", "partitions", "archive"]
    for number in range(1, 7):
        for _ in range(4):
            running = await asyncio.create_subprocess_exec(*words, f"2026-0{number}", env=environment(fresh_settings), cwd=ROOT)
            with suppress(TimeoutError):
                await asyncio.wait_for(running.wait(), chance.uniform(0.8, 2.5))
            with suppress(ProcessLookupError):
                running.kill()
            await running.wait()
            assert await findings(fresh_settings) == []
        async with asyncio.timeout(60):
            while await _state_after(random_books, number) != "archived":  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.1)  # the server has not noticed yet that the last one was killed
    files = [folder(fresh_settings) / f"transactions-2026-0{number}.parquet" for number in range(1, 7)]
    kept = {row["id"]: tuple(row.values()) for path in files for row in _read(path)}
    assert kept | await _rows(random_books.sql) == before
    assert await findings(fresh_settings) == []


async def _state_after(books: Books, number: int) -> str:
    try:
        return (await books.archive(number)).state
    except errors.CannotProceed:
        return "another command has it"
