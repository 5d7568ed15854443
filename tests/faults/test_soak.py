"""Minutes of mixed load while servers and stores are killed at random: nothing lost, nothing doubled."""

import asyncio
import random
import signal
import time

import pytest

from tests.faults.conftest import Client, Place, new_key

SOAK_S = 180
CLIENTS = 24
ACCOUNTS = 12
START = 1_000_000


@pytest.mark.deep
async def test_a_soak_with_everything_dying(place: Place, client: Client) -> None:
    accounts = await place.accounts(ACCOUNTS)
    for account in accounts:
        await client.deposit(account, START, new_key())
    counted = dict.fromkeys(accounts, START)
    until = time.monotonic() + SOAK_S

    async def one(seed: int) -> int:
        chance = random.Random(seed)
        requests = 0
        while time.monotonic() < until:
            source, target = chance.sample(accounts, 2)
            amount, key = chance.randint(1, 50), new_key()
            what = chance.choice(("deposit", "withdrawal", "transfer"))
            if what == "transfer":
                body: dict[str, object] = {"from_account": str(source), "to_account": str(target), "amount": amount}
                answer = await client.post("/v1/transfers", body, key, seed)
                moves = {source: -amount, target: amount}
            else:
                body = {"amount": amount, "method": "direct"}
                answer = await client.post(f"/v1/accounts/{source}/{what}s", body, key, seed)
                moves = {source: amount if what == "deposit" else -amount}
            assert answer.status_code == 201, answer.text
            for account, move in moves.items():
                counted[account] += move
            requests += 1
        return requests

    async def trouble() -> int:
        chance = random.Random(7)
        killed = 0
        while time.monotonic() < until:
            await asyncio.sleep(chance.uniform(1, 6))
            what = chance.choice(("postgres", "cache", "queue", "server 0", "server 1"))
            if what.startswith("server"):
                number = int(what[-1])
                place.servers[number].kill()
                await asyncio.to_thread(place.restart_server, number)
            else:
                await asyncio.to_thread(place.kill_store, what, signal.SIGQUIT if what == "postgres" else signal.SIGKILL)
                await asyncio.sleep(chance.uniform(0, 1))
                await asyncio.to_thread(place.start_store, what)
            killed += 1
        return killed

    killed, *requests = await asyncio.gather(trouble(), *(one(seed) for seed in range(CLIENTS)))
    print(f"{sum(requests)} requests, {client.retries} retries, {killed} kills")
    for account in accounts:
        assert await place.value("SELECT balance FROM accounts WHERE id = $1", account) == counted[account]
    assert await place.differences() == []
