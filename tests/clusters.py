"""Clusters of real nodes: of the test's own, or of an installation; slots that move, masters that are killed.

nodes = Nodes(folder)       # three masters and three replicas; start, kill, start again
Reached(..).move(slot, giver, taker)
"""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from redis import Redis

from piggybank.appliance import binaries, cache_cluster, store_files
from piggybank.appliance.cache_cluster import Member, Node, Observed

PASSWORD = "of the tests"
MEMORY_MIB = 64
NODES = 6
MIGRATE_TIMEOUT_MS = 5_000


def ask(client: Redis, *words: str | int) -> Any:
    """A command that redis-py has no typed method for."""
    return client.execute_command(*words)  # type: ignore[no-untyped-call]


def slots_of(client: Redis) -> set[int]:
    """Those that the node holds, as it says itself."""
    rows = ask(client, "CLUSTER NODES").values()
    runs = [run for row in rows if "myself" in row["flags"] for run in row["slots"]]
    return {slot for run in runs for slot in range(int(run[0]), int(run[-1]) + 1)}


class Reached:
    """A cluster that somebody runs."""

    def __init__(self, nodes: Sequence[Node], password: str) -> None:
        self.nodes = list(nodes)
        self._password = password

    def observe(self) -> Observed:
        return cache_cluster.observed(self.nodes, self._password)

    def client(self, member: Member) -> Redis:
        return Redis(host=member.host, port=member.port, password=self._password, decode_responses=True)

    def move(self, slot: int, giver: Member, taker: Member) -> None:
        """As the tools do it: key by key, then tell all masters."""
        masters = self.observe().masters
        with self.client(giver) as source, self.client(taker) as target:
            ask(target, "CLUSTER SETSLOT", slot, "IMPORTING", giver.node_id)
            ask(source, "CLUSTER SETSLOT", slot, "MIGRATING", taker.node_id)
            while keys := ask(source, "CLUSTER GETKEYSINSLOT", slot, 3):
                for key in keys:
                    ask(source, "MIGRATE", taker.host, taker.port, key, 0, MIGRATE_TIMEOUT_MS, "REPLACE", "AUTH", self._password)
            for one in (taker, giver, *masters):
                with self.client(one) as client:
                    ask(client, "CLUSTER SETSLOT", slot, "NODE", taker.node_id)


class Nodes(Reached):
    """Three masters and three replicas of the test's own; each may be killed and started again."""

    def __init__(self, folder: Path) -> None:
        super().__init__([], PASSWORD)
        self._folder = folder
        self._program = binaries.valkey(folder, None)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self.renumber()

    @property
    def url(self) -> str:
        """Of one node, the last: a replica at first."""
        return f"redis+cluster://:{quote(PASSWORD)}@127.0.0.1:{self.nodes[-1].port}"

    def renumber(self) -> None:
        """Choose other ports, for nodes that do not run."""
        ports = store_files.free_ports(2 * NODES)
        self.nodes = [Node("127.0.0.1", ports[number], ports[NODES + number]) for number in range(NODES)]

    @property
    def all_urls(self) -> str:
        """The address of all of them."""
        return f"redis+cluster://:{quote(PASSWORD)}@" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def start(self) -> Observed:
        """Start who does not run; wait until they are one cluster."""
        self.start_processes()
        return cache_cluster.form(self.nodes, PASSWORD)

    def start_processes(self) -> None:
        """Start who does not run."""
        for number, node in enumerate(self.nodes):
            if number not in self._processes or self._processes[number].poll() is not None:
                folder = self._folder / f"node-{number}"
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "valkey.conf").write_text(cache_cluster.cluster_conf(node, f'"{PASSWORD}"', folder, MEMORY_MIB))
                with (folder / "log").open("ab") as log:
                    self._processes[number] = subprocess.Popen([self._program, folder / "valkey.conf"], stdout=log, stderr=log)

    def lose(self, member: Member) -> None:
        """kill -9, and its disk is gone, too."""
        number = next(number for number, node in enumerate(self.nodes) if node.port == member.port)
        self.kill(member)
        (self._folder / f"node-{number}" / cache_cluster.NODES_FILE).unlink()

    def kill(self, member: Member) -> None:
        """kill -9."""
        number = next(number for number, node in enumerate(self.nodes) if node.port == member.port)
        self._processes[number].kill()
        self._processes[number].wait()

    def stop(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()
        self._processes.clear()
