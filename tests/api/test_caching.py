"""What may be kept between here and the client: a short list, and nothing of anybody's."""

import re
from uuid import uuid4

import msgspec
import pytest
from litestar.testing import AsyncTestClient

from piggybank.api import caching
from piggybank.api.guards import ROUTES
from piggybank.app import create_app
from piggybank.settings import Settings
from tests.api.conftest import Client, People

PRIVATE = "private, no-store"
# a success there may be kept; whatever else is answered, and every other route, says PRIVATE
KEPT = {
    "GET /v1/currencies": caching.METADATA,
    "GET /schema/openapi.json": caching.METADATA,
    "GET /schema": caching.PAGE,
    "GET /welcome": caching.PAGE,
    "GET /console": caching.PAGE,
}
FILES = ("GET /schema/static/{name}", "GET /welcome/{name}")
ROLES = ("anonymous", "user", "operator", "service", "narrow")
PERSONAL = "DELETE /v1/sessions/current"  # would end the session that the other cases use


@pytest.fixture(scope="module")
async def account_id(client: Client, people: People) -> str:
    made = await client.post("/v1/accounts", json={"currency": "USD"}, headers=people.user)
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


async def test_every_documented_operation_is_asked(client: Client) -> None:
    described = (await client.get("/schema/openapi.json")).json()
    operations = {f"{method.upper()} {path}" for path, item in described["paths"].items() for method in item}
    assert operations <= ROUTES.keys()


@pytest.mark.parametrize("name", sorted(ROUTES))
async def test_nothing_private_may_be_kept(client: Client, people: People, account_id: str, name: str) -> None:
    method, _, template = name.partition(" ")
    path = re.sub(r"{\w+}", lambda _: str(uuid4()), template.replace("{account_id}", account_id))
    for role in ROLES if name != PERSONAL else ROLES[:1]:
        headers = {} if role == "anonymous" else getattr(people, role)
        for asked in (method, "HEAD") if method == "GET" else (method,):
            answer = await client.request(asked, path, headers=headers, follow_redirects=False)
            expected = KEPT.get(name, PRIVATE) if answer.is_success else PRIVATE
            assert answer.headers.get_list("cache-control") == [expected], (role, asked, answer.status_code)
            assert "set-cookie" not in answer.headers


async def test_what_an_owner_sees_may_not_be_kept(client: Client, people: People) -> None:
    """The requests above were bad ones in part, and closed the account; these are answered."""
    account_id = (await client.post("/v1/accounts", json={"currency": "USD"}, headers=people.user)).json()["id"]
    moved = await client.post(
        f"/v1/accounts/{account_id}/deposits",
        json={"amount": 100, "method": "direct"},
        headers=people.service | {"Idempotency-Key": uuid4().hex},
    )
    assert (moved.status_code, moved.headers["cache-control"]) == (201, PRIVATE)
    paths = ["/v1/users/me", "/v1/accounts", f"/v1/accounts/{account_id}"]
    paths += [f"/v1/accounts/{account_id}/{part}" for part in ("balance", "balance?min_version=1", "transactions", "payments")]
    paths += [f"/v1/transactions/{moved.json()['transaction']['id']}"]
    for path in paths:
        answer = await client.get(path, headers=people.user)
        assert (answer.status_code, answer.headers["cache-control"]) == (200, PRIVATE), path
    balance = await client.get(f"/v1/accounts/{account_id}/balance", headers=people.user)
    same = await client.get(f"/v1/accounts/{account_id}/balance", headers=people.user | {"If-None-Match": balance.headers["etag"]})
    assert (same.status_code, same.headers["cache-control"]) == (304, PRIVATE)


@pytest.mark.parametrize(
    "path", ["/v1/nowhere", "/schema/static/other.js", "/welcome/other.js", "/console/x/other.js", "/v1/currencies?", "/%2e%2e/schema"]
)
async def test_errors_of_public_places_may_not_be_kept(client: Client, path: str) -> None:
    answer = await client.post(path) if path.endswith("?") else await client.get(path)
    assert answer.is_client_error
    assert answer.headers["cache-control"] == PRIVATE


async def test_a_public_place_without_its_database_may_not_be_kept(settings: Settings) -> None:
    nowhere = msgspec.structs.replace(settings, database_url="postgresql://nobody:nothing@127.0.0.1:1/none")
    async with AsyncTestClient(create_app(nowhere)) as client:
        answer = await client.get("/v1/currencies")
    assert (answer.status_code, answer.headers["cache-control"]) == (503, PRIVATE)


@pytest.mark.parametrize("page", ["/schema", "/welcome"])
async def test_files_are_kept_for_ever_under_their_hash_only(client: Client, page: str) -> None:
    loaded = re.findall(r'(?:src|href)="([^"]+[?][^"]+)"', (await client.get(page)).text)
    assert loaded
    for address in loaded:
        path = f"/{address}"
        answer = await client.get(path)
        assert (answer.status_code, answer.headers["cache-control"]) == (200, caching.IMMUTABLE), path
        assert caching.hash_of(answer.content) == path.partition("?")[2]
        for other in (path.partition("?")[0], path.partition("?")[0] + "?older"):
            assert (await client.get(other)).headers["cache-control"] == caching.PAGE


@pytest.mark.parametrize("name", sorted(KEPT))
async def test_what_is_kept_is_revalidated(client: Client, people: People, name: str) -> None:
    """And is the same for everybody."""
    path = name.partition(" ")[2]
    answer = await client.get(path)
    assert (await client.get(path, headers=people.user)).content == answer.content
    again = await client.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content, again.headers["cache-control"]) == (304, b"", KEPT[name])
    assert "stale-while-revalidate" in KEPT[name]
