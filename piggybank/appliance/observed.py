"""What the servers themselves show of the phase: who listens, who streams, what the pooler pools, what the cluster covers.

Nothing here reads what we wrote down, but for the addresses and to compare.
"""

import asyncio
from typing import Any

import asyncpg
import psutil

from piggybank import errors
from piggybank.appliance import binaries, cache_cluster, folder, overview, pooler, processes, web
from piggybank.appliance.processes import Program
from piggybank.cache.cluster import is_cluster
from piggybank.capacity import phases
from piggybank.db.engines import UNPREPARED
from piggybank.db.partitions import MONTHS_ARE_ON
from piggybank.settings import Settings

ASK_TIMEOUT_S = 5.0
UNKNOWN = "unknown"  # it cannot be seen from here

_REPLICATION = """
SELECT count(*) FILTER (WHERE state = 'streaming' AND coalesce(replay_lag, interval '0') < interval '1 minute') AS streaming,
       count(*) FILTER (WHERE state = 'streaming' AND sync_state IN ('sync', 'quorum')) AS confirming,
       count(*) FILTER (WHERE state IS NULL) AS hidden
FROM pg_stat_replication
WHERE application_name <> 'pg_basebackup'
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
    return {"web": _web(settings), "worker": _workers(settings), **database, "pooler": pooled, "cache": cached}


def differences(settings: Settings, seen: dict[str, Any]) -> list[str]:
    """Sentences, one for each thing that is not as it is declared. More months than declared are no difference: they stay."""
    found = []
    for name, wanted in declared(settings).items():
        have = seen[name]
        stay = name == "months" and have and not wanted
        if have in (UNKNOWN, wanted) or stay:
            continue
        found.append(f"{name}: {_said(wanted)} declared, {_said(have)} seen")
    return found


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
        "replicas": UNKNOWN if hidden else row["streaming"],
        "confirming": UNKNOWN if hidden else row["confirming"] > 0,
        "months": months,
    }


async def _pooler(settings: Settings) -> bool | None:
    """True when a pooler answers that pools by transaction; False where none is used."""
    if not settings.pooler_url:
        return False
    try:
        seen = await asyncio.to_thread(pooler.observed, settings.pooler_url, binaries.psql())
    except errors.Error:
        return None
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
    return seen.mode == "transaction" and leads_to_primary


async def cache(settings: Settings) -> str | None:
    """`1`, or masters and replicas of a cluster that is whole, as in `3+3`; None where it does not answer."""
    if not is_cluster(settings.cache_url):
        return "1" if (await overview.stores_answer(settings))["cache"] else None
    seen = await asyncio.to_thread(cache_cluster.observed_at, settings.cache_url)
    return f"{len(seen.masters)}+{len(seen.replicas)}" if seen.is_whole else None
