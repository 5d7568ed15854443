"""How PostgreSQL reads what is asked often, where there are enough rows to choose: by an index made for it, never by the table.

History has no covering index. With `INCLUDE (amount, kind, balance_after, sequence)` it was 134 bytes a row instead of 64 and wrote 10 to
80 % more WAL a row. A page needs all columns, so it read the table as before (29 buffers); a balance at a moment read 4 buffers
either way; only the sum of a day that is not in `reports` yet read 4 instead of 29, and its newest rows are not all-visible until a vacuum.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import TextClause
from sqlalchemy.dialects.postgresql import asyncpg as dialect

from piggybank import ids
from piggybank.ledger import balances
from piggybank.wallet import history, orders, pages, payments

from .conftest import Past

NOW = datetime(2026, 1, 2, tzinfo=UTC)
_DIALECT = dialect.dialect()  # type: ignore[no-untyped-call]
SWEEP: dict[str, Any] = {"provider": "simulator", "now": NOW, "until": NOW, "limit": 50, "older": pages.LAST_ID, "below": pages.LAST_ID}
SWEEP |= {"quiet_since": NOW}

# Ended payments, and one in two hundred that is under way; their account's 300 rows among 60,000.
_PAYMENTS = """
INSERT INTO payments (id, bucket, account_id, kind, method, provider, status, amount, updated_at)
SELECT gen_random_uuid(), $2, $1, CASE WHEN n % 400 = 0 THEN 'withdrawal' ELSE 'deposit' END, 'revio', 'simulator',
       CASE WHEN n % 200 = 0 THEN 'pending' ELSE 'completed' END, 1, '2026-01-01Z'
FROM generate_series(1, 20000) n
"""
_ACCOUNTS = """
INSERT INTO accounts (id, bucket, user_id, currency)
SELECT gen_random_uuid(), $2, user_id, currency FROM accounts, generate_series(1, 5000) WHERE id = $1
"""
_TRANSACTIONS = """
INSERT INTO transactions (id, account_id, amount, balance_after, sequence, bucket, kind, system_account)
SELECT uuidv7(n * interval '1 second'),
       CASE WHEN n % 200 = 0 THEN $1 ELSE md5((n % 200)::text)::uuid END, 1, n, n, $2, 'deposit', 'clearing'
FROM generate_series(1, 60000) n
"""


@asynccontextmanager
async def filled(past: Past) -> AsyncIterator[UUID]:
    """A database with those rows, of which nothing stays; whose they are."""
    owner = await past.account()
    filling = past.sql.transaction()
    await filling.start()
    try:
        for fill, table in ((_ACCOUNTS, "accounts"), (_PAYMENTS, "payments"), (_TRANSACTIONS, "transactions")):
            await past.sql.execute(fill, owner, ids.bucket_of(owner))
            await past.sql.execute(f"ANALYZE {table}")
        yield owner
    finally:
        await filling.rollback()


async def plan(past: Past, statement: TextClause, given: dict[str, Any]) -> str:
    """What it would do."""
    bound = statement.bindparams(**{name: value for name, value in given.items() if name in statement._bindparams})
    sql = str(bound.compile(dialect=_DIALECT, compile_kwargs={"literal_binds": True}))
    return "\n".join(row[0] for row in await past.sql.fetch(f"EXPLAIN {sql}"))


async def test_sweeps_read_partial_indexes(past: Past) -> None:
    async with filled(past):
        for statement, index in (
            (orders.TO_SEND, "payments_to_send"),
            (orders.QUIET, "payments_under_way"),
            (payments._LISTED["open"], "payments_under_way"),
            (payments._LISTED["unknown"], "payments_"),
            (payments._LISTED["differing"], "payments_differing"),
        ):
            found = await plan(past, statement, SWEEP)
            assert "Seq Scan on payments" not in found, found
            assert f"using {index}" in found or f"Bitmap Index Scan on {index}" in found, found


async def test_a_page_and_a_balance_then_read_the_history_index(past: Past) -> None:
    async with filled(past) as account_id:
        given = {"bucket": ids.bucket_of(account_id), "account_id": account_id, "id": account_id, "only_user": None, "kind": None}
        given |= {"reference": None, "lowest": pages.FIRST_ID, "below": pages.LAST_ID, "limit": pages.LIMIT_DEFAULT + 1}
        for statement in (history._PAGE, balances._SELECT_AT):
            found = await plan(past, statement, given)
            assert "Seq Scan on transactions" not in found, found
            assert "Sort" not in found.split("Limit")[-1], found  # in the order of the index: it stops after a page
            assert "transactions_all_account_id_id_idx" in found, found
