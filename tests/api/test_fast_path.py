"""The fast path answers as Litestar would: the same requests, sent both ways, byte for byte. And who is refused at the door."""

from typing import Any
from uuid import uuid4

import httpx
import pytest
from litestar import post

from piggybank import errors
from piggybank.api.fast_path import Answer, Call, FastPath
from piggybank.app import Parts
from piggybank.ledger import batcher
from tests.api.conftest import Client, People

NOT_PLAIN = {"whatever": "1"}  # nobody reads it
DEPOSIT = {"amount": 700, "method": "direct"}
Spied = list[str]


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Spied:
    """The routes that the fast path answered, as it goes on answering."""
    answered: Spied = []
    answer = Call.answer

    async def counted(call: Call, *arguments: Any) -> Answer:
        answered.append(call.template)
        return await answer(call, *arguments)

    monkeypatch.setattr(Call, "answer", counted)
    return answered


async def account(client: Client, people: People, currency: str = "ZAR") -> str:
    opened = await client.post("/v1/accounts", json={"currency": currency, "user_id": people.user_id}, headers=people.service)
    return str(opened.json()["id"])


@pytest.fixture
async def accounts(client: Client, people: People) -> tuple[str, str]:
    return await account(client, people), await account(client, people)


def body(value: object) -> dict[str, Any]:
    return {"json": value}


def raw(content: bytes, kind: str = "application/json") -> dict[str, Any]:
    return {"content": content, "headers": {"Content-Type": kind}}


# What is sent to /v1/accounts/<account>/deposits with one key.
BODIES = {
    "good": body(DEPOSIT),
    "everything": body(DEPOSIT | {"currency": "ZAR", "reference": "r", "description": "é", "metadata": {"a": "b"}}),
    "other currency": body(DEPOSIT | {"currency": "USD"}),
    "text for a number": body({"amount": "5", "method": "direct"}),
    "fraction": body({"amount": 1.0, "method": "direct"}),
    "nothing": body({"amount": 0, "method": "direct"}),
    "too much": body({"amount": 2**63, "method": "direct"}),
    "unknown field": body(DEPOSIT | {"surprise": 1}),
    "missing field": body({"amount": 1}),
    "unknown method": body({"amount": 1, "method": "magic"}),
    "not for direct": body(DEPOSIT | {"return_url": "https://example.com/"}),
    "a list": body([]),
    "doubled": raw(b'{"amount": 1, "amount": 2, "method": "direct"}'),
    "nul": raw(b'{"amount": 1, "method": "direct", "reference": "a\\u0000"}'),
    "cut off": raw(b'{"amount": 1, "meth'),
    "not utf-8": raw(b'{"amount": 1, "method": "direct", "reference": "\xff"}'),
    "deep": raw(b"[" * 50_000),
    "text": raw(b'{"amount": 1, "method": "direct"}', "text/plain"),
    "json of a kind": raw(b'{"amount": 1, "method": "direct"}', "application/vnd.bank+json; charset=utf-8"),
}


@pytest.mark.parametrize("name", BODIES)
async def test_bodies_both_ways(client: Client, people: People, accounts: tuple[str, str], fast: Spied, name: str) -> None:
    await both_ways(client, fast, "POST", f"/v1/accounts/{accounts[0]}/deposits", people.service, BODIES[name])


@pytest.mark.parametrize("key", ["", " ", "two words", "x" * 255, "x" * 256, "\xe9", "a"])
async def test_keys_both_ways(client: Client, people: People, accounts: tuple[str, str], fast: Spied, key: str) -> None:
    path = f"/v1/accounts/{accounts[0]}/deposits"
    await both_ways(client, fast, "POST", path, people.service | {"Idempotency-Key": key.encode("latin-1")}, body(DEPOSIT))


async def test_no_key_both_ways(client: Client, people: People, accounts: tuple[str, str], fast: Spied) -> None:
    for path in (f"/v1/accounts/{accounts[0]}/deposits", "/v1/transactions:batch"):
        await both_ways(client, fast, "POST", path, people.service | {"Idempotency-Key": None}, body(DEPOSIT))


async def test_a_key_with_another_body_both_ways(client: Client, people: People, accounts: tuple[str, str], fast: Spied) -> None:
    headers = people.service | {"Idempotency-Key": uuid4().hex}
    path = f"/v1/accounts/{accounts[0]}/deposits"
    assert (await client.post(path, headers=headers, json=DEPOSIT)).status_code == 201
    answer = await both_ways(client, fast, "POST", path, headers, body(DEPOSIT | {"amount": 701}))
    assert answer.status_code == 422


async def test_every_movement_both_ways(client: Client, people: People, accounts: tuple[str, str], fast: Spied) -> None:
    one, other = accounts
    await client.post(f"/v1/accounts/{one}/deposits", headers=people.service | {"Idempotency-Key": "first"}, json=DEPOSIT)
    batch = {
        "commands": [{"type": "deposit", "account_id": one, "amount": 1}, {"type": "withdrawal", "account_id": other, "amount": 10**9}]
    }
    asked: list[tuple[str, object, int]] = [
        (f"/v1/accounts/{one}/withdrawals", {"amount": 1, "method": "direct"}, 201),
        (f"/v1/accounts/{one}/withdrawals", {"amount": 10**9, "method": "direct"}, 409),
        (f"/v1/accounts/{one}/withdrawals", {"amount": 1, "method": "direct", "hold": True}, 202),
        (f"/v1/accounts/{uuid4()}/deposits", DEPOSIT, 404),
        ("/v1/transfers", {"from_account": one, "to_account": other, "amount": 1}, 201),
        ("/v1/transfers", {"from_account": one, "to_account": one, "amount": 1}, 409),
        ("/v1/transfers", {"from_account": one, "to_account": "no id", "amount": 1}, 400),
        ("/v1/transactions:batch", batch, 200),
        ("/v1/transactions:batch", {"commands": []}, 400),
        ("/v1/transactions:batch", {"commands": [{"type": "theft"}]}, 400),
    ]
    for path, sent, status in asked:
        assert (await both_ways(client, fast, "POST", path, people.service, body(sent))).status_code == status, (path, sent)


async def test_who_asks_both_ways(client: Client, people: People, accounts: tuple[str, str], fast: Spied) -> None:
    path, transfer = f"/v1/accounts/{accounts[0]}/deposits", {"from_account": accounts[0], "to_account": accounts[1], "amount": 1}
    for headers, status in (
        (people.user, 403),
        (people.operator, 403),
        (people.narrow, 403),
        ({}, 401),
        ({"Authorization": "Bearer x"}, 401),
    ):
        assert (await both_ways(client, fast, "POST", path, headers, body(DEPOSIT))).status_code == status
    assert (await both_ways(client, fast, "POST", "/v1/transfers", people.user, body(transfer))).status_code == 409  # nothing on it


async def test_reads_both_ways(client: Client, people: People, accounts: tuple[str, str], fast: Spied) -> None:
    one, _ = accounts
    for path in (f"/v1/accounts/{one}/balance", f"/v1/accounts/{one}/transactions", f"/v1/accounts/{uuid4()}/balance"):
        for headers in (people.service, people.user, people.narrow, {}):
            await both_ways(client, fast, "GET", path, headers, {})
    etag = (await client.get(f"/v1/accounts/{one}/balance", headers=people.user)).headers["etag"]
    for known, status in ((etag, 304), ('"1000"', 200)):
        answer = await both_ways(client, fast, "GET", f"/v1/accounts/{one}/balance", people.user | {"If-None-Match": known}, {})
        assert answer.status_code == status


async def test_what_is_not_plain_is_litestars(client: Client, people: People, accounts: tuple[str, str], fast: Spied) -> None:
    path = f"/v1/accounts/{accounts[0]}"
    headers = people.service | {"Idempotency-Key": uuid4().hex}

    assert (await client.post(f"{path}/deposits", headers=headers, json=DEPOSIT)).status_code == 201
    assert fast == ["/v1/accounts/{account_id}/deposits"]
    assert (await client.get(f"{path}/balance?min_version=0", headers=people.service)).status_code == 200
    assert (await client.head(f"{path}/balance", headers=people.service)).content == b""
    assert (await client.get(f"/v1/accounts/{accounts[0].upper()}/balance", headers=people.service)).status_code == 200
    assert (await client.get("/v1/accounts/no-id/balance", headers=people.service)).status_code == 400
    assert (await client.get("/v1/accounts//balance", headers=people.service)).status_code == 400
    assert (await client.post("/v1/accounts//deposits", headers=headers, json=DEPOSIT)).status_code in (404, 405)
    long = headers | {"Content-Length": "0" * 5_000 + "2"}
    assert (await client.post(f"{path}/deposits", headers=long, content=b"{}")).status_code == 400
    assert (await client.post(f"{path}/balance", headers=headers, json={})).status_code == 405
    assert (await client.post(f"{path}/deposits", headers=headers)).status_code == 400
    assert len(fast) == 1


async def test_a_full_queue_refuses_at_the_door(
    client: Client, people: People, accounts: tuple[str, str], fast: Spied, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher, "MAX_QUEUE", 0)
    path = f"/v1/accounts/{accounts[0]}/deposits"
    headers = people.service | {"Idempotency-Key": uuid4().hex, "Request-Id": 'say"this"'}
    refused = await client.post(path, headers=headers, json=DEPOSIT)
    assert (refused.status_code, refused.headers["retry-after"], refused.headers["request-id"]) == (503, "1", 'say"this"')
    assert not fast  # nothing was decoded and nobody looked up
    litestars = await client.post(path, headers=headers, params=NOT_PLAIN, json=DEPOSIT)
    assert (litestars.status_code, litestars.content) == (503, refused.content)
    assert (refused.json()["code"], refused.json()["retryable"], refused.json()["request_id"]) == ("overloaded", True, 'say"this"')
    assert (await client.get(f"/v1/accounts/{accounts[0]}/balance", headers=people.service)).status_code == 200
    monkeypatch.undo()
    assert (await client.post(path, headers=headers, json=DEPOSIT)).status_code == 201


def test_a_handler_that_asks_for_more_is_refused_at_the_start() -> None:
    @post("/v1/things", fast_path=True, sync_to_thread=False)
    def thing(weather: str) -> None:
        raise AssertionError(weather)

    async def enter(_: Any) -> None:
        raise AssertionError

    with pytest.raises(errors.CannotProceed, match="weather"):
        FastPath([thing], enter, dict.fromkeys(Parts.__struct_fields__))


async def both_ways(client: Client, fast: Spied, method: str, path: str, headers: dict[str, Any], sent: dict[str, Any]) -> httpx.Response:
    """Once to have it done; then the fast path's answer and Litestar's to the same request must be the same."""
    given = {"Idempotency-Key": uuid4().hex, "Request-Id": "the-same"} | headers | sent.get("headers", {})
    plain = httpx.Headers([(name, value) for name, value in given.items() if value is not None])
    content = {name: value for name, value in sent.items() if name != "headers"}
    await client.request(method, path, headers=plain, **content)
    before = len(fast)
    ours = await client.request(method, path, headers=plain, **content)
    assert len(fast) == before + 1, "not answered by the fast path"
    theirs = await client.request(method, path, headers=plain, params=NOT_PLAIN, **content)
    assert len(fast) == before + 1, "not answered by Litestar"
    assert (ours.status_code, ours.content) == (theirs.status_code, theirs.content)
    assert sorted(ours.headers.raw) == sorted(theirs.headers.raw)
    return ours
