"""What the servers themselves show of the phase: who listens, who streams, what the pooler pools, what the cluster covers.

Nothing here reads what we wrote down, but for the addresses and to compare.
"""

import asyncio
from typing import Any

import asyncpg
import psutil

from piggybank import errors
from piggybank import settings as settings_file
from piggybank.appliance import binaries, cache_cluster, folder, overview, pooler, processes, topology, web
from piggybank.appliance.processes import Program
from piggybank.cache.cluster import is_cluster
from piggybank.capacity import phases
from piggybank.db import standbys
from piggybank.db.engines import UNPREPARED
from piggybank.db.partitions import MONTHS_ARE_ON
from piggybank.settings import Settings

ASK_TIMEOUT_S = 5.0
UNKNOWN = "unknown"  # it cannot be seen from here

_REPLICATION = f"""
SELECT count(*) FILTER (WHERE {standbys.FOLLOWS} AND coalesce(replay_lag, interval '0') < interval '1 minute') AS following,
       count(*) FILTER (WHERE {standbys.CONFIRMS}) AS confirming,
       count(*) FILTER (WHERE state IS NULL) AS hidden
FROM pg_stat_replication
"""
_MONTHS = f"SELECT {MONTHS_ARE_ON}"


def declared(settings: Settings) -> dict[str, Any]:
    """What the phase and the settings say, by the names of `look`."""
    phase = phases.of(settings.phase)
    return {
        "web": settings.web_processes,
        "worker": web.worker_count(settings),
        "replicas": phase.replicas,
        "confirming": phase.replicas > 0 and settings.durability == "synchronous",
        "pooler": settings.pooler.startswith("transaction") or (phase.pooled and settings.pooler != "none"),
        "cache": f"{phase.cache_masters}+{phase.cache_replicas}" if phase.clustered else "1",
        "months": phase.partitions,
    }


async def look(settings: Settings) -> dict[str, Any]:
    """Ask all servers at once; what does not answer is None, what cannot be seen from here `unknown`."""
    database, pooled, cached = await asyncio.gather(_database(settings), _pooler(settings), cache(settings))
    elsewhere = settings_file.orchestrator(settings.data_dir) is not None  # each process is in a container of its own
    processes_here = {"web": UNKNOWN, "worker": UNKNOWN} if elsewhere else {"web": _web(settings), "worker": _workers(settings)}
    return {**processes_here, **database, "pooler": pooled, "cache": cached}


def differences(settings: Settings, seen: dict[str, Any]) -> list[str]:
    """Sentences, one for each thing that is not as it is declared."""
    more_is_well = _may_be_more(settings)
    return [
        f"{name}: {_said(wanted)} declared, {_said(seen[name])} seen"
        for name, wanted in declared(settings).items()
        if not (seen[name] in (UNKNOWN, wanted) or (name in more_is_well and _is_more(seen[name], wanted)))
    ]


def _may_be_more(settings: Settings) -> set[str]:
    """Months stay once they are on; and what the operator runs is not ours to stop in a phase that does not use it."""
    embedded, found = settings_file.embedded_stores(settings.data_dir), {"months"}
    if topology.DATABASE not in embedded:
        found |= {"replicas", "confirming", "pooler"}
    if topology.CACHE not in embedded:
        found.add("cache")
    return found


def _is_more(have: Any, wanted: Any) -> bool:
    if have is None:
        return False
    if isinstance(wanted, str):  # of a cache: masters and replicas
        return all(int(here) >= int(there) for here, there in zip(have.split("+"), wanted.split("+"), strict=False))
    return bool(have >= wanted)


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "no answer" if value is None else str(value)


def _web(settings: Settings) -> int:
    """How many of our processes take connections on the port that the supervisor says."""
    card, found = folder.read_card(settings.data_dir), 0
    port = card.port if card else settings.port
    for process in overview.processes_of(settings):
        if process.name.startswith("web-"):
            try:
                found += port in web.listening(psutil.Process(process.pid))
            except psutil.Error:
                continue
    return found


def _workers(settings: Settings) -> int:
    return sum(
        processes.look(Program(name=found.name, argv=(), run_dir=settings.data_dir / "run", log=settings.data_dir)) is not None
        for found in overview.processes_of(settings)
        if found.name.startswith("worker-")
    )


async def _database(settings: Settings) -> dict[str, Any]:
    try:
        connection = await asyncpg.connect(settings.database_url, timeout=ASK_TIMEOUT_S)
    except (OSError, TimeoutError, asyncpg.PostgresError):
        return {"replicas": None, "confirming": None, "months": None}
    try:
        row = await connection.fetchrow(_REPLICATION)
        months = await connection.fetchval(_MONTHS)
    except asyncpg.PostgresError:
        return {"replicas": None, "confirming": None, "months": None}
    finally:
        await connection.close()
    hidden = row["hidden"] > 0
    return {
        "replicas": UNKNOWN if hidden else row["following"],
        "confirming": UNKNOWN if hidden else row["confirming"] > 0,
        "months": months,
    }


async def _pooler(settings: Settings) -> bool | str | None:
    """True when a pooler pools by transaction, leads to a primary and, where it is ours, has its sizes; False: none is used."""
    if not settings.pooler_url or settings.pooling == "none":
        return False
    try:
        connection = await asyncpg.connect(settings.pooler_url, timeout=ASK_TIMEOUT_S, **UNPREPARED)
    except (OSError, TimeoutError, asyncpg.PostgresError):
        return None
    try:
        leads_to_primary = not await connection.fetchval("SELECT pg_is_in_recovery()", timeout=ASK_TIMEOUT_S)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return None
    finally:
        connection.terminate()
    ours = topology.DATABASE in settings_file.embedded_stores(settings.data_dir)
    try:
        seen = await asyncio.to_thread(pooler.observed, settings.pooler_url, binaries.client("psql"))
    except errors.Error:
        # one of the operator's own need not let the application's role, or this machine without psql, at its console
        return UNKNOWN if not ours and leads_to_primary else None
    wanted = topology.wanted(settings)
    has_sizes = (seen.clients_max, seen.servers_max) == (wanted.pooler_clients, wanted.pooler_connections)
    return seen.mode == "transaction" and leads_to_primary and (has_sizes or not ours)


async def cache(settings: Settings) -> str | None:
    """`1`, or masters and replicas of a cluster that is whole, as in `3+3`; None where it does not answer."""
    if not is_cluster(settings.cache_url):
        return "1" if (await overview.stores_answer(settings))["cache"] else None
    seen = await asyncio.to_thread(cache_cluster.observed_at, settings.cache_url)
    return f"{len(seen.masters)}+{len(seen.replicas)}" if seen.is_whole else None
