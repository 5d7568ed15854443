"""kill -9 at any moment: the book, what waits and what is set are there again."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import pytest

from piggybank.simulator import Config
from tests.simulator.conftest import Simulator, client, new_config, new_purchase, running, until
from tests.simulator.receivers import Receiver
from tests.simulator.serving import free_port

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def process(config: Config) -> AsyncIterator[tuple[Simulator, subprocess.Popen[bytes]]]:
    """A simulator in a process of its own; it is killed at the end."""
    port = config.url.rpartition(":")[2]
    words = [sys.executable, "-m", "tests.simulator.serving", msgspec.json.encode(config, enc_hook=str).decode(), port]
    with subprocess.Popen(  # noqa: ASYNC220 - starting it takes no time; that it is up is asked over HTTP
        words, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as started:
        try:
            async with client(config) as http:

                async def is_up() -> bool:
                    assert started.poll() is None, "the simulator ended"
                    try:
                        return (await http.get("/health/live")).status_code == 200
                    except httpx.TransportError:
                        return False

                await until(is_up)
                yield Simulator(config, http), started
        finally:
            started.kill()


async def test_nothing_that_was_answered_is_lost(tmp_path: Path, receiver: Receiver) -> None:
    """Killed under load with a receiver that takes nothing: every event comes afterwards, in order, and the sums agree."""
    config = new_config(tmp_path, free_port(), time_scale=1.0, faults="payout_pending:1")
    receiver.answer = lambda _: 500
    known: list[str] = []
    async with process(config) as (simulator, started):
        await simulator.webhook(receiver.url)
        payout = await simulator.payout()
        await simulator.post(payout["execution_url"])
        refunded = await simulator.paid(10_000)
        await simulator.post(f"/api/v1/purchases/{refunded['id']}/refund/", {"amount": 3_000})
        await simulator.faults(payout_error=1)
        company_key = await simulator.get("/api/v1/public_key/")

        async def pay_on() -> None:
            while True:
                made = await simulator.http.post("/api/v1/purchases/", json=new_purchase(1_000))
                paid = await simulator.http.post(f"/_sim/purchases/{made.json()['id']}/pay")
                known.append(paid.json()["id"])

        payers = [asyncio.create_task(pay_on()) for _ in range(3)]
        await until(lambda: len(known) >= 30)
        started.send_signal(signal.SIGKILL)
        for ended in await asyncio.gather(*payers, return_exceptions=True):
            assert isinstance(ended, httpx.TransportError)

    receiver.deliveries.clear()
    receiver.answer = lambda _: 200
    # as quick as never before: what waited for seconds of the old scale goes on under the new one
    async with running(msgspec.structs.replace(config, time_scale=1_000.0)) as simulator:
        assert await simulator.get("/api/v1/public_key/") == company_key
        assert (await simulator.get("/_sim/faults"))["payout_error"] == 1
        assert (await simulator.get("/_sim/faults"))["payout_pending"] == 0
        await simulator.post("/_sim/deliver-now")
        for object_id in known:
            await until(lambda object_id=object_id: receiver.types_of(object_id) == ["purchase.created", "purchase.paid"])  # type: ignore[misc]
        await until(lambda: receiver.types_of(payout["id"]) == ["payout.created", "payout.pending", "payout.failed"])
        await until(lambda: len(receiver.related_to(refunded["id"], "payment.refunded")) == 1)
        book = await simulator.get("/_sim/book?limit=10000")
        paid = [found for found in book["objects"] if found["type"] == "purchase" and found["status"] == "paid"]
        assert {found["id"] for found in paid} >= {*known, refunded["id"]}
        sums = book["currencies"]["ZAR"]
        assert sums["paid"] == sum(found["amount"] for found in paid)
        assert sums["refunds"] == 3_000
        assert (await simulator.get("/api/v1/balance/"))["ZAR"]["reserved"] == 0

        async def is_empty() -> bool:
            return bool((await simulator.get("/_sim/deliveries"))["waiting"] == 0)

        await until(is_empty)


async def test_configured_faults_win_when_they_are_others(tmp_path: Path) -> None:
    config = new_config(tmp_path, free_port(), faults="dup_event:0.1")
    async with running(config) as simulator:
        assert (await simulator.get("/_sim/faults"))["dup_event"] == 0.1
        await simulator.faults(reorder=1)
    async with running(config) as simulator:
        assert (await simulator.get("/_sim/faults"))["reorder"] == 1
    async with running(msgspec.structs.replace(config, faults="late_event:0.2")) as simulator:
        found = await simulator.get("/_sim/faults")
        assert (found["reorder"], found["late_event"]) == (0, 0.2)


async def test_events_that_nobody_takes_are_given_up_after_36_simulated_hours(tmp_path: Path, receiver: Receiver) -> None:
    receiver.answer = lambda _: 500
    async with running(new_config(tmp_path, free_port(), time_scale=1_000_000.0)) as simulator:
        await simulator.webhook(receiver.url, "purchase.created")
        made = await simulator.purchase()

        async def is_given_up() -> bool:
            return bool((await simulator.get("/_sim/deliveries")) == {"waiting": 0, "delivered": 0, "given_up": 1})

        await until(is_given_up)
        assert 1 <= len(receiver.of(made["id"])) <= 9


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"time_scale": 0.0}, "time_scale"),
        ({"url": "http://127.0.0.1:1/"}, "without a slash"),
        ({"key": ""}, "key must not be empty"),
    ],
)
def test_a_config_that_is_wrong(tmp_path: Path, change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        new_config(tmp_path, 1, **change)
