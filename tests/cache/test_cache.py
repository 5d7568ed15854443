"""The cache: reads that gather, values by version, nothing that fails when it is away."""

import asyncio
from uuid import uuid4

import msgspec
import pytest
from redis.asyncio import Redis

from piggybank import cache as module
from piggybank.cache import Cache, Entry, servers
from piggybank.cache.servers import Command
from piggybank.settings import Settings

from .conftest import until

TTL_S = 60
# `until`: a busy machine may take longer than an answer waits for its write

TRIES = 5


def entries(count: int) -> list[Entry]:
    return [Entry(uuid4().hex, number + 1, b"%d" % number) for number in range(count)]


async def test_many_reads_at_once_each_get_their_own(cache: Cache) -> None:
    known = entries(3 * module.MAX_GATHERED)
    await until(lambda: cache.write("test", known, TTL_S))
    for _ in range(TRIES):  # a read that a busy machine answers too late is a miss, never another's value
        strangers = [uuid4().hex for _ in known]
        found = await asyncio.gather(
            *(cache.read("test", key) for pair in zip((one.key for one in known), strangers, strict=True) for key in pair)
        )
        assert all(one.payload in (None, own.payload) for one, own in zip(found[::2], known, strict=True))
        if all(one.payload is not None for one in found[::2]):
            break
    assert [(one.payload, one.version) for one in found[::2]] == [(one.payload, one.version) for one in known]
    assert all(one.payload is None and one.lease for one in found[1::2])


async def test_who_hangs_up_takes_nobody_along(cache: Cache) -> None:
    known = entries(2)
    await until(lambda: cache.write("test", known, TTL_S))
    gone, stays = (asyncio.create_task(cache.read("test", one.key)) for one in known)
    await asyncio.sleep(0)
    gone.cancel()
    assert (await stays).payload == known[1].payload
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert (await cache.read("test", known[0].key)).payload == known[0].payload


async def test_a_value_that_is_not_ours_is_a_miss_and_spoils_nobody_elses(cache: Cache) -> None:
    (known,) = entries(1)
    await until(lambda: cache.write("test", [known], TTL_S))
    (put,) = await cache._servers.send([Command(servers.tag_of("strange"), ("SET", cache._name("test", "strange"), b"no version"))], TTL_S)
    assert not isinstance(put, Exception)
    strange, ours = await asyncio.gather(cache.read("test", "strange"), cache.read("test", known.key))
    assert (strange.payload, ours.payload) == (None, known.payload)


async def test_an_older_value_replaces_nothing(cache: Cache) -> None:
    new = entries(200)
    await until(lambda: cache.write("test", new, TTL_S))
    await until(lambda: cache.write("test", [Entry(one.key, one.version - 1, b"old") for one in new], TTL_S))
    found = await asyncio.gather(*(cache.read("test", one.key) for one in new))
    assert [one.payload for one in found] == [one.payload for one in new]


async def test_a_slow_reader_fills_nothing_after_a_write_or_a_forgetting(cache: Cache) -> None:
    written, forgotten, quiet = (uuid4().hex for _ in range(3))
    found = {key: await cache.read("test", key) for key in (written, forgotten, quiet)}
    assert all(one.lease for one in found.values())
    assert (await cache.read("test", quiet)).lease == ""  # somebody fills it
    await until(lambda: cache.write("test", [Entry(written, 2, b"new")], TTL_S))
    await until(lambda: cache.forget("test", [forgotten]))
    for key, one in found.items():
        await cache.fill("test", one, Entry(key, 1, b"old"), TTL_S)
    assert [(await cache.read("test", key)).payload for key in found] == [b"new", None, b"old"]


async def test_a_tombstone_stays(cache: Cache) -> None:
    (known,) = entries(1)
    await cache.write("test", [known], TTL_S)
    await until(lambda: cache.bury("test", [known.key], TTL_S))
    await cache.write("test", [known], TTL_S)
    assert (await cache.read("test", known.key)).is_tombstone


async def test_while_it_is_away_every_read_is_a_miss(settings: Settings) -> None:
    away = Cache(msgspec.structs.replace(settings, cache_url="redis://127.0.0.1:1/0").cache_url)
    away.epoch = "test"
    try:
        found = await asyncio.gather(*(away.read("test", str(number)) for number in range(3 * module.MAX_GATHERED)))
        assert all((one.payload, one.lease) == (None, "") for one in found)
        assert away.misses["test"] == 3 * module.MAX_GATHERED
    finally:
        await away.close()


async def test_it_knows_how_new_a_replica_must_be(settings: Settings, cache: Cache) -> None:
    told = Cache(settings.cache_url, has_replicas=True)
    told.epoch = uuid4().hex  # a past of its own, and a cold one
    try:
        (known,), missing = entries(1), uuid4().hex
        assert await told.write("test", [known], TTL_S)
        assert (await told.floor("test", known.key), await told.floor("test", missing)) == (known.version, None)
        async with Redis.from_url(settings.cache_url) as redis:
            assert 0 < await redis.pttl(f"{told.epoch}:cold:{{0}}") <= module.COLD_MS
            await redis.delete(f"{told.epoch}:cold:{{0}}")
        assert await told.floor("test", missing) == 0
        assert (await told.read("test", missing)).floor == 0
        assert await told.forget("test", [known.key])
        found = await told.read("test", known.key)
        assert (found.payload, found.lease, found.floor) == (None, "", None), "a replica may not have it yet"
        newer = known._replace(version=known.version + 1)
        assert await told.write("test", [newer], TTL_S)
        assert await told.floor("test", known.key) == newer.version
        assert await cache.floor("test", missing) is None, "without replicas nobody keeps the marks"
    finally:
        await told.close()


async def test_no_replica_is_asked_for_what_a_process_without_replicas_forgot(settings: Settings) -> None:
    """While the phase is changed both run, and a new name that was answered by the one is asked for by the other."""
    changed, told, without = uuid4().hex, Cache(settings.cache_url, has_replicas=True), Cache(settings.cache_url)
    told.epoch = without.epoch = uuid4().hex
    try:
        await told.floor("test", changed)
        async with Redis.from_url(settings.cache_url) as redis:
            await redis.delete(f"{told.epoch}:cold:{{0}}")
        assert await told.floor("test", changed) == 0
        await until(lambda: without.forget("test", [changed]))
        assert await told.floor("test", changed) is None
    finally:
        await told.close()
        await without.close()


async def test_while_it_is_closed_a_change_only_drops_what_is_there(cache: Cache) -> None:
    """One process knows already that the cache is being exchanged, another does not yet: nobody is shown what is older."""
    old, other = entries(2)
    try:
        assert await cache.write("test", [old], TTL_S)
        cache.know(cache.epoch, closed=True)
        assert (await cache.read("test", old.key)).payload is None
        assert await cache.write("test", [old._replace(version=old.version + 1)], TTL_S)
        cache.know(cache.epoch, closed=False)
        assert (await cache.read("test", old.key)).payload is None
        missed = await cache.read("test", other.key)
        assert (missed.payload, bool(missed.lease)) == (None, True)
        cache.know(cache.epoch, closed=True)
        await cache.fill("test", missed, other, TTL_S)
    finally:
        cache.know(cache.epoch, closed=False)
    assert (await cache.read("test", other.key)).payload is None
