"""The cache: reads that gather, values by version, nothing that fails when it is away."""

import asyncio
from uuid import uuid4

import msgspec
import pytest
from redis.asyncio import Redis

from piggybank import cache as module
from piggybank.cache import Cache, Entry
from piggybank.settings import Settings

TTL_S = 60


def entries(count: int) -> list[Entry]:
    return [Entry(uuid4().hex, number + 1, b"%d" % number) for number in range(count)]


async def test_many_reads_at_once_each_get_their_own(cache: Cache) -> None:
    known = entries(3 * module.MAX_GATHERED)
    assert await cache.write("test", known, TTL_S)
    strangers = [uuid4().hex for _ in known]
    found = await asyncio.gather(
        *(cache.read("test", key) for pair in zip((one.key for one in known), strangers, strict=True) for key in pair)
    )
    assert [(one.payload, one.version) for one in found[::2]] == [(one.payload, one.version) for one in known]
    assert all(one.payload is None and one.lease for one in found[1::2])


async def test_who_hangs_up_takes_nobody_along(cache: Cache) -> None:
    known = entries(2)
    assert await cache.write("test", known, TTL_S)
    gone, stays = (asyncio.create_task(cache.read("test", one.key)) for one in known)
    await asyncio.sleep(0)
    gone.cancel()
    assert (await stays).payload == known[1].payload
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert (await cache.read("test", known[0].key)).payload == known[0].payload


async def test_a_value_that_is_not_ours_is_a_miss_and_spoils_nobody_elses(cache: Cache, settings: Settings) -> None:
    (known,) = entries(1)
    assert await cache.write("test", [known], TTL_S)
    async with Redis.from_url(settings.cache_url) as redis:
        await redis.set(f"{cache.epoch}:test:{{strange}}", b"no version")
    strange, ours = await asyncio.gather(cache.read("test", "strange"), cache.read("test", known.key))
    assert (strange.payload, ours.payload) == (None, known.payload)


async def test_while_it_is_away_every_read_is_a_miss(settings: Settings) -> None:
    away = Cache(msgspec.structs.replace(settings, cache_url="redis://127.0.0.1:1/0").cache_url)
    away.epoch = "test"
    try:
        found = await asyncio.gather(*(away.read("test", str(number)) for number in range(3 * module.MAX_GATHERED)))
        assert all((one.payload, one.lease) == (None, "") for one in found)
        assert away.misses["test"] == 3 * module.MAX_GATHERED
    finally:
        await away.close()
