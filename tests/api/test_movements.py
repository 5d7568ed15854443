"""Who may record what: money that came from nowhere needs a key with `ledger:write`, one by one and in a batch."""

from uuid import uuid4

import pytest

from tests.api.conftest import Client, People


@pytest.mark.parametrize("kind", ["deposit", "withdrawal"])
async def test_an_operator_records_no_direct_money_in_a_batch_either(client: Client, people: People, kind: str) -> None:
    headers = people.operator | {"Idempotency-Key": uuid4().hex}
    command = {"type": kind, "account_id": str(uuid4()), "amount": 1}
    answer = await client.post("/v1/transactions:batch", json={"commands": [command]}, headers=headers)
    assert (answer.status_code, answer.json()["code"], answer.json()["needs"]) == (403, "forbidden", "ledger:write")


async def test_a_batch_answers_each_command_for_itself(client: Client, people: People) -> None:
    opened = await client.post("/v1/accounts", json={"currency": "EUR", "user_id": people.user_id}, headers=people.service)
    account = opened.json()["id"]
    headers = people.service | {"Idempotency-Key": uuid4().hex}
    commands = [
        {"type": "deposit", "account_id": account, "amount": 5},
        {"type": "withdrawal", "account_id": account, "amount": 6},
        {"type": "transfer", "from_account": account, "to_account": str(uuid4()), "amount": 1},
    ]
    answers = [await client.post("/v1/transactions:batch", json={"commands": commands}, headers=headers) for _ in range(2)]
    first, again = (answer.json()["results"] for answer in answers)
    assert [result["status"] for result in first] == [201, 409, 404]
    assert first[0]["balance"]["balance"] == 5
    assert (first[1]["problem"]["code"], first[1]["problem"]["available"]) == ("insufficient_funds", 5)
    assert [result.get("replayed", False) for result in again] == [True, True, False]  # what was not found is not stored
    assert again[0]["transaction"] == first[0]["transaction"]


async def test_the_printed_address_leads_to_something_to_read(client: Client) -> None:
    answer = await client.get("/", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "schema")
