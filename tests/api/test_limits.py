"""How often somebody may ask, and who somebody is."""

import io
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import httpx
import msgspec
import pytest
from litestar.testing import AsyncTestClient

from piggybank import errors, telemetry
from piggybank.api import limits
from piggybank.app import create_app
from piggybank.settings import Settings
from tests.api.conftest import Client, People


@asynccontextmanager
async def served(settings: Settings, **changes: Any) -> AsyncIterator[Client]:
    async with AsyncTestClient(create_app(msgspec.structs.replace(settings, **changes))) as client:
        yield client


@pytest.fixture(autouse=True)
def _in_one_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the windows stands still, so that no window ends inside a test."""
    now = time.time()
    clock = SimpleNamespace(time=lambda: now, monotonic=time.monotonic)
    monkeypatch.setattr("piggybank.api.limits.time", clock)


async def test_a_user_is_told_and_then_stopped(settings: Settings, people: People) -> None:
    async with served(settings, rate_user_per_minute=3) as client:
        answers = [await client.get("/v1/users/me", headers=people.user) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert [answer.headers["ratelimit-remaining"] for answer in answers] == ["2", "1", "0", "0"]
        for answer in answers:
            assert answer.headers["ratelimit-limit"] == "3"
            assert 1 <= int(answer.headers["ratelimit-reset"]) <= limits.WINDOW_S
        stopped = answers[-1]
        assert stopped.headers["content-type"] == "application/problem+json"
        assert stopped.json()["code"] == "too_many_requests"
        assert stopped.headers["retry-after"] == stopped.headers["ratelimit-reset"]
        # somebody else is not
        assert (await client.get("/v1/users/me", headers=people.operator)).status_code == 200


async def test_keys_are_not_limited_unless_asked(settings: Settings, people: People) -> None:
    async with served(settings, rate_user_per_minute=1, rate_anonymous_per_minute=1) as client:
        answers = [await client.get("/v1/accounts", headers=people.service) for _ in range(5)]
        assert {answer.status_code for answer in answers} == {200}
        assert "ratelimit-limit" not in answers[0].headers
    async with served(settings, rate_service_per_minute=1) as client:
        assert [(await client.get("/v1/accounts", headers=people.service)).status_code for _ in range(2)] == [200, 429]


async def test_guessing_tokens_is_limited(settings: Settings) -> None:
    async with served(settings, rate_anonymous_per_minute=2) as client:
        guesses = [await client.get("/v1/accounts", headers={"Authorization": f"Bearer pbk_{uuid4().hex}{'x' * 11}"}) for _ in range(3)]
        assert [answer.status_code for answer in guesses] == [401, 401, 429]
        assert (await client.get("/health/live")).status_code == 200


async def test_sign_in_is_counted_for_all_processes_together(settings: Settings) -> None:
    forwarded = {"X-Forwarded-For": f"2001:db8:{uuid4().hex[:4]}::1"}
    changes = {"rate_sign_in_per_minute": 3, "trusted_proxies": ["0.0.0.0/0"]}
    async with served(settings, **changes) as one, served(settings, **changes) as other:
        statuses = []
        for client in (one, other, one, other, one):
            body = {"email": "nobody@example.com", "password": "not this one, surely"}
            statuses.append((await client.post("/v1/sessions", json=body, headers=forwarded)).status_code)
        assert statuses == [401, 401, 401, 429, 429]


async def test_sign_in_is_counted_while_the_cache_is_away(settings: Settings) -> None:
    async with served(settings, rate_sign_in_per_minute=2, cache_url="redis://127.0.0.1:1/0") as client:
        body = {"email": "nobody@example.com", "password": "not this one, surely"}
        assert [(await client.post("/v1/sessions", json=body)).status_code for _ in range(3)] == [401, 401, 429]


async def test_from_where_a_refused_event_came_is_in_the_log(settings: Settings, log: io.StringIO) -> None:
    app = create_app(msgspec.structs.replace(settings, trusted_proxies=["10.0.0.0/8"]))
    telemetry.configure("info", "json", stream=log)
    transport = httpx.ASGITransport(app=cast(Any, app), client=("10.0.0.1", 1234))
    async with app.lifespan(), httpx.AsyncClient(transport=transport, base_url="http://bank") as asking:
        forged = {"X-Signature": "bm90IHNpZ25lZA==", "X-Forwarded-For": "203.0.113.9"}
        assert (await asking.post("/v1/revio/events", content=b"{}", headers=forged)).status_code == 401
    lines = {line["event"]: line for line in map(msgspec.json.decode, log.getvalue().splitlines())}
    assert lines["event_refused"]["client"] == "203.0.113.9"
    assert lines["event_refused"]["request_id"] == lines["request"]["request_id"]


def scope(client: str | None, *forwarded: str) -> Any:
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    return {"type": "http", "client": (client, 1234) if client else None, "headers": headers}


@pytest.mark.parametrize(
    ("client", "forwarded", "found"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),  # not from a trusted proxy
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),  # what the client itself wrote is not read
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1", "198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1, nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["10.0.0.3"], "10.0.0.3"),
        ("10.0.0.1", [" 198.51.100.1:4711 "], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8:1:2:3:4:5:6]:443"], "2001:db8:1:2::/64"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("2001:db8:1:2:ffff::1", [], "2001:db8:1:2::/64"),
        ("10.0.0.1", [","], "10.0.0.1"),
        (None, ["198.51.100.1"], "unknown"),
        ("unix", ["198.51.100.1"], "unknown"),
    ],
)
def test_who_asks(client: str | None, forwarded: list[str], found: str) -> None:
    proxies = limits.networks(["10.0.0.0/8", "fd00::1"])
    assert limits.client_of(scope(client, *forwarded), proxies) == found
    if client == "10.0.0.1":
        assert limits.client_of(scope(client, *forwarded), []) == "10.0.0.1"


def test_a_proxy_that_is_no_address_stops_the_start() -> None:
    with pytest.raises(errors.BadSetting, match=r"PIGGYBANK_TRUSTED_PROXIES.*proxy\.local"):
        limits.networks(["proxy.local"])


async def test_a_window_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    window = limits.LocalWindow()
    monkeypatch.undo()
    now = 1_000_000.0 * limits.WINDOW_S
    for at, left in ((now, 0), (now + 1, -1), (now + limits.WINDOW_S, 0)):
        monkeypatch.setattr(time, "time", lambda at=at: at)
        assert (await window.count("user", "ada", 1))[0] == left
