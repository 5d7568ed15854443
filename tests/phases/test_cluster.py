"""Phase 3 under HTTP load: slots of the cache move, and one of its masters is killed. Nobody is told an error or an older balance."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.crc import key_slot

from piggybank.appliance import store_files, topology
from piggybank.appliance.cache_cluster import Member, Node
from piggybank.cache import servers
from tests.appliance.bank import Bank, wait_until
from tests.clusters import Reached, slots_of
from tests.conftest import require
from tests.phases.load import loaded, shows_itself

pytestmark = pytest.mark.deep

SLOTS_MOVED = 6  # of those that accounts are in
TAG_SLOTS = {key_slot(str(tag).encode()) for tag in range(servers.TAGS)}
BETWEEN_S = 3.0  # of load: longer than the outbox needs to mend a write-through


@pytest.fixture
def bank(open_path: Path) -> Iterator[Bank]:
    """In phase 3 from the start."""
    require("pgbouncer")
    made = Bank(open_path / "bank", PIGGYBANK_PORT=str(store_files.free_ports(1)[0]))
    made.do("up", "--detach", "--phase", "3")
    yield made
    made.run("down")


def cluster_of(bank: Bank) -> Reached:
    secrets = bank.stores
    nodes = [Node("127.0.0.1", secrets.port_of(name), secrets.port_of(f"{name}-bus")) for name in topology.CACHE_NODES]
    return Reached(nodes, secrets.cache_password)


async def test_slots_move_and_a_master_is_killed_under_http_load(bank: Bank) -> None:
    cluster = cluster_of(bank)
    async with loaded(bank) as load:
        giver, taker = cluster.observe().masters[:2]
        with cluster.client(giver) as client:
            slots = sorted(TAG_SLOTS & slots_of(client))[:SLOTS_MOVED]
        for slot in slots:
            await asyncio.to_thread(cluster.move, slot, giver, taker)
        await asyncio.sleep(BETWEEN_S)
        for slot in slots:
            await asyncio.to_thread(cluster.move, slot, taker, giver)
        await asyncio.sleep(BETWEEN_S)
        await a_killed_master_is_started_again(bank, cluster)
        await asyncio.sleep(BETWEEN_S)
        await a_killed_master_is_replaced(bank, cluster)
        await asyncio.sleep(BETWEEN_S)
        assert dict(load.retries) == {}, "the cache is no reason for an error"
        assert load.stale == []
    await shows_itself(bank)


async def a_killed_master_is_started_again(bank: Bank, cluster: Reached) -> None:
    """At once, before its replica takes over: it is the master still, and has nothing."""
    victim = cluster.observe().masters[0]
    pid = bank.kill(name := name_of(bank, victim))
    await asyncio.to_thread(wait_until, lambda: bank.pids().get(name, pid) != pid and is_whole(cluster))


async def a_killed_master_is_replaced(bank: Bank, cluster: Reached) -> None:
    """Its replica takes over while nobody starts it again; then it comes back as a replica."""
    victim = cluster.observe().masters[0]
    supervisor = bank.pids()["supervisor"]
    os.kill(supervisor, signal.SIGSTOP)
    try:
        bank.kill(name_of(bank, victim))
        await asyncio.to_thread(wait_until, lambda: victim.node_id not in (masters := ids(cluster.observe().masters)) and len(masters) == 3)
        await asyncio.sleep(BETWEEN_S)
    finally:
        os.kill(supervisor, signal.SIGCONT)
    await asyncio.to_thread(wait_until, lambda: victim.node_id in ids(cluster.observe().replicas) and is_whole(cluster))


def name_of(bank: Bank, member: Member) -> str:
    return next(name for name in topology.CACHE_NODES if bank.stores.port_of(name) == member.port)


def ids(members: list[Member]) -> set[str]:
    return {one.node_id for one in members}


def is_whole(cluster: Reached) -> bool:
    seen = cluster.observe()
    return seen.is_whole and (len(seen.masters), len(seen.replicas)) == (3, 3)
