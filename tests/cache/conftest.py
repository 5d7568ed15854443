"""A cache of each kind: the run's single server, and a cluster of six real nodes."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from piggybank.cache import Cache
from piggybank.settings import Settings
from tests.clusters import Nodes

PATIENCE_S = 60.0


@pytest.fixture(scope="package")
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
