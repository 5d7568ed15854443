"""What runs in a data folder: for `status` and `down`. Looks only."""

import asyncio
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

import piggybank
from piggybank import settings as settings_file
from piggybank.appliance import folder, processes, topology, web
from piggybank.appliance.backups import health
from piggybank.appliance.processes import Program
from piggybank.cache import Cache
from piggybank.cache.cluster import is_cluster
from piggybank.cache.servers import plain_url
from piggybank.db import installation, recovery, revisions, standbys
from piggybank.settings import Settings

STOP_SIGNAL = signal.SIGTERM
ANSWER_TIMEOUT_S = 3.0


class Process(NamedTuple):
    """A live process of the folder."""

    name: str
    pid: int
    since: str


def processes_of(settings: Settings) -> list[Process]:
    """All live ones but the supervisor, by name; orphans, too."""
    found = []
    for path in sorted((settings.data_dir / "run").glob("*.json")):
        if path.stem == "supervisor":
            continue
        live = processes.look(Program(name=path.stem, argv=(), run_dir=path.parent, log=Path()))
        if live is not None:
            found.append(Process(path.stem, live.pid, datetime.fromtimestamp(live.since, UTC).isoformat(timespec="seconds")))
    return found


async def look(settings: Settings) -> dict[str, Any]:
    """The status as JSON; `ok` is true when everything that should run runs and answers."""
    card = folder.read_card(settings.data_dir)
    embedded = settings_file.embedded_stores(settings.data_dir)
    live = {process.name: process for process in processes_of(settings)}
    answers = await stores_answer(settings)
    revision = await _revision(settings) if answers["database"] else None
    mode = await installation.stored_mode(settings.database_url) if revision else None
    elsewhere = settings_file.orchestrator(settings.data_dir) is not None  # the platform runs the processes
    programs = [] if elsewhere else web.names(settings, mode)
    wanted = [*topology.names(settings.data_dir / "stores", topology.wanted(settings)), *programs]
    ready = await asyncio.to_thread(is_ready, settings)
    rows = [
        {"name": name, "pid": live[name].pid if name in live else None, "since": live[name].since if name in live else None}
        for name in [*wanted, *(name for name in live if name not in wanted)]
    ]
    schema = {"revision": revision, "head": revisions.head(), "at_head": revision is not None and revision >= revisions.head()}
    all_run = all(name in live for name in wanted)
    return {
        "ok": bool((elsewhere or (card and card.state == "running")) and ready and all_run and all(answers.values()) and schema["at_head"]),
        "running": card is not None or (elsewhere and ready),
        "ready": ready,
        "state": card.state if card else "running" if elsewhere and ready else "stopped",
        "pid": card.pid if card else None,
        "since": card.since if card else None,
        "url": card.url if card else settings.url,
        "version": card.version if card else piggybank.__version__,
        "data_dir": str(settings.data_dir),
        "embedded": bool(embedded),
        "phase": settings.phase,
        "schema": schema,
        "stores": answers,
        "durability": settings.waits_for,
        **await _of_backups(settings, at_head=schema["at_head"]),
        "provider": {
            "mode": mode,
            "simulator_url": settings.simulator_page if mode == "simulator" else None,
        },
        "processes": rows,
    }


def is_ready(settings: Settings) -> bool:
    """Whether the web answers, where the supervisor of this folder says it listens: the settings may have changed since."""
    card = folder.read_card(settings.data_dir)
    if card is None:
        return web.is_ready(settings.listen, settings.port, tls=bool(settings.tls_cert))
    return web.is_ready(card.listen, card.port, tls=card.tls)


async def confirms(settings: Settings) -> bool:
    """Whether a write would be answered: where commits wait for a standby, there is one."""
    if settings.waits_for != "synchronous":
        return True
    try:
        connection = await asyncpg.connect(settings.database_url, timeout=ANSWER_TIMEOUT_S)
        try:
            return bool(await connection.fetchval(standbys.CONFIRMING, timeout=ANSWER_TIMEOUT_S))
        finally:
            connection.terminate()
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False


async def stores_answer(settings: Settings) -> dict[str, bool]:
    """Whether each store answers now."""
    database, cache, queue = await asyncio.gather(
        _database_answers(settings.database_url), _cache_answers(settings.cache_url), _valkey_answers(settings.queue_url)
    )
    return {"database": database, "cache": cache, "queue": queue}


async def _database_answers(url: str) -> bool:
    if not url:
        return False
    try:
        connection = await asyncpg.connect(url, timeout=ANSWER_TIMEOUT_S)
    except (OSError, TimeoutError, asyncpg.PostgresError):
        return False
    await connection.close()
    return True


async def _cache_answers(url: str) -> bool:
    """One server, or a master of a cluster."""
    if not is_cluster(url):
        return await _valkey_answers(url)
    cache = Cache(url)
    try:
        return await cache.ping()
    finally:
        await cache.close()


async def _valkey_answers(url: str) -> bool:
    if not url:
        return False
    try:
        async with Redis.from_url(plain_url(url), socket_timeout=ANSWER_TIMEOUT_S, socket_connect_timeout=ANSWER_TIMEOUT_S) as client:
            return bool(await client.ping())
    except (OSError, RedisError):
        return False


async def _of_backups(settings: Settings, *, at_head: object) -> dict[str, Any]:
    """Whether it is in recovery, and how its backups stand; null: not known."""
    if not at_head:
        return {"recovering": None, "backups": None}
    try:
        connection = await asyncpg.connect(settings.database_url, timeout=ANSWER_TIMEOUT_S)
        try:
            recovering = await recovery.is_recovering(connection)
            return {"recovering": recovering, "backups": await health.standing(connection, settings)}
        finally:
            await connection.close()
    except (OSError, TimeoutError, asyncpg.PostgresError):
        return {"recovering": None, "backups": None}


async def _revision(settings: Settings) -> str | None:
    try:
        return await revisions.current(settings.database_url)
    except (OSError, TimeoutError, asyncpg.PostgresError):
        return None
