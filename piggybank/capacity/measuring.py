"""What the stores say of themselves, right now. The servers count, so it is the same however many processes there are.

Nothing here fails because something cannot be known: that is None.
"""

from typing import Any

from msgspec import Struct
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import RedisError
from sqlalchemy import text

from piggybank.db import standbys
from piggybank.db.engines import Read

ANSWER_TIMEOUT_S = 2.0


class DatabaseFigures(Struct, frozen=True, kw_only=True):
    """Of the primary. `replicas` that stream, and how far the last of them is behind: None where the role may not see it."""

    connections: int
    max_connections: int
    replicas: int | None
    lag_ms: float | None
    database_bytes: int
    transactions_bytes: int
    users: int


class CacheFigures(Struct, frozen=True, kw_only=True):
    """All masters together; hits and misses since they started. A write-through looks, too, so it counts there."""

    used_bytes: int
    max_bytes: int | None  # None: no bound
    hits_total: int
    misses_total: int


# Other roles' connections show as rows without details, which is enough to count them: a client's has a database and a user.
# Tables are counted by what the planner or the last crash-free stretch knows: exact counts would read them.
_DATABASE = text(f"""
SELECT (SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL AND usesysid IS NOT NULL) AS connections,
       CAST(current_setting('max_connections') AS integer) AS max_connections,
       pg_database_size(current_database()) AS database_bytes,
       (SELECT CAST(sum(pg_total_relation_size(relid)) AS bigint)
        FROM pg_partition_tree('transactions')
        WHERE isleaf) AS transactions_bytes,
       (SELECT CAST(greatest(reltuples, pg_stat_get_live_tuples(oid), 0) AS bigint) FROM pg_class WHERE oid = 'users'::regclass) AS users,
       CASE WHEN {standbys.MAY_SEE} THEN following.count END AS replicas,
       following.lag_ms
FROM (
    SELECT count(*) AS count, CAST(max(extract(epoch FROM coalesce(replay_lag, '0'))) * 1000 AS double precision) AS lag_ms
    FROM pg_stat_replication
    WHERE {standbys.FOLLOWS}
) AS following
""")


async def database(read: Read) -> DatabaseFigures:
    """Ask the primary; raises what the session raises."""
    return DatabaseFigures(**(await read.execute(_DATABASE)).mappings().one())


async def cache(url: str) -> CacheFigures | None:
    """Ask the cache, each master of a cluster; None when it is away."""
    for address in _addresses(url):
        try:
            nodes = await _nodes(address)
        except (RedisError, OSError, TimeoutError):
            continue
        bounds = [int(node["maxmemory"]) for node in nodes]
        return CacheFigures(
            used_bytes=sum(int(node["used_memory"]) for node in nodes),
            max_bytes=sum(bounds) if all(bounds) else None,
            hits_total=sum(int(node["keyspace_hits"]) for node in nodes),
            misses_total=sum(int(node["keyspace_misses"]) for node in nodes),
        )
    return None


def _addresses(url: str) -> list[str]:
    """`redis+cluster://:password@one:1,two:2` names several nodes; whichever answers knows the others."""
    scheme, _, rest = url.partition("://")
    credentials, at, hosts = rest.rpartition("@")
    hosts, slash, path = hosts.partition("/")
    scheme = scheme.removesuffix("+cluster").replace("valkey", "redis", 1)  # redis-py knows no other
    return [f"{scheme}://{credentials}{at}{host}{slash}{path}" for host in hosts.split(",")]


async def _nodes(address: str) -> list[dict[str, Any]]:
    """What the server says of itself, or each master of its cluster."""
    async with Redis.from_url(address, socket_timeout=ANSWER_TIMEOUT_S, socket_connect_timeout=ANSWER_TIMEOUT_S) as client:
        info: dict[str, Any] = await client.info()
    if not info.get("cluster_enabled"):
        return [info]
    cluster = RedisCluster.from_url(address, socket_timeout=ANSWER_TIMEOUT_S, socket_connect_timeout=ANSWER_TIMEOUT_S)
    async with cluster:
        found: dict[str, dict[str, Any]] = await cluster.info(target_nodes=RedisCluster.PRIMARIES)
    return list(found.values())
