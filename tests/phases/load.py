"""A constant mixed load with the model beside it: what was answered is counted, what is read is compared with what was written.

Each client has accounts of its own, so it knows their balance and version exactly; transfers go between clients, so those are bounds:
what a client has written itself it must see. A write may be tried again with its key, as the documentation says; the retries are
counted, and a write that is not answered within TRIES fails the run.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple
from uuid import uuid4

import httpx

from tests.appliance.bank import Bank
from tests.conftest import ALL_SCOPES

CLIENTS = 6
PAUSE_S = 0.02  # of a client between two requests
STEADY_S = 1.0  # of load after the block
TRIES = 4  # of a write: once, and three retries
PAUSES_S = (0.5, 1.5, 4.0)  # before each retry; all within ten seconds
TIMEOUT_S = 15.0
READ_TRIES = 60  # a read is asked again while a process is replaced under it
READ_PAUSE_S = 0.1
START = 1_000_000
MENDED_S = 2.5  # a write-through that a busy cache missed is mended by the sweep within two seconds
WRITES = ("deposit", "withdrawal", "transfer")


class Done(NamedTuple):
    """One answered request, in seconds since the load began."""

    at: float
    took: float
    write: bool


class Account:
    """What its client knows of it."""

    def __init__(self, id_: str) -> None:
        self.id = id_
        self.balance = 0
        self.version = 0
        self.count = 0
        self.written_at = 0.0


class Load:
    """Clients on one installation, until `stop`."""

    def __init__(self, url: str, token: str, clients: int, pause_s: float = 0.0, within_s: float = 60.0, *, tries: int = TRIES) -> None:
        self._url = url
        self._within_s = within_s
        self._tries = tries  # of a write; reads in proportion
        self.headers = {"Authorization": f"Bearer {token}"}
        self._http = httpx.AsyncClient(timeout=TIMEOUT_S, limits=httpx.Limits(max_connections=2 * clients))
        self._pause_s = pause_s
        self._clients = clients
        self._stop = asyncio.Event()
        self._since = time.monotonic()
        self.accounts: list[Account] = []
        self.done: list[Done] = []
        self.retries: Counter[str] = Counter()  # by why
        self.stale: list[str] = []  # nobody may see these
        self.behind: list[str] = []  # read within MENDED_S of the write: allowed after a fault of the cache, and counted

    async def open_accounts(self) -> None:
        """Two accounts for each client, with START on them."""
        for number in range(self._clients):
            user = await self._http.post(f"{self._url}/v1/users", json={"external_id": f"load-{uuid4().hex}"}, headers=self.headers)
            for name in ("a", "b"):
                body = {"user_id": user.json()["id"], "currency": "EUR", "external_id": f"{number}{name}"}
                made = await self._http.post(f"{self._url}/v1/accounts", json=body, headers=self.headers)
                assert made.status_code == 201, made.text
                account = Account(made.json()["id"])
                self.accounts.append(account)
                await self._write(f"/v1/accounts/{account.id}/deposits", {"amount": START, "method": "direct"}, {account: START})

    def start(self) -> "asyncio.Task[None]":
        """Begin; the task ends after `stop`, or with what went wrong."""
        self._since = time.monotonic()
        return asyncio.create_task(self._run())

    def stop(self) -> None:
        """No more requests."""
        self._stop.set()

    @property
    def now(self) -> float:
        """Seconds since the load began."""
        return time.monotonic() - self._since

    async def compare(self) -> None:
        """Every account is what was counted, to the last unit; call it when the load has ended."""
        for account in self.accounts:
            found = await self._get(f"/v1/accounts/{account.id}/balance?min_version={account.version}")
            assert found["balance"] == account.balance, (account.id, found, account.balance)
            page = await self._get(f"/v1/accounts/{account.id}/transactions")
            assert page["total"] == account.count, (account.id, page["total"], account.count)
        assert self.stale == []

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self._clients):
                group.create_task(self._client(number))

    async def _client(self, number: int) -> None:
        chance = random.Random(number)
        own, other = self.accounts[2 * number], self.accounts[2 * number + 1]
        while not self._stop.is_set():
            what = chance.choices(("deposit", "withdrawal", "transfer", "balance", "page"), (3, 1, 1, 3, 2))[0]
            amount = chance.randint(1, 50)
            if what == "deposit":
                await self._write(f"/v1/accounts/{own.id}/deposits", {"amount": amount, "method": "direct"}, {own: amount})
            elif what == "withdrawal":
                await self._write(f"/v1/accounts/{own.id}/withdrawals", {"amount": amount, "method": "direct"}, {own: -amount})
            elif what == "transfer":
                source, target = chance.sample((own, other), 2)
                body = {"from_account": source.id, "to_account": target.id, "amount": amount}
                await self._write("/v1/transfers", body, {source: -amount, target: amount})
            elif what == "balance":
                self._seen(own, await self._get(f"/v1/accounts/{own.id}/balance"))
            else:
                self._seen_page(own, await self._get(f"/v1/accounts/{own.id}/transactions"))
            await asyncio.sleep(self._pause_s)

    def _seen(self, account: Account, found: dict[str, object]) -> None:
        if (found["version"], found["balance"]) != (account.version, account.balance):
            self._older(account, f"{self.now:.2f} s: {account.id} has version {account.version}, read {found}")

    def _seen_page(self, account: Account, found: dict[str, object]) -> None:
        items = found["items"]
        assert isinstance(items, list)
        if found["total"] != account.count or items[0]["balance_after"] != account.balance:
            self._older(account, f"{self.now:.2f} s: {account.id} has {account.count} rows, the page says {found['total']}")

    def _older(self, account: Account, what: str) -> None:
        (self.behind if time.monotonic() - account.written_at < MENDED_S else self.stale).append(what)

    async def _write(self, path: str, body: dict[str, object], moves: dict[Account, int]) -> None:
        key, began = uuid4().hex, time.monotonic()
        for number in range(self._tries):
            if number:
                await asyncio.sleep(PAUSES_S[min(number, len(PAUSES_S)) - 1])
            left = self._within_s - (time.monotonic() - began)
            if left <= 0:
                raise AssertionError(f"{self.now:.2f} s: {path} was not answered within {self._within_s} s: {dict(self.retries)}")
            try:
                answer = await self._http.post(
                    self._url + path, json=body, headers=self.headers | {"Idempotency-Key": key}, timeout=min(left, TIMEOUT_S)
                )
            except httpx.TransportError as cause:
                why = type(cause).__name__
            else:
                if answer.status_code == 201:
                    break
                problem = answer.json()
                assert problem["retryable"], answer.text
                why = problem["code"]
            self.retries[why] += 1
        else:
            raise AssertionError(f"{self.now:.2f} s: {path} was not answered after {self._tries} tries: {dict(self.retries)}")
        for account, amount in moves.items():
            account.balance += amount
            account.version += 1
            account.count += 1
            account.written_at = time.monotonic()
        self.done.append(Done(self.now, time.monotonic() - began, write=True))

    async def _get(self, path: str) -> dict[str, object]:
        began, tries = time.monotonic(), READ_TRIES * self._tries // TRIES
        for _ in range(tries):
            try:
                answer = await self._http.get(self._url + path, headers=self.headers)
            except httpx.TransportError as cause:
                self.retries[f"read {type(cause).__name__}"] += 1
            else:
                if answer.status_code == 200:
                    self.done.append(Done(self.now, time.monotonic() - began, write=False))
                    found: dict[str, object] = answer.json()
                    return found
                problem = answer.json()
                assert problem["retryable"], answer.text
                self.retries[f"read {problem['code']}"] += 1
            await asyncio.sleep(READ_PAUSE_S)
        raise AssertionError(f"{path} was not answered after {tries} tries")


@asynccontextmanager
async def loaded(bank: Bank, *, pause_s: float = PAUSE_S, within_s: float = 60.0, tries: int = TRIES) -> AsyncIterator[Load]:
    """The load beside the block; after it every account is what was counted."""
    token = json.loads(await asyncio.to_thread(bank.do, "apikeys", "create", "--name", "load", "--scopes", ALL_SCOPES, "--json"))["token"]
    load = Load(bank.url, token, CLIENTS, pause_s, within_s, tries=tries)
    try:
        await load.open_accounts()
        running = load.start()
        try:
            yield load
            await asyncio.sleep(STEADY_S)
        finally:
            load.stop()
            await running
        await load.compare()
        if not write_through_was_missed(bank):
            assert load.behind == []
        print(f"{len(load.done)} requests, retries: {dict(load.retries)}, behind: {load.behind}")
    finally:
        await load.close()


def write_through_was_missed(bank: Bank) -> bool:
    """A web process says so when its cache was too busy to be told: then balances may be two seconds old, as the README says."""
    return any("a write-through was missed" in log.read_text(errors="replace") for log in (bank.data_dir / "logs").glob("web-*.log"))


async def shows_itself(bank: Bank) -> None:
    """The servers are what is declared, and the books fit."""
    await asyncio.to_thread(bank.do, "phase", "show", "--observed")
    await asyncio.to_thread(bank.do, "verify")
