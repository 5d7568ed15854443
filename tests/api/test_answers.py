"""What every answer carries: its name, its caching, its security headers; and what the log may say of it."""

import asyncio
import io
import json
import logging
import sys
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import pytest
from litestar import get
from litestar.testing import AsyncTestClient

from piggybank import app as assembly
from piggybank import telemetry
from piggybank.api import guards
from piggybank.settings import Settings
from tests.api.conftest import PASSWORD, Client, People, bearer


@pytest.mark.parametrize("path", ["/health/live", "/nothing", "/v1/accounts", "/schema"])
async def test_the_request_id_is_echoed_or_made(client: Client, path: str) -> None:
    assert (await client.get(path, headers={"Request-Id": "order-7/retry:2"})).headers["request-id"] == "order-7/retry:2"
    made = [(await client.get(path)).headers["request-id"] for _ in range(2)]
    assert made[0] != made[1]
    for bad in (b"", b"x" * 129, b"two words", "\xe9".encode()):
        answer = await client.get(path, headers=[(b"request-id", bad)])
        assert answer.headers["request-id"].encode() != bad


async def test_money_is_never_cached_and_currencies_are(client: Client, people: People) -> None:
    for path in ("/v1/accounts", "/v1/users/me", "/v1/reports/summary"):
        assert (await client.get(path, headers=people.user)).headers["cache-control"] == "private, no-store"
    currencies = await client.get("/v1/currencies")
    assert "public" in currencies.headers["cache-control"]
    assert "max-age" in currencies.headers["cache-control"]


async def test_security_headers(client: Client) -> None:
    for path in ("/health/live", "/nothing", "/schema", "/v1/accounts"):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers


async def test_https_is_kept_where_it_is_used(settings: Settings) -> None:
    async with AsyncTestClient(assembly.create_app(msgspec.structs.replace(settings, public_url="https://bank.example"))) as client:
        assert "max-age" in (await client.get("/health/live")).headers["strict-transport-security"]


async def test_other_sites_are_not_let_in(client: Client) -> None:
    answer = await client.options("/v1/accounts", headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"})
    assert answer.status_code == 204
    assert answer.headers["allow"] == "GET, HEAD, OPTIONS, POST"
    assert not [name for name in answer.headers if name.startswith("access-control")]


# The log -------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def watched(settings: Settings, log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    """A client of an app that logs everything into `log`, with one route that fails."""

    @get("/v1/broken")
    async def broken() -> None:
        raise RuntimeError(f"cannot reach postgresql://app:{SECRET}@db/x for {EMAIL} with pbs_{'s' * 43}")

    monkeypatch.setitem(guards.ROUTES, "GET /v1/broken", guards.PUBLIC)
    monkeypatch.setattr(assembly, "ROUTES", [*assembly.ROUTES, broken])
    monkeypatch.setattr(sys, "stderr", log)
    async with AsyncTestClient(assembly.create_app(msgspec.structs.replace(settings, log_level="debug"))) as made:
        yield made


SECRET = "hunter2-and-more"
EMAIL = "ada.lovelace@example.com"


def lines(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


async def test_one_line_a_request(watched: Client, log: io.StringIO, people: People) -> None:
    account_id = str(uuid4())
    await watched.get(f"/v1/accounts/{account_id}?limit=3", headers=people.user | {"Request-Id": "find-me"})
    (line,) = [line for line in lines(log) if line.get("request_id") == "find-me"]
    assert (line["method"], line["route"], line["status"]) == ("GET", "/v1/accounts/{account_id}", 404)
    assert line["ms"] >= 0
    assert line["by"] == f"user:{people.user_id}"
    assert account_id not in log.getvalue()


async def test_a_fault_is_logged_whole_and_answered_bare(watched: Client, log: io.StringIO) -> None:
    answer = await watched.get("/v1/broken", headers={"Request-Id": "find-me"})
    assert answer.status_code == 500
    assert answer.json() | {"title": "", "detail": ""} == {
        "type": "about:blank",
        "title": "",
        "status": 500,
        "code": "internal_error",
        "detail": "",
        "retryable": False,
        "request_id": "find-me",
    }
    assert "RuntimeError" not in answer.text
    (line,) = [line for line in lines(log) if line["event"] == "request_failed"]
    assert line["request_id"] == "find-me"
    assert "RuntimeError" in line["exception"]
    assert "test_answers.py" in line["exception"]


async def test_nothing_secret_is_logged(watched: Client, log: io.StringIO, people: People) -> None:
    token = "pbk_" + "k" * 43
    await watched.get("/v1/broken")
    await watched.post("/v1/sessions", json={"email": EMAIL, "password": SECRET})
    await watched.post("/v1/sessions", json={"email": people.user_email, "password": PASSWORD})
    await watched.post("/v1/sessions", content=b'{"email": "' + EMAIL.encode() + b'", "password": "' + SECRET.encode())
    await watched.get("/v1/accounts", headers=bearer(token) | {"Request-Id": f"id-{token}"})
    await watched.get(f"/v1/accounts?cursor={token}&email={EMAIL}", headers=people.user | {"Request-Id": EMAIL})
    logging.getLogger("some.library").warning("sent %s to %s", f"Authorization: Bearer {token}", EMAIL)
    telemetry.logger("test").error("told", password=SECRET, token=token, email=EMAIL, url=f"redis://:{SECRET}@127.0.0.1:6379/0")
    told = log.getvalue()
    assert "some.library" in told
    for secret in (SECRET, EMAIL, "ada.lovelace", PASSWORD, token, "s" * 43, people.user_email, people.user_token):
        assert secret not in told


def test_what_is_harmless_stays() -> None:
    for text in ("postgresql://db:5432/x", "GET /v1/accounts 200", "see https://example.com/a@b/", "pbk_short", '{"a":"b"}'):
        assert telemetry.redact(text) in (text, text.replace("a@b", telemetry.REDACTED))


def test_a_console_line_says_the_same(log: io.StringIO) -> None:
    telemetry.configure("info", "console", log)
    try:
        raise ValueError(EMAIL)
    except ValueError:
        telemetry.logger("test").exception("went_wrong", count=3)
    assert "went_wrong" in log.getvalue()
    assert "count=3" in log.getvalue()
    assert "ValueError" in log.getvalue()
    assert EMAIL not in log.getvalue()


def test_nobody_begins_a_line_of_their_own_in_a_console(log: io.StringIO) -> None:
    telemetry.configure("info", "console", log)
    forged = "\r\n2026-01-01T00:00:00Z error   books_are_off\u2028\x1b[2J\x85"
    try:
        raise ValueError(forged)
    except ValueError:
        telemetry.logger("test").exception(f"told {forged}", name=forged)
    logging.getLogger("some.library").warning("sent %s", forged)
    told = [line for line in log.getvalue().splitlines() if not line.startswith("    ")]  # the rest is of a traceback
    assert len(told) == 2
    assert told[0].count("\\r\\n2026") == 2
    assert not set(log.getvalue()) & set("\r\x1b\x85\u2028")
    assert "    ValueError: \\r" in log.getvalue()


def test_a_runaway_message_is_cut(log: io.StringIO) -> None:
    telemetry.configure("info", "json", log)
    telemetry.logger("test").error("begin " + "x" * 1_000_000 + " end")
    (line,) = lines(log)
    assert len(line["event"]) < 2 * telemetry.TEXT_MAX_CHARACTERS
    assert line["event"].startswith("begin")
    assert line["event"].endswith(" end")


async def test_levels_are_kept(settings: Settings, log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", log)
    async with AsyncTestClient(assembly.create_app(msgspec.structs.replace(settings, log_level="error"))) as client:
        answer: httpx.Response = await client.get("/v1/accounts")
    assert answer.status_code == 401
    assert [line for line in lines(log) if "room" in line] == []


async def test_lines_that_can_wait_are_written_together_and_a_warning_brings_them_along(
    log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    telemetry.configure("info", "json", log)
    monkeypatch.setattr(telemetry, "_gathers", True)
    telemetry.logger("test").info("first")
    telemetry.logger("test").info("second")
    assert not log.getvalue()
    telemetry.logger("test").warning("third")
    assert [line["event"] for line in lines(log)] == ["first", "second", "third"]
    telemetry.logger("test").info("fourth")
    await asyncio.sleep(2 * telemetry.GATHER_S)  # the loop's own timer comes first
    ours = [line["event"] for line in lines(log) if line.get("room") == "test"]  # a library may have a line of its own
    assert ours == ["first", "second", "third", "fourth"]


def test_a_write_that_fails_takes_no_later_line_along(log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry.configure("info", "json", log)
    with monkeypatch.context() as full:
        full.setattr(log, "write", lambda _: (_ for _ in ()).throw(OSError("no space left")))
        with pytest.raises(OSError, match="no space"):
            telemetry.logger("test").info("lost")
    telemetry.logger("test").info("kept")
    assert [line["event"] for line in lines(log)] == ["kept"]


def test_without_a_loop_no_line_waits(log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry.configure("info", "json", log)
    monkeypatch.setattr(telemetry, "_gathers", True)
    telemetry.logger("test").info("at once")
    assert [line["event"] for line in lines(log)] == ["at once"]
