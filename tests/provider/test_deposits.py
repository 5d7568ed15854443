"""Money in: from the checkout to the posted row, whatever people and the provider do."""

from uuid import UUID, uuid4

import msgspec
import pytest

from piggybank.jobs import revio as jobs
from tests.provider.conftest import Desk


async def test_a_deposit_is_credited_when_it_is_paid(desk: Desk) -> None:
    account = await desk.account()
    payment = await desk.deposit(account, 15_000, reference="top-up", metadata={"order": "7"})
    assert (payment["status"], payment["provider"], payment["held"]) == ("pending", "simulator", 0)
    assert payment["checkout_url"].startswith(desk.settings.simulator_address)
    assert await desk.balance(account) == (0, 0, 0)
    await desk.act(f"purchases/{payment['provider_id']}/pay")
    await desk.work_through()
    done = await desk.payment(payment["id"])
    assert (done["status"], done["paid"], done["checkout_url"]) == ("completed", 15_000, None)
    assert await desk.balance(account) == (15_000, 0, 0)
    row = (await desk.http.get(f"/v1/transactions/{done['transaction_id']}")).json()
    assert (row["kind"], row["amount"], row["payment_id"], row["reference"]) == ("deposit", 15_000, payment["id"], "top-up")
    fee = await desk.sql.fetchrow("SELECT * FROM system_entries WHERE payment_id = $1", UUID(payment["id"]))
    assert (fee["debit"], fee["credit"], fee["amount"]) == ("provider_fees", "clearing", 15_000 * 29 // 1_000 + 100)


async def test_the_same_key_is_the_same_payment(desk: Desk) -> None:
    account, key = await desk.account(), uuid4().hex
    first = await desk.deposit(account, 2_000, key)
    again = await desk.post(f"/v1/accounts/{account}/deposits", {"amount": 2_000, "method": "revio"}, key)
    assert (again.status_code, again.headers["idempotency-replayed"], again.json()["payment"]) == (202, "true", first)
    await desk.act(f"purchases/{first['provider_id']}/pay")
    await desk.work_through()
    later = await desk.post(f"/v1/accounts/{account}/deposits", {"amount": 2_000, "method": "revio"}, key)
    assert later.json()["payment"] == first  # as it was then
    other = await desk.post(f"/v1/accounts/{account}/deposits", {"amount": 2_001, "method": "revio"}, key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert await desk.balance(account) == (2_000, 0, 0)


async def test_declined_then_paid(desk: Desk) -> None:
    account = await desk.account()
    payment = await desk.deposit(account)
    await desk.act(f"purchases/{payment['provider_id']}/decline")
    await desk.work_through()
    declined = await desk.payment(payment["id"])
    assert declined["status"] == "pending"
    assert declined["failure"]
    await desk.act(f"purchases/{payment['provider_id']}/pay")
    await desk.work_through()
    paid = await desk.payment(payment["id"])
    assert (paid["status"], paid["failure"]) == ("completed", None)


async def test_an_abandoned_checkout_expires_and_reserves_nothing(desk: Desk) -> None:
    account = await desk.account()
    payment = await desk.deposit(account)
    await desk.act(f"purchases/{payment['provider_id']}/expire")
    assert await desk.ask() >= 1  # there is no event for it
    ended = await desk.payment(payment["id"])
    assert (ended["status"], ended["failure"]) == ("failed", "expired")
    closed = await desk.post(f"/v1/accounts/{account}/close")
    assert closed.status_code == 200, closed.text  # nothing is open any more


async def test_another_amount_than_was_asked_for_is_credited_and_listed(desk: Desk) -> None:
    account = await desk.account()
    payment = await desk.deposit(account, 15_000)
    await desk.act(f"purchases/{payment['provider_id']}/pay", {"amount": 14_000})
    await desk.work_through()
    paid = await desk.payment(payment["id"])
    assert (paid["status"], paid["amount"], paid["paid"]) == ("completed", 15_000, 14_000)
    assert await desk.balance(account) == (14_000, 0, 0)
    listed = (await desk.http.get("/v1/ops/payments", params={"which": "differing"})).json()["items"]
    assert payment["id"] in [one["id"] for one in listed]
    events = (await desk.http.get("/v1/ops/provider-events", params={"payment_id": payment["id"]})).json()["items"]
    assert "14000 was paid of 15000 ZAR" in [event["note"] for event in events]


async def test_another_currency_posts_nothing_and_is_listed(desk: Desk) -> None:
    account = await desk.account()
    payment = await desk.deposit(account)
    await desk.act(f"purchases/{payment['provider_id']}/pay", {"amount": 15_000, "currency": "USD"})
    await desk.work_through()
    assert await desk.balance(account) == (0, 0, 0)
    unmatched = (await desk.http.get("/v1/ops/provider-events", params={"status": "unmatched", "object_id": payment["provider_id"]})).json()
    assert [event["note"] for event in unmatched["items"]] == ["paid in USD, the account is in ZAR"]


async def test_cancelled_by_us(desk: Desk) -> None:
    account, key = await desk.account(), uuid4().hex
    payment = await desk.deposit(account)
    cancelled = await desk.post(f"/v1/payments/{payment['id']}/cancel", key=key)
    assert (cancelled.status_code, cancelled.json()["payment"]["status"]) == (200, "cancelled")
    again = await desk.post(f"/v1/payments/{payment['id']}/cancel", key=key)
    assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")
    purchase = (await desk.sim.get(f"/api/v1/purchases/{payment['provider_id']}/")).json()
    assert purchase["status"] == "cancelled"
    await desk.work_through()
    assert (await desk.payment(payment["id"]))["status"] == "cancelled"


async def test_what_was_paid_meanwhile_is_not_cancelled(desk: Desk) -> None:
    account = await desk.account()
    payment = await desk.deposit(account)
    await desk.act(f"purchases/{payment['provider_id']}/pay")
    refused = await desk.post(f"/v1/payments/{payment['id']}/cancel")  # before its event has been applied
    assert (refused.status_code, refused.json()["code"]) == (409, "payment_not_open")
    assert await desk.balance(account) == (15_000, 0, 0)
    await desk.work_through()
    assert await desk.balance(account) == (15_000, 0, 0)


async def test_paid_after_it_was_believed_to_have_failed(desk: Desk) -> None:
    account = await desk.account()
    payment = await desk.deposit(account)
    await desk.sql.execute("UPDATE accounts SET open_payments = 0 WHERE id = $1", account)
    await desk.sql.execute("UPDATE payments SET status = 'failed', failure = 'expired' WHERE id = $1", UUID(payment["id"]))
    await desk.act(f"purchases/{payment['provider_id']}/pay")
    await desk.work_through()
    assert (await desk.payment(payment["id"]))["status"] == "completed"
    assert await desk.balance(account) == (15_000, 0, 0)


async def test_money_that_comes_to_a_closed_or_frozen_account_is_posted(desk: Desk) -> None:
    account = await desk.account()
    payment = await desk.deposit(account)
    frozen = await desk.post(f"/v1/accounts/{account}/freeze")
    assert frozen.status_code == 200
    await desk.act(f"purchases/{payment['provider_id']}/pay")
    await desk.work_through()
    assert await desk.balance(account) == (15_000, 0, 0)
    refused = await desk.post(f"/v1/accounts/{account}/deposits", {"amount": 1, "method": "revio"})
    assert (refused.status_code, refused.json()["code"]) == (409, "account_frozen")


async def test_a_crash_while_it_was_created_is_repeated_by_the_sweep(desk: Desk) -> None:
    """The answer was lost: the payment is `creating`, and a purchase that nobody can see is left at the provider."""
    account, key = await desk.account(), uuid4().hex
    await desk.faults(timeout_after_commit=1)
    answer = await desk.post(f"/v1/accounts/{account}/deposits", {"amount": 700, "method": "revio"}, key)
    assert (answer.status_code, answer.json()["code"]) == (503, "provider_unavailable")
    assert answer.headers["retry-after"]
    await desk.faults()
    payment_id = answer.json()["payment_id"]
    assert (await desk.payment(payment_id))["status"] == "creating"
    assert await desk.ask() >= 1
    made = await desk.payment(payment_id)
    assert made["status"] == "pending"
    again = await desk.post(f"/v1/accounts/{account}/deposits", {"amount": 700, "method": "revio"}, key)
    assert (again.status_code, again.json()["payment"]["checkout_url"]) == (202, made["checkout_url"])
    # whoever pays the lost one nevertheless is credited
    lost = await desk.sql.fetch("SELECT DISTINCT object_id FROM provider_events WHERE encode(body, 'escape') LIKE $1", f"%{payment_id}%")
    for row in lost:
        await desk.act(f"purchases/{row['object_id']}/pay")
    await desk.work_through()
    assert len(lost) >= 2
    assert await desk.balance(account) == (700 * len(lost), 0, 0)
    assert (await desk.payment(payment_id))["paid"] == 700 * len(lost)


async def test_the_same_key_goes_on_where_it_was(desk: Desk) -> None:
    account, key = await desk.account(), uuid4().hex
    await desk.faults(s5xx=1)
    body = {"amount": 900, "method": "revio"}
    assert (await desk.post(f"/v1/accounts/{account}/deposits", body, key)).status_code == 503
    await desk.faults()
    answer = await desk.post(f"/v1/accounts/{account}/deposits", body, key)
    assert answer.status_code == 202
    assert answer.json()["payment"]["status"] == "pending"
    assert await desk.sql.fetchval("SELECT count(*) FROM payments WHERE account_id = $1", account) == 1


async def test_one_that_was_never_created_fails_when_its_time_is_over(desk: Desk) -> None:
    account = await desk.account()
    await desk.faults(s5xx=1)
    answer = await desk.post(f"/v1/accounts/{account}/deposits", {"amount": 900, "method": "revio"})
    await desk.faults()
    payment_id = answer.json()["payment_id"]
    await desk.sql.execute("UPDATE payments SET expires_at = now() - interval '1 second' WHERE id = $1", UUID(payment_id))
    await desk.ask()
    ended = await desk.payment(payment_id)
    assert (ended["status"], ended["failure"]) == ("failed", "not_created")


async def test_people_come_back_to_where_they_came_from(desk: Desk) -> None:
    account = await desk.account()
    payment = await desk.deposit(account, 500, return_url="https://shop.example.com/thanks")
    purchase = (await desk.sim.get(f"/api/v1/purchases/{payment['provider_id']}/")).json()
    assert purchase["success_redirect"] == "https://shop.example.com/thanks"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"amount": 0, "method": "revio"}, "amount"),
        ({"amount": 1, "method": "revio", "return_url": "javascript:alert(1)"}, "return_url"),
        ({"amount": 1, "method": "direct", "return_url": "https://shop.example.com"}, "return_url"),
        ({"amount": 1, "method": "revio", "checkout_url": "https://shop.example.com"}, "checkout_url"),
        ({"amount": 1, "method": "paypal"}, "method"),
    ],
)
async def test_what_is_not_well_formed_opens_nothing(desk: Desk, body: dict[str, object], field: str) -> None:
    account = await desk.account()
    answer = await desk.post(f"/v1/accounts/{account}/deposits", body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, field)
    assert await desk.sql.fetchval("SELECT count(*) FROM payments WHERE account_id = $1", account) == 0


async def test_fees_and_events_are_once_however_often_an_event_comes(desk: Desk) -> None:
    account = await desk.account()
    payment = await desk.paid_deposit(account)
    event = await desk.sql.fetchrow(
        "SELECT id, body FROM provider_events WHERE object_id = $1 AND event_type = 'purchase.paid'", payment["provider_id"]
    )
    for _ in range(3):
        replayed = await desk.http.post(f"/v1/ops/provider-events/{event['id']}/replay", headers=await desk.as_operator())
        assert (replayed.status_code, replayed.json()["status"]) == (200, "applied")
    assert await desk.balance(account) == (15_000, 0, 0)
    assert await desk.sql.fetchval("SELECT count(*) FROM system_entries WHERE payment_id = $1", UUID(payment["id"])) == 1
    assert msgspec.json.decode(event["body"])["event_type"] == "purchase.paid"
    assert await jobs.apply_events(desk.work) == 0


async def test_the_book_is_right(desk: Desk) -> None:
    """After all of the above."""
    await desk.work_through()
    assert await desk.differences() == []
