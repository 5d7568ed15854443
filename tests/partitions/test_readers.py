"""What is read when old months are archived: right, or a clear refusal; never a list that is short and does not say so."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from litestar.testing import AsyncTestClient

from piggybank import errors, ids, reports
from piggybank.app import create_app
from piggybank.cache import Cache
from piggybank.db import partitions
from piggybank.db.engines import Database
from piggybank.identity import apikeys
from piggybank.ledger import SYSTEM, Submission, balances, commands
from piggybank.ledger.commands import TRANSFER_LEGS
from piggybank.ledger.idempotency import Answer
from piggybank.settings import Settings
from piggybank.wallet import history
from piggybank.wallet.history import Filter
from piggybank.wallet.reversals import reversal_of
from tests.ledger.conftest import running_ledger
from tests.partitions.conftest import JULY, Books, at, findings, moved_books
from tests.wallet.conftest import Past

EDGE = at(4)  # January to March are archived


@pytest.fixture(scope="module")
async def archived(settings_of_module: Settings, past_of_module: Past) -> Books:
    books = await moved_books(settings_of_module, past_of_module)
    for number in (1, 2, 3):
        await books.archive(number)
    return books


@pytest.fixture
async def away() -> Cache:
    """Every read from the database."""
    return Cache("redis://127.0.0.1:1/0")


@pytest.fixture
async def db(settings_of_module: Settings) -> AsyncIterator[Database]:
    made = Database(settings_of_module.database_url)
    yield made
    await made.close()


async def test_a_history_ends_with_a_refusal_where_the_archive_begins(db: Database, away: Cache, archived: Books) -> None:
    for account in archived.accounts[:5]:
        posted = [row.id for row, _ in reversed(archived.posted[account])]
        live = [row_id for row_id in posted if ids.time_of(row_id) >= EDGE]
        seen: list[UUID] = []
        cursor: str | None = None
        while len(seen) < len(live):
            page = await history.page(db, away, account, limit=7, cursor=cursor)
            assert page.total == len(posted)
            seen += [row.id for row in page.items]
            cursor = page.next_cursor
            assert cursor is not None
        assert seen == live
        with pytest.raises(errors.Archived) as refused:
            await history.page(db, away, account, limit=7, cursor=cursor)
        assert refused.value.details == {"month": "2026-03", "file": "transactions-2026-03.parquet"}
        assert len((await history.page(db, away, account)).items) == min(25, len(live))  # the first page, as the cache has it


async def test_filters_that_stay_on_this_side_of_the_edge_are_whole(db: Database, away: Cache, archived: Books) -> None:
    account = archived.accounts[0]
    rows = [row for row, _ in reversed(archived.posted[account])]
    page = await history.page(db, away, account, Filter(since=EDGE), limit=100)
    assert [row.id for row in page.items] == [row.id for row in rows if ids.time_of(row.id) >= EDGE]
    assert page.next_cursor is None
    over_the_edge = await history.page(db, away, account, Filter(since=at(3), kind="withdrawal"), limit=100)
    assert over_the_edge.next_cursor is not None
    with pytest.raises(errors.Archived):
        await history.page(db, away, account, Filter(since=at(3), kind="withdrawal"), limit=100, cursor=over_the_edge.next_cursor)
    with pytest.raises(errors.Archived) as refused:
        await history.page(db, away, account, Filter(since=at(1), until=at(2)))
    assert refused.value.details["month"] == "2026-01"
    assert (await history.page(db, away, account, Filter(until=at(1, 1, year=2025)))).items == []
    # one that has no archived rows knows no edge
    young = await history.page(db, away, archived.accounts[5])
    assert (len(young.items), young.next_cursor) == (1, None)


async def test_one_transaction_and_one_transfer(db: Database, archived: Books) -> None:
    everything = [row for rows in archived.posted.values() for row, _ in rows]
    transfers = await archived.sql.fetch("SELECT DISTINCT transfer_id FROM transactions WHERE transfer_id IS NOT NULL")
    for row in everything:
        if ids.time_of(row.id) >= EDGE:
            assert (await history.one(db, row.id)).id == row.id
            continue
        with pytest.raises(errors.Archived) as refused:
            await history.one(db, row.id)
        assert refused.value.details["month"] == f"{ids.time_of(row.id):%Y-%m}"
        with pytest.raises(errors.Archived):
            async with db.read() as read:
                await reversal_of(read, row.id, reference=None, description=None, metadata=None)
        stranger = ids.new_id((ids.bucket_of(row.id) + 1) % ids.BUCKETS)
        with pytest.raises(errors.NotFound):
            await history.one(db, row.id, only_user=stranger)
    for transfer in transfers:
        assert len(await history.legs(db, transfer["transfer_id"])) == TRANSFER_LEGS
    with pytest.raises(errors.Archived):
        await history.legs(db, ids.new_id(0, int(at(2).timestamp()) * 10**9))
    with pytest.raises(errors.NotFound):
        await history.one(db, ids.new_id(0))


async def test_a_balance_at_a_time(db: Database, away: Cache, archived: Books) -> None:
    for account in archived.accounts:
        rows = archived.posted[account]
        old = [row.id for row, _ in rows if ids.time_of(row.id) < EDGE]
        for moment in [at(1), *(at(number, 15) for number in range(1, 8)), EDGE, at(5), datetime.now(UTC)]:
            before = [(row, balance) for row, balance in rows if row.id < ids.first_id_at(moment)]
            if old and old[0] < ids.first_id_at(moment) <= old[-1]:
                with pytest.raises(errors.Archived):
                    await balances.read_at(db, away, account, moment)
                continue
            found = await balances.read_at(db, away, account, moment)
            assert (found.balance, found.sequence) == ((before[-1][1], len(before)) if before else (0, 0))


async def test_a_summary_over_archived_months(db: Database, archived: Books) -> None:
    account = archived.accounts[0]
    async with db.read() as read:
        found = await reports.summary(read, since=at(1), until=JULY, by="month", zone=ZoneInfo("UTC"), account_id=account, only_user=None)
        assert found is not None
        for period in found.what:
            amounts = [row.amount for row, _ in archived.posted[account] if period.start <= ids.time_of(row.id) < period.end]
            assert (period.count, period.net) == (len(amounts), sum(amounts))
        assert len(found.what) == 7
        johannesburg = ZoneInfo("Africa/Johannesburg")
        with pytest.raises(errors.Archived):  # the edges of its days are in no report
            await reports.summary(read, since=at(2), until=at(3), by="day", zone=johannesburg, account_id=account, only_user=None)
        later = await reports.summary(read, since=at(5), until=at(6), by="month", zone=johannesburg, account_id=account, only_user=None)
        assert later is not None
        assert sum(period.count for period in later.what) == sum(
            at(5) <= ids.time_of(row.id) < at(6) for row, _ in archived.posted[account]
        )


async def test_a_refund_of_an_archived_deposit_posts(fresh_settings: Settings, random_books: Books) -> None:
    for number in (1, 2, 3):
        await random_books.archive(number)
    payment = await random_books.sql.fetchrow(
        "SELECT id, account_id, amount - refunded AS amount FROM payments WHERE id < $1 AND refunded < amount ORDER BY id LIMIT 1",
        ids.first_id_at(EDGE),
    )
    await partitions.ensure(fresh_settings.owner_database_url)  # it is posted today
    async with running_ledger(fresh_settings) as ledger:
        settle = commands.Settle(
            account_id=payment["account_id"],
            kind="refund",
            amount=payment["amount"],
            source="revio",
            effect="refund:x",
            payment_id=payment["id"],
        )
        outcome = await ledger.submit(Submission(settle, SYSTEM, "refund", b"x"))
        assert isinstance(outcome.decision, Answer)
        assert outcome.decision.balance == random_books.balance(payment["account_id"]) - payment["amount"]
        again = await ledger.submit(Submission(settle, SYSTEM, "refund-again", b"x"))  # and once
        assert isinstance(again.decision, Answer)
        assert again.decision.balance == outcome.decision.balance
    assert await findings(fresh_settings) == []


async def test_what_a_client_is_told(settings_of_module: Settings, db: Database, archived: Books) -> None:
    account = archived.accounts[0]
    old = archived.posted[account][0][0].id
    async with db.write() as write:
        _, token = await apikeys.create(write, name="reader", scopes=list(apikeys.SCOPES), actor="test")
    async with AsyncTestClient(create_app(settings_of_module)) as api:
        api.headers["Authorization"] = f"Bearer {token}"
        asked = [
            await api.get(f"/v1/transactions/{old}"),
            await api.get(f"/v1/accounts/{account}/transactions", params={"to": EDGE.isoformat()}),
            await api.get(f"/v1/accounts/{account}/balance", params={"at": (ids.time_of(old) + timedelta(days=1)).isoformat()}),
            await api.get(
                "/v1/reports/summary", params={"account_id": str(account), "from": "2026-01-01T05:00:00Z", "to": "2026-02-01T00:00:00Z"}
            ),
            await api.post(f"/v1/transactions/{old}/reversal", json={}, headers={"Idempotency-Key": "r"}),
        ]
        for answer in asked:
            assert answer.status_code == 410, answer.text
            assert answer.json()["code"] == "archived"
            assert answer.json()["file"].endswith(".parquet")
        last = (await api.get(f"/v1/accounts/{account}/transactions", params={"limit": 100})).json()
        after = await api.get(f"/v1/accounts/{account}/transactions", params={"limit": 100, "cursor": last["next_cursor"]})
        assert (after.status_code, after.json()["month"]) == (410, "2026-03")
