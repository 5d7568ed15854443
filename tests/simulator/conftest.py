"""A simulator that all tests of a run share, one of its own where a test needs the whole book, and who they deliver to."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from piggybank.simulator import Config
from tests.simulator.receivers import Receiver
from tests.simulator.serving import free_port, served

KEY = "test_key_of_the_simulator"
BRAND = "6f0c1a52-0000-4000-8000-000000000001"
EFT_ID, EFT_SECRET = "eft-client", "eft-secret"
PATIENCE_S = 30.0
TIME_SCALE = 500.0  # a refund takes 20 ms, a day nearly three minutes: nothing settles during the tests

Object = dict[str, Any]


class Simulator:
    """A running simulator and what one asks it."""

    def __init__(self, config: Config, http: httpx.AsyncClient) -> None:
        self.config = config
        self.http = http

    async def get(self, path: str) -> Any:
        answer = await self.http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, body: Any = None) -> Any:
        answer = await self.http.post(path, json={} if body is None else body)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()

    async def refused(self, path: str, body: Any = None) -> Object:
        """The body of a 400."""
        answer = await self.http.post(path, json={} if body is None else body)
        assert answer.status_code == 400, answer.text
        found: Object = answer.json()
        return found

    async def faults(self, **rates: float) -> None:
        answer = await self.http.put("/_sim/faults", json=rates)
        assert answer.status_code == 200, answer.text

    async def purchase(self, amount: int = 15_000, **changes: Any) -> Object:
        found: Object = await self.post("/api/v1/purchases/", new_purchase(amount) | changes)
        return found

    async def paid(self, amount: int = 15_000, **changes: Any) -> Object:
        made = await self.purchase(amount, **changes)
        found: Object = await self.post(f"/_sim/purchases/{made['id']}/pay")
        return found

    async def payout(self, amount: int = 5_000, reference: str = "wd_1") -> Object:
        found: Object = await self.post("/api/v1/payouts/", new_payout(amount, reference))
        return found

    async def webhook(self, url: str, *events: str) -> Object:
        body = {"title": "test", "all_events": not events, "events": list(events), "callback": url}
        found: Object = await self.post("/api/v1/webhooks/", body)
        return found

    async def status(self, kind: str, object_id: str) -> str:
        return str((await self.get(f"/api/v1/{kind}/{object_id}/"))["status"])

    async def until_status(self, kind: str, object_id: str, status: str) -> Object:
        async def is_there() -> bool:
            return await self.status(kind, object_id) == status

        await until(is_there)
        found: Object = await self.get(f"/api/v1/{kind}/{object_id}/")
        return found

    async def statement(self, since: int = 0, end: int = 2**40) -> str:
        """The text of a new statement."""
        made = await self.post("/api/v1/company_statements/", {"format": "csv", "timezone": "UTC", "filters": {"from": since, "to": end}})
        done = await self.until_status("company_statements", made["id"], "finished")
        answer = await self.http.get(done["download_url"])
        assert answer.status_code == 200
        return answer.text

    async def eft_headers(self) -> dict[str, str]:
        answer = await self.http.post("/oauth2/token", data={"grant_type": "client_credentials"}, auth=(EFT_ID, EFT_SECRET))
        return {"Authorization": f"Bearer {answer.json()['access_token']}"}


def new_config(folder: Path, port: int, **changes: Any) -> Config:
    """`changes` replace what is usual."""
    usual: Object = {
        "folder": folder,
        "url": f"http://127.0.0.1:{port}",
        "key": KEY,
        "brand_id": BRAND,
        "eft_client_id": EFT_ID,
        "eft_client_secret": EFT_SECRET,
        "time_scale": TIME_SCALE,
        "seed": 7,
    }
    return Config(**usual | changes)


def new_purchase(amount: int = 15_000) -> Object:
    return {
        "brand_id": BRAND,
        "client": {"email": "thandi@example.co.za", "full_name": "Thandi M"},
        "purchase": {"currency": "ZAR", "products": [{"name": "Top-up", "price": amount, "quantity": "1"}]},
        "reference": "dep_1",
    }


def new_payout(amount: int = 5_000, reference: str = "wd_1") -> Object:
    return {
        "brand_id": BRAND,
        "client": {"email": "thandi@example.co.za", "full_name": "Thandi M", "phone": "+27821234567"},
        "payment": {"amount": amount, "currency": "ZAR", "description": "Withdrawal"},
        "reference": reference,
        "sender_name": "Wallet",
    }


async def until(true: Callable[[], Awaitable[bool] | bool]) -> None:
    """Wait for what must become true."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = true()
        if found if isinstance(found, bool) else await found:
            return
        assert time.monotonic() < deadline, "it did not become true"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[Simulator]:
    """A simulator in this process."""
    port = int(config.url.rpartition(":")[2])
    async with served(config, port), client(config) as http:
        yield Simulator(config, http)


def client(config: Config) -> httpx.AsyncClient:
    """With the key."""
    return httpx.AsyncClient(base_url=config.url, headers={"Authorization": f"Bearer {config.key}"}, timeout=PATIENCE_S, trust_env=False)


@pytest.fixture(scope="package")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Simulator]:
    """The run's simulator; use `simulator`."""
    async with running(new_config(tmp_path_factory.mktemp("simulator"), free_port())) as started:
        yield started


@pytest.fixture(scope="package")
async def shared_unhurried(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Simulator]:
    """One that takes as long as the real thing; use `unhurried`."""
    async with running(new_config(tmp_path_factory.mktemp("simulator"), free_port(), time_scale=1.0)) as started:
        yield started


@pytest.fixture
async def simulator(shared: Simulator) -> AsyncIterator[Simulator]:
    """The run's simulator, without the faults and webhooks of the test before."""
    yield shared
    await clean(shared)


@pytest.fixture
async def unhurried(shared_unhurried: Simulator) -> AsyncIterator[Simulator]:
    """For what must not happen by itself during a test."""
    yield shared_unhurried
    await clean(shared_unhurried)


async def clean(used: Simulator) -> None:
    await used.faults()
    for webhook in (await used.get("/api/v1/webhooks/"))["results"]:
        assert (await used.http.delete(f"/api/v1/webhooks/{webhook['id']}/")).status_code == 204


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[Simulator]:
    """A simulator with an empty book."""
    async with running(new_config(tmp_path, free_port())) as started:
        yield started


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()
