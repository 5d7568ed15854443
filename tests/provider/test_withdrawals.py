"""Money out: held first, sent once, asked about, never sent again."""

from collections.abc import AsyncIterator
from uuid import UUID

import msgspec
import pytest

from piggybank.jobs import revio as jobs
from piggybank.settings import Settings
from piggybank.wallet import orders
from piggybank.wallet.provider import Provider
from tests.provider.conftest import Desk, Object, until

FUNDS = 20_000


@pytest.fixture
async def account(desk: Desk) -> AsyncIterator[UUID]:
    await desk.faults()
    yield await desk.account(FUNDS)
    await desk.faults()


async def executions(desk: Desk, payment: Object) -> int:
    """How often the provider was told to move this payment's money, over all payouts that name it."""
    book = (await desk.sim.get("/_sim/book", params={"limit": 10_000})).json()
    return sum(one.get("executions", 0) for one in book["objects"] if one["reference"] == payment["id"] and one["type"] == "payout")


async def test_a_withdrawal_is_held_then_paid_out(desk: Desk, account: UUID) -> None:
    payment = await desk.withdraw(account, 5_000)
    assert (payment["status"], payment["held"], payment["provider"]) == ("creating", 5_000, "simulator")
    assert await desk.balance(account) == (FUNDS, 5_000, 0)
    await desk.work_through()
    done = await desk.payment(payment["id"])
    assert (done["status"], done["held"], done["paid"]) == ("completed", 0, 5_000)
    assert await desk.balance(account) == (FUNDS - 5_000, 0, 0)
    assert await executions(desk, payment) == 1


async def test_pending_then_paid(desk: Desk, account: UUID) -> None:
    await desk.faults(payout_pending=1)
    payment = await desk.withdraw(account, 5_000)
    await jobs.send_payments(desk.work)
    under_way = await desk.payment(payment["id"])
    assert under_way["status"] in ("processing", "completed")
    refused = await desk.post(f"/v1/payments/{payment['id']}/cancel")
    assert (refused.status_code, refused.json()["code"]) in ((409, "payment_under_way"), (409, "payment_not_open"))

    async def ended() -> bool:
        await desk.work_through()
        return bool((await desk.payment(payment["id"]))["status"] == "completed")

    await until(ended)
    assert await desk.balance(account) == (FUNDS - 5_000, 0, 0)


async def test_an_error_releases_the_hold(desk: Desk, account: UUID) -> None:
    await desk.faults(payout_error=1)
    payment = await desk.withdraw(account, 5_000)
    await desk.work_through()
    failed = await desk.payment(payment["id"])
    assert (failed["status"], failed["held"]) == ("failed", 0)
    assert failed["failure"]
    assert await desk.balance(account) == (FUNDS, 0, 0)


async def test_paid_then_returned_is_credited_back(desk: Desk, account: UUID) -> None:
    payment = await desk.withdraw(account, 5_000)
    await desk.work_through()
    done = await desk.payment(payment["id"])
    await desk.act(f"payouts/{done['provider_id']}/return")
    await desk.work_through()
    returned = await desk.payment(payment["id"])
    assert returned["status"] == "returned"
    assert await desk.balance(account) == (FUNDS, 0, 0)
    rows = (await desk.http.get(f"/v1/accounts/{account}/transactions")).json()["items"]
    assert [(row["kind"], row["amount"]) for row in rows[:2]] == [("payout_return", 5_000), ("withdrawal", -5_000)]


async def test_failed_then_paid_posts_without_a_hold(desk: Desk, account: UUID) -> None:
    """An errored payout may be executed again under the same id, in the provider's dashboard."""
    await desk.faults(payout_error=1)
    payment = await desk.withdraw(account, FUNDS)
    await desk.work_through()
    failed = await desk.payment(payment["id"])
    spent = await desk.post(f"/v1/accounts/{account}/withdrawals", {"amount": FUNDS, "method": "direct"})
    assert spent.status_code == 201
    await desk.faults()
    await desk.sim.post(f"/api/v1/payouts/{failed['provider_id']}/execute/", json={"phone": "+27821234567"})
    await desk.work_through()
    assert (await desk.payment(payment["id"]))["status"] == "completed"
    assert await desk.balance(account) == (-FUNDS, 0, FUNDS)  # owed: it really went out twice


async def test_a_timeout_while_executing_is_unknown_asked_about_and_never_sent_again(desk: Desk, account: UUID) -> None:
    payment = await desk.withdraw(account, 5_000)
    driver = await desk.work.provider.payouts()
    order = await orders.get(desk.work.db, UUID(payment["id"]))
    created = await driver.create(order.order("somebody@example.com"))
    await desk.sql.execute(
        "UPDATE payments SET status = 'pending', provider_id = $2, provider_url = $3 WHERE id = $1",
        order.id,
        created.id,
        created.execution_url,
    )
    await desk.faults(timeout_after_commit=1)
    await jobs.send_payments(desk.work)
    unknown = await desk.payment(payment["id"])
    assert (unknown["status"], unknown["held"]) == ("unknown", 5_000)
    listed = (await desk.http.get("/v1/ops/payments")).json()["items"]
    assert payment["id"] in [one["id"] for one in listed]
    for _ in range(3):
        await desk.hurry()
        await jobs.send_payments(desk.work)
    assert await executions(desk, payment) == 1
    await desk.faults()
    assert await desk.ask() >= 1
    assert (await desk.payment(payment["id"]))["status"] == "completed"
    await desk.work_through()
    assert await desk.balance(account) == (FUNDS - 5_000, 0, 0)
    assert await executions(desk, payment) == 1


async def test_a_process_that_died_before_it_sent_leaves_something_to_ask_about(desk: Desk, account: UUID) -> None:
    """It is not known whether it was sent: so it is not sent again, and two operators decide."""
    payment = await desk.withdraw(account, 5_000)
    await jobs.send_payments(desk.work)  # creates and executes; as if it had died between the two:
    await desk.work_through()
    other = await desk.withdraw(account, 1_000)
    driver = await desk.work.provider.payouts()
    order = await orders.get(desk.work.db, UUID(other["id"]))
    created = await driver.create(order.order("somebody@example.com"))
    await desk.sql.execute(
        "UPDATE payments SET status = 'processing', provider_id = $2, provider_url = $3 WHERE id = $1",
        order.id,
        created.id,
        created.execution_url,
    )
    await desk.ask()
    unknown = await desk.payment(other["id"])
    assert unknown["status"] == "unknown"
    await desk.ask()
    assert (await desk.payment(other["id"]))["status"] == "unknown"
    assert await executions(desk, other) == 0
    assert await executions(desk, payment) == 1


async def test_what_was_certainly_not_heard_is_sent_again(desk: Desk, account: UUID) -> None:
    """Nobody listens: the payment goes back to where it was, and is sent when somebody does."""
    payment = await desk.withdraw(account, 5_000)
    desk.simulator.kill()
    await jobs.send_payments(desk.work)
    waiting = await desk.payment(payment["id"])
    assert (waiting["status"], waiting["held"]) == ("creating", 5_000)
    desk.restart_simulator()
    await desk.hurry()
    await desk.work_through()
    assert (await desk.payment(payment["id"]))["status"] == "completed"
    assert await executions(desk, payment) == 1


async def test_cancelled_before_it_was_sent(desk: Desk, account: UUID) -> None:
    payment = await desk.withdraw(account, 5_000)
    cancelled = await desk.post(f"/v1/payments/{payment['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["balance"]["held"]) == (200, 0)
    await desk.work_through()
    assert (await desk.payment(payment["id"]))["status"] == "cancelled"
    assert await executions(desk, payment) == 0


async def test_only_the_provider_completes_what_it_carries_out(desk: Desk, account: UUID) -> None:
    payment = await desk.withdraw(account, 5_000)
    answer = await desk.post(f"/v1/payments/{payment['id']}/complete")
    assert (answer.status_code, answer.json()["code"]) == (409, "not_direct")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"amount": 1, "method": "revio"}, "destination"),
        ({"amount": 1, "method": "revio", "destination": {}}, "destination"),
        ({"amount": 1, "method": "revio", "destination": {"phone": "1"}, "hold": True}, "hold"),
    ],
)
async def test_what_could_not_be_paid_out_is_refused_at_once(desk: Desk, account: UUID, body: Object, field: str) -> None:
    answer = await desk.post(f"/v1/accounts/{account}/withdrawals", body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, field)
    assert await desk.balance(account) == (FUNDS, 0, 0)


async def test_more_than_there_is_is_refused(desk: Desk, account: UUID) -> None:
    body = {"amount": FUNDS + 1, "method": "revio", "destination": {"phone": "1"}}
    answer = await desk.post(f"/v1/accounts/{account}/withdrawals", body)
    assert (answer.status_code, answer.json()["code"]) == (409, "insufficient_funds")


# By hand ----------------------------------------------------------------------------------------------------------------


async def unknown_payment(desk: Desk, account: UUID, amount: int = 5_000) -> Object:
    payment = await desk.withdraw(account, amount)
    await desk.sql.execute("UPDATE payments SET status = 'unknown' WHERE id = $1", UUID(payment["id"]))
    return payment


async def resolve(desk: Desk, payment: Object, operator: int, outcome: str) -> tuple[int, Object]:
    answer = await desk.http.post(
        f"/v1/ops/payments/{payment['id']}/resolve",
        json={"outcome": outcome, "note": "they said so"},
        headers=await desk.as_operator(operator),
    )
    found: Object = answer.json()
    return answer.status_code, found


async def test_two_operators_resolve_what_nobody_knows(desk: Desk, account: UUID) -> None:
    payment = await unknown_payment(desk, account)
    status, proposed = await resolve(desk, payment, 0, "completed")
    assert (status, proposed["confirmed_by"]) == (202, None)
    assert (await resolve(desk, payment, 0, "completed"))[0] == 202  # the same one again is not a second one
    assert await desk.balance(account) == (FUNDS, 5_000, 0)
    status, differs = await resolve(desk, payment, 1, "failed")
    assert (status, differs["code"]) == (409, "resolution_differs")
    status, confirmed = await resolve(desk, payment, 1, "completed")
    assert status == 200
    assert confirmed["confirmed_by"] != confirmed["proposed_by"]
    assert await desk.balance(account) == (FUNDS - 5_000, 0, 0)
    assert (await desk.payment(payment["id"]))["status"] == "completed"
    status, late = await resolve(desk, payment, 1, "completed")
    assert (status, late["code"]) == (409, "not_unknown")


async def test_resolved_as_failed_releases_the_hold(desk: Desk, account: UUID) -> None:
    payment = await unknown_payment(desk, account)
    await resolve(desk, payment, 0, "failed")
    assert (await resolve(desk, payment, 1, "failed"))[0] == 200
    assert await desk.balance(account) == (FUNDS, 0, 0)


async def test_what_the_provider_tells_after_all_counts_once(desk: Desk, account: UUID) -> None:
    """Resolved as completed, and then the event of it comes."""
    payment = await desk.withdraw(account, 5_000)
    await jobs.send_payments(desk.work)
    await desk.sql.execute("UPDATE provider_events SET due_at = NULL WHERE status = 'new'")
    if (await desk.payment(payment["id"]))["status"] == "completed":  # the answer itself told
        await desk.delivered()
    await desk.work_through()
    assert await desk.balance(account) == (FUNDS - 5_000, 0, 0)


async def test_with_one_operator_it_says_how_to_have_another(desk: Desk, account: UUID) -> None:
    payment = await unknown_payment(desk, account)
    operator = await desk.as_operator(0)
    await desk.sql.execute(
        "UPDATE users SET role = 'user' WHERE role = 'operator' AND id <> (SELECT min(id::text)::uuid FROM users WHERE role = 'operator')"
    )
    answer = await desk.http.post(f"/v1/ops/payments/{payment['id']}/resolve", json={"outcome": "failed", "note": "x"}, headers=operator)
    await desk.sql.execute("UPDATE users SET role = 'operator' WHERE email LIKE 'operator.%'")
    if answer.status_code == 403:  # this one is the younger of the two
        pytest.fail("the first operator should be the older one")
    assert (answer.status_code, answer.json()["code"]) == (409, "second_operator_needed")
    assert answer.json()["do"] == "piggybank users operator-link"


async def test_a_key_is_no_operator(desk: Desk, account: UUID) -> None:
    payment = await unknown_payment(desk, account)
    answer = await desk.post(f"/v1/ops/payments/{payment['id']}/resolve", {"outcome": "failed", "note": "x"})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


# EFT credits ------------------------------------------------------------------------------------------------------------

ACCEPTED, UNPAID = "110000001", "110000002"


def eft_destination(number: str) -> dict[str, str]:
    return {"account_number": number, "branch_code": "051001", "account_type": "SAVINGS", "name": "Thandi M"}


@pytest.fixture
async def eft(desk: Desk) -> AsyncIterator[Desk]:
    """The same desk, paying out by EFT credits."""
    settings: Settings = msgspec.structs.replace(desk.settings, revio_payouts="eft")
    usual = desk.work
    desk.work = msgspec.structs.replace(usual, settings=settings, provider=Provider(settings, usual.db))
    yield desk
    await desk.work.provider.close()
    desk.work = usual


async def test_an_eft_credit_is_processing_until_the_statement_tells(eft: Desk, account: UUID) -> None:
    payment = await eft.withdraw(account, 5_000, destination=eft_destination(ACCEPTED))
    await jobs.send_payments(eft.work)
    sent = await eft.payment(payment["id"])
    assert (sent["status"], sent["held"]) == ("processing", 5_000)
    assert sent["provider_id"]
    for _ in range(2):
        await eft.ask()
        await jobs.send_payments(eft.work)
    assert (await eft.payment(payment["id"]))["status"] == "processing"


async def test_an_eft_credit_whose_answer_was_lost_is_unknown(eft: Desk, account: UUID) -> None:
    first = await eft.withdraw(account, 1_000, destination=eft_destination(ACCEPTED))
    await jobs.send_payments(eft.work)  # has a token now
    assert (await eft.payment(first["id"]))["status"] == "processing"
    payment = await eft.withdraw(account, 5_000, destination=eft_destination(ACCEPTED))
    await eft.faults(timeout_after_commit=1)
    await jobs.send_payments(eft.work)
    await eft.faults()
    assert (await eft.payment(payment["id"]))["status"] == "unknown"
    for _ in range(2):
        await eft.hurry()
        await jobs.send_payments(eft.work)
        await eft.ask()
    assert (await eft.payment(payment["id"]))["status"] == "unknown"
    book = (await eft.sim.get("/_sim/book", params={"limit": 10_000})).json()
    assert len([one for one in book["objects"] if one["reference"] == payment["id"]]) == 1


async def test_an_eft_credit_to_nowhere_fails(eft: Desk, account: UUID) -> None:
    payment = await eft.withdraw(account, 5_000, destination={"phone": "1"})  # the API took it for the other driver
    await jobs.send_payments(eft.work)
    failed = await eft.payment(payment["id"])
    assert (failed["status"], failed["failure"]) == ("failed", "not_possible")
    assert await eft.balance(account) == (FUNDS, 0, 0)


async def test_the_book_is_right(desk: Desk) -> None:
    """After all of the above."""
    await desk.work_through()
    assert await desk.differences() == []
