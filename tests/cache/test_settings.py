"""What else of the product asks the cache finds a cluster, too."""

import asyncio

import msgspec
import pytest
from limits import RateLimitItemPerMinute

from piggybank import errors
from piggybank import settings as settings_file
from piggybank.api import limits
from piggybank.api.limits import SharedWindow
from piggybank.appliance import overview, valkeys
from piggybank.settings import Settings
from tests.clusters import Nodes

from .conftest import until

LIMIT = 100_000


def load(url: str) -> Settings:
    stores = {"PIGGYBANK_DATABASE_URL": "postgresql://a@b/c", "PIGGYBANK_OWNER_DATABASE_URL": "postgresql://a@b/c"}
    return settings_file.load(environment=stores | {"PIGGYBANK_QUEUE_URL": "redis://b:1/0", "PIGGYBANK_CACHE_URL": url})


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://:secret@one:7000",
        "rediss+cluster://user:secret@one:7000,two:7001",
        "valkey+cluster://[::1]:7000,two:7001/0",
        "valkeys+cluster://one:7000",
    ],
)
def test_addresses_of_a_cluster(url: str) -> None:
    assert load(url).cache_url == url
    assert settings_file.cluster_nodes(url)[0][1] == 7000


@pytest.mark.parametrize("url", ["redis+cluster://:secret@one", "redis+cluster://:secret@one:7000,", "redis+cluster://:secret@one:7000/1"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(errors.BadSetting, match="PIGGYBANK_CACHE_URL") as said:
        load(url)
    assert "secret" not in str(said.value)


async def test_the_doctor_looks_at_every_node(nodes: Nodes, settings: Settings) -> None:
    check = await valkeys.cache(nodes.url)
    assert (check.result, "3 masters, 3 replicas" in check.found) == ("ok", True)
    await until(lambda: asyncio.sleep(0, nodes.observe().is_whole))  # a busy machine's nodes miss each other
    replica = nodes.observe().replicas[0]
    with nodes.client(replica) as client:
        client.config_set("maxmemory-policy", "noeviction")
        assert (await valkeys.cache(nodes.url)).result == "warning"
        client.config_set("maxmemory-policy", "allkeys-lru")
    answers = await overview.stores_answer(msgspec.structs.replace(settings, cache_url=nodes.url))
    assert answers == {"database": True, "cache": True, "queue": True}
    assert (await valkeys.cache("redis+cluster://127.0.0.1:1")).result == "broken"


async def test_processes_count_sign_ins_together(nodes: Nodes) -> None:
    one, other = SharedWindow(nodes.url), SharedWindow(nodes.url)

    async def together() -> bool:
        before, _ = await one.count("sign_in", "ada", 1_000)
        after, _ = await other.count("sign_in", "ada", 1_000)
        return after == before - 1 < 999  # a window of a minute may end in between, and a busy machine be too slow

    await until(together)
    nodes.kill(nodes.observe().masters[0])
    for _ in range(5):
        assert (await one.count("sign_in", "eve", 1_000))[0] > 900  # here, while it is away
    await one.close()
    await other.close()


async def test_who_waits_too_long_for_a_count_leaves_it_to_end(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled, redis-py's cluster client now and then left a connection on which the next caller failed."""
    window, item = SharedWindow(nodes.url), RateLimitItemPerMinute(LIMIT)

    async def left() -> int:
        return (await window._limiter.get_window_stats(item, "sign_in", "eve")).remaining

    async def is_there() -> bool:
        return (await window.count("sign_in", "eve", LIMIT))[0] == await left()  # the shared count, not this process's

    await until(is_there)
    before = await left()
    monkeypatch.setattr(limits, "SHARED_PATIENCE_S", 0)
    assert (await window.count("sign_in", "eve", LIMIT))[0] >= 0, "counted here"
    await asyncio.gather(*window._asking)
    assert await left() in (before - 1, LIMIT - 1), "and there, too; a window of a minute may end in between"
    await window.close()
