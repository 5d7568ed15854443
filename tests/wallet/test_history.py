"""History: pages that neither repeat nor leave out, exact counts, filters, and nobody else's rows."""

import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest

from piggybank import cache as cache_limits
from piggybank import errors, ids
from piggybank.cache import Cache
from piggybank.db.engines import Database
from piggybank.ledger import balances
from piggybank.wallet import history, pages
from piggybank.wallet.history import Filter, Transaction

from .conftest import Past

T0_MS = 1_767_225_600_000  # 2026-01-01


def at(offset_ms: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=T0_MS + offset_ms)


async def all_pages(db: Database, cache: Cache, account_id: UUID, wanted: Filter = history.NO_FILTER, limit: int = 7) -> list[Transaction]:
    found: list[Transaction] = []
    cursor = None
    while True:
        page = await history.page(db, cache, account_id, wanted, cursor=cursor, limit=limit)
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            return found


async def test_pages_give_every_row_once_newest_first(db: Database, cache: Cache, past: Past) -> None:
    account_id = await past.account()
    await past.post(await past.account(), [(T0_MS, 5)])  # somebody else's
    posted = await past.post(account_id, [(T0_MS + number // 3, 10) for number in range(60)])  # several in one millisecond
    found = await all_pages(db, cache, account_id)
    assert [row.id for row in found] == [row.id for row in reversed(posted)]
    assert [row.sequence for row in found] == list(range(60, 0, -1))
    assert found[0].balance_after == 600
    assert found[0].metadata == {}
    assert found[0].created_at == ids.time_of(found[0].id)


async def test_rows_posted_between_pages_shift_nothing(db: Database, cache: Cache, past: Past) -> None:
    account_id = await past.account()
    posted = await past.post(account_id, [(T0_MS + number, 1) for number in range(30)])
    first = await history.page(db, cache, account_id, limit=10)
    await past.post(account_id, [(T0_MS + 1_000, 1)] * 5)
    second = await history.page(db, cache, account_id, limit=10, cursor=first.next_cursor)
    assert [row.id for row in first.items + second.items] == [row.id for row in reversed(posted[10:])]
    assert (first.total, second.total) == (30, 35)


async def test_dates_bound_by_what_is_shown(db: Database, cache: Cache, past: Past) -> None:
    account_id = await past.account()
    posted = await past.post(account_id, [(T0_MS + number, 1) for number in range(20)])
    for since_ms, until_ms in ((0, 20), (5, 6), (5, 5), (3, 17), (-100, 4), (15, 99)):
        wanted = Filter(since=at(since_ms), until=at(until_ms))
        found = await all_pages(db, cache, account_id, wanted)
        assert [row.id for row in found] == [row.id for row in reversed(posted) if since_ms <= row.at_ms - T0_MS < until_ms]
        assert all(at(since_ms) <= row.created_at < at(until_ms) for row in found)
    # finer than a millisecond: still by the time that is shown
    found = await all_pages(db, cache, account_id, Filter(since=at(5) + timedelta(microseconds=1)))
    assert len(found) == 14


async def test_kind_and_reference(db: Database, cache: Cache, past: Past) -> None:
    account_id = await past.account()
    await past.post(account_id, [(T0_MS, 100), (T0_MS, -30)])
    await past.post(account_id, [(T0_MS + 1, -5)], reference="invoice-7")
    withdrawals = await history.page(db, cache, account_id, Filter(kind="withdrawal"))
    assert [row.amount for row in withdrawals.items] == [-5, -30]
    assert withdrawals.total is None
    referenced = await history.page(db, cache, account_id, Filter(reference="invoice-7"))
    assert [row.amount for row in referenced.items] == [-5]
    assert (await history.page(db, cache, account_id, Filter(kind="fee"))).items == []


async def test_a_cursor_belongs_to_its_list(db: Database, cache: Cache, past: Past) -> None:
    account_id, other_id = await past.account(), await past.account()
    await past.post(account_id, [(T0_MS, 1)] * 5)
    await past.post(other_id, [(T0_MS, 1)] * 5)
    cursor = (await history.page(db, cache, account_id, limit=2)).next_cursor
    assert cursor is not None
    assert len((await history.page(db, cache, account_id, limit=3, cursor=cursor)).items) == 3
    bad = ["", "x", "ä", "\x00", cursor[:-1], cursor[:-4], "A" * 32, cursor.swapcase(), cursor + cursor]
    for wrong in bad:
        with pytest.raises(errors.InvalidRequest):
            await history.page(db, cache, account_id, cursor=wrong)
    with pytest.raises(errors.InvalidRequest):
        await history.page(db, cache, other_id, cursor=cursor)
    with pytest.raises(errors.InvalidRequest):
        await history.page(db, cache, account_id, Filter(kind="deposit"), cursor=cursor)


async def test_an_empty_account_and_none_at_all(db: Database, cache: Cache, past: Past) -> None:
    page = await history.page(db, cache, await past.account())
    assert (page.items, page.next_cursor, page.total) == ([], None, 0)
    with pytest.raises(errors.NotFound):
        await history.page(db, cache, uuid4())


async def test_somebody_elses_rows_do_not_exist(db: Database, cache: Cache, past: Past) -> None:
    owner, stranger = await past.user(), await past.user()
    account_id = await past.account(owner)
    (row,) = await past.post(account_id, [(T0_MS, 7)])
    payment_id = await past.payment(account_id, "pending", at(0))
    for _ in range(4):  # also when balance and page come from the cache
        assert len((await history.page(db, cache, account_id, only_user=owner)).items) == 1
        with pytest.raises(errors.NotFound):
            await history.page(db, cache, account_id, only_user=stranger)
    assert (await history.one(db, row.id, only_user=owner)).amount == 7
    assert (await history.one(db, row.id)).amount == 7
    with pytest.raises(errors.NotFound):
        await history.one(db, row.id, only_user=stranger)
    with pytest.raises(errors.NotFound):
        await history.one(db, payment_id)


async def test_a_transfer_shows_the_legs_that_one_may_see(db: Database, past: Past) -> None:
    owner = await past.user()
    mine, theirs = await past.account(owner), await past.account()
    transfer_id = ids.new_id(ids.bucket_of(mine))
    await past.post(mine, [(T0_MS, -50)], transfer_id=transfer_id)
    await past.post(theirs, [(T0_MS, 50)], transfer_id=transfer_id)
    assert [(leg.account_id, leg.amount) for leg in await history.legs(db, transfer_id)] == [(mine, -50), (theirs, 50)]
    assert [leg.amount for leg in await history.legs(db, transfer_id, only_user=owner)] == [-50]
    with pytest.raises(errors.NotFound):
        await history.legs(db, transfer_id, only_user=await past.user())


async def test_the_first_page_is_cached_under_its_version(db: Database, cache: Cache, past: Past) -> None:
    account_id = await past.account()
    await past.post(account_id, [(T0_MS, 1)] * 30)
    for _ in range(2):  # the first fills the balance, the second the page
        await history.page(db, cache, account_id)
    hits = cache.hits[history.PAGE_KIND]
    again = await history.page(db, cache, account_id)
    assert cache.hits[history.PAGE_KIND] == hits + 1
    assert (len(again.items), again.total, again.next_cursor is None) == (25, 30, False)

    await past.post(account_id, [(T0_MS + 5, 2)])  # past the cache: the page of version 30 is what the cache knows
    assert (await history.page(db, cache, account_id)).total == 30
    fresh = await history.page(db, cache, account_id, min_version=31)
    assert (fresh.total, fresh.items[0].amount) == (31, 2)

    row = await past.sql.fetchrow("SELECT * FROM accounts WHERE id = $1", account_id)
    await cache.write(balances.KIND, [balances.stored(SimpleNamespace(**row), time.time_ns()).entry], cache_limits.BALANCE_TTL_S)
    assert (await history.page(db, cache, account_id)).total == 31


async def test_with_the_cache_away_the_answer_is_the_same(db: Database, past: Past) -> None:
    away = Cache("redis://127.0.0.1:1/0")
    away.epoch = "any"
    account_id = await past.account()
    await past.post(account_id, [(T0_MS, 1)] * 3)
    assert (await history.page(db, away, account_id)).total == 3
    await away.close()


async def test_the_index_serves_page_and_dates(db: Database, past: Past) -> None:
    account_id = await past.account()
    await past.post(account_id, [(T0_MS + number, 1) for number in range(2_000)])
    await past.sql.execute("ANALYZE transactions")
    given = {
        "bucket": ids.bucket_of(account_id),
        "account_id": account_id,
        "only_user": None,
        "lowest": ids.first_id_at(at(900)),
        "below": ids.first_id_at(at(1_000)),
        "kind": None,
        "reference": None,
        "limit": pages.LIMIT_DEFAULT + 1,
    }
    async with db.read() as read:
        explained = history._PAGE.text
        plan = "\n".join((await read.scalars(type(history._PAGE)("EXPLAIN (ANALYZE) " + explained), given)).all())
    assert "transactions_all_account_id_id_idx" in plan
    condition = next(line for line in plan.splitlines() if "Index Cond: ((account_id" in line and "bucket" not in line)
    assert "id >=" in condition
    assert "id <" in condition
    assert "Seq Scan on transactions" not in plan
