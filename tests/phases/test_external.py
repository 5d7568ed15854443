"""Stores of the operator's own: a flip looks at them, takes reads and writes there, and starts and stops nothing of theirs."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from piggybank import settings as settings_file
from piggybank.appliance import binaries, pooler, store_files
from tests.appliance.bank import Bank
from tests.clusters import Nodes
from tests.conftest import require
from tests.phases.load import Load, loaded, shows_itself
from tests.poolers import pooled
from tests.standbys import Replicated, replicated, until

pytestmark = pytest.mark.deep

POOLER_CLIENTS, POOLER_SERVERS = 1_000, 50


class Outside(NamedTuple):
    """What the operator runs, and the installation that uses it."""

    cluster: Replicated
    nodes: Nodes
    pooler_url: str
    bank: Bank

    def use_cache(self, url: str) -> None:
        """The one address that changes between two phases stands in the file: an environment is as old as its process."""
        (self.bank.data_dir / settings_file.OPERATOR_FILE).write_text(settings_file.with_values("", {"cache_url": url}))


@pytest.fixture
def outside(open_path: Path) -> Iterator[Outside]:
    """A primary with two standbys, a pooler, a cache, a queue and a cluster; the installation runs there in phase 0."""
    require("pgbouncer")
    with ExitStack() as stack:
        cluster = stack.enter_context(replicated(open_path / "servers"))
        own = cluster.settings
        through = stack.enter_context(pooled(own, open_path / "pooler", clients=POOLER_CLIENTS, servers=POOLER_SERVERS))
        nodes = Nodes(open_path / "nodes")
        stack.callback(nodes.stop)
        nodes.start()
        bank = Bank(
            open_path / "bank",
            PIGGYBANK_PORT=str(store_files.free_ports(1)[0]),
            PIGGYBANK_DATABASE_URL=own.database_url,
            PIGGYBANK_OWNER_DATABASE_URL=own.owner_database_url,
            PIGGYBANK_REPLICA_URLS=",".join(own.replica_urls),
            PIGGYBANK_POOLER_URL=through.pooler_url,
            PIGGYBANK_QUEUE_URL=own.queue_url,
        )
        made = Outside(cluster, nodes, through.pooler_url, bank)
        bank.data_dir.mkdir()
        (bank.data_dir / ".piggybank").touch()
        made.use_cache(own.cache_url)
        stack.callback(bank.run, "down")
        bank.do("up", "--detach")
        yield made


async def test_servers_of_the_operators_own_carry_every_phase_under_load(outside: Outside) -> None:
    """Up to 3 and down to 1: no write fails, nothing is read older, and what a server does not show is told."""
    bank = outside.bank
    async with loaded(bank) as load:
        await asyncio.to_thread(bank.do, "phase", "apply", "2")
        await shows_itself(bank)
        await reads_go_to_replicas(bank, load)
        assert pooler.observed(outside.pooler_url, binaries.client("psql")).clients_active > 0

        refused = await asyncio.to_thread(bank.run, "phase", "apply", "3")
        assert (refused.returncode, "cache" in refused.stderr, "cache_url" in refused.stderr) == (1, True, True)
        outside.use_cache(outside.nodes.url)
        await asyncio.to_thread(bank.do, "phase", "apply", "3")
        await shows_itself(bank)
        await a_killed_replica_is_a_difference(outside)

        await asyncio.to_thread(bank.do, "phase", "apply", "1")
        await shows_itself(bank)
        assert load.stale == []
    assert await outside.cluster.value("SELECT count(*) FROM pg_stat_replication") == 2, "they are not ours to stop"
    await asyncio.to_thread(bank.do, "down")
    await asyncio.to_thread(bank.do, "up", "--detach", "--phase", "2")
    await shows_itself(bank)


async def reads_go_to_replicas(bank: Bank, load: Load) -> None:
    """One web process's own count rises."""

    async def do_they() -> bool:
        async with httpx.AsyncClient(headers=load.headers, timeout=5) as client:
            said = (await client.get(f"{bank.url}/v1/ops/status")).json()["reads"]
        return any(one["reads"] for one in said["replicas"])

    await until(do_they)


async def a_killed_replica_is_a_difference(outside: Outside) -> None:
    """Its primary misses it; the other one goes on confirming, so writes go on."""
    victim = outside.cluster.standbys[0]
    victim.kill()
    seen = await asyncio.to_thread(outside.bank.ask, "phase", "show", "--observed", "--json")
    assert seen.exit_code == 1
    assert json.loads(seen.stdout)["differences"] == ["replicas: 2 declared, 1 seen"]
    await asyncio.to_thread(victim.start)
    await outside.cluster.streaming()
    assert (await asyncio.to_thread(outside.bank.ask, "phase", "show", "--observed")).exit_code == 0
