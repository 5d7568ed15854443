"""Whether stores that the operator runs elsewhere are what a phase needs, asked of the servers themselves.

A replica is believed when it shows what this primary has just written: a mark, as the comment of a table. Views of replication are not
for every role, a system identifier is the same in every copy, and of an idle link they all say that it is well.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
from msgspec import Struct
from redis.asyncio import Redis
from redis.exceptions import RedisError

from piggybank.appliance import cache_cluster
from piggybank.cache.cluster import is_cluster
from piggybank.cache.servers import plain_url
from piggybank.capacity import phases
from piggybank.capacity.phases import Phase
from piggybank.db import roles, standbys
from piggybank.db.engines import UNPREPARED
from piggybank.settings import Settings, cluster_nodes

CONNECT_TIMEOUT_S = 5.0
SHOWN_WITHIN_S = 10.0  # a replica that works shows a change within 100 ms
POLL_S = 0.1
AWAY = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)

_MARK = "obj_description(to_regclass('public.installation'), 'pg_class')"
_SERVER = f"""
SELECT system_identifier, pg_is_in_recovery() AS is_replica, pg_postmaster_start_time() AS started, {_MARK} AS mark
FROM pg_control_system()
"""


class Finding(Struct, frozen=True, kw_only=True):
    """Something that is not as it must be, and what to do."""

    what: str
    do: str


async def check(settings: Settings, phase: int, *, caches: bool = True) -> list[Finding]:
    """What stands in the way of `phase` with the addresses of these settings; empty: nothing. For stores that are not embedded.

    Without `caches` of the database only: the supervisor makes embedded Valkeys what the phase needs.
    """
    wanted = phases.of(phase)
    asked = [_databases(settings, wanted), *([_caches(settings, wanted)] if caches else [])]
    return [finding for found in await asyncio.gather(*asked) for finding in found]


# PostgreSQL -----------------------------------------------------------------------------------------------------------


async def _databases(settings: Settings, phase: Phase) -> list[Finding]:
    found = _addresses(settings, phase)
    if not (phase.replicas or phase.pooled):
        return found
    try:
        primary = await asyncpg.connect(settings.owner_database_url, timeout=CONNECT_TIMEOUT_S)
    except AWAY as cause:
        return [*found, Finding(what=f"the primary does not answer: {cause}", do="look at owner_database_url and whether that server runs")]
    mark = f"seen {uuid4().hex}"
    try:
        server = await primary.fetchrow(_SERVER)
        if server["is_replica"]:
            return [*found, Finding(what="owner_database_url leads to a replica", do="give the address of its primary")]
        await _write_mark(primary, mark)
        replicas = settings.replica_urls if phase.replicas else []
        found += [finding for each in await asyncio.gather(*(_replica(url, server, mark) for url in replicas)) for finding in each]
        found += await _twice(replicas)
        if phase.pooled and settings.pooler_url:
            found += await _pooler(settings.pooler_url, server, mark)
        if phase.replicas and settings.durability == "synchronous":
            found += await _confirming(settings.database_url)
        return found
    except asyncpg.PostgresError as cause:
        return [
            *found,
            Finding(what=f"the primary does not take the check's mark: {cause}", do="give the owner's address; piggybank doctor"),
        ]
    finally:
        await _write_mark_away(primary)


def _addresses(settings: Settings, phase: Phase) -> list[Finding]:
    found = []
    if len(settings.replica_urls) < phase.replicas:
        what = f"phase {phase.number} reads from {phase.replicas} replicas, and replica_urls names {len(settings.replica_urls)}"
        found.append(Finding(what=what, do="give the application role's address on each replica, commas between them"))
    if phase.pooled and not settings.pooler_url:
        what = f"phase {phase.number} goes through a pooler, and pooler_url is empty"
        found.append(Finding(what=what, do="give the application role's address on PgBouncer, in transaction mode"))
    return found


async def _write_mark(primary: asyncpg.Connection, mark: str | None) -> None:
    async with primary.transaction():
        await primary.execute("SET LOCAL synchronous_commit = local")  # without a standby to confirm, this is what tells
        said = f"'{mark}'" if mark else "NULL"
        await primary.execute(f"COMMENT ON TABLE installation IS {said}")


async def _write_mark_away(primary: asyncpg.Connection) -> None:
    try:
        await _write_mark(primary, None)
        await primary.close()
    except AWAY:  # a mark that stays says nothing to anybody
        primary.terminate()


async def _replica(url: str, primary: Mapping[str, Any], mark: str) -> list[Finding]:
    name = _shown(url)
    try:
        replica = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S)
    except AWAY as cause:
        return [
            Finding(what=f"the replica {name} does not answer: {cause}", do="see that it runs, and look at its address in replica_urls")
        ]
    try:
        server = await replica.fetchrow(_SERVER)
        if server["system_identifier"] != primary["system_identifier"]:
            return [Finding(what=f"{name} is no copy of this primary", do="make one: pg_basebackup --write-recovery-conf")]
        if not server["is_replica"]:
            do = "it was promoted, or is the primary itself: give a replica's address, or make it one again with pg_rewind"
            return [Finding(what=f"{name} is not a replica: it takes writes", do=do)]
        until = time.monotonic() + SHOWN_WITHIN_S
        while server["mark"] != mark:
            if time.monotonic() > until:
                what = f"{name} does not show within {SHOWN_WITHIN_S:.0f} s what the primary wrote"
                return [
                    Finding(what=what, do="look at primary_conninfo there and at its log: it does not stream from this primary, or lags")
                ]
            await asyncio.sleep(POLL_S)
            server = await replica.fetchrow(_SERVER)
        return []
    except AWAY as cause:
        return [Finding(what=f"the replica {name} failed the check: {cause}", do="look into its log")]
    finally:
        replica.terminate()


async def _twice(urls: list[str]) -> list[Finding]:
    """Two addresses of one server are one replica."""
    started: dict[Any, str] = {}
    for url in urls:
        try:
            replica = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S)
        except AWAY:  # it was told of already
            continue
        moment = await replica.fetchval("SELECT pg_postmaster_start_time()")
        replica.terminate()
        if moment in started:
            return [Finding(what=f"{_shown(url)} and {started[moment]} are one server", do="give each replica once in replica_urls")]
        started[moment] = _shown(url)
    return []


async def _confirming(database_url: str) -> list[Finding]:
    """Whether writes would find a standby that confirms: asked as they ask, by the application's role."""
    try:
        application = await asyncpg.connect(database_url, timeout=CONNECT_TIMEOUT_S)
    except AWAY as cause:
        return [Finding(what=f"database_url does not answer: {cause}", do="look at the address and the password in it")]
    try:
        count = await application.fetchval(standbys.CONFIRMING)
    except AWAY as cause:
        return [Finding(what=f"database_url failed the check: {cause}", do="look into that server's log")]
    finally:
        application.terminate()
    if count is None:
        role = roles.role_of(database_url)
        what = f"the role {role} may not see whether a standby confirms, so every write would be refused"
        return [Finding(what=what, do=f"as a superuser of the primary: GRANT {roles.SEES_STANDBYS} TO {roles.quoted(role)}")]
    if count == 0:
        do = "on the primary: ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'; SELECT pg_reload_conf(); or set durability = local"
        return [Finding(what="no standby confirms a commit, so every write would be refused", do=do)]
    return []


async def _pooler(url: str, primary: Mapping[str, Any], mark: str) -> list[Finding]:
    name = _shown(url)
    try:
        pooler = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S, **UNPREPARED)
    except AWAY as cause:
        do = "see that PgBouncer runs, knows the application role, and has ignore_startup_parameters = extra_float_digits"
        return [Finding(what=f"the pooler {name} does not answer: {cause}", do=do)]
    try:
        async with pooler.transaction():  # of one server connection
            server = await pooler.fetchrow(_SERVER)
    except AWAY as cause:
        return [Finding(what=f"the pooler {name} does not reach its server: {cause}", do="look at [databases] in pgbouncer.ini")]
    finally:
        pooler.terminate()
    same = server["system_identifier"] == primary["system_identifier"] and server["mark"] == mark
    if not same or server["is_replica"] or server["started"] != primary["started"]:
        return [Finding(what=f"the pooler {name} leads to another server than this primary", do="correct [databases] in pgbouncer.ini")]
    return []


# Valkey ---------------------------------------------------------------------------------------------------------------


async def _caches(settings: Settings, phase: Phase) -> list[Finding]:
    cache, queue = await asyncio.gather(_info(settings.cache_url), _info(settings.queue_url))
    found = []
    if isinstance(cache, str):
        found.append(Finding(what=f"the cache does not answer: {cache}", do="see that it runs, and look at cache_url"))
    elif phase.clustered:
        found += _cluster(cache, phase)
    if isinstance(queue, str):
        return [*found, Finding(what=f"the queue does not answer: {queue}", do="see that it runs, and look at queue_url")]
    if queue.get("cluster_enabled"):
        found.append(Finding(what="the queue is a cluster, and jobs know no cluster", do="give queue_url an instance of its own"))
    if (policy := queue.get("maxmemory_policy", "noeviction")) != "noeviction":
        found.append(Finding(what=f"the queue may forget jobs: {policy}", do="CONFIG SET maxmemory-policy noeviction there"))
    if phase.own_queue and not isinstance(cache, str) and cache["run_id"] == queue["run_id"]:
        found.append(
            Finding(what="cache and queue are one server", do="give queue_url an instance of its own: a full cache would stop jobs")
        )
    return found


def _cluster(cache: Mapping[str, Any], phase: Phase) -> list[Finding]:
    wanted = f"{phase.cache_masters} masters and {phase.cache_replicas} replicas"
    if not cache.get("cluster_enabled"):
        return [
            Finding(what=f"cache_url is no cluster; phase {phase.number} has one of {wanted}", do="give the address of one of its nodes")
        ]
    if cache["cluster_state"] != "ok":
        return [Finding(what=f"the cache cluster is in state {cache['cluster_state']}", do="CLUSTER NODES tells which slots nobody serves")]
    masters, replicas = int(cache["cluster_size"]), int(cache["cluster_known_nodes"]) - int(cache["cluster_size"])
    if masters < phase.cache_masters or replicas < phase.cache_replicas:
        what = f"the cache cluster has {masters} masters and {replicas} replicas; phase {phase.number} has {wanted}"
        return [Finding(what=what, do="add nodes to it")]
    return []


async def _info(url: str) -> dict[str, Any] | str:
    """What the server says of itself and of its cluster; or why it says nothing."""
    if is_cluster(url):
        host, port = cluster_nodes(url)[0]
        url = cache_cluster.node_url(url, host, port)
    try:
        async with Redis.from_url(
            plain_url(url), decode_responses=True, socket_timeout=CONNECT_TIMEOUT_S, socket_connect_timeout=CONNECT_TIMEOUT_S
        ) as client:
            info: dict[str, Any] = await client.info()
            if info.get("cluster_enabled"):
                said = await client.execute_command("CLUSTER INFO")  # type: ignore[no-untyped-call] # redis-py's
                info |= said if isinstance(said, dict) else dict(line.split(":", 1) for line in str(said).splitlines() if ":" in line)
            return info
    except (OSError, ValueError, RedisError) as cause:
        return str(cause) or type(cause).__name__


def _shown(url: str) -> str:
    """Its host and port, or several of them; never its login."""
    return urlsplit(url).netloc.rpartition("@")[2]
