"""The description: true, complete, and shown without asking anybody else."""

import re
from typing import Any

import msgspec
import pytest

from piggybank import errors
from piggybank.api import guards, openapi, problems
from tests.api.conftest import Client


@pytest.fixture(scope="module")
async def document(client: Client) -> dict[str, Any]:
    answer = await client.get("/schema/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json()
    return found


def operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{method.upper()} {path}", operation) for path, item in document["paths"].items() for method, operation in item.items()]


def test_it_says_what_it_is(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    assert "Idempotency-Key" in document["info"]["description"]
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"


def test_every_operation_is_told_in_words_and_filed(document: dict[str, Any]) -> None:
    known = {tag["name"] for tag in document["tags"]}
    for name, operation in operations(document):
        assert operation.get("summary"), name
        assert operation.get("description"), name
        assert set(operation["tags"]) <= known, (name, operation["tags"])
        assert operation["tags"], name


def test_operation_ids_are_unique(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(ids) == len(set(ids))


def test_every_operation_documents_its_errors(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        answers = operation["responses"]
        assert "500" in answers, name
        if guards.ROUTES[name].limit != "none":
            assert {"400", "429", "503"} <= answers.keys(), name
        if not guards.ROUTES[name].public:
            assert {"401", "403"} <= answers.keys(), name
            assert {"bearer": []} in operation["security"], name
        if "requestBody" in operation:
            assert {"413", "415"} <= answers.keys(), name
        assert [status for status in answers if status.startswith("2")], name


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for reference in set(re.findall(r'"\$ref":"#/([^"]+)"', msgspec.json.encode(document).decode())):
        found: Any = document
        for part in reference.split("/"):
            found = found[part]


def test_examples_of_errors_are_errors(document: dict[str, Any]) -> None:
    for answer in document["components"]["responses"].values():
        for example in answer["content"][problems.MEDIA_TYPE]["examples"].values():
            problem = msgspec.convert(example["value"], problems.Problem)
            assert problem.status == problems.status_of(errors.BY_CODE[problem.code])


def test_moving_money_documents_its_key(document: dict[str, Any]) -> None:
    operation = document["paths"]["/v1/transfers"]["post"]
    assert "Idempotency-Key" in [parameter["name"] for parameter in operation["parameters"]]
    assert "Idempotency-Replayed" in operation["responses"]["201"]["headers"]


@pytest.mark.parametrize(
    "path", ["/schema", "/schema/openapi.json", "/schema/static/swagger-ui.css", "/schema/static/swagger-ui-bundle.js"]
)
async def test_it_may_be_kept_and_revalidated(client: Client, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 200
    assert answer.headers["cache-control"].startswith("public, max-age=")
    again = await client.get(path, headers={"If-None-Match": f'"other", W/{answer.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == answer.headers["etag"]
    assert (await client.get(path, headers={"If-None-Match": '"other"'})).status_code == 200


async def test_the_page_loads_from_here_alone(client: Client) -> None:
    page = await client.get("/schema")
    assert page.headers["content-type"].startswith("text/html")
    loaded = re.findall(r'(?:src|href)="(?!data:)([^"]+)"', page.text)
    assert len(loaded) == 3
    for address in loaded:
        assert "//" not in address
        assert (await client.get(f"/{address}")).status_code == 200
    assert "<script>" not in page.text  # the policy forbids it
    policy = page.headers["content-security-policy"]
    assert "http" not in policy
    assert "script-src 'self';" in policy
    start = (await client.get("/schema/static/start.js")).text
    assert "http" not in start
    assert "validatorUrl: null" in start  # the page would ask another host


async def test_only_the_files_of_the_page(client: Client) -> None:
    for name in ("core.py", "swagger-editor.js", "%2e%2e%2fcore.py"):
        assert (await client.get(f"/schema/static/{name}")).status_code == 404


def test_statuses_of_the_table_are_all_described() -> None:
    assert set(problems.STATUS.values()) == set(openapi._MEANING)
