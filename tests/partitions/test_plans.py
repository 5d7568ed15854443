"""A date in a question keeps the other months out of the plan; so does an id."""

import re
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import TextClause, text

from piggybank import ids, reports
from piggybank.db.engines import Database
from piggybank.ledger import balances
from piggybank.settings import Settings
from piggybank.wallet import history, pages
from piggybank.wallet.history import Filter
from tests.partitions.conftest import Books, at, empty_books, ms
from tests.wallet.conftest import Past

MAY, JUNE = at(5), at(6)


@pytest.fixture(scope="module")
async def busy(settings_of_module: Settings, past_of_module: Past) -> Books:
    """Rows enough that a plan matters, in each month."""
    books = await empty_books(settings_of_module, past_of_module)
    await books.open(2)
    for account in books.accounts:
        await books.past.post(account, [(ms(at(number, 2)) + count, 1) for number in range(1, 8) for count in range(300)])
    await books.sql.execute("ANALYZE transactions")
    return books


async def read_tables(settings: Settings, statement: TextClause, given: dict[str, Any]) -> set[str]:
    """The partitions that were really looked into."""
    db = Database(settings.database_url)
    async with db.read() as read:
        plan = (await read.scalars(text(f"EXPLAIN (ANALYZE) {statement.text}"), given)).all()
    await db.close()
    touched = [line for line in plan if "transactions_" in line and "never executed" not in line]
    assert not any("Seq Scan" in line and "rows=0.00" not in line for line in touched), "\n".join(plan)  # an empty month is no bigger
    return {found[1] for line in touched if (found := re.search(r" on (transactions_\w+)", line))}


def page_of(books: Books, wanted: Filter) -> dict[str, Any]:
    return {
        "bucket": ids.bucket_of(books.accounts[0]),
        "account_id": books.accounts[0],
        "only_user": None,
        "lowest": pages.id_at(wanted.since, pages.FIRST_ID),
        "below": pages.id_at(wanted.until, pages.LAST_ID),
        "kind": None,
        "reference": None,
        "limit": 26,
    }


async def test_a_page_between_two_dates(settings_of_module: Settings, busy: Books) -> None:
    found = await read_tables(settings_of_module, history._PAGE, page_of(busy, Filter(since=MAY, until=JUNE)))
    assert found == {"transactions_2026_05"}


async def test_a_first_page_stops_where_it_is_full(settings_of_module: Settings, busy: Books) -> None:
    found = await read_tables(settings_of_module, history._PAGE, page_of(busy, Filter()))
    assert "transactions_2026_07" in found
    assert found.isdisjoint({"transactions_all", "transactions_2026_05", "transactions_2026_06"})


async def test_one_by_its_id(settings_of_module: Settings, busy: Books) -> None:
    row_id = await busy.sql.fetchval("SELECT id FROM transactions_2026_05 LIMIT 1")
    given = {"bucket": ids.bucket_of(row_id), "id": row_id, "only_user": None}
    assert await read_tables(settings_of_module, history._ONE, given) == {"transactions_2026_05"}


async def test_a_balance_at_a_time(settings_of_module: Settings, busy: Books) -> None:
    given = {"bucket": ids.bucket_of(busy.accounts[0]), "id": busy.accounts[0], "below": ids.first_id_at(at(5, 20))}
    assert await read_tables(settings_of_module, balances._SELECT_AT, given) == {"transactions_2026_05"}


async def test_a_summary(settings_of_module: Settings, busy: Books) -> None:
    async def tables(*stretches: tuple[datetime, datetime]) -> set[str]:
        given = {
            "only_user": None,
            "account_id": busy.accounts[0],
            "bucket": ids.bucket_of(busy.accounts[0]),
            "periods": list(range(len(stretches))),
            "lowest": [ids.first_id_at(since) for since, _ in stretches],
            "below": [ids.first_id_at(until) for _, until in stretches],
            "day_periods": [],
            "first": [],
            "after": [],
        }
        return await read_tables(settings_of_module, reports._SUMS, given)

    assert await tables((MAY, JUNE)) == {"transactions_2026_05"}
    assert await tables((at(1, 2), at(1, 3)), (MAY, JUNE)) == {"transactions_all", "transactions_2026_05"}


async def test_the_next_day_to_report(settings_of_module: Settings, busy: Books) -> None:
    given = {"day": MAY.date(), "lowest": ids.first_id_at(at(5, 2)), "below": ids.first_id_at(at(5, 3))}
    db = Database(settings_of_module.database_url)
    async with db.write() as write:
        plan = "\n".join((await write.scalars(text(f"EXPLAIN {reports._BUILD.text}"), given)).all())
    await db.close()
    assert "transactions_2026_05" in plan
    assert "transactions_2026_06" not in plan
    assert "transactions_all" not in plan
