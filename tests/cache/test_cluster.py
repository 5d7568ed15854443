"""A cluster as the cache: slots that move and masters that die reach no caller, and nothing that was lost comes back."""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from redis.crc import key_slot

from piggybank.appliance.cache_cluster import Member
from piggybank.cache import Cache, Entry, servers
from piggybank.jobs.outbox import OLDER_THAN_S
from tests.clusters import Nodes, ask, slots_of

from .conftest import until

TTL_S = 60
KEYS = 400
TAG_SLOTS = {key_slot(str(tag).encode()) for tag in range(servers.TAGS)}


class Load:
    """Writers, readers and the sweep of one process over a "database" of versions; `stale` lists reads that broke the promise.

    `answered` is the version of a key's last write that went through, or of its mending: no read that begins later may find less.
    Where a write failed, it may still arrive; then nothing is promised until the sweep, a second later as in the product, has passed.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self.keys = [uuid4().hex for _ in range(KEYS)]
        self._database: dict[str, int] = defaultdict(lambda: 1)
        self._answered: dict[str, int] = defaultdict(int)
        self._failed: dict[str, float] = {}
        self.stale: list[tuple[str, int, int]] = []
        self.writes = self.hits = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(work()) for work in (self._write, self._read, self._read, self._mend)]
        try:
            yield
            assert not any(task.done() for task in tasks)  # an exception would have ended one
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def is_mended(self) -> bool:
        return not self._failed

    async def settled(self) -> bool:
        """Every write goes through again."""
        entries = [Entry(key, self._database[key], b"{}") for key in self.keys]
        return await self._cache.write("b", entries, TTL_S)

    async def _write(self) -> None:
        while True:
            batch = random.sample(self.keys, 40)
            for key in batch:
                self._database[key] += 1
            entries = [Entry(key, self._database[key], b"{}") for key in batch]
            if await self._cache.write("b", entries, TTL_S):
                self.writes += 1
                for entry in entries:
                    self._answered[entry.key] = max(self._answered[entry.key], entry.version)
            else:
                self._failed.update(dict.fromkeys(batch, time.monotonic()))
            await asyncio.sleep(0.005)

    async def _read(self) -> None:
        while True:
            await asyncio.gather(*(self._read_one(key) for key in random.sample(self.keys, 40)))
            await asyncio.sleep(0.002)

    async def _read_one(self, key: str) -> None:
        least = 0 if key in self._failed else self._answered[key]
        found = await self._cache.read("b", key)
        if found.payload is not None:
            self.hits += 1
            if found.version < least:
                self.stale.append((key, found.version, least))
        elif found.lease:
            version = self._database[key]
            await asyncio.sleep(random.random() * 0.02)  # a slow reader
            await self._cache.fill("b", found, Entry(key, version, b"{}"), TTL_S)

    async def _mend(self) -> None:
        while True:
            old = {key: failed for key, failed in self._failed.items() if failed < time.monotonic() - OLDER_THAN_S}
            versions = {key: self._database[key] for key in old}
            if old and await self._cache.forget("b", list(old)):
                for key, failed in old.items():
                    if self._failed[key] == failed:
                        del self._failed[key]
                        self._answered[key] = max(self._answered[key], versions[key])
            await asyncio.sleep(0.2)


async def master_of(nodes: Nodes, key: str) -> tuple[Member, Member]:
    """The master that has `key`, and its replica, when it has one: a moment ago a node may have died."""
    slot = key_slot(str(servers.tag_of(key)).encode())
    found: list[tuple[Member, Member]] = []

    async def seen() -> bool:
        members = nodes.observe()
        pairs = [(master, one) for master in members.masters for one in members.replicas if one.master_id == master.node_id]
        for master, replica in pairs:
            with nodes.client(master) as client:
                if slot in slots_of(client):
                    found.append((master, replica))
        return bool(found)

    await until(seen)
    return found[0]


async def test_a_batch_of_accounts_is_a_few_script_calls(cluster: Cache, nodes: Nodes) -> None:
    def calls() -> int:
        total = 0
        for master in nodes.observe().masters:
            with nodes.client(master) as client:
                stats = client.info("commandstats")
                total += sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha"))
        return total

    entries = [Entry(uuid4().hex, 1, b"{}") for _ in range(256)]
    await until(lambda: cluster.write("b", entries, TTL_S))  # now every master knows the script
    before = calls()
    assert await cluster.write("b", entries, TTL_S)
    assert calls() - before <= servers.TAGS


@pytest.mark.deep
async def test_slots_move_under_load(cluster: Cache, nodes: Nodes) -> None:
    load = Load(cluster)
    async with load.running():
        await until(load.settled)
        giver, taker = nodes.observe().masters[:2]
        with nodes.client(giver) as client:
            slots = sorted(TAG_SLOTS & slots_of(client))
        for slot in slots[:6]:
            await asyncio.to_thread(nodes.move, slot, giver, taker)
        await until(load.settled)
        await until(lambda: asyncio.sleep(0, load.is_mended))
        for slot in slots[:6]:
            await asyncio.to_thread(nodes.move, slot, taker, giver)
        await until(load.settled)
    assert load.stale == []
    assert load.hits > 0


async def test_a_master_dies_under_load(cluster: Cache, nodes: Nodes) -> None:
    load = Load(cluster)
    async with load.running():
        await until(load.settled)
        victim = nodes.observe().masters[0]
        nodes.kill(victim)
        await until(lambda: asyncio.sleep(0, len(nodes.observe().masters) == 3))
        await until(load.settled)
        await until(lambda: asyncio.sleep(0, load.is_mended))
        before = load.hits
        await until(lambda: asyncio.sleep(0, load.hits > before + KEYS))
        nodes.start()  # it comes back as a replica
        await until(load.settled)
    assert load.stale == []
    assert load.writes > 0


@pytest.mark.deep
async def test_what_a_promoted_replica_lacks_is_not_read(cluster: Cache, nodes: Nodes) -> None:
    """It has an older balance and a session that was ended; both were written to the master, and answered."""
    key = uuid4().hex
    others = [other for other in (uuid4().hex for _ in range(500)) if servers.tag_of(other) == servers.tag_of(key)]
    token = others[0]
    await until(lambda: cluster.write("b", [Entry(key, 1, b"old"), Entry(token, 0, b"session")], TTL_S))
    master, replica = await master_of(nodes, key)
    with nodes.client(master) as client, nodes.client(replica) as behind:
        assert ask(client, "WAIT", 1, 5_000) == 1
        behind.config_set("masterauth", "another")
        ask(behind, "CLIENT KILL TYPE master")
        await until(lambda: asyncio.sleep(0, behind.info("replication")["master_link_status"] == "down"))
        assert await cluster.write("b", [Entry(key, 2, b"new")], TTL_S)
        assert await cluster.bury("b", [token], TTL_S)
        nodes.kill(master)

        async def back() -> bool:
            balance, session = await asyncio.gather(cluster.read("b", key), cluster.read("b", token))
            assert balance.payload != b"old"
            assert session.payload != b"session"
            return bool(balance.lease)

        await until(back)
        assert behind.info("replication")["role"] == "master"
        behind.config_set("masterauth", "of the tests")
    newcomer = Cache(nodes.all_urls)  # a process that was not there at the time; of one node: it may be the one that died
    newcomer.epoch = cluster.epoch
    await until(newcomer.ping)
    assert (await newcomer.read("b", token)).payload is None
    await newcomer.close()


@pytest.mark.deep
async def test_a_part_that_is_away_takes_nothing_from_the_rest(cluster: Cache, nodes: Nodes) -> None:
    """No replica may take over: the others answer, what is on the dead master is a miss, and a write to it has failed."""
    entries = [Entry(uuid4().hex, 1, b"%d" % number) for number in range(100)]
    await until(lambda: cluster.write("b", entries, TTL_S))
    master, replica = await master_of(nodes, entries[0].key)
    nodes.kill(replica)
    nodes.kill(master)
    await until(lambda: fails(cluster.write("b", entries, TTL_S)))
    found = await asyncio.gather(*(cluster.read("b", one.key) for one in entries))
    assert {one.payload is None for one in found} == {True, False}
    assert found[0].payload is None
    assert all(one.payload in (None, entry.payload) for one, entry in zip(found, entries, strict=True))
    assert await cluster.ping()


async def fails(asked: Awaitable[bool]) -> bool:
    return not await asked


async def test_without_any_node_every_read_is_a_miss(nodes: Nodes) -> None:
    for url in ("redis+cluster://:x@127.0.0.1:1,127.0.0.1:2", nodes.url.replace("of%20the", "not%20the")):
        away = Cache(url)
        away.epoch = "test"
        assert (await away.read("b", "key")).lease == ""
        assert not await away.write("b", [Entry("key", 1, b"")], TTL_S)
        assert not await away.ping()
        await away.close()
