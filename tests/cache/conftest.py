"""A cache of each kind: the run's single server, and a cluster of six real nodes."""

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from redis import Redis

from piggybank.appliance import binaries, cache_cluster, store_files
from piggybank.appliance.cache_cluster import Member, Node, Observed
from piggybank.cache import Cache
from piggybank.settings import Settings

PASSWORD = "of the tests"
MEMORY_MIB = 64
NODES = 6
PATIENCE_S = 60.0


class Nodes:
    """Three masters and three replicas; each may be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._program = binaries.valkey(folder, None)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self.nodes: list[Node] = []
        self.renumber()

    @property
    def url(self) -> str:
        """Of one node, the last: a replica at first."""
        return f"redis+cluster://:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{self.nodes[-1].port}"

    def renumber(self) -> None:
        """Choose other ports, for nodes that do not run."""
        ports = store_files.free_ports(2 * NODES)
        self.nodes = [Node("127.0.0.1", ports[number], ports[NODES + number]) for number in range(NODES)]

    def start(self) -> Observed:
        """Start who does not run; wait until they are one cluster."""
        for number, node in enumerate(self.nodes):
            if number not in self._processes or self._processes[number].poll() is not None:
                folder = self._folder / f"node-{number}"
                folder.mkdir(exist_ok=True)
                (folder / "valkey.conf").write_text(cache_cluster.cluster_conf(node, f'"{PASSWORD}"', folder, MEMORY_MIB))
                with (folder / "log").open("ab") as log:
                    self._processes[number] = subprocess.Popen([self._program, folder / "valkey.conf"], stdout=log, stderr=log)
        return cache_cluster.form(self.nodes, PASSWORD)

    def observe(self) -> Observed:
        return cache_cluster.observed(self.nodes, PASSWORD)

    def client(self, member: Member) -> Redis:
        return Redis(host=member.host, port=member.port, password=PASSWORD, decode_responses=True)

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


@pytest.fixture(scope="session")
def started_nodes(open_folder: Path) -> Iterator[Nodes]:
    folder = open_folder / f"cluster-{uuid4().hex[:8]}"
    folder.mkdir(mode=0o755)
    made = Nodes(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def nodes(started_nodes: Nodes) -> Nodes:
    """All six up, whatever the test before did."""
    started_nodes.start()
    return started_nodes


@pytest.fixture
async def cluster(nodes: Nodes) -> AsyncIterator[Cache]:
    """A process's cache, found by one node of the cluster."""
    made = Cache(nodes.url)
    made.epoch = uuid4().hex[:8]
    await until(made.ping)
    yield made
    await made.close()


@pytest.fixture(params=["single", "cluster"])
async def cache(request: pytest.FixtureRequest, settings: Settings) -> AsyncIterator[Cache]:
    """Of both kinds, under an epoch of the test's own."""
    made = Cache(settings.cache_url if request.param == "single" else request.getfixturevalue("nodes").url)
    made.epoch = uuid4().hex[:8]
    await until(made.ping)
    yield made
    await made.close()


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what must become true."""
    deadline = time.monotonic() + PATIENCE_S
    while not await true():
        assert time.monotonic() < deadline, "it did not become true"
        await asyncio.sleep(0.05)
