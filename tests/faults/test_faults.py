"""Concurrency and crashes, with two server processes on one database and accounts shared between them."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from uuid import UUID

import httpx

from tests.faults.conftest import Client, Place, new_key, new_keys

LOAD = 300  # requests of a test
AT_ONCE = 32


Call = Callable[[], Awaitable[httpx.Response]]


async def all_of(calls: Sequence[Call], at_once: int = AT_ONCE) -> list[httpx.Response]:
    """Every call, at most `at_once` under way."""
    gate = asyncio.Semaphore(at_once)

    async def one(call: Call) -> httpx.Response:
        async with gate:
            return await call()

    return list(await asyncio.gather(*(one(call) for call in calls)))


async def balance(place: Place, account: UUID) -> int:
    return int(await place.value("SELECT balance FROM accounts WHERE id = $1", account))


async def deposits(client: Client, accounts: list[UUID], keys: list[str]) -> list[httpx.Response]:
    """Deposits of 1, spread over accounts and servers; the key says which."""
    calls = [partial(client.deposit, accounts[number % len(accounts)], 1, key, first=number) for number, key in enumerate(keys)]
    return await all_of(calls)


async def assert_each_counted_once(place: Place, accounts: list[UUID], keys: list[str]) -> None:
    assert sum([await balance(place, account) for account in accounts]) == len(keys)
    assert await place.value("SELECT count(*) FROM idempotency_keys WHERE key = ANY($1)", keys) == len(keys)
    assert await place.differences() == []


async def test_64_clients_cannot_overdraw(place: Place, client: Client) -> None:
    [account] = await place.accounts(1)
    await client.deposit(account, 1_000, new_key())
    body: dict[str, object] = {"amount": 7, "method": "direct"}
    answers = await all_of(
        [partial(client.post, f"/v1/accounts/{account}/withdrawals", body, key, first=number) for number, key in enumerate(new_keys(400))],
        at_once=64,
    )
    posted = [answer for answer in answers if answer.status_code == 201]
    refused = [answer for answer in answers if answer.status_code != 201]
    assert len(posted) == 1_000 // 7
    assert {answer.json()["code"] for answer in refused} == {"insufficient_funds"}
    assert await balance(place, account) == 1_000 - 7 * len(posted)
    assert await place.differences() == []


async def test_one_key_sent_to_both_processes_at_once_has_one_effect(place: Place, client: Client) -> None:
    [account] = await place.accounts(1)
    keys = new_keys(50)
    answers = await all_of([partial(client.deposit, account, 1, key, number) for key in keys for number in (0, 1)])
    assert {answer.status_code for answer in answers} == {201}
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == 50
    assert len({answer.json()["transaction"]["id"] for answer in answers}) == 50
    await assert_each_counted_once(place, [account], keys)


async def test_one_key_on_two_accounts_of_one_owner_has_one_effect(place: Place, client: Client) -> None:
    accounts = await place.accounts(2)
    owner = await place.value("SELECT user_id FROM accounts WHERE id = $1", accounts[0])
    bucket_accounts = [accounts[0], await second_account(place, client, owner)]
    keys = new_keys(30)
    answers = await all_of([partial(client.deposit, bucket_accounts[number], 1, key, number) for key in keys for number in (0, 1)])
    assert sorted(answer.status_code for answer in answers) == [201] * 30 + [422] * 30
    await assert_each_counted_once(place, bucket_accounts, keys)


async def second_account(place: Place, client: Client, owner: UUID) -> UUID:
    answer = await client.post("/v1/accounts", {"currency": "EUR", "user_id": str(owner)}, "")
    assert answer.status_code == 201, answer.text
    return UUID(answer.json()["id"])


async def test_transfers_both_ways_between_hot_accounts_do_not_deadlock(place: Place, client: Client) -> None:
    accounts = await place.accounts(3)
    for account in accounts:
        await client.deposit(account, 10_000, new_key())
    calls = []
    for number, key in enumerate(new_keys(LOAD)):
        body: dict[str, object] = {
            "from_account": str(accounts[number % 3]),
            "to_account": str(accounts[(number + 1 + number // 3 % 2) % 3]),
            "amount": 3,
        }
        calls.append(partial(client.post, "/v1/transfers", body, key, number))
    answers = await all_of(calls)
    assert {answer.status_code for answer in answers} == {201}
    assert sum([await balance(place, account) for account in accounts]) == 30_000
    assert await place.differences() == []


async def test_kill_9_of_a_server_in_the_middle_of_a_load(place: Place, client: Client) -> None:
    accounts = await place.accounts(5)
    keys = new_keys(LOAD)
    load = asyncio.create_task(deposits(client, accounts, keys))
    for number in (0, 1):
        await asyncio.sleep(0.4)
        place.servers[number].kill()
        await asyncio.to_thread(place.restart_server, number)
    first = await load
    assert {answer.status_code for answer in first} == {201}
    again = await deposits(client, accounts, keys)
    assert [answer.json() for answer in again] == [answer.json() for answer in first]
    assert all(answer.headers["idempotency-replayed"] == "true" for answer in again)
    await assert_each_counted_once(place, accounts, keys)


async def test_postgres_stopped_hard_under_load(place: Place, client: Client) -> None:
    accounts = await place.accounts(5)
    keys = new_keys(LOAD)
    load = asyncio.create_task(deposits(client, accounts, keys))
    for _ in range(2):
        await asyncio.sleep(0.3)
        await asyncio.to_thread(place.kill_store, "postgres", signal.SIGQUIT)
        await asyncio.to_thread(place.start_store, "postgres")
    answers = await load
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["transaction"]["id"] for answer in answers}) == len(keys)
    await deposits(client, accounts, keys)
    await assert_each_counted_once(place, accounts, keys)


async def test_without_postgres_the_answer_is_503_and_the_app_recovers(place: Place, client: Client) -> None:
    [account] = await place.accounts(1)
    await asyncio.to_thread(place.kill_store, "postgres", signal.SIGQUIT)
    try:
        paths = (f"/v1/accounts/{account}", f"/v1/accounts/{account}/transactions?limit=3", "/v1/accounts")
        for answer in [await client.get(path, number) for path in paths for number in (0, 1)]:
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable"), answer.text
            assert answer.headers["retry-after"]
        assert (await client.get("/health/live")).status_code == 200
        waiting = asyncio.create_task(client.deposit(account, 1, new_key()))
        await asyncio.sleep(0.5)
    finally:
        await asyncio.to_thread(place.start_store, "postgres")
    assert (await waiting).status_code == 201
    assert await balance(place, account) == 1
    assert (await client.get(f"/v1/accounts/{account}/balance?min_version=1")).json()["balance"] == 1


async def test_the_cache_killed_and_flushed_under_load_is_slower_and_right(place: Place, client: Client) -> None:
    [account] = await place.accounts(1)
    for number, key in enumerate(new_keys(60)):
        if number == 20:
            await asyncio.to_thread(place.kill_store, "cache", signal.SIGKILL)
        if number == 40:
            await asyncio.to_thread(place.start_store, "cache")
        answer = await client.deposit(account, 1, key, number)
        assert answer.status_code == 201
        version = answer.json()["balance"]["version"]
        for other in (0, 1):
            seen = (await client.get(f"/v1/accounts/{account}/balance?min_version={version}", other)).json()
            assert (seen["balance"], seen["version"]) == (number + 1, version)
            page = (await client.get(f"/v1/accounts/{account}/transactions?min_version={version}", other)).json()
            assert (page["total"], page["items"][0]["sequence"]) == (number + 1, number + 1)
    assert await place.differences() == []


async def test_a_queue_that_lost_everything_loses_no_work(place: Place, client: Client) -> None:
    [account] = await place.accounts(1)
    await asyncio.to_thread(place.kill_store, "queue", signal.SIGKILL)
    await asyncio.to_thread(place.kill_store, "cache", signal.SIGKILL)
    assert (await client.deposit(account, 9, new_key())).status_code == 201
    await asyncio.to_thread(place.start_store, "cache")
    await asyncio.to_thread(place.start_store, "queue")
    for _ in range(150):  # the sweep comes back by itself and tells the cache
        if await place.value("SELECT count(*) FROM outbox") == 0:
            break
        await asyncio.sleep(0.1)
    assert await place.value("SELECT count(*) FROM outbox") == 0
    assert (await client.get(f"/v1/accounts/{account}/balance")).json()["balance"] == 9
