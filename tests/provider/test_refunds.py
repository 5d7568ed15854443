"""Money back: refunds that operators ask for, refunds and chargebacks that come from outside."""

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import httpx
import pytest

from piggybank.jobs import revio as jobs
from tests.provider.conftest import Desk, Object, until


@pytest.fixture(autouse=True)
async def no_faults(desk: Desk) -> AsyncIterator[None]:
    await desk.faults()
    yield
    await desk.faults()


async def refund(desk: Desk, payment: Object, amount: int, key: str | None = None) -> httpx.Response:
    return await desk.post(f"/v1/ops/payments/{payment['id']}/refund", {"amount": amount}, key, **await desk.as_operator())


async def ended(desk: Desk, payment: Object) -> Object:
    """The payment, when it has ended."""
    found: Object = {}

    async def has_ended() -> bool:
        nonlocal found
        await desk.work_through()
        found = await desk.payment(payment["id"])
        return found["status"] not in ("creating", "pending", "processing", "unknown")

    await until(has_ended)
    return found


@pytest.mark.parametrize("sync_refund", [0, 1])
async def test_a_refund_is_reserved_then_posted(desk: Desk, sync_refund: int) -> None:
    await desk.faults(sync_refund=sync_refund)
    account, key = await desk.account(), uuid4().hex
    deposit = await desk.paid_deposit(account)
    answer = await refund(desk, deposit, 5_000, key)
    assert answer.status_code == 202, answer.text
    asked = answer.json()["payment"]
    assert (asked["kind"], asked["refund_of"], asked["held"]) == ("refund", deposit["id"], 5_000)
    assert await desk.balance(account) == (15_000, 5_000, 0)
    again = await refund(desk, deposit, 5_000, key)
    assert (again.status_code, again.json()["payment"]) == (202, asked)
    done = await ended(desk, asked)
    assert (done["status"], done["held"], done["paid"]) == ("completed", 0, 5_000)
    assert await desk.balance(account) == (10_000, 0, 0)
    assert (await desk.payment(deposit["id"]))["refunded"] == 5_000
    row = (await desk.http.get(f"/v1/transactions/{done['transaction_id']}")).json()
    assert (row["kind"], row["amount"], row["payment_id"]) == ("refund", -5_000, deposit["id"])


async def test_partial_and_repeated_until_nothing_is_left(desk: Desk) -> None:
    account = await desk.account()
    deposit = await desk.paid_deposit(account, 10_000)
    for amount in (3_000, 3_000, 4_000):
        assert (await ended(desk, (await refund(desk, deposit, amount)).json()["payment"]))["status"] == "completed"
    assert await desk.balance(account) == (0, 0, 0)
    await desk.post(f"/v1/accounts/{account}/deposits", {"amount": 50, "method": "direct"})
    nothing_left = await refund(desk, deposit, 1)
    assert (nothing_left.status_code, nothing_left.json()["code"], nothing_left.json()["refundable"]) == (409, "not_refundable", 0)


async def test_one_at_a_time(desk: Desk) -> None:
    account = await desk.account()
    deposit = await desk.paid_deposit(account)
    first = (await refund(desk, deposit, 1_000)).json()["payment"]
    second = await refund(desk, deposit, 1_000)
    assert (second.status_code, second.json()["code"]) == (409, "refund_under_way")
    await ended(desk, first)
    assert (await refund(desk, deposit, 1_000)).status_code == 202


async def test_not_of_what_was_never_paid_nor_of_what_is_spent(desk: Desk) -> None:
    account = await desk.account()
    unpaid = await desk.deposit(account)
    assert (await refund(desk, unpaid, 1)).json()["code"] == "insufficient_funds"
    await desk.post(f"/v1/accounts/{account}/deposits", {"amount": 50, "method": "direct"})
    assert (await refund(desk, unpaid, 1)).json()["code"] == "not_refundable"
    deposit = await desk.paid_deposit(await desk.account(), 2_000)
    await desk.post(f"/v1/accounts/{deposit['account_id']}/withdrawals", {"amount": 1_500, "method": "direct"})
    spent = await refund(desk, deposit, 2_000)
    assert (spent.status_code, spent.json()["code"]) == (409, "insufficient_funds")


async def test_the_provider_fails_it(desk: Desk) -> None:
    account = await desk.account()
    deposit = await desk.paid_deposit(account)
    await desk.faults(refund_failure=1)
    failed = await ended(desk, (await refund(desk, deposit, 5_000)).json()["payment"])
    assert (failed["status"], failed["held"]) == ("failed", 0)
    assert await desk.balance(account) == (15_000, 0, 0)
    await desk.faults()
    done = await ended(desk, (await refund(desk, deposit, 5_000)).json()["payment"])  # and the next one is not taken for it
    assert done["status"] == "completed"
    assert await desk.balance(account) == (10_000, 0, 0)


async def test_a_refund_whose_answer_was_lost_is_never_sent_again(desk: Desk) -> None:
    account = await desk.account()
    deposit = await desk.paid_deposit(account)
    asked = (await refund(desk, deposit, 5_000)).json()["payment"]
    await desk.faults(timeout_after_commit=1)
    await jobs.send_payments(desk.work)
    await desk.faults()
    assert (await desk.payment(asked["id"]))["status"] in ("unknown", "completed")
    done = await ended(desk, asked)
    assert done["status"] == "completed"
    assert await desk.balance(account) == (10_000, 0, 0)
    purchase = (await desk.sim.get(f"/api/v1/purchases/{deposit['provider_id']}/")).json()
    assert purchase["refundable_amount"] == 10_000


async def test_resolved_by_hand_and_then_told_counts_once(desk: Desk) -> None:
    """Two operators say that it was done, and then its event comes after all."""
    account = await desk.account()
    deposit = await desk.paid_deposit(account)
    asked = (await refund(desk, deposit, 5_000)).json()["payment"]
    await desk.faults(timeout_after_commit=1)
    await jobs.send_payments(desk.work)
    await desk.faults()
    for operator in (0, 1):
        answer = await desk.http.post(
            f"/v1/ops/payments/{asked['id']}/resolve",
            json={"outcome": "completed", "note": "seen in their dashboard"},
            headers=await desk.as_operator(operator),
        )
        assert answer.status_code in (200, 202), answer.text
    assert await desk.balance(account) == (10_000, 0, 0)

    async def told() -> bool:
        await desk.work_through()
        return await desk.sql.fetchval("SELECT provider_id IS NOT NULL FROM payments WHERE id = $1", UUID(asked["id"])) is True

    await until(told)
    assert await desk.balance(account) == (10_000, 0, 0)
    assert (await desk.payment(deposit["id"]))["refunded"] == 5_000


async def test_a_refund_that_somebody_made_at_the_provider_is_posted(desk: Desk) -> None:
    account = await desk.account()
    deposit = await desk.paid_deposit(account)
    client = await desk.work.provider.client()
    await client.refund(deposit["provider_id"], 15_000)

    async def posted() -> bool:
        await desk.work_through()
        return await desk.balance(account) == (0, 0, 0)

    await until(posted)
    assert (await desk.payment(deposit["id"]))["refunded"] == 15_000


async def test_a_chargeback_after_the_money_left_is_owed(desk: Desk) -> None:
    account = await desk.account()
    deposit = await desk.paid_deposit(account, 15_000)
    await desk.post(f"/v1/accounts/{account}/withdrawals", {"amount": 14_000, "method": "direct"})
    await desk.act(f"purchases/{deposit['provider_id']}/chargeback", {"amount": 15_000})
    await desk.work_through()
    assert await desk.balance(account) == (-14_000, 0, 14_000)
    assert (await desk.payment(deposit["id"]))["charged_back"] == 15_000
    refused = await desk.post(f"/v1/accounts/{account}/withdrawals", {"amount": 1, "method": "direct"})
    assert (refused.status_code, refused.json()["code"]) == (409, "account_owes")
    await desk.act(f"purchases/{deposit['provider_id']}/chargeback-reversal")
    await desk.work_through()
    assert await desk.balance(account) == (1_000, 0, 0)
    assert (await desk.payment(deposit["id"]))["charged_back"] == 0


async def test_users_and_keys_do_not_refund(desk: Desk) -> None:
    account = await desk.account()
    deposit = await desk.paid_deposit(account)
    answer = await desk.post(f"/v1/ops/payments/{deposit['id']}/refund", {"amount": 1})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    nothing = await desk.post(f"/v1/ops/payments/{uuid4()}/refund", {"amount": 1}, **await desk.as_operator())
    assert nothing.status_code == 404


async def test_the_book_is_right(desk: Desk) -> None:
    await desk.work_through()
    assert await desk.differences() == []
