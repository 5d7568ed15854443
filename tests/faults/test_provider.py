"""A provider at its worst, and `kill -9` for everybody: money counted once, on both books, and every payment ends or is listed."""

import asyncio
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest

from piggybank.appliance import store_files
from piggybank.cache import Cache
from piggybank.db.engines import Database
from piggybank.jobs import revio as jobs
from piggybank.jobs.work import Work
from piggybank.ledger import Ledger
from piggybank.wallet import clearing, reconciliation
from piggybank.wallet.provider import Provider
from tests import forks
from tests.conftest import SIMULATOR_KEY, Server, start_process, start_simulator
from tests.faults.conftest import Client, Place, new_key, running_place
from tests.prove.conftest import Person, sign_in

TIME_SCALE = 1_000.0
CLIENTS = 16
ACCOUNTS = 8
FUNDS = 1_000_000
PATIENCE_S = 120.0
WORKERS = 2
FAULTS = {
    "timeout_after_commit": 0.03,
    "5xx": 0.03,
    "5xx_after_commit": 0.03,
    "dup_event": 0.1,
    "late_event": 0.1,
    "reorder": 0.2,
    "bad_signature": 0.05,
    "wrong_amount": 0.03,
    "wrong_currency": 0.02,
    "chargeback": 0.08,
    "chargeback_reversed": 0.4,
    "refund_failure": 0.2,
    "sync_refund": 0.3,
    "payout_pending": 0.3,
    "payout_error": 0.1,
    "payout_return": 0.1,
}
OPEN = ("creating", "pending", "processing", "unknown")

Object = dict[str, Any]


class Turmoil:
    """Two servers, two workers and a simulator, and what one does with them."""

    def __init__(self, place: Place, client: Client) -> None:
        self.place = place
        self.client = client
        self.settings = msgspec.structs.replace(place.settings, port=place.servers[0].settings.port)
        self.simulator: Server = start_simulator(self.settings)
        self.workers = [self._new_worker() for _ in range(WORKERS)]
        self.sim = httpx.AsyncClient(
            base_url=self.settings.simulator_address, headers={"Authorization": f"Bearer {SIMULATOR_KEY}"}, timeout=30
        )
        self.payments: list[str] = []
        self.operator: Person = sign_in(place.settings, "operator")

    def _new_worker(self) -> "subprocess.Popen[bytes] | forks.Forked":
        return start_process(self.settings, "worker", self.settings.data_dir / "worker.log")

    def kill_worker(self, number: int) -> None:
        self.workers[number].kill()
        self.workers[number].wait()
        self.workers[number] = self._new_worker()

    def kill_simulator(self) -> None:
        self.simulator.kill()
        self.simulator = start_simulator(self.settings)

    async def close(self) -> None:
        await self.sim.aclose()
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.simulator.kill()

    async def act(self, path: str, body: Object | None = None) -> Object | None:
        """Something that happens at the provider; None where it has died just now, or will not."""
        for _ in range(100):
            try:
                answer = await self.sim.post(f"/_sim/{path}", json=body or {})
            except httpx.TransportError:
                await asyncio.sleep(0.1)
                continue
            found: Object = answer.json()
            return found if answer.is_success else None
        return None

    async def post(self, path: str, body: Object, first: int) -> httpx.Response:
        return await self.client.post(path, body, new_key(), first)


async def one_payment(turmoil: Turmoil, account: UUID, chance: random.Random) -> str:
    """What people do: pay, decline first, walk away, change their mind, take money out, want it back."""
    amount = chance.randint(1_000, 20_000)
    first = chance.randrange(2)
    if chance.random() < 0.35:
        body = {"amount": amount, "method": "revio", "destination": {"phone": "+27821234567"}}
        answer = await turmoil.post(f"/v1/accounts/{account}/withdrawals", body, first)
        if answer.status_code != 202:
            assert answer.json()["code"] in ("insufficient_funds", "account_owes"), answer.text
            return "refused"
        turmoil.payments.append(answer.json()["payment"]["id"])
        return "withdrawal"
    answer = await turmoil.post(f"/v1/accounts/{account}/deposits", {"amount": amount, "method": "revio"}, first)
    assert answer.status_code == 202, answer.text
    payment = answer.json()["payment"]
    turmoil.payments.append(payment["id"])
    purchase = f"purchases/{payment['provider_id']}"
    what = chance.choice(["pay", "pay", "pay", "pay", "decline, pay", "abandon", "cancel", "refund"])
    match what:
        case "abandon":
            await turmoil.act(f"{purchase}/expire")
        case "cancel":
            await turmoil.post(f"/v1/payments/{payment['id']}/cancel", {}, first)
        case _:
            if what == "decline, pay":
                await turmoil.act(f"{purchase}/decline")
            await turmoil.act(f"{purchase}/pay")
    if what == "refund":
        await _refund(turmoil, payment["id"], amount // 2)
    return what


async def _refund(turmoil: Turmoil, payment_id: str, amount: int) -> None:
    """By an operator, once it is paid."""
    headers = {**turmoil.operator.headers, "Idempotency-Key": new_key()}
    async with httpx.AsyncClient(timeout=30) as http:
        for _ in range(60):
            server = turmoil.place.servers[0]
            with suppress(httpx.TransportError):
                answer = await http.post(f"{server.url}/v1/ops/payments/{payment_id}/refund", json={"amount": amount}, headers=headers)
                if answer.status_code == 202:
                    turmoil.payments.append(answer.json()["payment"]["id"])
                    return
                if answer.json()["code"] not in ("not_refundable", "insufficient_funds") and not answer.json()["retryable"]:
                    return
                if answer.json()["code"] == "not_refundable" and answer.json()["status"] == "completed":
                    return
                headers["Idempotency-Key"] = new_key()
            await asyncio.sleep(0.2)


async def trouble(turmoil: Turmoil, done: asyncio.Event, chance: random.Random, *, with_postgres: bool) -> Counter[str]:
    """`kill -9`, again and again."""
    killed: Counter[str] = Counter()
    names = ["server 0", "server 1", "worker 0", "worker 1", "simulator", *(["postgres"] if with_postgres else [])]
    while not done.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), chance.uniform(0.5, 3))
        what = chance.choice(names)
        killed[what] += 1
        number = int(what[-1]) if what[-1].isdigit() else 0
        if what.startswith("server"):
            turmoil.place.servers[number].kill()
            await asyncio.to_thread(turmoil.place.restart_server, number)
        elif what.startswith("worker"):
            await asyncio.to_thread(turmoil.kill_worker, number)
        elif what == "postgres":
            await asyncio.to_thread(turmoil.place.kill_store, "postgres", signal.SIGQUIT)
            await asyncio.to_thread(turmoil.place.start_store, "postgres")
        else:
            await asyncio.to_thread(turmoil.kill_simulator)
    return killed


@asynccontextmanager
async def our_jobs(turmoil: Turmoil) -> AsyncIterator[Work]:
    """The jobs in our own hands, so that nothing has to be waited for."""
    db, cache = Database.of(turmoil.settings), Cache(turmoil.settings.cache_url)
    cache.epoch = await turmoil.place.value("SELECT epoch FROM installation")
    work = Work(turmoil.settings, db, cache, Ledger(db, cache), Provider(turmoil.settings, db))
    await work.ledger.start()
    yield work
    await work.ledger.stop()
    await work.provider.close()
    await cache.close()
    await db.close()


async def come_to_rest(turmoil: Turmoil, work: Work) -> None:
    """Peace again: everything that waits is due, until nothing changes any more."""
    await turmoil.sim.put("/_sim/faults", json={})
    await jobs.look_after_webhook(work)
    until = time.monotonic() + PATIENCE_S
    seen: tuple[Any, ...] = ()
    quiet_rounds = 0
    while quiet_rounds < 3:
        assert time.monotonic() < until, f"it does not come to rest: {seen}"
        await turmoil.place.value("UPDATE payments SET due_at = NULL WHERE due_at IS NOT NULL")
        await turmoil.place.value("UPDATE provider_events SET due_at = now() WHERE due_at IS NOT NULL")
        await jobs.send_payments(work)
        await jobs.ask_about_payments(work, quiet_s=-1)
        await turmoil.act("deliver-now")
        await asyncio.sleep(0.3)
        await jobs.apply_events(work)
        deliveries = (await turmoil.sim.get("/_sim/deliveries")).json()
        now = (
            deliveries["waiting"],
            deliveries["delivered"],
            await turmoil.place.value("SELECT count(*) FROM provider_events WHERE status = 'new'"),
            await turmoil.place.value("SELECT count(*) FROM payments WHERE status IN ('creating', 'pending', 'processing')"),
            await turmoil.place.value("SELECT count(*) FROM payments WHERE status = 'unknown'"),
            await turmoil.place.value("SELECT count(*) FROM transactions"),
        )
        at_rest = now == seen and now[0] == 0 and now[2] == 0
        quiet_rounds = quiet_rounds + 1 if at_rest else 0
        seen = now


async def everything_at_once(place: Place, client: Client, payments: int, *, seed: int, with_postgres: bool) -> None:
    turmoil = Turmoil(place, client)
    try:
        chance = random.Random(seed)
        accounts = await place.accounts(ACCOUNTS, "ZAR")
        for account in accounts:
            await client.deposit(account, FUNDS, new_key())
        async with our_jobs(turmoil) as work:
            assert await jobs.look_after_webhook(work) == 1
            assert (await turmoil.sim.put("/_sim/faults", json=FAULTS)).status_code == 200
            done = asyncio.Event()

            async def people(number: int) -> Counter[str]:
                own = random.Random(seed * 1_000 + number)
                made: Counter[str] = Counter()
                for _ in range(payments // CLIENTS):
                    made[await one_payment(turmoil, own.choice(accounts), own)] += 1
                return made

            killing = asyncio.create_task(trouble(turmoil, done, chance, with_postgres=with_postgres))
            made = sum(await asyncio.gather(*(people(number) for number in range(CLIENTS))), Counter())
            done.set()
            killed = await killing
            await come_to_rest(turmoil, work)
            await the_books_agree(turmoil, work)
        print(f"{dict(made)}; killed {dict(killed)}; {client.retries} retries")
    finally:
        await turmoil.close()


async def the_books_agree(turmoil: Turmoil, work: Work) -> None:
    place = turmoil.place
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
    run = await reconciliation.reconcile(work.db, work.ledger, work.provider, today, today + timedelta(days=2))
    async with work.db.read() as read:
        items = (await reconciliation.one(read, run.id)).items
    book = await whole_book(turmoil)
    # to the cent, on both sides
    ours = await clearing.owed(work.db, "simulator")
    assert ours["ZAR"] == book["currencies"]["ZAR"]["balance"]
    # nothing was told to move money twice
    sent: Counter[str] = Counter()
    for one in book["objects"]:
        if one["type"] == "payout":
            sent[one["reference"]] += one["executions"]
    assert max(sent.values(), default=0) <= 1
    # what was paid in another currency is listed, all of it
    strange = [item for item in items if item.kind == "theirs_only"]
    assert {item.currency for item in strange} <= {"USD", "EUR", "GBP"}
    # every payment that was answered has ended, or is listed
    ids = [UUID(payment) for payment in turmoil.payments]
    assert await place.value("SELECT count(*) FROM payments WHERE id = ANY($1)", ids) == len(ids)
    still_open = await place.value(
        "SELECT array_agg(id::text || ' ' || kind || ' ' || status || ' ' || coalesce(failure, '') || ' ' || coalesce(provider_id, ''))"
        " FROM payments p WHERE method = 'revio' AND status IN ('creating', 'pending', 'processing')"
        " AND NOT EXISTS (SELECT FROM provider_events e WHERE e.object_id = p.provider_id AND e.status = 'unmatched')"
    )
    assert still_open is None, still_open
    unknown = {item.payment_id for item in items if item.kind == "unknown"}
    assert await place.value("SELECT count(*) FROM payments WHERE status = 'unknown'") == len(unknown)
    # of what it executed the provider would have told
    told = {one["reference"]: one["status"] for one in book["objects"] if one["type"] == "payout" and one["status"] != "initialized"}
    assert {str(payment_id): told[str(payment_id)] for payment_id in unknown if str(payment_id) in told} == {}
    assert not [item for item in items if item.kind in ("ours_only", "amount_differs", "fee_differs")]
    assert await place.differences() == []


async def whole_book(turmoil: Turmoil) -> Object:
    book: Object = (await turmoil.sim.get("/_sim/book", params={"limit": 10_000})).json()
    while book["next"] is not None:
        more = (await turmoil.sim.get("/_sim/book", params={"limit": 10_000, "after": book["next"]})).json()
        book["objects"] += more["objects"]
        book["next"] = more["next"]
    return book


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with running_place(
        simulator_key=SIMULATOR_KEY,
        simulator_port=store_files.free_ports(1)[0],
        simulator_time_scale=TIME_SCALE,
        revio_timeout_s=2,
        worker_processes=1,  # the jobs are in processes of their own
        rate_user_per_minute=0,
        log_level="warning",
    ) as made:
        yield made


@pytest.mark.deep  # minutes of it below; the faults of one server each are in test_faults.py
async def test_money_is_counted_once_whatever_dies(place: Place, client: Client) -> None:
    await everything_at_once(place, client, 64, seed=1, with_postgres=False)


@pytest.mark.deep
async def test_thousands_of_payments_with_every_fault_and_everything_dying(place: Place, client: Client) -> None:
    await everything_at_once(place, client, 4_000, seed=int(uuid4()) % 1_000_000, with_postgres=True)
