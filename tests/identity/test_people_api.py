"""People over HTTP: signing up, in and out, API keys, and what is nobody else's business."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest

from piggybank.db.engines import Database
from piggybank.identity import apikeys, links
from piggybank.identity.tokens import REMEMBERED_S
from piggybank.settings import Settings
from tests.conftest import Server, start_server
from tests.identity.conftest import PASSWORD, MakeUser

NEW_PASSWORD = "another long sentence"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def signed_in(client: httpx.AsyncClient, email: str | None, password: str = PASSWORD) -> dict[str, str]:
    answer = await client.post("/v1/sessions", json={"email": email, "password": password})
    assert answer.status_code == 201, answer.text
    return bearer(answer.json()["token"])


@pytest.fixture
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url) as made:
        yield made


@pytest.fixture(scope="module")
def open_server(settings: Settings) -> Iterator[Server]:
    """A second process on the same database, where everybody may sign up."""
    running = start_server(msgspec.structs.replace(settings, sign_up="open"))
    yield running
    running.stop()


async def test_a_session_over_http(client: httpx.AsyncClient, make_user: MakeUser) -> None:
    user = await make_user()
    assert user.email is not None
    answer = await client.post("/v1/sessions", json={"email": f" {user.email.upper()} ", "password": PASSWORD})
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "private, no-store"
    session = answer.json()
    assert session["expires_at"].endswith("Z")
    assert session["user"]["id"] == str(user.id)
    assert "password" not in answer.text
    me = await client.get("/v1/users/me", headers=bearer(session["token"]))
    assert me.json() == session["user"]
    assert (await client.delete("/v1/sessions/current", headers=bearer(session["token"]))).status_code == 204
    refused = await client.get("/v1/users/me", headers=bearer(session["token"]))
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
    assert refused.headers["www-authenticate"] == "Bearer"


async def test_a_wrong_password_and_an_unknown_address_are_answered_alike(
    client: httpx.AsyncClient, make_user: MakeUser, email: str
) -> None:
    known = (await make_user()).email
    answers = [await client.post("/v1/sessions", json={"email": address, "password": "wrong"}) for address in (known, email)]
    assert [answer.status_code for answer in answers] == [401, 401]
    bodies = [answer.json() | {"request_id": ""} for answer in answers]
    assert bodies[0] == bodies[1]


async def test_a_token_revoked_on_one_server_is_refused_by_another(
    server: Server, client: httpx.AsyncClient, open_server: Server, make_user: MakeUser, db: Database
) -> None:
    headers = await signed_in(client, (await make_user()).email)
    operator = await signed_in(client, (await make_user(role="operator")).email)
    key = (await client.post("/v1/api-keys", json={"name": "backend", "scopes": ["users:read"]}, headers=operator)).json()
    async with httpx.AsyncClient(base_url=open_server.url) as other:
        assert (await other.get("/v1/users/me", headers=headers)).status_code == 200
        assert (await other.get("/v1/users", headers=bearer(key["token"]))).status_code == 200
        await client.delete("/v1/sessions/current", headers=headers)
        assert (await client.delete(f"/v1/api-keys/{key['id']}", headers=operator)).status_code == 204
        await asyncio.sleep(REMEMBERED_S)
        assert (await other.get("/v1/users/me", headers=headers)).status_code == 401
        assert (await other.get("/v1/users", headers=bearer(key["token"]))).status_code == 401


async def test_signing_up_needs_an_invite_by_default(client: httpx.AsyncClient, db: Database, email: str) -> None:
    wanted = {"email": email, "password": PASSWORD, "name": "Ada", "metadata": {"plan": "blue"}}
    answer = await client.post("/v1/users", json=wanted)
    assert (answer.status_code, answer.json()["code"]) == (403, "invite_required")
    answer = await client.post("/v1/users", json=wanted | {"invite": "pbl_" + "x" * 43})
    assert (answer.status_code, answer.json()["code"]) == (400, "link_invalid")
    async with db.write() as write:
        invite = await links.create(write, "invite")
    answer = await client.post("/v1/users", json=wanted | {"invite": invite})
    assert answer.status_code == 201, answer.text
    user = answer.json()
    assert (user["email"], user["role"], user["name"], user["metadata"]) == (email, "user", "Ada", {"plan": "blue"})
    await signed_in(client, email)
    answer = await client.post("/v1/users", json=wanted | {"invite": invite, "email": "2" + email})
    assert answer.json()["code"] == "link_invalid"


def test_closed_sign_up(settings: Settings, email: str) -> None:
    closed = start_server(msgspec.structs.replace(settings, sign_up="closed"))
    try:
        answer = httpx.post(f"{closed.url}/v1/users", json={"email": email, "password": PASSWORD})
        assert (answer.status_code, answer.json()["code"]) == (403, "sign_up_closed")
        created = httpx.post(f"{closed.url}/v1/users", json={"external_id": email}, headers=closed.headers)
        assert created.status_code == 201
    finally:
        closed.stop()


async def test_open_sign_up(open_server: Server, email: str) -> None:
    async with httpx.AsyncClient(base_url=open_server.url) as client:
        answer = await client.post("/v1/users", json={"email": email, "password": PASSWORD})
        assert answer.status_code == 201
        again = await client.post("/v1/users", json={"email": email.upper(), "password": PASSWORD})
        assert (again.status_code, again.json()["code"]) == (409, "email_taken")
        taken = await client.post("/v1/users", json={"email": "2" + email, "password": PASSWORD, "external_id": "somebody-else"})
        assert taken.status_code == 403


@pytest.mark.parametrize(
    "wrong",
    [
        {"email": "ada"},
        {"email": "ada@example.com\u0000"},
        {"email": 5},
        {"password": "short"},
        {"password": "password123"},
        {"password": "x" * 257},
        {"password": None},
        {"email": None},
        {"name": ""},
        {"name": "x" * 201},
        {"metadata": {"a": 1}},
        {"metadata": {str(number): "" for number in range(21)}},
        {"role": "operator"},
    ],
)
async def test_bad_sign_ups_are_named(open_server: Server, email: str, wrong: dict[str, object]) -> None:
    async with httpx.AsyncClient(base_url=open_server.url) as client:
        answer = await client.post("/v1/users", json={"email": email, "password": PASSWORD} | wrong)
    assert answer.status_code == 400, answer.text
    assert answer.json()["code"] in ("invalid_request", "weak_password")


async def test_a_service_makes_users_and_finds_them(server: Server, client: httpx.AsyncClient) -> None:
    external_id = f"customer-{uuid4().hex}"
    made = await client.post("/v1/users", json={"external_id": external_id}, headers=server.headers)
    assert made.status_code == 201, made.text
    found = await client.get("/v1/users", params={"external_id": external_id}, headers=server.headers)
    assert found.json() == {"items": [made.json()], "next_cursor": None}
    nobody = await client.get("/v1/users", params={"external_id": "nobody"}, headers=server.headers)
    assert nobody.json() == {"items": [], "next_cursor": None}
    again = await client.post("/v1/users", json={"external_id": external_id}, headers=server.headers)
    assert (again.status_code, again.json()["code"]) == (409, "external_id_taken")
    for useless in ({}, {"external_id": "x", "password": PASSWORD}):
        assert (await client.post("/v1/users", json=useless, headers=server.headers)).status_code == 400
    one = await client.get(f"/v1/users/{made.json()['id']}", headers=server.headers)
    assert one.json() == made.json()


async def test_lists_go_on_where_they_stopped(server: Server, client: httpx.AsyncClient, make_user: MakeUser) -> None:
    made = [str((await make_user()).id) for _ in range(3)]
    first = (await client.get("/v1/users", params={"limit": 2}, headers=server.headers)).json()
    then = (await client.get("/v1/users", params={"limit": 1, "cursor": first["next_cursor"]}, headers=server.headers)).json()
    assert [user["id"] for user in (*first["items"], *then["items"])] == made[::-1]
    for wrong in ({"limit": 0}, {"limit": 101}, {"cursor": "x"}):
        assert (await client.get("/v1/users", params=wrong, headers=server.headers)).status_code == 400


async def test_another_user_is_not_there(client: httpx.AsyncClient, make_user: MakeUser) -> None:
    user, other, operator = await make_user(), await make_user(), await make_user(role="operator")
    headers = await signed_in(client, user.email)
    assert (await client.get(f"/v1/users/{user.id}", headers=headers)).status_code == 200
    theirs = await client.get(f"/v1/users/{other.id}", headers=headers)
    nobodys = await client.get(f"/v1/users/{uuid4()}", headers=headers)
    assert (theirs.status_code, theirs.json()["code"]) == (nobodys.status_code, nobodys.json()["code"]) == (404, "not_found")
    assert (await client.get("/v1/users", headers=headers)).status_code == 403
    assert (await client.get(f"/v1/users/{other.id}", headers=await signed_in(client, operator.email))).status_code == 200


async def test_changing_oneself(client: httpx.AsyncClient, make_user: MakeUser) -> None:
    email = (await make_user()).email
    here, elsewhere = await signed_in(client, email), await signed_in(client, email)
    changed = await client.patch("/v1/users/me", json={"name": "Ada", "metadata": {"a": "b"}}, headers=here)
    assert (changed.json()["name"], changed.json()["metadata"]) == ("Ada", {"a": "b"})
    changed = await client.patch("/v1/users/me", json={"name": None}, headers=here)
    assert (changed.json()["name"], changed.json()["metadata"]) == (None, {"a": "b"})
    for wrong, status in (
        ({"password": NEW_PASSWORD}, 400),
        ({"password": NEW_PASSWORD, "current_password": "wrong", "name": "Eve"}, 401),
        ({"password": email, "current_password": PASSWORD}, 400),
        ({"email": "eve@example.com"}, 400),
        ({"role": "operator"}, 400),
    ):
        assert (await client.patch("/v1/users/me", json=wrong, headers=here)).status_code == status
    assert (await client.get("/v1/users/me", headers=here)).json()["name"] is None
    assert (await client.get("/v1/users/me", headers=elsewhere)).status_code == 200
    both = {"password": NEW_PASSWORD, "current_password": PASSWORD}
    assert (await client.patch("/v1/users/me", json=both, headers=here)).status_code == 200
    assert (await client.get("/v1/users/me", headers=here)).status_code == 200
    assert (await client.get("/v1/users/me", headers=elsewhere)).status_code == 401
    await signed_in(client, email, NEW_PASSWORD)


async def test_an_api_key_is_shown_once(client: httpx.AsyncClient, make_user: MakeUser) -> None:
    operator = await signed_in(client, (await make_user(role="operator")).email)
    answer = await client.post("/v1/api-keys", json={"name": "backend", "scopes": ["users:read"]}, headers=operator)
    assert answer.status_code == 201
    key = answer.json()
    listed = await client.get("/v1/api-keys", params={"limit": 1}, headers=operator)
    assert key["token"] not in listed.text
    assert listed.json()["items"] == [{name: value for name, value in key.items() if name != "token"}]
    headers = bearer(key["token"])
    assert (await client.get("/v1/users", headers=headers)).status_code == 200
    lacking = await client.post("/v1/users", json={"external_id": "x"}, headers=headers)
    assert (lacking.status_code, lacking.json()["needs_scope"]) == (403, "users:write")
    assert (await client.get("/v1/users/me", headers=headers)).status_code == 403
    assert (await client.post("/v1/api-keys", json={"name": "more", "scopes": ["ops:read"]}, headers=headers)).status_code == 403
    for wrong in ({"name": "x", "scopes": []}, {"name": "x", "scopes": ["everything"]}, {"name": "x"}, {"scopes": ["ops:read"]}):
        assert (await client.post("/v1/api-keys", json=wrong, headers=operator)).status_code == 400
    assert (await client.delete(f"/v1/api-keys/{key['id']}", headers=operator)).status_code == 204
    assert (await client.get("/v1/users", headers=headers)).status_code == 401
    assert (await client.delete(f"/v1/api-keys/{key['id']}", headers=operator)).status_code == 404


async def test_api_keys_are_the_operators_business(client: httpx.AsyncClient, make_user: MakeUser) -> None:
    headers = await signed_in(client, (await make_user()).email)
    assert (await client.get("/v1/api-keys", headers=headers)).status_code == 403
    assert (await client.post("/v1/api-keys", json={"name": "x", "scopes": ["ops:read"]}, headers=headers)).status_code == 403
    assert (await client.get("/v1/api-keys")).status_code == 401


def test_the_described_scopes_are_all_scopes(server: Server) -> None:
    schema = httpx.get(f"{server.url}/schema/openapi.json").json()
    assert schema["components"]["schemas"]["NewKey"]["properties"]["scopes"]["items"]["enum"] == list(apikeys.SCOPES)


async def test_claiming_and_resetting_over_http(client: httpx.AsyncClient, db: Database, email: str) -> None:
    async with db.write() as write:
        link = await links.create(write, "operator")
    claimed = await client.post("/v1/users/claim", json={"token": link, "email": email, "password": PASSWORD})
    assert (claimed.status_code, claimed.json()["role"]) == (201, "operator")
    headers = await signed_in(client, email)
    answer = await client.post("/v1/users/reset-request", json={"email": email})
    unknown = await client.post("/v1/users/reset-request", json={"email": "2" + email})
    assert (answer.status_code, answer.content) == (unknown.status_code, unknown.content) == (202, b'{"link_expires_in_s":3600}')
    async with db.write() as write:
        link = await links.create(write, "reset", UUID(claimed.json()["id"]))
    reset = await client.post("/v1/users/reset", json={"token": link, "password": NEW_PASSWORD})
    assert reset.status_code == 204
    assert (await client.get("/v1/users/me", headers=headers)).status_code == 401
    await signed_in(client, email, NEW_PASSWORD)


async def test_the_welcome_page_loads_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    page = await client.get("/welcome")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.text
    assert "https://" not in page.text
    addresses = re.findall(r'(?:href|src)="(welcome/[^"]+)"', page.text)
    assert len(addresses) == 2
    for address in addresses:
        asset = await client.get(f"/{address}")
        assert asset.status_code == 200
        assert "immutable" in asset.headers["cache-control"]
    assert (await client.get("/welcome/__init__.py")).status_code == 404
