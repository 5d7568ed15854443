"""The book, the balance, the statement and the settlement say the same, to the cent."""

import csv
import io
import time
from collections import Counter
from pathlib import Path

import pytest

from piggybank.simulator import settlements, statements
from piggybank.simulator.entries import SIGN
from tests.simulator.conftest import Simulator, new_config, running, until
from tests.simulator.receivers import Receiver
from tests.simulator.serving import free_port
from tests.simulator.test_eft import new_credit, post_credit, until_ended
from tests.simulator.test_payouts import DETAILS

HEADER = "type,id,related_to,reference,status,currency,amount,fee_amount,net_amount,created_on,updated_on"


def rows(text: str) -> list[dict[str, str]]:
    assert text.splitlines()[0] == HEADER
    return list(csv.DictReader(io.StringIO(text)))


async def everything(simulator: Simulator) -> None:
    """One of each thing that moves money."""
    await simulator.paid(15_000, reference="kept")
    for amount, path in ((3_000, "refund"), (4_000, "refund")):
        paid = await simulator.paid(10_000, reference="refunded")
        await simulator.post(f"/api/v1/purchases/{paid['id']}/{path}/", {"amount": amount})
        await simulator.until_status("purchases", paid["id"], "paid")
    for is_reversed in (False, True):
        paid = await simulator.paid(20_000, reference="charged back")
        await simulator.post(f"/_sim/purchases/{paid['id']}/chargeback", {"amount": 19_999})
        if is_reversed:
            await simulator.post(f"/_sim/purchases/{paid['id']}/chargeback-reversal")
    for is_returned in (False, True):
        payout = await simulator.payout(2_500, "paid out")
        await simulator.post(payout["execution_url"], DETAILS)
        if is_returned:
            await simulator.post(f"/_sim/payouts/{payout['id']}/return")
    await simulator.payout(1_000, "never executed")
    for account, status in (("12345678", "COMPLETED"), ("110000002", "UNPAID")):
        made = await post_credit(simulator, new_credit(account, f"EFT {status}", 700))
        await until_ended(simulator, made["id"], status)


async def test_all_agree(own: Simulator) -> None:
    await everything(own)
    fees = 535 + 2 * 390 + 2 * 680
    paid = 15_000 + 2 * 10_000 + 2 * 20_000
    left = paid - fees - 7_000 - 2 * 19_999 + 19_999 - 2 * 2_500 + 2_500 - 2 * 700 + 700
    assert (await own.get("/_sim/book?sums=1"))["currencies"] == {
        "ZAR": {
            "paid": paid,
            "fees": fees,
            "refunds": 7_000,
            "chargebacks": 2 * 19_999,
            "reversals": 19_999,
            "payouts": 2 * 2_500 + 2 * 700,
            "returns": 2_500 + 700,
            "settlements": 0,
            "balance": left,
            "entries": 5 + 2 + 2 + 1 + 4 + 2,
        }
    }
    balance = {
        "gross_balance": left + fees,
        "balance": left,
        "available_balance": left,
        "reserved": 0,
        "pending_outgoing": 0,
        "fee_sell": fees,
    }
    assert await own.get("/api/v1/balance/") == {"ZAR": balance}
    settled = await own.post("/_sim/settle")
    assert [(found["currency"], found["amount"]) for found in settled["settlements"]] == [("ZAR", left)]
    assert settled["purchases"] == 4
    assert (await own.get("/api/v1/balance/"))["ZAR"]["balance"] == 0
    assert await own.post("/_sim/settle") == {"settlements": [], "purchases": 0}

    found = rows(await own.statement())
    assert sum(SIGN[row["type"]] * int(row["net_amount"]) for row in found) == 0
    assert Counter(row["type"] for row in found) == {
        "purchase": 5,
        "refund": 2,
        "chargeback": 2,
        "chargeback_reversal": 1,
        "payout": 4,
        "payout_return": 2,
        "settlement": 1,
    }
    assert all(int(row["amount"]) > 0 and int(row["net_amount"]) == int(row["amount"]) - int(row["fee_amount"]) for row in found)
    statuses = Counter((row["type"], row["reference"], row["status"]) for row in found)
    assert statuses[("purchase", "kept", "settled")] == 1
    assert statuses[("purchase", "charged back", "chargeback")] == 1
    assert statuses[("payout", "paid out", "error")] == statuses[("payout", "paid out", "success")] == 1
    assert statuses[("payout", "EFT COMPLETED", "COMPLETED")] == statuses[("payout", "EFT UNPAID", "UNPAID")] == 1
    purchases = {row["id"] for row in found if row["type"] == "purchase"}
    assert {row["related_to"] for row in found if row["type"] in ("refund", "chargeback", "chargeback_reversal")} <= purchases
    payouts = {row["id"] for row in found if row["type"] == "payout"}
    assert {row["related_to"] for row in found if row["type"] == "payout_return"} <= payouts


async def test_what_is_on_its_way_is_not_available(unhurried: Simulator) -> None:
    paid = await unhurried.paid(10_000)
    before = (await unhurried.get("/api/v1/balance/"))["ZAR"]
    await unhurried.post(f"/api/v1/purchases/{paid['id']}/refund/", {"amount": 1_000})
    await unhurried.faults(payout_pending=1)
    payout = await unhurried.payout(500)
    await unhurried.post(payout["execution_url"], DETAILS)
    after = (await unhurried.get("/api/v1/balance/"))["ZAR"]
    assert after["balance"] == before["balance"]
    assert (after["reserved"] - before["reserved"], after["pending_outgoing"] - before["pending_outgoing"]) == (1_000, 500)
    assert before["available_balance"] - after["available_balance"] == 1_500


async def test_settled_purchases_are_told_of_and_may_be_refunded(simulator: Simulator, receiver: Receiver) -> None:
    await simulator.webhook(receiver.url, "purchase.settled")
    paid = await simulator.paid(10_000)
    await simulator.post("/_sim/settle")
    await until(lambda: receiver.types_of(paid["id"]) == ["purchase.settled"])
    await simulator.post(f"/api/v1/purchases/{paid['id']}/refund/", {"amount": 1_000})
    refunded = await simulator.until_status("purchases", paid["id"], "settled")
    assert [step["status"] for step in refunded["status_history"]] == ["created", "paid", "settled", "pending_refund", "settled"]
    assert refunded["refundable_amount"] == 9_000


async def test_a_simulated_day_settles_by_itself(tmp_path: Path) -> None:
    async with running(new_config(tmp_path, free_port(), time_scale=400_000.0)) as quick:
        paid = await quick.paid(10_000)
        await quick.until_status("purchases", paid["id"], "settled")
        later = await quick.paid(5_000)
        await quick.until_status("purchases", later["id"], "settled")
        sums = (await quick.get("/_sim/book?sums=1"))["currencies"]["ZAR"]
        assert (sums["settlements"], sums["balance"]) == (10_000 - 390 + 5_000 - 245, 0)
        assert len([row for row in rows(await quick.statement()) if row["type"] == "settlement"]) == 2


async def test_a_statement_is_of_its_span_only(simulator: Simulator) -> None:
    now = int(time.time())
    paid = await simulator.paid(reference="in the span")
    assert paid["id"] in await simulator.statement(now, now + 1_000)
    assert paid["id"] not in await simulator.statement(0, paid["payment"]["paid_on"])
    assert rows(await simulator.statement(0, 1)) == []


async def test_a_statement_goes_through_its_states(unhurried: Simulator) -> None:
    made = await unhurried.post("/api/v1/company_statements/", {"format": "csv", "timezone": "UTC", "filters": {"from": 5, "to": 10}})
    assert (made["status"], made["download_url"], made["query_string"]) == ("queued", None, "from=5&to=10")
    path = f"/api/v1/company_statements/{made['id']}/"
    assert (await unhurried.http.get(f"{path}download/")).status_code == 404
    assert made["id"] in [found["id"] for found in (await unhurried.get("/api/v1/company_statements/"))["results"]]
    assert (await unhurried.post(f"{path}cancel/"))["status"] == "cancelled"
    await unhurried.refused(f"{path}cancel/")


async def test_a_download_needs_the_key(simulator: Simulator) -> None:
    made = await simulator.post("/api/v1/company_statements/", {"filters": {"from": 0}})
    done = await simulator.until_status("company_statements", made["id"], "finished")
    assert done["began_on"] <= done["finished_on"]
    assert (await simulator.http.get(done["download_url"], headers={"Authorization": ""})).status_code == 401
    await simulator.refused(f"/api/v1/company_statements/{made['id']}/cancel/")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"format": "xlsx"}, "format"),
        ({"timezone": "Mars/Olympus"}, "timezone"),
        ({"filters": {"from": 10, "to": 10}}, "filters.to"),
        ({"filters": {"from": "yesterday"}}, "filters.from"),
    ],
)
async def test_a_statement_that_is_wrong(simulator: Simulator, body: dict[str, object], field: str) -> None:
    assert list(await simulator.refused("/api/v1/company_statements/", body)) == [field]


async def test_a_mismatch_is_one_row(own: Simulator) -> None:
    """The fault alters, drops or invents a row; the book itself stays right."""
    for amount in (1_000, 2_000, 3_000):
        await own.paid(amount)
    right = rows(await own.statement())
    await own.faults(statement_mismatch=1)
    seen: set[str] = set()

    async def all_kinds_were_seen() -> bool:
        wrong = rows(await own.statement())
        if len(wrong) == len(right):
            (pair,) = [(good, bad) for good, bad in zip(right, wrong, strict=True) if good != bad]
            assert int(pair[1]["amount"]) != int(pair[0]["amount"])
            seen.add("altered")
        else:
            assert abs(len(wrong) - len(right)) == 1
            longer, shorter = (wrong, right) if len(wrong) > len(right) else (right, wrong)
            assert len([row for row in longer if row not in shorter]) == 1
            seen.add("invented" if longer is wrong else "missing")
        return len(seen) == 3

    await until(all_kinds_were_seen)
    await own.faults()
    assert rows(await own.statement()) == right


async def test_long_books_are_done_in_slices(own: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statements, "SLICE_ROWS", 2)
    monkeypatch.setattr(settlements, "SLICE", 2)
    paid = [(await own.paid(amount))["id"] for amount in (100, 200, 300, 400, 500)]
    assert [row["id"] for row in rows(await own.statement())] == paid
    await own.faults(statement_mismatch=1)
    assert len(rows(await own.statement())) in (4, 5, 6)
    await own.faults()
    assert (await own.post("/_sim/settle"))["purchases"] == 5
    found = rows(await own.statement())
    assert [(row["type"], row["status"]) for row in found] == [("purchase", "settled")] * 5 + [("settlement", "success")]
