"""Every way to ask badly is answered by a problem that says what is wrong, and changes nothing."""

import json
from typing import Any
from uuid import uuid4

import httpx
import pytest

from piggybank import errors
from piggybank.api import bodies, problems
from tests.api.conftest import Client, People

ACCOUNT = str(uuid4())
DEPOSITS = f"/v1/accounts/{ACCOUNT}/deposits"
PLAIN = {"amount": 100, "method": "direct"}


def body(**changes: object) -> bytes:
    return json.dumps({name: value for name, value in (PLAIN | changes).items() if value is not None}).encode()


@pytest.mark.parametrize(
    ("content", "field", "code"),
    [
        (body(amount=-1), "amount", "out_of_range"),
        (body(amount=0), "amount", "out_of_range"),
        (body(amount=10**12 + 1), "amount", "out_of_range"),
        (body(amount=10**40), "amount", "out_of_range"),
        (body(amount=1.5), "amount", "wrong_type"),
        (body(amount=100.0), "amount", "wrong_type"),
        (body(amount="100"), "amount", "wrong_type"),
        (body(amount=True), "amount", "wrong_type"),
        (body(amount=None), "amount", "required"),
        (body(currency="usd"), "currency", "malformed"),
        (body(method="cash"), "method", "not_allowed"),
        (body(extra=1), "extra", "unknown_field"),
        (body(reference="x" * 129), "reference", "too_long"),
        (body(reference=""), "reference", "too_short"),
        (body(description="x" * 501), "description", "too_long"),
        (body(metadata={str(n): "x" for n in range(21)}), "metadata", "too_long"),
        (body(metadata={"k": "x" * 501}), "metadata.*", "too_long"),
        (body(metadata={"k": 1}), "metadata.*", "wrong_type"),
        (body(metadata={"k" * 41: "x"}), "metadata", "too_long"),
        (body(metadata=[]), "metadata", "wrong_type"),
        (b'{"amount": NaN, "method": "direct"}', "body", "malformed"),
        (b'{"amount": 1, "amount": 2, "method": "direct"}', "amount", "doubled"),
        (b'{"amount": 1, "method": "direct", "metadata": {"a": "1", "a": "2"}}', "a", "doubled"),
        (b'{"amount": 1, "method": "direct", "reference": "a\\u0000b"}', "body", "malformed"),
        (b'{"amount": 1, "method": "direct", "reference": "\\ud800"}', "body", "malformed"),
        (b'{"amount": 1, "method": "direct", "reference": "\xff"}', "body", "malformed"),
        (b'{"amount": 1', "body", "malformed"),
        (b'{"amount": 1, "method": "direct"} x', "body", "malformed"),
        (b"[" * 100_000, "body", "wrong_type"),
        (b'{"metadata":' + b'{"a":' * 100_000, "metadata.*", "wrong_type"),
        (b"null", "body", "wrong_type"),
        (b"[]", "body", "wrong_type"),
        (b"", "body", "required"),
    ],
)
async def test_a_bad_body_is_named_field_by_field(client: Client, people: People, content: bytes, field: str, code: str) -> None:
    headers = people.service | {"Content-Type": "application/json", "Idempotency-Key": uuid4().hex}
    answer = await client.post(DEPOSITS, content=content, headers=headers)
    problem = is_problem(answer, 400, "invalid_request")
    assert [(wrong["field"], wrong["code"]) for wrong in problem["errors"]] == [(field, code)]
    assert "msgspec" not in answer.text
    assert "`" not in answer.text


async def test_text_that_only_looks_like_nul_is_text(client: Client, people: People) -> None:
    headers = people.service | {"Content-Type": "application/json", "Idempotency-Key": uuid4().hex}
    answer = await client.post(DEPOSITS, content=rb'{"amount": 1, "method": "direct", "reference": "a\\u0000b"}', headers=headers)
    is_problem(answer, 404, "not_found")


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx"]
)
async def test_only_json(client: Client, people: People, content_type: str | None) -> None:
    headers = people.service | {"Idempotency-Key": uuid4().hex} | ({"Content-Type": content_type} if content_type else {})
    is_problem(await client.post(DEPOSITS, content=body(), headers=headers), 415, "unsupported_media_type")


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.team+json"])
async def test_json_by_its_other_names(client: Client, people: People, content_type: str) -> None:
    headers = people.service | {"Idempotency-Key": uuid4().hex, "Content-Type": content_type}
    is_problem(await client.post(DEPOSITS, content=body(), headers=headers), 404, "not_found")


async def test_ten_megabytes(client: Client, people: People) -> None:
    headers = people.service | {"Content-Type": "application/json", "Idempotency-Key": uuid4().hex}
    is_problem(await client.post(DEPOSITS, content=b'"' + b"x" * 10_000_000 + b'"', headers=headers), 413, "payload_too_large")


async def test_the_largest_body_is_read(client: Client, people: People) -> None:
    headers = people.service | {"Content-Type": "application/json", "Idempotency-Key": uuid4().hex}
    padded = body() + b" " * (bodies.BODY_MAX_BYTES - len(body()))
    is_problem(await client.post(DEPOSITS, content=padded, headers=headers), 404, "not_found")
    is_problem(await client.post(DEPOSITS, content=padded + b" ", headers=headers), 413, "payload_too_large")


async def test_a_key_is_needed_to_move_money(client: Client, people: People) -> None:
    is_problem(await client.post(DEPOSITS, json=PLAIN, headers=people.service), 400, "idempotency_key_required")


@pytest.mark.parametrize(
    ("method", "path", "field"),
    [
        ("GET", "/v1/accounts/not-a-uuid", "account_id"),
        ("GET", "/v1/accounts/1/balance", "account_id"),
        ("POST", "/v1/accounts/%00/deposits", "account_id"),
        ("GET", "/v1/users/x", "user_id"),
    ],
)
async def test_a_malformed_id_is_named(client: Client, people: People, method: str, path: str, field: str) -> None:
    problem = is_problem(await client.request(method, path, headers=people.service), 400, "invalid_request")
    assert problem["errors"] == [{"field": field, "message": "is not a UUID", "code": "malformed"}]


@pytest.mark.parametrize("query", ["limit=x", "limit=0", "limit=101", "limit=-1", "limit=1.5", "limit=99999999999999999999", "cursor=%00"])
async def test_a_bad_parameter_is_named(client: Client, people: People, query: str) -> None:
    problem = is_problem(await client.get(f"/v1/users?{query}", headers=people.service), 400, "invalid_request")
    assert problem["errors"][0]["field"] == query.partition("=")[0]


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1", "/v1/", "/v2/accounts", "/v1/accounts/x/y/z", "/%2e%2e/etc/passwd", "/schema/static/..%2fapp.py"]
)
async def test_no_such_path(client: Client, path: str) -> None:
    is_problem(await client.get(path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"), [("DELETE", "/v1/accounts", "GET, HEAD, OPTIONS, POST"), ("PUT", "/v1/transfers", "OPTIONS, POST")]
)
async def test_another_method(client: Client, method: str, path: str, allowed: str) -> None:
    answer = await client.request(method, path)
    is_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize("token", ["", "x", "pbk_short", "pbk_" + "A" * 43, "pbs_" + "A" * 43, "pbk_" + "A" * 4_000, "\xe9" * 47])
async def test_a_token_that_is_none(client: Client, token: str) -> None:
    answer = await client.get("/v1/accounts", headers=[(b"authorization", f"Bearer {token}".encode("latin-1"))])
    is_problem(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_another_scheme(client: Client) -> None:
    is_problem(await client.get("/v1/accounts", headers={"Authorization": "Basic dTpw"}), 401, "unauthenticated")


async def test_head_is_get_without_a_body(client: Client, people: People) -> None:
    full, head = [await client.request(method, "/v1/accounts", headers=people.service) for method in ("GET", "HEAD")]
    assert (head.status_code, head.content) == (full.status_code, b"")
    assert head.headers["content-length"] == full.headers["content-length"]


def test_every_error_has_a_status() -> None:
    for code, error in errors.BY_CODE.items():
        assert 400 <= problems.status_of(error) <= 599, code
        if error.retryable:
            assert problems.status_of(error) in (409, 429, 503), code


def is_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """`answer` is this problem, in the shape that all have."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "private, no-store"
    problem: dict[str, Any] = answer.json()
    assert problem["code"] == code, problem
    assert problem["status"] == status
    assert problem["request_id"] == answer.headers["request-id"]
    assert problem["title"]
    assert problem["detail"]
    assert ("retry-after" in answer.headers) == (problem["retryable"] or status == 429)
    return problem
