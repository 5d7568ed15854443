"""Requests to two servers in turn, remembered, so that any of them can be sent again."""

import json
from itertools import cycle
from typing import Any, NamedTuple
from uuid import uuid4

import httpx

from tests.conftest import Server
from tests.prove.model import Account

REPLAYED = "Idempotency-Replayed"
TIMEOUT_S = 30


class Sent(NamedTuple):
    """A request with a key, the answer that it got, and the account whose owner the key belongs to."""

    source: Account
    path: str
    body: dict[str, Any]
    key: str
    status: int
    answer: dict[str, Any]


class Wire:
    """Every request goes to the other server than the one before."""

    def __init__(self, servers: tuple[Server, Server]) -> None:
        headers = servers[0].headers
        self._clients = [httpx.Client(base_url=server.url, headers=headers, timeout=TIMEOUT_S) for server in servers]
        self._turns = cycle(self._clients)

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        response = next(self._turns).get(path, params=query)
        assert response.status_code == 200, response.text
        return as_object(response)

    def post(self, path: str, body: dict[str, Any] | None = None, key: str | None = None) -> httpx.Response:
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if key is not None:
            headers["Idempotency-Key"] = key
        return next(self._turns).post(path, content=content, headers=headers)

    def open_account(self, user_id: str, currency: str) -> Account:
        response = self.post("/v1/accounts", {"user_id": user_id, "currency": currency})
        assert response.status_code == 201, response.text
        return Account(response.json()["id"], currency)

    def new_user(self) -> str:
        response = self.post("/v1/users", {"external_id": uuid4().hex})
        assert response.status_code == 201, response.text
        return str(response.json()["id"])


def as_object(response: httpx.Response) -> dict[str, Any]:
    found = response.json()
    assert isinstance(found, dict)
    return found


def lasting(answer: Any) -> Any:
    """An answer without what is new each time that it is given."""
    if isinstance(answer, dict):
        return {name: lasting(value) for name, value in answer.items() if name not in ("request_id", "replayed")}
    if isinstance(answer, list):
        return [lasting(value) for value in answer]
    return answer


def assert_shows(answer: dict[str, Any], expected: dict[str, object]) -> None:
    """Every expected field is there with that value."""
    wrong = {name: (answer[name], value) for name, value in expected.items() if answer[name] != value}
    assert not wrong, f"field: (answered, expected): {wrong}"
