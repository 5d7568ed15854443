"""Reads over HTTP with two web processes and two standbys: most of them on the standbys, and never an older answer than one's own."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import pytest

from tests.replicas.conftest import Client, Place
from tests.standbys import until

pytestmark = pytest.mark.usefixtures("warm")

SHARE_MIN = 0.8
ACCOUNTS = 250
REQUESTS = 600
READS_IN_10 = 6
CLIENTS = 8
ROUNDS = 6  # of each client that writes and looks
FLUSHES = 15
DELAY_MS = 30  # less than a replica may lag: it stays in use, and is too old for who has just written
MILLISECOND = timedelta(milliseconds=1)


async def one_request(client: Client, chance: random.Random, accounts: list[UUID]) -> None:
    path = f"/v1/accounts/{chance.choice(accounts)}"
    if chance.randrange(10) >= READS_IN_10:
        await client.send(f"{path}/deposits", {"amount": 5, "method": "direct"})
        return
    match chance.randrange(5):
        case 0 | 1:
            await client.get(f"{path}/balance")
        case 2:
            await client.get(f"{path}/transactions")
        case 3:
            await client.get(f"{path}/transactions", limit=10)
        case _:
            await client.get(f"{path}/payments")


async def test_most_reads_are_on_replicas(place: Place, client: Client) -> None:
    accounts, chance = await place.accounts(ACCOUNTS), random.Random(5)
    before, (replicas_before, primary_before) = place.sql_reads(), await client.reads()

    async def share() -> None:
        for _ in range(REQUESTS // CLIENTS):
            await one_request(client, chance, accounts)

    await asyncio.gather(*(share() for _ in range(CLIENTS)))
    replicas, primary = await client.reads()
    said = sum(replicas.values()) - sum(replicas_before.values()), sum(primary.values()) - sum(primary_before.values())

    async def all_written_down() -> bool:
        after = place.sql_reads()
        return sum(after.values()) - sum(before.values()) >= sum(said)

    await until(all_written_down)
    counts = {name: count - before[name] for name, count in place.sql_reads().items()}
    print(f"reads by server: {counts}; by the processes' word: {said}, {primary}, before {before}")
    on_replicas = counts["replica_1"] + counts["replica_2"]
    assert on_replicas >= SHARE_MIN * sum(counts.values()), (counts, primary)
    assert min(counts["replica_1"], counts["replica_2"]) > 0.2 * on_replicas, counts
    assert on_replicas >= said[0]


async def write_and_look(client: Client, account: UUID) -> None:
    """One person: whatever was answered is seen by the next request, at the other server, in every way of looking."""
    path = f"/v1/accounts/{account}"
    for number in range(ROUNDS):
        posted = await client.send(f"{path}/deposits", {"amount": 7, "method": "direct"})
        row, version = posted["transaction"], posted["balance"]["version"]
        assert (await client.get(f"{path}/balance"))["version"] >= version
        assert (await client.get(f"{path}/transactions"))["items"][0]["sequence"] >= row["sequence"]
        assert (await client.get(f"{path}/transactions", limit=3))["items"][0]["id"] == row["id"]
        assert await client.get(f"/v1/transactions/{row['id']}") == row
        then = datetime.fromisoformat(row["created_at"]) + MILLISECOND
        assert (await client.get(f"{path}/balance", at=then.isoformat()))["balance"] == row["balance_after"]
        assert (await client.get(path))["version"] >= version
        held = await client.send(f"{path}/withdrawals", {"amount": 1, "method": "direct", "hold": True, "destination": {"iban": "X"}})
        payment = held["payment"]["id"]
        assert (await client.get(f"/v1/payments/{payment}"))["status"] == "pending"
        await client.send(f"/v1/payments/{payment}/cancel", {})
        assert (await client.get(f"/v1/payments/{payment}"))["status"] == "cancelled"
        assert (await client.get(f"{path}/payments", limit=1))["items"][0]["status"] == "cancelled"
        assert sum(item["count"] for item in (await client.get("/v1/reports/summary", account_id=account))["items"]) == number + 1
    await client.send(path, {"name": "mine"}, "PATCH")
    assert (await client.get(path))["name"] == "mine"


@pytest.mark.deep
async def test_a_replica_that_is_a_little_behind_is_never_noticed(place: Place, client: Client) -> None:
    accounts, (_, before) = await place.accounts(CLIENTS // 2), await client.reads()
    try:
        # a longer delay is one of a quiet moment: with many writers the replicas are out of use
        for delay_ms, writers in ((DELAY_MS, accounts[1:]), (3 * DELAY_MS, accounts[:1])):
            await place.delay(delay_ms)
            await asyncio.gather(*(write_and_look(client, account) for account in writers))
        _, after = await client.reads()
    finally:
        await place.delay(0)
    behind = sum(after.get(why, 0) - before.get(why, 0) for why in ("version", "missing"))
    assert behind, "some were asked and did not have it yet"


@asynccontextmanager
async def looking(place: Place, client: Client) -> AsyncIterator[None]:
    """Clients that write and look beside the block, and until it has ended."""
    accounts = await place.accounts(CLIENTS)
    stop = asyncio.Event()

    tasks = [asyncio.create_task(save_and_look(client, account, stop)) for account in accounts]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def save_and_look(client: Client, account: UUID, stop: asyncio.Event) -> None:
    """Deposits and looks until told to stop; every answer is 200 and as new as the last write."""
    path = f"/v1/accounts/{account}"
    count = 0
    while not stop.is_set():
        posted = await client.send(f"{path}/deposits", {"amount": 7, "method": "direct"})
        count += 1
        found = await asyncio.gather(
            client.get(f"{path}/balance"), client.get(f"{path}/transactions", limit=3), client.get(path), client.get(f"{path}/payments")
        )
        assert found[0]["version"] >= posted["balance"]["version"]
        assert found[1]["items"][0]["id"] == posted["transaction"]["id"]
        assert found[1]["total"] == count
        assert found[2]["version"] >= posted["balance"]["version"]


async def test_replay_paused_a_standby_stopped_and_one_killed_under_load(place: Place, client: Client) -> None:
    one, other = place.cluster.standbys

    async def fresh_are(count: int) -> None:
        async def seen() -> bool:
            return await client.fresh() == count

        await until(seen)

    async with looking(place, client):
        try:
            await one.pause_replay()
            await other.pause_replay()
            await fresh_are(0)
            await one.resume_replay()
            await other.resume_replay()
            await fresh_are(2)
            one.pause()
            await fresh_are(1)
            one.resume()
            await fresh_are(2)
            await asyncio.to_thread(other.kill)
            await fresh_are(1)
        finally:
            one.resume()
            await asyncio.to_thread(other.kill)
            await asyncio.to_thread(other.start)
        await fresh_are(2)


@pytest.mark.deep
async def test_an_emptied_cache_sends_reads_to_the_primary(place: Place, client: Client) -> None:
    [account] = await place.accounts(1)
    path = f"/v1/accounts/{account}"
    await place.delay(2 * DELAY_MS)
    try:
        for number in range(FLUSHES):
            posted = await client.send(f"{path}/deposits", {"amount": 1, "method": "direct"})
            await place.flush_cache()
            found = await client.get(f"{path}/balance" if number % 2 else path)
            assert found["version"] >= posted["balance"]["version"]
    finally:
        await place.delay(0)
    _, primary = await client.reads()
    assert primary["cold"] >= FLUSHES


async def test_a_new_account_is_there_at_once(place: Place, client: Client) -> None:
    user = await client.send("/v1/users", {"external_id": uuid4().hex})
    await place.delay(DELAY_MS)
    try:
        for _ in range(FLUSHES):
            made = await client.send("/v1/accounts", {"user_id": user["id"], "currency": "EUR"})
            assert (await client.get(f"/v1/accounts/{made['id']}"))["id"] == made["id"]
            assert (await client.get(f"/v1/accounts/{made['id']}/transactions"))["items"] == []
    finally:
        await place.delay(0)
