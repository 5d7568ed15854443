"""The night's comparison: it mends what events lost, and lists the rest with what to do."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import pytest

from piggybank import errors
from piggybank.jobs import revio as jobs
from piggybank.ledger import SYSTEM, Submission, commands
from piggybank.revio import Person
from piggybank.wallet import reconciliation
from piggybank.wallet.provider import Provider
from piggybank.wallet.reconciliation import ReconciliationWithItems
from tests.provider.conftest import Desk, Object, until
from tests.provider.test_withdrawals import ACCEPTED, UNPAID, eft_destination

TRIES = 10


async def compare(desk: Desk) -> ReconciliationWithItems:
    """Today, so far."""
    since = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    run = await reconciliation.reconcile(desk.work.db, desk.work.ledger, desk.work.provider, since, since + timedelta(days=1))
    async with desk.work.db.read() as read:
        return await reconciliation.one(read, run.id)


async def lose_events(desk: Desk) -> None:
    """As after 36 hours in which we could not be reached."""
    await desk.delivered()
    await desk.sql.execute("DELETE FROM provider_events WHERE status = 'new'")


async def test_both_books_agree_to_the_cent(desk: Desk) -> None:
    account = await desk.account()
    await desk.paid_deposit(account, 15_000)
    second = await desk.paid_deposit(account, 9_999)
    await desk.withdraw(account, 4_000)
    await desk.work_through()
    await desk.act(f"purchases/{second['provider_id']}/chargeback", {"amount": 999})
    await desk.work_through()
    found = await compare(desk)
    assert found.items == []
    assert (found.reconciliation.rows, found.reconciliation.matched, found.reconciliation.mended) == (4, 4, 0)


async def test_what_events_lost_is_mended(desk: Desk) -> None:
    account = await desk.account()
    charged = await desk.paid_deposit(account, 3_000)
    payment = await desk.deposit(account, 8_000)
    await desk.act(f"purchases/{payment['provider_id']}/pay")
    await desk.act(f"purchases/{charged['provider_id']}/chargeback")
    await lose_events(desk)
    assert await desk.balance(account) == (3_000, 0, 0)
    found = await compare(desk)
    assert found.items == []
    assert found.reconciliation.mended == 2
    assert await desk.balance(account) == (8_000, 0, 0)
    assert (await desk.payment(payment["id"]))["status"] == "completed"
    again = await compare(desk)
    assert (again.items, again.reconciliation.mended) == ([], 0)
    assert await desk.balance(account) == (8_000, 0, 0)


async def test_settlements_go_to_the_bank_once(desk: Desk) -> None:
    account = await desk.account()
    await desk.paid_deposit(account, 50_000)
    settled = (await desk.act("settle"))["settlements"]
    await desk.work_through()
    for _ in range(2):
        assert (await compare(desk)).items == []
    rows = await desk.sql.fetch("SELECT currency, amount, debit, credit FROM system_entries WHERE effect LIKE 'settlement:%'")
    assert [tuple(row) for row in rows] == [(one["currency"], one["amount"], "bank", "clearing") for one in settled]


async def test_theirs_only(desk: Desk) -> None:
    """Somebody made a purchase in the dashboard."""
    brand = (await desk.sim.get("/api/v1/webhooks/")).json()
    assert brand["results"]
    client = await desk.work.provider.client()
    due = datetime.now(UTC) + timedelta(hours=1)
    stranger = await client.create_purchase(
        reference="not-ours", amount=1_234, currency="ZAR", name="x", person=Person(email="a@example.com"), due=due, return_url=None
    )
    await desk.act(f"purchases/{stranger.id}/pay")
    await desk.work_through()
    found = await compare(desk)
    by_kind = {item.kind: item for item in found.items}
    assert by_kind["theirs_only"].provider_id == stranger.id
    assert (by_kind["theirs_only"].ours, by_kind["theirs_only"].theirs) == (None, 1_234)
    assert by_kind["balance_differs"].theirs is not None
    assert all(item.what_to_do for item in found.items)
    # a refund brings both books together again, since it was never ours
    await client.refund(stranger.id, 1_234)

    async def given_back() -> bool:
        return bool((await client.purchase(stranger.id)).status == "refunded")

    await until(given_back)
    await desk.sql.execute("UPDATE provider_events SET due_at = NULL WHERE status = 'unmatched'")


async def test_ours_only_and_fees_that_differ(desk: Desk) -> None:
    """Our book says otherwise than theirs: something that never happened, and a fee that is a cent too much."""
    account = await desk.account()
    invented = await desk.deposit(account, 7_000)
    never = commands.Settle(
        account_id=account,
        kind="deposit",
        amount=7_000,
        source="revio",
        effect="purchase:never:paid",
        payment_id=UUID(invented["id"]),
        object_id="never",
    )
    await desk.work.ledger.submit(Submission(never, SYSTEM))
    other = await desk.paid_deposit(account, 6_000)
    await desk.sql.execute("UPDATE system_entries SET amount = amount + 1 WHERE effect = $1", f"purchase:{other['provider_id']}:fee")
    found = await compare(desk)
    differing = {(item.kind, str(item.payment_id), item.ours, item.theirs) for item in found.items}
    assert ("ours_only", invented["id"], 7_000, None) in differing
    assert ("fee_differs", other["id"], 275, 274) in differing
    shown = (await desk.http.get(f"/v1/ops/reconciliations/{found.reconciliation.id}")).json()
    assert shown["reconciliation"]["items_count"] == len(found.items)
    assert [item["kind"] for item in shown["items"]] == [item.kind for item in found.items]
    listed = (await desk.http.get("/v1/ops/reconciliations", params={"limit": 1})).json()
    assert listed["items"][0]["id"] == str(found.reconciliation.id)
    assert listed["next_cursor"]


async def test_the_statement_altered_by_the_provider_is_noticed(desk: Desk) -> None:
    account = await desk.account()
    for _ in range(4):
        await desk.paid_deposit(account, 2_000)
    before = (await compare(desk)).items
    await desk.faults(statement_mismatch=1)
    found = before
    for _ in range(TRIES):  # a row at random each time, and a settlement's has no counterpart to differ from
        await desk.sql.execute("DELETE FROM booked_transactions")  # else a row that is missing now was there before, which is enough
        found = (await compare(desk)).items
        if found != before:
            break
    await desk.faults()
    assert found != before
    assert (await compare(desk)).items == before


async def test_unknown_payments_are_listed_every_night(desk: Desk) -> None:
    account = await desk.account(10_000)
    payment = await desk.withdraw(account, 1_000)
    await desk.sql.execute("UPDATE payments SET status = 'unknown' WHERE id = $1", UUID(payment["id"]))
    found = await compare(desk)
    assert ("unknown", payment["id"]) in {(item.kind, str(item.payment_id)) for item in found.items}
    await desk.sql.execute("UPDATE payments SET status = 'creating' WHERE id = $1", UUID(payment["id"]))
    await desk.hurry()
    await desk.work_through()


@pytest.mark.parametrize("number", [ACCEPTED, UNPAID])
async def test_the_statement_decides_about_eft_credits(desk: Desk, number: str) -> None:
    account = await desk.account(10_000)
    settings = msgspec.structs.replace(desk.settings, revio_payouts="eft")
    usual, desk.work = desk.work, msgspec.structs.replace(desk.work, settings=settings, provider=Provider(settings, desk.work.db))
    try:
        payment = await desk.withdraw(account, 5_000, destination=eft_destination(number))
        await jobs.send_payments(desk.work)
        sent = await desk.payment(payment["id"])
        assert sent["status"] == "processing"

        async def ended() -> bool:
            answer = await desk.sim.get("/_sim/book", params={"limit": 10_000})
            status: Object = next(one for one in answer.json()["objects"] if one["id"] == sent["provider_id"])
            return bool(status["status"] != "PENDING")

        await until(ended)
        await compare(desk)
        done = await desk.payment(payment["id"])
        assert done["status"] == ("completed" if number == ACCEPTED else "failed")
        assert await desk.balance(account) == ((5_000 if number == ACCEPTED else 10_000), 0, 0)
        await compare(desk)
        assert await desk.balance(account) == ((5_000 if number == ACCEPTED else 10_000), 0, 0)
        if number == ACCEPTED:  # weeks later it comes back
            await asyncio.sleep(1.1)  # the provider's clock has seconds, and this is to be newer
            await desk.act(f"eft/{sent['provider_id']}/unpay")
            await compare(desk)
            assert (await desk.payment(payment["id"]))["status"] == "returned"
            assert await desk.balance(account) == (10_000, 0, 0)
    finally:
        await desk.work.provider.close()
        desk.work = usual


async def test_a_provider_that_does_not_answer_is_written_down(desk: Desk) -> None:
    await desk.faults(s5xx=1)
    with pytest.raises(errors.ProviderUnavailable):
        await compare(desk)
    await desk.faults()
    newest = (await desk.http.get("/v1/ops/reconciliations", params={"limit": 1})).json()["items"][0]
    assert newest["status"] == "failed"
    assert newest["note"]


async def test_one_whose_process_died_does_not_run_for_ever(desk: Desk) -> None:
    await desk.sql.execute(
        "INSERT INTO reconciliations (id, provider, since, until, status)"
        " VALUES ('01900000-0000-7000-8000-000000000000', 'simulator', now(), now(), 'running')"
    )
    await jobs.reconcile_yesterday(desk.work)
    assert await desk.sql.fetchval("SELECT count(*) FROM reconciliations WHERE status = 'running'") == 0


async def test_the_book_is_right(desk: Desk) -> None:
    await desk.work_through()
    assert await desk.differences() == []
