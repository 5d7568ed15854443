"""An installation with its simulator: a server that takes requests and events, and the jobs in our own hands.

The server runs without a worker, so nothing happens behind a test's back: events lie in the inbox until `desk.work_through()`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import msgspec
import pytest

from piggybank import checks
from piggybank.cache import Cache
from piggybank.db.engines import Database
from piggybank.jobs import revio as jobs
from piggybank.jobs.work import Work
from piggybank.ledger import Ledger
from piggybank.settings import Settings
from piggybank.wallet.provider import Provider
from tests.conftest import Server, Stores, _database_copy, _worker_number, start_server, start_simulator
from tests.ledger.conftest import new_account
from tests.prove.conftest import Person, sign_in

PATIENCE_S = 30.0
TIME_SCALE = 1_000.0  # a refund of the simulator takes some milliseconds
DESTINATION = {"phone": "+27821234567"}

Object = dict[str, Any]


class Desk:
    """Everything that a test of payments needs."""

    def __init__(self, settings: Settings, work: Work, server: Server, simulator: Server, sql: asyncpg.Connection) -> None:
        self.settings = settings
        self.work = work
        self.server = server
        self.simulator = simulator
        self.sql = sql
        self.http = httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=30)
        self.sim = httpx.AsyncClient(
            base_url=settings.simulator_address, headers={"Authorization": f"Bearer {settings.simulator_key}"}, timeout=30
        )
        self.operators: tuple[Person, Person] | None = None

    # Requests --------------------------------------------------------------------------------------------------------

    async def account(self, balance: int = 0) -> UUID:
        """A new account in ZAR, with so much recorded by the team itself."""
        account_id = await new_account(self.sql, "ZAR")
        if balance:
            answer = await self.post(f"/v1/accounts/{account_id}/deposits", {"amount": balance, "method": "direct"})
            assert answer.status_code == 201, answer.text
        return account_id

    async def post(self, path: str, body: Object | None = None, key: str | None = None, **headers: str) -> httpx.Response:
        return await self.http.post(path, json=body, headers={"Idempotency-Key": key or uuid4().hex, **headers})

    async def deposit(self, account_id: UUID, amount: int = 15_000, key: str | None = None, **more: Any) -> Object:
        """A payment with its checkout."""
        answer = await self.post(f"/v1/accounts/{account_id}/deposits", {"amount": amount, "method": "revio", **more}, key)
        assert answer.status_code == 202, answer.text
        payment: Object = answer.json()["payment"]
        return payment

    async def withdraw(self, account_id: UUID, amount: int = 5_000, **more: Any) -> Object:
        body = {"amount": amount, "method": "revio", "destination": DESTINATION, **more}
        answer = await self.post(f"/v1/accounts/{account_id}/withdrawals", body)
        assert answer.status_code == 202, answer.text
        payment: Object = answer.json()["payment"]
        return payment

    async def paid_deposit(self, account_id: UUID, amount: int = 15_000) -> Object:
        """A deposit that was paid and posted."""
        payment = await self.deposit(account_id, amount)
        await self.act(f"purchases/{payment['provider_id']}/pay")
        await self.work_through()
        return await self.payment(payment["id"])

    async def payment(self, payment_id: str) -> Object:
        answer = await self.http.get(f"/v1/payments/{payment_id}")
        assert answer.status_code == 200, answer.text
        found: Object = answer.json()
        return found

    async def balance(self, account_id: UUID) -> tuple[int, int, int]:
        """(balance, held, owed), as they are in the database."""
        row = await self.sql.fetchrow("SELECT balance, held, owed FROM accounts WHERE id = $1", account_id)
        return row["balance"], row["held"], row["owed"]

    async def as_operator(self, number: int = 0) -> dict[str, str]:
        """The headers of one of two operators."""
        if self.operators is None:
            self.operators = (
                await asyncio.to_thread(sign_in, self.settings, "operator"),
                await asyncio.to_thread(sign_in, self.settings, "operator"),
            )
        return self.operators[number].headers

    # The provider ------------------------------------------------------------------------------------------------------

    async def act(self, path: str, body: Object | None = None) -> Object:
        """Something that happens at the provider."""
        answer = await self.sim.post(f"/_sim/{path}", json=body or {})
        assert answer.status_code in (200, 201), answer.text
        found: Object = answer.json()
        return found

    async def faults(self, **rates: float) -> None:
        answer = await self.sim.put("/_sim/faults", json={name.replace("s5xx", "5xx"): rate for name, rate in rates.items()})
        assert answer.status_code == 200, answer.text

    async def delivered(self) -> None:
        """Everything that the provider wants to tell has arrived."""

        async def nothing_waits() -> bool:
            found: Object = (await self.sim.get("/_sim/deliveries")).json()
            if found["waiting"]:
                await self.act("deliver-now")
            return bool(found["waiting"] == 0)

        await until(nothing_waits)

    async def work_through(self) -> None:
        """Do what the workers would: send what waits, take what the provider tells, until nothing is left."""
        await jobs.send_payments(self.work)
        await self.delivered()
        while await jobs.apply_events(self.work):
            pass

    async def hurry(self) -> None:
        """What was put off is due."""
        await self.sql.execute("UPDATE payments SET due_at = NULL WHERE due_at IS NOT NULL")
        await self.sql.execute("UPDATE provider_events SET due_at = now() WHERE due_at IS NOT NULL")

    async def ask(self) -> int:
        """Ask about everything that is open, however young."""
        await self.hurry()
        return await jobs.ask_about_payments(self.work, quiet_s=-1)

    def restart_simulator(self) -> None:
        """It was killed; it comes back with its book."""
        self.simulator = start_simulator(self.settings)

    async def differences(self) -> list[checks.Finding]:
        return [finding async for progress in checks.verify(self.settings.owner_database_url) for finding in progress.findings]


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what must become true."""
    deadline = time.monotonic() + PATIENCE_S
    while not await true():
        assert time.monotonic() < deadline, "it did not become true"
        await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def desk_settings(stores: Stores, worker_id: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A database of the module's own: `verify` may be asked about all of it."""
    with _database_copy(stores, tmp_path_factory.mktemp("desk"), 2 * _worker_number(worker_id) + 1) as made:
        yield msgspec.structs.replace(made, worker_processes=1, simulator_time_scale=TIME_SCALE)


@pytest.fixture(scope="module")
async def desk(desk_settings: Settings) -> AsyncIterator[Desk]:
    async with running_desk(desk_settings) as made:
        yield made


class running_desk:  # noqa: N801 - used like a function
    """`async with running_desk(settings) as desk`: a server, a simulator that knows it, and the jobs' parts."""

    def __init__(self, settings: Settings) -> None:
        self._given = settings

    async def __aenter__(self) -> Desk:
        server = await asyncio.to_thread(start_server, self._given)
        self._settings = server.settings
        simulator = await asyncio.to_thread(start_simulator, self._settings)
        self._sql = await asyncpg.connect(self._settings.owner_database_url)
        db, cache = Database.of(self._settings), Cache(self._settings.cache_url)
        cache.epoch = await self._sql.fetchval("SELECT epoch FROM installation")
        self._work = Work(self._settings, db, cache, Ledger(db, cache), Provider(self._settings, db))
        await self._work.ledger.start()
        self.desk = Desk(self._settings, self._work, server, simulator, self._sql)
        assert await jobs.look_after_webhook(self._work) == 1
        return self.desk

    async def __aexit__(self, *_: object) -> None:
        await self.desk.http.aclose()
        await self.desk.sim.aclose()
        await self._work.ledger.stop()
        await self._work.provider.close()
        await self._work.cache.close()
        await self._work.db.close()
        await self._sql.close()
        await asyncio.to_thread(self.desk.simulator.stop)
        await asyncio.to_thread(self.desk.server.stop)
