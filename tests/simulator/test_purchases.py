"""Purchases through their life: paid, declined, cancelled, expired, refunded, charged back."""

import time
from itertools import pairwise
from pathlib import Path

import pytest

from tests.simulator.conftest import Simulator, new_config, new_purchase, running, until
from tests.simulator.receivers import Receiver
from tests.simulator.serving import free_port


def steps(sent: dict[str, list[dict[str, str]]]) -> list[str]:
    return [step["status"] for step in sent["status_history"]]


@pytest.mark.parametrize(("amount", "fee"), [(15_000, 535), (1, 1), (100, 100), (103, 102), (10**12, 29_000_000_100)])
async def test_paid_with_its_fee(simulator: Simulator, amount: int, fee: int) -> None:
    paid = await simulator.paid(amount)
    block = paid["payment"]
    assert (block["amount"], block["fee_amount"], block["net_amount"]) == (amount, fee, amount - fee)
    assert (block["currency"], block["payment_type"], block["is_outgoing"]) == ("ZAR", "purchase", False)
    assert type(block["paid_on"]) is int
    assert (paid["status"], paid["refundable_amount"], paid["refund_availability"]) == ("paid", amount, "all")


async def test_declined_and_paid_later(simulator: Simulator, receiver: Receiver) -> None:
    await simulator.webhook(receiver.url)
    made = await simulator.purchase()
    declined = await simulator.post(f"/_sim/purchases/{made['id']}/decline")
    assert declined["status"] == "error"
    assert declined["transaction_data"]["attempts"][0]["error"] == {
        "code": "card_declined",
        "message": "The card was declined by its issuer.",
    }
    paid = await simulator.post(f"/_sim/purchases/{made['id']}/pay")
    newest, oldest = paid["transaction_data"]["attempts"]
    assert (newest["successful"], newest["error"], newest["fee_amount"]) == (True, None, 535)
    assert (oldest["successful"], oldest["fee_amount"]) == (False, 0)
    assert steps(paid) == ["created", "error", "paid"]
    await until(lambda: receiver.types_of(made["id"]) == ["purchase.created", "purchase.payment_failure", "purchase.paid"])
    assert [delivery.body["status"] for delivery in receiver.of(made["id"])] == ["created", "error", "paid"]


async def test_what_is_paid_cannot_be_paid_declined_or_cancelled(simulator: Simulator) -> None:
    paid = await simulator.paid()
    for path, code in (("pay", "purchase_charge_error"), ("decline", "purchase_charge_error"), ("expire", "purchase_expire_error")):
        assert (await simulator.refused(f"/_sim/purchases/{paid['id']}/{path}"))["__all__"][0]["code"] == code
    said = await simulator.refused(f"/api/v1/purchases/{paid['id']}/cancel/")
    assert said["__all__"][0]["code"] == "purchase_cancel_error"
    assert await simulator.status("purchases", paid["id"]) == "paid"


async def test_cancelled(simulator: Simulator, receiver: Receiver) -> None:
    await simulator.webhook(receiver.url, "purchase.cancelled")
    made = await simulator.purchase()
    assert (await simulator.post(f"/api/v1/purchases/{made['id']}/cancel/"))["status"] == "cancelled"
    await simulator.refused(f"/_sim/purchases/{made['id']}/pay")
    await until(lambda: receiver.types_of(made["id"]) == ["purchase.cancelled"])


async def test_overdue_then_expired_and_no_event_tells(tmp_path: Path, receiver: Receiver) -> None:
    async with running(new_config(tmp_path, free_port(), time_scale=100_000.0)) as quick:
        await quick.webhook(receiver.url)
        made = await quick.purchase(due=int(time.time()) - 10, purchase=new_purchase()["purchase"] | {"due_strict": True})
        await quick.refused(f"/_sim/purchases/{made['id']}/pay")
        expired = await quick.until_status("purchases", made["id"], "expired")
        assert steps(expired) == ["created", "overdue", "expired"]
        other = await quick.purchase()
        await until(lambda: receiver.types_of(other["id"]) == ["purchase.created"])
        assert receiver.types_of(made["id"]) == ["purchase.created"]


async def test_a_due_time_that_is_not_strict_changes_nothing(simulator: Simulator) -> None:
    made = await simulator.purchase(due=int(time.time()) - 10)
    assert (await simulator.post(f"/_sim/purchases/{made['id']}/pay"))["status"] == "paid"


async def test_expired_by_hand(simulator: Simulator) -> None:
    made = await simulator.purchase()
    assert (await simulator.post(f"/_sim/purchases/{made['id']}/expire"))["status"] == "expired"
    assert "purchase_charge_error" in str(await simulator.refused(f"/_sim/purchases/{made['id']}/pay"))


async def test_paid_otherwise_than_asked(simulator: Simulator) -> None:
    made = await simulator.purchase(15_000)
    paid = await simulator.post(f"/_sim/purchases/{made['id']}/pay", {"amount": 14_000, "currency": "USD"})
    assert (paid["payment"]["amount"], paid["payment"]["currency"], paid["refundable_amount"]) == (14_000, "USD", 14_000)
    assert (paid["purchase"]["total"], paid["purchase"]["currency"]) == (15_000, "ZAR")


async def test_refunded_in_parts(simulator: Simulator, receiver: Receiver) -> None:
    await simulator.webhook(receiver.url)
    paid = await simulator.paid(15_000)
    path = f"/api/v1/purchases/{paid['id']}/refund/"
    pending = await simulator.post(path, {"amount": 5_000})
    assert (pending["type"], pending["status"], pending["refundable_amount"]) == ("purchase", "pending_refund", 10_000)
    assert (await simulator.until_status("purchases", paid["id"], "paid"))["refundable_amount"] == 10_000
    assert "purchase_refund_error" in str(await simulator.refused(path, {"amount": 10_001}))
    assert list(await simulator.refused(path, {"amount": 0})) == ["amount"]
    await simulator.post(path)  # what is left
    done = await simulator.until_status("purchases", paid["id"], "refunded")
    assert (done["refundable_amount"], done["refund_availability"]) == (0, "none")
    assert "purchase_refund_error" in str(await simulator.refused(path))
    assert steps(done) == ["created", "paid", "pending_refund", "paid", "pending_refund", "refunded"]

    await until(lambda: len(receiver.related_to(paid["id"], "payment.refunded")) == 2)
    payments = sorted(
        (delivery.body for delivery in receiver.related_to(paid["id"], "payment.refunded")), key=lambda body: body["payment"]["amount"]
    )
    assert [payment["payment"]["amount"] for payment in payments] == [5_000, 10_000]
    assert len({payment["id"] for payment in payments} | {paid["id"]}) == 3
    for payment in payments:
        assert payment["type"] == "payment"
        assert payment["related_to"] == {"type": "purchase", "id": paid["id"]}
        assert (payment["payment"]["payment_type"], payment["payment"]["is_outgoing"], payment["reference"]) == ("refund", True, "dep_1")


async def test_a_refund_before_it_is_paid(simulator: Simulator) -> None:
    made = await simulator.purchase()
    assert "purchase_refund_error" in str(await simulator.refused(f"/api/v1/purchases/{made['id']}/refund/"))


async def test_charged_back_and_reversed(simulator: Simulator, receiver: Receiver) -> None:
    await simulator.webhook(receiver.url)
    paid = await simulator.paid(15_000)
    path = f"/_sim/purchases/{paid['id']}"
    assert "amount" in await simulator.refused(f"{path}/chargeback", {"amount": 15_001})
    back = await simulator.post(f"{path}/chargeback", {"amount": 4_000})
    assert (back["payment"]["payment_type"], back["payment"]["amount"], back["payment"]["is_outgoing"]) == ("chargeback", 4_000, True)
    assert await simulator.status("purchases", paid["id"]) == "chargeback"
    await simulator.refused(f"/api/v1/purchases/{paid['id']}/refund/")
    rest = await simulator.post(f"{path}/chargeback")
    assert rest["payment"]["amount"] == 11_000
    await simulator.refused(f"{path}/chargeback")
    reversal = await simulator.post(f"{path}/chargeback-reversal")
    assert (reversal["payment"]["payment_type"], reversal["payment"]["amount"]) == ("chargeback_reversal", 11_000)
    assert reversal["payment"]["is_outgoing"] is False
    assert reversal["related_to"] == {"type": "purchase", "id": paid["id"]}
    assert await simulator.status("purchases", paid["id"]) == "chargeback"
    await simulator.post(f"{path}/chargeback-reversal")
    again = await simulator.get(f"/api/v1/purchases/{paid['id']}/")
    assert (again["status"], again["refundable_amount"]) == ("paid", 15_000)
    await simulator.refused(f"{path}/chargeback-reversal")
    await until(lambda: len(receiver.related_to(paid["id"], "payment.charged_back")) == 2)
    await until(lambda: len(receiver.related_to(paid["id"], "payment.chargeback_reversed")) == 2)


async def test_times_of_an_object_never_go_back(simulator: Simulator, receiver: Receiver) -> None:
    await simulator.webhook(receiver.url)
    paid = await simulator.paid()
    await simulator.post(f"/api/v1/purchases/{paid['id']}/refund/")
    await simulator.until_status("purchases", paid["id"], "refunded")
    await until(lambda: len(receiver.of(paid["id"])) == 3)
    bodies = [delivery.body for delivery in receiver.of(paid["id"])]
    assert [body["updated_on"] for body in bodies] == sorted(body["updated_on"] for body in bodies)
    for earlier, later in pairwise(bodies):  # each snapshot carries the whole history
        assert later["status_history"][: len(earlier["status_history"])] == earlier["status_history"]
        assert later["created_on"] == earlier["created_on"]
