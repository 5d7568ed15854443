"""The table of who may do what: complete, and kept by the running app."""

import re
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from litestar import get
from litestar.testing import AsyncTestClient

from piggybank import app as assembly
from piggybank import errors
from piggybank.api import guards
from piggybank.api.guards import ROUTES, Access
from piggybank.identity.apikeys import SCOPES
from piggybank.settings import Settings
from tests.api.conftest import Client, People

DOCUMENTED = sorted(name for name in ROUTES if name.split()[1].startswith(("/v1", "/health")))
PERSONAL = {"DELETE /v1/sessions/current"}  # would end the session that the other cases use


async def document(client: Client) -> dict[str, Any]:
    described: dict[str, Any] = (await client.get("/schema/openapi.json")).json()
    return described


async def test_every_documented_operation_has_a_row_and_every_row_an_operation(client: Client) -> None:
    described = await document(client)
    operations = {f"{method.upper()} {path}" for path, item in described["paths"].items() for method in item}
    assert operations == set(DOCUMENTED)


def test_every_row_is_a_route(settings: Settings) -> None:
    assert sorted(guards.route_names(assembly.create_app(settings).routes)) == sorted(ROUTES)


def test_a_route_without_a_row_keeps_the_app_from_starting(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    @get("/v1/forgotten", sync_to_thread=False)
    def forgotten() -> None: ...

    monkeypatch.setattr(assembly, "ROUTES", [*assembly.ROUTES, forgotten])
    with pytest.raises(errors.CannotProceed, match="GET /v1/forgotten"):
        assembly.create_app(settings)


def test_every_scope_exists() -> None:
    assert {access.scope for access in ROUTES.values() if access.scope} <= SCOPES.keys()


@pytest.mark.parametrize("name", [name for name in DOCUMENTED if name not in PERSONAL])
async def test_each_role_gets_what_the_table_says(client: Client, people: People, name: str) -> None:
    access = ROUTES[name]
    expected = {
        "anonymous": access.anonymous,
        "user": access.user,
        "operator": access.operator,
        "service": access.public or access.scope is not None,
        "narrow": access.public or access.scope == "ops:read",
        "watching": access.public,
    }
    for role, allowed in expected.items():
        status = await ask(client, name, {} if role == "anonymous" else getattr(people, role))
        if access is guards.SIGNED:
            assert status in (401, 404), (role, status)  # whoever asks: a signature or a secret path is looked at, no token
        elif allowed:
            # what is not there is 404, what is badly asked 400: both come after the guard
            assert status not in (401, 403, 500), (role, status)
        else:
            assert status == (401 if role == "anonymous" else 403), (role, status)


async def ask(client: Client, name: str, headers: dict[str, str]) -> int:
    """The status of a request without a body, for things that do not exist."""
    method, _, template = name.partition(" ")
    path = re.sub(r"{\w+}", lambda _: str(uuid4()), template)
    return (await client.request(method, path, headers=headers)).status_code


async def test_others_things_are_not_there(client: Client, people: People) -> None:
    """404, not 403: what belongs to somebody else does not exist."""
    made = await client.post("/v1/users", json={"external_id": uuid4().hex}, headers=people.service)
    assert made.status_code == 201, made.text
    opened = await client.post("/v1/accounts", json={"user_id": made.json()["id"], "currency": "USD"}, headers=people.service)
    assert opened.status_code == 201, opened.text
    account_id = opened.json()["id"]
    for name, access in ROUTES.items():
        method, _, path = name.partition(" ")
        if "{account_id}" in path and access.user and method == "GET":
            answer = await client.get(path.replace("{account_id}", account_id), headers=people.user)
            assert answer.status_code == 404, name


async def test_a_public_route_asks_no_database(settings: Settings) -> None:
    """A token that is sent there is not looked at."""
    nowhere = msgspec.structs.replace(settings, database_url="postgresql://nobody:nothing@127.0.0.1:1/none")
    async with AsyncTestClient(assembly.create_app(nowhere)) as client:
        for path in ("/health/live", "/schema", "/schema/openapi.json"):
            answer = await client.get(path, headers={"Authorization": "Bearer pbk_" + "A" * 43})
            assert answer.status_code == 200
        answer = await client.get("/v1/accounts", headers={"Authorization": "Bearer pbk_" + "A" * 43})
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert answer.json()["code"] == "database_unavailable"
        assert (await client.get("/health/ready")).json() == {"status": "unready", "reasons": ["schema_behind"]}


@pytest.mark.parametrize(
    ("header", "token"),
    [(b"Bearer abc", "abc"), (b"bearer abc", "abc"), (b"BEARER  abc ", "abc"), (b"Bearer", None), (b"Basic abc", None), (b"", None)],
)
def test_the_authorization_header(header: bytes, token: str | None) -> None:
    if token is None:
        with pytest.raises(errors.Unauthenticated):
            guards.bearer([(b"authorization", header)])
    else:
        assert guards.bearer([(b"accept", b"*/*"), (b"authorization", header)]) == token
    assert guards.bearer([(b"accept", b"*/*")]) is None


def test_nobody_is_admitted_by_default() -> None:
    with pytest.raises(errors.Unauthenticated):
        guards.allow(Access(), None)


@pytest.mark.parametrize("name", DOCUMENTED)
async def test_a_slash_behind_a_path_is_the_same_path(client: Client, name: str) -> None:
    method, _, template = name.partition(" ")
    path = re.sub(r"{\w+}", lambda _: str(uuid4()), template)
    plain, slashed = [await client.request(method, each) for each in (path, f"{path}/")]
    assert plain.status_code == slashed.status_code
    assert plain.json().get("code") == slashed.json().get("code")
