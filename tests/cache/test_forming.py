"""Six nodes become a cluster, and are found again."""

import asyncio

import pytest

from piggybank.appliance import cache_cluster
from piggybank.appliance.cache_cluster import SLOTS, Node
from tests.clusters import PASSWORD, Nodes

from .conftest import until


def test_three_masters_and_three_replicas(nodes: Nodes) -> None:
    seen = nodes.observe()
    assert (seen.state, seen.slots_covered, seen.is_whole) == ("ok", SLOTS, True)
    assert (len(seen.masters), len(seen.replicas)) == (3, 3)
    assert sorted(one.master_id or "" for one in seen.replicas) == sorted(one.node_id for one in seen.masters)
    assert nodes.start() == nodes.observe()  # again: nothing changes


@pytest.mark.deep
def test_nodes_on_other_ports_are_met_again(nodes: Nodes) -> None:
    before = nodes.observe()
    nodes.stop()
    nodes.renumber()
    after = nodes.start()
    assert after.is_whole
    assert {one.node_id for one in after.members} == {one.node_id for one in before.members}
    assert {one.port for one in after.members} == {node.port for node in nodes.nodes}


async def test_a_dead_replica_is_seen(nodes: Nodes) -> None:
    nodes.kill(nodes.observe().replicas[0])
    await until(lambda: asyncio.sleep(0, not nodes.observe().is_whole))
    assert len(nodes.observe().replicas) == 2


def test_nobody_there() -> None:
    seen = cache_cluster.observed([Node("127.0.0.1", 1, 2)], PASSWORD)
    assert (seen.state, seen.masters, seen.is_whole) == ("away", [], False)
