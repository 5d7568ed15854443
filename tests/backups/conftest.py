"""A bank with a backup target, a client that goes on whatever happens, and the simulator's own book."""

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from piggybank.appliance import store_files
from tests.appliance.bank import Bank
from tests.conftest import ALL_SCOPES, SIMULATOR_KEY, Stores

TIMEOUT_S = 15
PAUSE_S = 0.1
PATIENCE_S = 120
DESTINATION = {"phone": "+27821234567"}

Object = dict[str, Any]


class Branch(Bank):
    """A bank whose provider and cache outlive it: they are somebody else's."""

    token = ""

    def post(self, path: str, body: Object, key: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}", "Idempotency-Key": key}
        return httpx.post(self.url + path, json=body, headers=headers, timeout=TIMEOUT_S)

    def get(self, path: str) -> Object:
        answer = httpx.get(self.url + path, headers={"Authorization": f"Bearer {self.token}"}, timeout=TIMEOUT_S)
        assert answer.status_code == 200, answer.text
        found: Object = answer.json()
        return found

    def sim(self, path: str, body: Object | None = None, *, method: str = "POST") -> Object:
        url = f"http://127.0.0.1:{self.environment['PIGGYBANK_SIMULATOR_PORT']}/_sim/{path}"
        answer = httpx.request(method, url, json=body, headers={"Authorization": f"Bearer {SIMULATOR_KEY}"}, timeout=TIMEOUT_S)
        assert answer.status_code in (200, 201), answer.text
        found: Object = answer.json()
        return found

    def payouts(self) -> list[Object]:
        """Every payout that the provider has, with how often it was executed."""
        return [one for one in self.sim("book", method="GET")["objects"] if one["type"] == "payout"]

    def open_account(self) -> str:
        self.token = self.do("apikeys", "create", "--name", "tests", "--scopes", ALL_SCOPES, "--token-only").strip()
        user = self.post("/v1/users", {"external_id": uuid4().hex}, "u").json()["id"]
        account: str = self.post("/v1/accounts", {"user_id": user, "currency": "ZAR"}, "a").json()["id"]
        return account

    def deposit(self, account: str, amount: int, key: str) -> httpx.Response:
        return self.post(f"/v1/accounts/{account}/deposits", {"amount": amount, "method": "direct"}, key)

    def withdraw(self, account: str, amount: int, key: str) -> httpx.Response:
        body = {"amount": amount, "method": "revio", "destination": DESTINATION}
        return self.post(f"/v1/accounts/{account}/withdrawals", body, key)

    def status_of(self, payment: str) -> str:
        return str(self.get(f"/v1/payments/{payment}")["status"])

    def destroy(self) -> None:
        """kill -9 of everything, and the disk is gone; the provider's own book is not on it."""
        for name in ["supervisor", *self.pids()]:
            if name in self.pids():
                self.kill(name)
        shutil.move(self.data_dir / "simulator", self.data_dir.parent / "provider")
        shutil.rmtree(self.data_dir)

    def rebuilt_as(self, data_dir: Path) -> "Branch":
        """The same address, another folder, the same provider."""
        shutil.move(data_dir.parent / "provider", data_dir / "simulator")
        return self.at(data_dir)

    def at(self, data_dir: Path) -> "Branch":
        """The same address, another folder."""
        made = Branch(data_dir, **{name: value for name, value in self.environment.items() if name.startswith("PIGGYBANK_")})
        made.token = self.token
        return made


class Writer(threading.Thread):
    """Deposits of 1, one after the other, each with its key until it is answered; also while nobody is there."""

    def __init__(self, branch: Branch, account: str) -> None:
        super().__init__(daemon=True)
        self.branch = branch
        self.account = account
        self.answered: list[str] = []
        self.refused: set[str] = set()
        self.stopping = threading.Event()
        self.wrong: list[str] = []

    def run(self) -> None:
        while not self.stopping.is_set():
            key = uuid4().hex
            if self.send(key):
                self.answered.append(key)
            time.sleep(PAUSE_S)

    def send(self, key: str) -> bool:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until and not self.stopping.is_set():
            try:
                answer = self.branch.deposit(self.account, 1, key)
            except httpx.TransportError:
                time.sleep(PAUSE_S)
                continue
            if answer.status_code == 201:
                return True
            self.refused.add(str(answer.json().get("code")))
            if not answer.json().get("retryable"):
                self.wrong.append(answer.text)
                return False
            time.sleep(PAUSE_S)
        return False

    def stop(self) -> None:
        self.stopping.set()
        self.join(TIMEOUT_S + PATIENCE_S)


@pytest.fixture
def target(open_path: Path) -> Path:
    made = open_path / "target"
    made.mkdir()
    return made


@pytest.fixture
def branch(stores: Stores, open_path: Path, target: Path) -> Iterator[Branch]:
    """Not started. Its cache is not on its disk."""
    ports = store_files.free_ports(2)
    addresses = stores.secrets.addresses()
    made = Branch(
        open_path / "bank",
        PIGGYBANK_PORT=str(ports[0]),
        PIGGYBANK_SIMULATOR_PORT=str(ports[1]),
        PIGGYBANK_SIMULATOR_KEY=SIMULATOR_KEY,
        PIGGYBANK_CACHE_URL=addresses["cache_url"].rpartition("/")[0] + "/15",
        PIGGYBANK_QUEUE_URL=addresses["queue_url"].rpartition("/")[0] + "/15",
        PIGGYBANK_BACKUP_TARGET=str(target),
        PIGGYBANK_BACKUP_EVERY_H="0",
        PIGGYBANK_BACKUP_DRILL_DAYS="0",
        PIGGYBANK_RATE_ANONYMOUS_PER_MINUTE="0",
    )
    yield made
    made.run("down")
