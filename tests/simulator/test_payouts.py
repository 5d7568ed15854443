"""Payouts: two steps, counted."""

import pytest

from tests.simulator.conftest import Simulator, until
from tests.simulator.receivers import Receiver

DETAILS = {"phone": "+27821234567"}


async def executions(simulator: Simulator, payout_id: str) -> int:
    objects = (await simulator.get("/_sim/book?limit=10000"))["objects"]
    (count,) = [found["executions"] for found in objects if found["id"] == payout_id]
    return int(count)


def steps(sent: dict[str, list[dict[str, str]]]) -> list[str]:
    return [step["status"] for step in sent["status_history"]]


async def test_made_and_executed_once(simulator: Simulator, receiver: Receiver) -> None:
    await simulator.webhook(receiver.url)
    made = await simulator.payout(5_000, "wd_7")
    assert (made["type"], made["status"], made["reference"], made["is_test"]) == ("payout", "initialized", "wd_7", True)
    assert (made["payment"]["amount"], made["payment"]["currency"], made["payment"]["description"]) == (5_000, "ZAR", "Withdrawal")
    assert made["execution_url"] == f"{simulator.config.url}/api/v1/payouts/{made['id']}/execute/"
    done = await simulator.post(made["execution_url"], DETAILS)
    assert (done["status"], steps(done)) == ("success", ["initialized", "success"])
    assert type(done["payment"]["paid_on"]) is int
    said = await simulator.refused(made["execution_url"], DETAILS)
    assert said["__all__"][0]["code"] == "payout_already_executed"
    assert await executions(simulator, made["id"]) == 2  # the refused call is seen too
    assert await simulator.get(f"/api/v1/payouts/{made['id']}/") == done
    await until(lambda: receiver.types_of(made["id"]) == ["payout.created", "payout.success"])


async def test_without_the_key_nothing_is_executed(simulator: Simulator) -> None:
    made = await simulator.payout()
    answer = await simulator.http.post(made["execution_url"], json=DETAILS, headers={"Authorization": ""})
    assert answer.status_code == 401
    assert (await simulator.http.post(made["execution_url"], json=[1])).status_code == 400
    assert await simulator.status("payouts", made["id"]) == "initialized"


async def test_pending_then_success(simulator: Simulator, receiver: Receiver) -> None:
    await simulator.webhook(receiver.url)
    await simulator.faults(payout_pending=1)
    made = await simulator.payout()
    assert (await simulator.post(made["execution_url"], DETAILS))["status"] == "pending"
    done = await simulator.until_status("payouts", made["id"], "success")
    assert steps(done) == ["initialized", "pending", "success"]
    await until(lambda: receiver.types_of(made["id"]) == ["payout.created", "payout.pending", "payout.success"])


async def test_pending_then_error_by_the_fault(simulator: Simulator) -> None:
    await simulator.faults(payout_pending=1, payout_error=1)
    made = await simulator.payout()
    assert (await simulator.post(made["execution_url"], DETAILS))["status"] == "pending"
    assert steps(await simulator.until_status("payouts", made["id"], "error")) == ["initialized", "pending", "error"]


async def test_an_error_may_be_executed_again(simulator: Simulator, receiver: Receiver) -> None:
    await simulator.webhook(receiver.url)
    await simulator.faults(payout_error=1)
    made = await simulator.payout()
    assert (await simulator.post(made["execution_url"], DETAILS))["status"] == "error"
    await simulator.faults()
    assert steps(await simulator.post(made["execution_url"], DETAILS)) == ["initialized", "error", "success"]
    assert await executions(simulator, made["id"]) == 2
    await until(lambda: receiver.types_of(made["id"]) == ["payout.created", "payout.failed", "payout.success"])


async def test_one_that_succeeded_comes_back(simulator: Simulator, receiver: Receiver) -> None:
    await simulator.webhook(receiver.url)
    await simulator.faults(payout_return=1)
    made = await simulator.payout()
    await simulator.post(made["execution_url"], DETAILS)
    back = await simulator.until_status("payouts", made["id"], "error")
    assert steps(back) == ["initialized", "success", "error"]
    await until(lambda: receiver.types_of(made["id"]) == ["payout.created", "payout.success", "payout.failed"])


@pytest.mark.parametrize(("word", "status"), [("succeed", "success"), ("fail", "error")])
async def test_ended_by_hand(unhurried: Simulator, word: str, status: str) -> None:
    await unhurried.faults(payout_pending=1)
    made = await unhurried.payout()
    await unhurried.refused(f"/_sim/payouts/{made['id']}/{word}")
    await unhurried.post(made["execution_url"], DETAILS)
    said = await unhurried.refused(made["execution_url"], DETAILS)
    assert said["__all__"][0]["code"] == "payout_already_executed"
    assert (await unhurried.post(f"/_sim/payouts/{made['id']}/{word}"))["status"] == status
    await unhurried.refused(f"/_sim/payouts/{made['id']}/{word}")


async def test_returned_by_hand(simulator: Simulator) -> None:
    made = await simulator.payout()
    await simulator.refused(f"/_sim/payouts/{made['id']}/return")
    await simulator.post(made["execution_url"], DETAILS)
    assert (await simulator.post(f"/_sim/payouts/{made['id']}/return"))["status"] == "error"
