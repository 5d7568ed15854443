"""Every fault can be seen from outside; those of payouts and statements in their own tests."""

import time
from collections import Counter

import httpx
import pytest

from piggybank.simulator import faults
from tests.simulator.conftest import Simulator, new_purchase, until
from tests.simulator.receivers import Receiver
from tests.simulator.test_eft import new_credit
from tests.simulator.test_payouts import DETAILS, executions
from tests.simulator.test_webhooks import is_signed


async def count(simulator: Simulator, kind: str) -> int:
    return len([found for found in (await simulator.get("/_sim/book?limit=10000"))["objects"] if found["type"] == kind])


def test_parsed() -> None:
    assert faults.parse("timeout_after_commit:0.01, dup_event:1,slow_ms:800,") == {
        "timeout_after_commit": 0.01,
        "dup_event": 1,
        "slow_ms": 800,
    }
    assert faults.parse("") == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dup_event", "has no number"),
        ("dup_event:often", "'often' is not a number"),
        ("dup_event:1.5", "must be from 0 to 1"),
        ("dup_event:nan", "must be from 0 to 1"),
        ("slow_ms:-1", "must be from 0 to 600000"),
        ("dupevent:1", "there is no fault 'dupevent'"),
        ("5xx:0,5xx:1", "named twice"),
    ],
)
def test_not_parsed(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        faults.parse(text)


async def test_set_at_run_time(simulator: Simulator) -> None:
    await simulator.faults(dup_event=0.5)
    assert await simulator.get("/_sim/faults") == dict.fromkeys(faults.ABOUT, 0) | {"dup_event": 0.5}
    answer = await simulator.http.put("/_sim/faults", json={"nothing": 1})
    assert (answer.status_code, "there is no fault" in answer.text) == (400, True)
    assert (await simulator.get("/_sim/faults"))["dup_event"] == 0.5


async def test_timeout_after_commit(own: Simulator) -> None:
    """The work is done and the connection is cut; a refusal arrives, and reading always works."""
    payout = await own.payout()
    paid = await own.paid()
    doomed = await own.purchase()
    await own.faults(timeout_after_commit=1)
    eft = await own.eft_headers()
    for path, body, headers in (
        ("/api/v1/purchases/", new_purchase(), None),
        (payout["execution_url"], DETAILS, None),
        (f"/api/v1/purchases/{paid['id']}/refund/", {}, None),
        (f"/api/v1/purchases/{doomed['id']}/cancel/", {}, None),
        ("/v2/payment/eft", new_credit(), eft),
    ):
        with pytest.raises(httpx.RemoteProtocolError):
            await own.http.post(path, json=body, headers=headers)
    assert await count(own, "purchase") == 3
    assert await count(own, "eft_credit") == 1
    assert await own.status("payouts", payout["id"]) == "success"
    assert await own.status("purchases", doomed["id"]) == "cancelled"
    assert await executions(own, payout["id"]) == 1
    await own.until_status("purchases", paid["id"], "refunded")
    await own.refused("/api/v1/purchases/", {})


async def test_a_client_that_hangs_up_first_leaves_the_work_done(unhurried: Simulator) -> None:
    before = await count(unhurried, "purchase")
    await unhurried.faults(timeout_after_commit=1)
    with pytest.raises(httpx.ReadTimeout):
        await unhurried.http.post("/api/v1/purchases/", json=new_purchase(), timeout=0.5)
    assert await count(unhurried, "purchase") == before + 1


@pytest.mark.parametrize(("fault", "made"), [("5xx", 0), ("5xx_after_commit", 1)])
async def test_errors_of_the_server(simulator: Simulator, fault: str, made: int) -> None:
    before = await count(simulator, "purchase")
    await simulator.faults(**{fault: 1})
    answer = await simulator.http.post("/api/v1/purchases/", json=new_purchase())
    assert (answer.status_code, "message" in answer.json()) == (500, True)
    assert (await simulator.http.get("/api/v1/balance/")).status_code == (500 if fault == "5xx" else 200)
    await simulator.faults()
    assert await count(simulator, "purchase") == before + made


async def test_slow(unhurried: Simulator) -> None:
    await unhurried.faults(slow_ms=300)
    began = time.monotonic()
    await unhurried.get("/api/v1/balance/")
    assert time.monotonic() - began >= 0.3  # at least: it holds on any machine


async def test_duplicates_are_the_same_bytes(simulator: Simulator, receiver: Receiver) -> None:
    await simulator.webhook(receiver.url)
    await simulator.faults(dup_event=1)
    paid = await simulator.paid()
    await until(lambda: receiver.types_of(paid["id"]) == ["purchase.created"] * 2 + ["purchase.paid"] * 2)
    assert set(Counter(delivery.raw for delivery in receiver.of(paid["id"])).values()) == {2}


async def test_a_duplicate_may_come_after_events_of_others(unhurried: Simulator, receiver: Receiver) -> None:
    await unhurried.webhook(receiver.url)
    await unhurried.faults(dup_event=1)
    twice = [await unhurried.purchase() for _ in range(8)]
    await unhurried.faults()
    other = await unhurried.purchase()
    await until(lambda: len(receiver.of(other["id"])) == 1)
    await unhurried.post("/_sim/deliver-now")
    await until(lambda: all(len(receiver.of(made["id"])) == 2 for made in twice))
    order = [delivery.object_id for delivery in receiver.deliveries]
    assert order.index(other["id"]) < max(index for index, found in enumerate(order) if found != other["id"])


@pytest.mark.parametrize("fault", ["late_event", "reorder"])
async def test_held_back_so_that_others_overtake(unhurried: Simulator, receiver: Receiver, fault: str) -> None:
    await unhurried.webhook(receiver.url)
    await unhurried.faults(**{fault: 1})
    held = [await unhurried.paid() for _ in range(8)]
    await unhurried.faults()
    other = await unhurried.paid()
    await until(lambda: len(receiver.of(other["id"])) == 2)
    await unhurried.post("/_sim/deliver-now")
    for made in [*held, other]:
        await until(lambda made=made: receiver.types_of(made["id"]) == ["purchase.created", "purchase.paid"])  # type: ignore[misc]
    order = [delivery.object_id for delivery in receiver.deliveries]
    assert order.index(other["id"]) < max(index for index, found in enumerate(order) if found != other["id"])


async def test_a_bad_signature_is_right_on_a_retry(simulator: Simulator, receiver: Receiver) -> None:
    hook = await simulator.webhook(receiver.url, "purchase.created")
    receiver.answer = lambda delivery: 200 if is_signed(delivery, hook["public_key"]) else 401
    await simulator.faults(bad_signature=1)
    made = await simulator.purchase()
    await until(lambda: any(is_signed(delivery, hook["public_key"]) for delivery in receiver.of(made["id"])))
    tries = receiver.of(made["id"])
    assert 2 <= len(tries) <= 3
    assert not is_signed(tries[0], hook["public_key"])
    assert len({delivery.raw for delivery in tries}) == 1


async def test_wrong_amount_and_currency(simulator: Simulator) -> None:
    await simulator.faults(wrong_amount=1)
    assert (await simulator.paid(15_000))["payment"]["amount"] not in (0, 15_000)
    assert (await simulator.paid(1))["payment"]["amount"] > 1
    await simulator.faults(wrong_currency=1)
    paid = await simulator.paid(15_000)
    assert (paid["payment"]["amount"], paid["payment"]["currency"]) == (15_000, "USD")


async def test_charged_back_and_reversed_by_themselves(simulator: Simulator, receiver: Receiver) -> None:
    await simulator.webhook(receiver.url, "payment.charged_back", "payment.chargeback_reversed")
    await simulator.faults(chargeback=1)
    standing = await simulator.paid(10_000)
    await simulator.until_status("purchases", standing["id"], "chargeback")
    await simulator.faults(chargeback=1, chargeback_reversed=1)
    mended = await simulator.paid(10_000)
    await until(lambda: len(receiver.related_to(mended["id"], "payment.chargeback_reversed")) == 1)
    assert await simulator.status("purchases", mended["id"]) == "paid"
    assert len(receiver.related_to(standing["id"], "payment.charged_back")) == 1
    assert receiver.related_to(standing["id"], "payment.chargeback_reversed") == []


async def test_a_refund_that_fails(simulator: Simulator, receiver: Receiver) -> None:
    await simulator.webhook(receiver.url, "purchase.pending_refund", "purchase.refund_failure", "payment.refunded")
    await simulator.faults(refund_failure=1)
    paid = await simulator.paid(10_000)
    await simulator.post(f"/api/v1/purchases/{paid['id']}/refund/", {"amount": 4_000})
    await until(lambda: receiver.types_of(paid["id"]) == ["purchase.pending_refund", "purchase.refund_failure"])
    failed = receiver.of(paid["id"])[-1].body
    assert (failed["status"], failed["refundable_amount"]) == ("paid", 10_000)


async def test_a_refund_at_once(simulator: Simulator, receiver: Receiver) -> None:
    await simulator.webhook(receiver.url, "payment.refunded")
    await simulator.faults(sync_refund=1)
    paid = await simulator.paid(10_000)
    payment = await simulator.post(f"/api/v1/purchases/{paid['id']}/refund/", {"amount": 10_000})
    assert (payment["type"], payment["payment"]["payment_type"], payment["payment"]["amount"]) == ("payment", "refund", 10_000)
    assert payment["related_to"] == {"type": "purchase", "id": paid["id"]}
    assert await simulator.status("purchases", paid["id"]) == "refunded"
    await until(lambda: receiver.types_of(payment["id"]) == ["payment.refunded"])
