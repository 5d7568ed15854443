"""Whatever is wrong with a request: a clear answer with a stable code, nothing changed, never a 500."""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import uuid4

import asyncpg
import httpx
import pytest

from piggybank.settings import Settings
from tests.conftest import Server, command
from tests.prove.bad_input import DEPOSIT, JSON, UNKNOWN, Case, Header, cases
from tests.prove.conftest import Person, sign_in

UUID_TEXT = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

# everything that a refused request could have left behind
COUNTS = """
SELECT (SELECT count(*) FROM transactions), (SELECT count(*) FROM payments), (SELECT count(*) FROM effects),
       (SELECT count(*) FROM accounts), (SELECT count(*) FROM users), (SELECT sum(balance) FROM accounts),
       (SELECT sum(held) FROM accounts), (SELECT sum(version) FROM accounts)
"""


class World(NamedTuple):
    """What there is before anything goes wrong: ids by name, and tokens by whose they are."""

    ids: dict[str, str]
    tokens: dict[str, bytes | None]
    owner: Person


@pytest.fixture(scope="module")
async def world(pair: tuple[Server, Server], own_settings: Settings, http: httpx.AsyncClient, sql: asyncpg.Connection) -> World:
    owner, other = sign_in(own_settings, "user"), sign_in(own_settings, "user")
    calls = _Calls(http, pair[0])
    ids = {"owner": owner.id}
    for name, user, currency in (
        ("account", owner, "EUR"),
        ("second", owner, "EUR"),
        ("dollars", owner, "USD"),
        ("frozen", owner, "EUR"),
        ("closed", owner, "EUR"),
        ("poor", owner, "EUR"),
        ("others", other, "EUR"),
    ):
        ids[name] = (await calls.post("/v1/accounts", user_id=user.id, currency=currency))["id"]
    await calls.post("/v1/accounts", user_id=owner.id, currency="EUR", external_id="taken")
    for name, account in (("deposit", "account"), ("reversed", "account"), ("spent", "poor"), ("others_deposit", "others")):
        ids[name] = (await calls.post(f"/v1/accounts/{ids[account]}/deposits", amount=1_000, method="direct"))["transaction"]["id"]
    ids["reversal"] = (await calls.post(f"/v1/transactions/{ids['reversed']}/reversal"))["transaction"]["id"]
    await calls.post(f"/v1/accounts/{ids['poor']}/withdrawals", amount=1_000, method="direct")
    held = await calls.post(f"/v1/accounts/{ids['account']}/withdrawals", amount=10, method="direct", hold=True)
    ids["ended"] = held["payment"]["id"]
    await calls.post(f"/v1/payments/{ids['ended']}/cancel")
    moved = await calls.post("/v1/transfers", from_account=ids["others"], to_account=ids["second"], amount=10)
    ids["others_transfer"] = moved["transaction"]["transfer_id"]
    await calls.post(f"/v1/accounts/{ids['frozen']}/freeze")
    await calls.post(f"/v1/accounts/{ids['closed']}/close")
    return World(ids, await _tokens(own_settings, pair[0], http, sql, owner), owner)


class _Calls:
    """Requests that must work."""

    def __init__(self, http: httpx.AsyncClient, server: Server) -> None:
        self._http, self._server = http, server

    async def post(self, path: str, **body: Any) -> dict[str, Any]:
        headers = self._server.headers | {"Idempotency-Key": uuid4().hex}
        response = await self._http.post(self._server.url + path, json=body, headers=headers)
        assert response.is_success, response.text
        found: dict[str, Any] = response.json()
        return found


async def _tokens(
    settings: Settings, server: Server, http: httpx.AsyncClient, sql: asyncpg.Connection, owner: Person
) -> dict[str, bytes | None]:
    """What is sent as `Authorization`, by who sends it."""
    ended, expired = sign_in(settings, "user"), sign_in(settings, "user")
    assert (await http.delete(f"{server.url}/v1/sessions/current", headers=ended.headers)).status_code == 204
    # nobody has asked with it yet, but signing in has put it into the cache
    await sql.execute("UPDATE sessions SET expires_at = now() - interval '1 second' WHERE user_id = $1", expired.id)
    operator = sign_in(settings, "operator")
    made = (
        await http.post(f"{server.url}/v1/api-keys", json={"name": "gone", "scopes": ["ledger:write"]}, headers=operator.headers)
    ).json()
    assert (await http.delete(f"{server.url}/v1/api-keys/{made['id']}", headers=operator.headers)).status_code == 204
    narrow = json.loads(command(settings, "apikeys", "create", "--name", "narrow", "--scopes", "ops:read", "--json"))["token"]
    return {
        "service": server.headers["Authorization"].encode(),
        "user": owner.headers["Authorization"].encode(),
        "narrow key": f"Bearer {narrow}".encode(),
        "nobody": None,
        "garbage": b"Bearer pbk_" + b"x" * 43,
        "long garbage": b"Bearer " + b"x" * 5_000,
        "no token": b"Bearer",
        "basic": b"Basic YTpi",
        "not ASCII": "Bearer токен".encode(),
        "expired session": expired.headers["Authorization"].encode(),
        "ended session": ended.headers["Authorization"].encode(),
        "revoked key": f"Bearer {made['token']}".encode(),
    }


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in cases()])
async def test_bad_input(case: Case, pair: tuple[Server, Server], world: World, http: httpx.AsyncClient, sql: asyncpg.Connection) -> None:
    before = await sql.fetchrow(COUNTS)
    response = await _send(http, pair[0], world, case)
    _assert_problem(response, case.status, case.code)
    assert await sql.fetchrow(COUNTS) == before


async def test_key_used_with_another_body(
    pair: tuple[Server, Server], world: World, http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    """On either server; also for a refusal, and for another route of the same owner."""
    key = uuid4().hex.encode()
    first = Case("first", 201, "", "POST", "/v1/accounts/{account}/deposits", DEPOSIT, (JSON, (b"Idempotency-Key", key)))
    assert (await _send(http, pair[0], world, first)).status_code == 201
    before = await sql.fetchrow(COUNTS)
    for server in pair:
        for changed in (
            first._replace(content=DEPOSIT.replace(b"100", b"101")),
            first._replace(path="/v1/accounts/{second}/deposits"),
            first._replace(path="/v1/accounts/{account}/withdrawals"),
            first._replace(path="/v1/transactions/{deposit}/reversal", content=b"{}"),
        ):
            _assert_problem(await _send(http, server, world, changed), 422, "idempotency_key_reused")
    assert await sql.fetchrow(COUNTS) == before


async def test_malformed_requests_keep_the_key_free(pair: tuple[Server, Server], world: World, http: httpx.AsyncClient) -> None:
    """Whoever corrects a request may send it with the same key."""
    headers = (JSON, (b"Idempotency-Key", uuid4().hex.encode()))
    wrong = Case("wrong", 400, "", "POST", "/v1/accounts/{second}/deposits", b'{"amount": -1, "method": "direct"}', headers)
    assert (await _send(http, pair[0], world, wrong)).status_code == 400
    assert (await _send(http, pair[1], world, wrong._replace(who="narrow key", content=DEPOSIT))).status_code == 403
    assert (await _send(http, pair[1], world, wrong._replace(content=DEPOSIT))).status_code == 201


THEIRS = {
    "account": ("GET", "/v1/accounts/{others}", None),
    "rename": ("PATCH", "/v1/accounts/{others}", b'{"name": "mine"}'),
    "balance": ("GET", "/v1/accounts/{others}/balance", None),
    "balance then": ("GET", "/v1/accounts/{others}/balance?at=2026-01-01T00:00:00Z", None),
    "history": ("GET", "/v1/accounts/{others}/transactions", None),
    "history, filtered": ("GET", "/v1/accounts/{others}/transactions?kind=deposit", None),
    "payments": ("GET", "/v1/accounts/{others}/payments", None),
    "report": ("GET", "/v1/reports/summary?account_id={others}", None),
    "close": ("POST", "/v1/accounts/{others}/close", None),
    "transaction": ("GET", "/v1/transactions/{others_deposit}", None),
    "payment": ("GET", "/v1/payments/{others}", None),
    "transfer from it": ("POST", "/v1/transfers", b'{"from_account": "{others}", "to_account": "{account}", "amount": 1}'),
}


@pytest.mark.parametrize("name", THEIRS)
async def test_what_is_somebody_elses_is_as_if_it_were_not(
    name: str, pair: tuple[Server, Server], world: World, http: httpx.AsyncClient, sql: asyncpg.Connection
) -> None:
    """The same bytes as for an id of nothing, whether a cache knows it or not."""
    method, path, content = THEIRS[name]
    headers: tuple[Header, ...] = (JSON, (b"Idempotency-Key", b"{fresh}")) if content else ()
    nothing = {**world.ids, "others": UNKNOWN, "others_deposit": UNKNOWN}
    before = await sql.fetchrow(COUNTS)
    answers = set()
    for ids in (world.ids, nothing, world.ids):
        response = await _send(http, pair[0], world._replace(ids=ids), Case(name, 404, "not_found", method, path, content, headers, "user"))
        _assert_problem(response, 404, "not_found")
        answers.add(UUID_TEXT.sub("<id>", response.text.replace(response.headers["request-id"], "<request>")))
    assert len(answers) == 1, answers
    assert await sql.fetchrow(COUNTS) == before


async def _send(http: httpx.AsyncClient, server: Server, world: World, case: Case) -> httpx.Response:
    names = {**world.ids, "fresh": uuid4().hex}
    headers = [(name, _named(value, names)) for name, value in case.headers]
    if (token := world.tokens[case.who]) is not None:
        headers.append((b"Authorization", token))
    content = None if case.content is None else _named(case.content, names)
    return await http.request(case.method, server.url + _named(case.path.encode(), names).decode(), content=content, headers=headers)


def _named(text: bytes, names: Mapping[str, str]) -> bytes:
    for name, value in names.items():
        text = text.replace(f"{{{name}}}".encode(), value.encode())
    return text


def _assert_problem(response: httpx.Response, status: int, code: str) -> None:
    problem = response.json()
    assert (response.status_code, problem["code"]) == (status, code), problem
    assert problem["status"] == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["request-id"] == problem["request_id"]
    if code == "invalid_request":
        assert all(wrong["field"] and wrong["message"] and wrong["code"] for wrong in problem["errors"])
    if status == 401:
        assert response.headers["www-authenticate"] == "Bearer"
