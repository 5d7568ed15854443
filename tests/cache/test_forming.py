"""Six nodes become a cluster, and are found again."""

import asyncio
import subprocess
import sys
import threading
import time

import msgspec
import pytest

from piggybank.appliance import cache_cluster
from piggybank.appliance.cache_cluster import SLOTS, Node
from piggybank.settings import Settings
from tests.clusters import PASSWORD, Nodes
from tests.conftest import ROOT, command, environment

from .conftest import until

WHOLE_WITHIN_S = 90
LATE_S = 3.0


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


def test_by_its_address_a_cluster_is_formed_again_though_a_disk_was_lost(nodes: Nodes, fresh_settings: Settings) -> None:
    before = nodes.observe()
    lost = before.replicas[0]
    nodes.lose(lost)
    settings = msgspec.structs.replace(fresh_settings, cache_url=nodes.all_urls)
    late = threading.Timer(LATE_S, nodes.start_processes)
    late.start()  # who forms them does not know when they are up
    assert command(settings, "cache", "form").strip() == "ok: 3 masters and 3 replicas hold all slots"
    late.join()
    after = {one.node_id for one in nodes.observe().members}
    assert len(after) == 6
    assert {one.node_id for one in before.members} - after == {lost.node_id}
    assert cache_cluster.form_at(nodes.all_urls).is_whole, "again: nothing changes"


@pytest.mark.deep
def test_one_is_kept_while_nodes_come_back_elsewhere_and_asked_without_a_change(nodes: Nodes, fresh_settings: Settings) -> None:
    """What compose runs beside the nodes, and its health check. Ports are to a node here what addresses are to a container."""
    settings = msgspec.structs.replace(fresh_settings, cache_url=nodes.all_urls)
    assert check(settings).returncode == 0
    nodes.stop()
    away = check(settings)
    assert (away.returncode, away.stderr.count(": away, 0 of 16384 slots")) == (1, 6), away.stderr
    nodes.renumber()
    nodes.start_processes()
    settings = msgspec.structs.replace(settings, cache_url=nodes.all_urls)
    assert check(settings).returncode == 1, "they do not know each other's ports of now, and looking does not tell them"
    keeping = subprocess.Popen(
        [sys.executable, "-m", "piggybank", "cache", "form", "--keep"], env=environment(settings), cwd=ROOT, stdout=subprocess.DEVNULL
    )
    try:
        until_whole(settings)
        three = nodes.observe().masters[:2] + nodes.observe().replicas[:1]
        for one in three:
            nodes.kill(one)
        assert check(settings).returncode == 1
        nodes.start_processes()
        until_whole(settings)
    finally:
        keeping.kill()
        keeping.wait()


def check(settings: Settings) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "piggybank", "cache", "form", "--check"]
    return subprocess.run(command, env=environment(settings), cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def until_whole(settings: Settings) -> None:
    deadline = time.monotonic() + WHOLE_WITHIN_S
    while check(settings).returncode != 0:
        assert time.monotonic() < deadline, check(settings).stderr


async def test_a_dead_replica_is_seen(nodes: Nodes) -> None:
    nodes.kill(nodes.observe().replicas[0])
    await until(lambda: asyncio.sleep(0, len(nodes.observe().replicas) == 2))
    assert not nodes.observe().is_whole


def test_nobody_there() -> None:
    seen = cache_cluster.observed([Node("127.0.0.1", 1, 2)], PASSWORD)
    assert (seen.state, seen.masters, seen.is_whole) == ("away", [], False)
