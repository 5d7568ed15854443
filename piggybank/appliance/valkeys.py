"""Cache and queue, as `piggybank doctor` looks at them."""

import asyncio
from collections.abc import Mapping

from redis.asyncio import Redis
from redis.exceptions import RedisError

from piggybank.appliance import cache_cluster
from piggybank.appliance.check import Check
from piggybank.cache.cluster import is_cluster
from piggybank.cache.servers import plain_url
from piggybank.settings import Settings

CONNECT_TIMEOUT_S = 5.0

_CACHE = {"maxmemory-policy": ("allkeys-lru",), "save": ("",), "appendonly": ("no",)}
# a file that it loads after a crash is older than the crash
_CACHE_WHY = "the cache must forget the least used, and all when it ends: old balances and ended sessions would come back"
_QUEUE = {"maxmemory-policy": ("noeviction",), "appendonly": ("yes",)}


async def examine(settings: Settings) -> list[Check]:
    """Both of them."""
    queue = _valkey("queue", settings.queue_url, _QUEUE, "the queue must keep its jobs")
    return list(await asyncio.gather(cache(settings.cache_url), queue))


async def cache(url: str) -> Check:
    """One server, or each node of a cluster."""
    if not is_cluster(url):
        return await _valkey("cache", url, _CACHE, _CACHE_WHY)
    seen = await asyncio.to_thread(cache_cluster.observed_at, url)
    found = f"{seen.state}: {len(seen.masters)} masters, {len(seen.replicas)} replicas, {seen.slots_covered:,} slots"
    if not seen.masters:
        return Check("cache", "broken", found, "piggybank status; money is right without it, only slower")
    nodes = [cache_cluster.node_url(url, one.host, one.port) for one in seen.members if one.up]
    checks = await asyncio.gather(*(_valkey("cache", node, _CACHE, _CACHE_WHY) for node in nodes))
    if wrong := next((check for check in checks if check.result != "ok"), None):
        return wrong
    if not seen.is_whole:
        return Check("cache", "warning", found, "start the nodes that are away; until then a part of the reads goes to the database")
    return Check("cache", "ok", found)


async def _valkey(name: str, url: str, wanted: Mapping[str, tuple[str, ...]], why: str) -> Check:
    if not url:
        return Check(name, "broken", "no address", "start the embedded stores: piggybank up --detach")
    try:
        async with Redis.from_url(
            plain_url(url), decode_responses=True, socket_timeout=CONNECT_TIMEOUT_S, socket_connect_timeout=CONNECT_TIMEOUT_S
        ) as client:
            await client.ping()
            try:
                have = await client.config_get(*wanted)
            except RedisError:
                return Check(name, "ok", "answers; its settings are not shown (a managed service)")
    except (OSError, RedisError) as error:
        return Check(name, "broken", f"does not answer: {error}", "piggybank status; money is right without it, only slower")
    wrong = {key: have.get(key) for key, allowed in wanted.items() if have.get(key) not in allowed}
    if wrong:
        do = "; ".join(f"CONFIG SET {key} {_quoted(wanted[key][0])}" for key in wrong)
        return Check(name, "warning", f"{why}: {', '.join(f'{key} = {value}' for key, value in wrong.items())}", do)
    return Check(name, "ok", f"answers; {', '.join(f'{key} = {_quoted(have[key])}' for key in wanted)}")


def _quoted(value: str | None) -> str:
    return value or '""'
