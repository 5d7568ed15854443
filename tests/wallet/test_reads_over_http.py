"""The reads through a running server: what a client sees of what it posted, and of a question that makes no sense."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.conftest import Server


@pytest.fixture(scope="module")
def api(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers=server.headers, timeout=30) as client:
        yield client


def made(api: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = api.post(path, json=body, headers={"Idempotency-Key": uuid4().hex})
    assert answer.status_code in (200, 201, 202), answer.text
    found: dict[str, Any] = answer.json()
    return found


def account_of(api: httpx.Client) -> str:
    user = made(api, "/v1/users", {"external_id": uuid4().hex})
    return str(made(api, "/v1/accounts", {"user_id": user["id"], "currency": "EUR"})["id"])


def test_what_was_posted_is_read_back(api: httpx.Client) -> None:
    account = account_of(api)
    for number in range(30):
        posted = made(
            api, f"/v1/accounts/{account}/deposits", {"amount": 100 + number, "method": "direct", "reference": f"order-{number % 3}"}
        )
        page = api.get(f"/v1/accounts/{account}/transactions", params={"min_version": posted["balance"]["version"]}).json()
        assert page["items"][0] == posted["transaction"]
        assert page["total"] == number + 1
        assert api.get(f"/v1/transactions/{posted['transaction']['id']}").json() == posted["transaction"]
    rest = api.get(f"/v1/accounts/{account}/transactions", params={"cursor": page["next_cursor"]}).json()
    assert [item["sequence"] for item in page["items"] + rest["items"]] == list(range(30, 0, -1))
    assert rest["next_cursor"] is None
    filtered = api.get(f"/v1/accounts/{account}/transactions", params={"reference": "order-1", "kind": "deposit"}).json()
    assert (len(filtered["items"]), filtered["total"]) == (10, None)
    last = page["items"][0]["created_at"]
    assert last.endswith("Z")
    before = api.get(f"/v1/accounts/{account}/transactions", params={"to": last, "limit": 100}).json()["items"]
    since = api.get(f"/v1/accounts/{account}/transactions", params={"from": last, "limit": 100}).json()["items"]
    assert len(before) + len(since) == 30
    unescaped = api.get(f"/v1/accounts/{account}/transactions?from={last.replace('Z', '+00:00')}&limit=100").json()["items"]
    assert unescaped == since
    (today,) = [item for item in api.get("/v1/reports/summary", params={"account_id": account}).json()["items"] if item["count"]]
    assert (today["count"], today["credit"], today["net"]) == (30, 30 * 100 + sum(range(30)), 30 * 100 + sum(range(30)))
    assert today["kinds"] == [{"kind": "deposit", "count": 30, "credit": today["credit"], "debit": 0}]


def test_a_transfer_and_a_held_withdrawal(api: httpx.Client) -> None:
    user = made(api, "/v1/users", {"external_id": uuid4().hex})
    one, other = (str(made(api, "/v1/accounts", {"user_id": user["id"], "currency": "EUR"})["id"]) for _ in range(2))
    made(api, f"/v1/accounts/{one}/deposits", {"amount": 1_000, "method": "direct"})
    sent = made(api, "/v1/transfers", {"from_account": one, "to_account": other, "amount": 300})
    transfer = api.get(f"/v1/transfers/{sent['transaction']['transfer_id']}").json()
    assert [(leg["account_id"], leg["amount"], leg["kind"]) for leg in transfer["legs"]] == [
        (one, -300, "transfer_out"),
        (other, 300, "transfer_in"),
    ]
    held = made(api, f"/v1/accounts/{one}/withdrawals", {"amount": 200, "method": "direct", "hold": True, "destination": {"iban": "X"}})
    assert api.get(f"/v1/payments/{held['payment']['id']}").json() == held["payment"]
    assert api.get(f"/v1/accounts/{one}/payments", params={"status": "open"}).json()["items"] == [held["payment"]]
    assert api.get(f"/v1/accounts/{one}/payments", params={"status": "completed"}).json() == {"items": [], "next_cursor": None}


WRONG = [
    ("transactions", {"limit": "0"}),
    ("transactions", {"limit": "101"}),
    ("transactions", {"limit": "x"}),
    ("transactions", {"cursor": "x"}),
    ("transactions", {"cursor": "\x00"}),
    ("transactions", {"cursor": "x" * 5_000}),
    ("transactions", {"kind": "gift"}),
    ("transactions", {"reference": ""}),
    ("transactions", {"reference": "\x00"}),
    ("transactions", {"reference": "x" * 129}),
    ("transactions", {"from": "yesterday"}),
    ("transactions", {"from": "2026-01-01T00:00:00"}),
    ("transactions", {"to": "2026-02-30T00:00:00Z"}),
    ("transactions", {"to": "1767225600"}),
    ("transactions", {"min_version": "-1"}),
    ("payments", {"status": "lost"}),
    ("payments", {"cursor": "AAAA"}),
]
WRONG_SUMMARIES = [
    {"tz": "Mars/Olympus"},
    {"tz": "../../etc/passwd"},
    {"tz": "America"},
    {"tz": ""},
    {"tz": "\x00"},
    {"by": "hour"},
    {"from": "2026-02-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"},
    {"from": "2024-01-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"},
    {"to": "2026-01-01"},
    {"to": "0001-01-01T00:00:00+14:00"},
    {"from": "9999-12-31T23:59:59.999999-14:00"},
]


@pytest.mark.parametrize(("what", "asked"), WRONG)
def test_wrong_questions_about_an_account(api: httpx.Client, what: str, asked: dict[str, str]) -> None:
    answer = api.get(f"/v1/accounts/{account_of(api)}/{what}", params=asked)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), answer.text
    assert answer.json()["errors"][0]["field"] in (*asked, "path or query")


@pytest.mark.parametrize("asked", WRONG_SUMMARIES)
def test_wrong_questions_about_sums(api: httpx.Client, asked: dict[str, str]) -> None:
    answer = api.get("/v1/reports/summary", params={"account_id": account_of(api), **asked})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), answer.text


def test_a_key_without_an_account_has_no_summary(api: httpx.Client) -> None:
    answer = api.get("/v1/reports/summary")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "account_id")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/accounts/{}/transactions",
        "/v1/accounts/{}/payments",
        "/v1/transactions/{}",
        "/v1/transfers/{}",
        "/v1/payments/{}",
        "/v1/reports/summary?account_id={}",
    ],
)
def test_what_does_not_exist(api: httpx.Client, path: str) -> None:
    answer = api.get(path.format(uuid4()))
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), answer.text


@pytest.mark.parametrize(
    "moment", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "0001-01-01T00:00:00+23:59", "1969-12-31T00:00:00Z"]
)
def test_the_ends_of_time(api: httpx.Client, moment: str) -> None:
    account = account_of(api)
    made(api, f"/v1/accounts/{account}/deposits", {"amount": 1, "method": "direct"})
    counts = [len(api.get(f"/v1/accounts/{account}/transactions", params={name: moment}).json()["items"]) for name in ("from", "to")]
    assert counts == ([0, 1] if moment.startswith("9") else [1, 0])


def test_currencies_are_public(server: Server) -> None:
    answer = httpx.get(f"{server.url}/v1/currencies")
    assert {"code": "EUR", "minor_unit": 2} in answer.json()["items"]
    assert answer.headers["cache-control"].startswith("public")
