"""What a look at the ledger, the stores and the machine tells: each minute once, by a worker, into the minute's row.

`/metrics`, the alerts and the console read it there, so all of them say the same, and the stores are not asked again at each scrape. A
figure that nobody could know is missing, never 0; `unknown` says why.
"""

import os
import shutil
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import psutil
from msgspec import Struct
from redis.exceptions import RedisError
from sqlalchemy import text

from piggybank import ids, queues
from piggybank.capacity.measuring import CacheFigures, DatabaseFigures
from piggybank.capacity.phases import Phase
from piggybank.capacity.shares import Share
from piggybank.db import partitions, standbys
from piggybank.db.engines import Read
from piggybank.settings import Settings, embedded_stores

GIB = 1024**3
AGE_OF_WHAT_IS_NOT_THERE_S = 0.0  # nothing waits

Figure = float | dict[str, float]  # one number, or one for each value of the label
Figures = dict[str, Figure]


class Gauge(NamedTuple):
    """One figure: its name in Prometheus, what it says, and its label."""

    name: str
    says: str
    label: str = ""


GAUGES = (
    Gauge("app_phase", "Number of the phase that this runs as."),
    Gauge("users", "Users of the installation."),
    Gauge("db_connections", "Connections of clients to the primary."),
    Gauge("db_max_connections", "As many as it takes."),
    Gauge("db_replicas", "Replicas that stream from the primary; missing where the role may not see them."),
    Gauge("db_size_bytes", "Size of the database."),
    Gauge("db_cpu_ratio", "Of all cores of the machine, what PostgreSQL's processes used in the last minute."),
    Gauge("db_cpu_seconds", "Seconds of CPU that PostgreSQL's processes used since they started."),
    Gauge("replica_lag_seconds", "At most so old is what a replica shows, as the web process sees it that sees it oldest.", "replica"),
    Gauge("ledger_commits_local", "1: commits wait for no replica though there are some (`durability`)."),
    Gauge("ledger_writes_refused", "1: commits are to wait for a replica, and none confirms."),
    Gauge("ledger_trial_balance_difference_minor", "What the books are off by, in minor units; anything but 0 is wrong.", "currency"),
    Gauge("ledger_outbox_waiting", "Events that are committed and not carried out, without mails, counted up to 10,000."),
    Gauge("ledger_outbox_oldest_age_seconds", "Age of the oldest of them."),
    Gauge("mail_waiting", "Mails that are not sent yet, counted up to 10,000."),
    Gauge("ledger_inbox_waiting", "Events of the provider that are not applied, counted up to 10,000."),
    Gauge("ledger_inbox_oldest_age_seconds", "Age of the oldest of them."),
    Gauge("psp_unmatched_events", "Events of the provider that name nothing of ours, counted up to 10,000."),
    Gauge("psp_open_payments", "Payments through the provider that have not ended.", "status"),
    Gauge("psp_unknown_payouts", "Payouts, refunds and credits of which nobody knows whether they happened."),
    Gauge("reconciliation_age_seconds", "Seconds since the end of what was last compared with the provider's statement."),
    Gauge("partitions_missing", "Months, this one and the next, whose rows no partition would take."),
    Gauge("partitions_ahead", "Months after this one that have their partition; missing where months are off."),
    Gauge("backup_age_seconds", "Seconds since the last good backup, or since the installation was made."),
    Gauge("backup_overdue_seconds", "By how much that is longer than `backup_every_h`."),
    Gauge("queue_up", "1: the queue of the jobs answers; 0: it does not."),
    Gauge("saq_queue_depth", "Jobs in the queue.", "state"),
    Gauge("saq_oldest_job_age_seconds", "Seconds that the oldest job has waited though it is due."),
    Gauge("cache_up", "1: the cache answers; 0: it does not."),
    Gauge("cache_memory_ratio", "Of the memory that the cache may use, what it uses; all masters together."),
    Gauge("cache_memory_bytes", "Memory that the cache uses."),
    Gauge("disk_free_ratio", "Of the disk with the data folder, what is free."),
)
# Beside the minute's figures
LIMIT = Gauge("phase_limit", "What the phase is made for.", "measure")
UNKNOWN = Gauge("figure_unknown", "1: that figure is missing, and why.", "figure")


class Machine(Struct, frozen=True, kw_only=True):
    """What only the machine of the database can tell. `unknown`: figures that it cannot, and why."""

    db_cpu_seconds: float | None = None
    disk_free_ratio: float | None = None
    unknown: dict[str, str] = {}


# A mail that bounces is tried until its link ends, and is nobody's alarm: it is counted apart.
_LEDGER = text("""
SELECT (SELECT pid FROM pg_stat_activity WHERE pid = pg_backend_pid()) AS backend,
       now() AS now,
       (SELECT id FROM installation) AS installation,
       outbox.waiting AS outbox_waiting, outbox.oldest AS outbox_oldest, outbox.mails,
       inbox.waiting AS inbox_waiting, inbox.oldest AS inbox_oldest,
       (SELECT count(*) FROM (SELECT FROM provider_events WHERE status = 'unmatched' LIMIT 10000) AS unmatched) AS unmatched,
       (SELECT max(finished_at) FROM backups) AS backed_up,
       (SELECT max(until) FROM reconciliations WHERE status = 'finished') AS reconciled_until,
       (SELECT id FROM payments WHERE method = 'revio' ORDER BY id LIMIT 1) AS first_payment
FROM (SELECT count(*) FILTER (WHERE NOT mail) AS waiting, (array_agg(id ORDER BY id) FILTER (WHERE NOT mail))[1] AS oldest,
             count(*) FILTER (WHERE mail) AS mails
      FROM (SELECT id, starts_with(topic, 'mail.') AS mail FROM outbox ORDER BY id LIMIT 10000) AS head) AS outbox,
     (SELECT count(*) AS waiting, (array_agg(id ORDER BY id))[1] AS oldest
      FROM (SELECT id FROM provider_events WHERE due_at IS NOT NULL AND status = 'new' ORDER BY id LIMIT 10000) AS head) AS inbox
""")

_OPEN = text("""
SELECT status, count(*) AS payments, count(*) FILTER (WHERE status = 'unknown' AND kind <> 'deposit') AS unknown
FROM payments
WHERE method = 'revio' AND status IN ('creating', 'pending', 'processing', 'unknown')
GROUP BY status
""")

# Every account's books are 0, and so is what accounts sent each other: the two sums that no mistake leaves both at 0.
_TRIAL_BALANCE = text("""
SELECT currency,
       CAST(sum(abs(balance + clearing + fees + transfers + adjustments)) + abs(sum(transfers)) AS double precision) AS difference
FROM accounts
GROUP BY currency
""")

_STANDBYS = text(standbys.CONFIRMING)


async def look(read: Read, settings: Settings) -> tuple[Figures, dict[str, str]]:
    """The ledger's figures, and which are unknown and why. Raises what the session raises."""
    row = (await read.execute(_LEDGER)).one()
    opened = (await read.execute(_OPEN)).all()
    balances = (await read.execute(_TRIAL_BALANCE)).all()
    pooled = await (await read.connection()).get_raw_connection()
    assert pooled.driver_connection is not None
    now: datetime = row.now
    found: Figures = {
        "app_phase": settings.phase,
        "ledger_outbox_waiting": row.outbox_waiting,
        "ledger_outbox_oldest_age_seconds": _age(now, row.outbox_oldest and ids.time_of(row.outbox_oldest)),
        "mail_waiting": row.mails,
        "ledger_inbox_waiting": row.inbox_waiting,
        "ledger_inbox_oldest_age_seconds": _age(now, row.inbox_oldest and ids.time_of(row.inbox_oldest)),
        "psp_unmatched_events": row.unmatched,
        "psp_open_payments": {each.status: float(each.payments) for each in opened},
        "psp_unknown_payouts": sum(each.unknown for each in opened),
        "ledger_trial_balance_difference_minor": {each.currency: each.difference for each in balances},
        "partitions_missing": len(await partitions.missing(pooled.driver_connection, now)),
        "ledger_commits_local": float(settings.waits_for == "local"),
    }
    since = row.reconciled_until or (row.first_payment and ids.time_of(row.first_payment))
    found["reconciliation_age_seconds"] = _age(now, since)
    unknown: dict[str, str] = {}
    ahead = partitions.ahead(await partitions.known(pooled.driver_connection), now)
    if ahead is None:
        unknown["partitions_ahead"] = "months are off: one partition takes everything"
    else:
        found["partitions_ahead"] = ahead
    if settings.waits_for == "synchronous":
        found["ledger_writes_refused"] = float(not await read.scalar(_STANDBYS))
    else:
        found["ledger_writes_refused"] = 0.0
    if row.backed_up or settings.backup_target or "postgres" in embedded_stores(settings.data_dir):
        found["backup_age_seconds"] = age = _age(now, row.backed_up or ids.time_of(row.installation))
        if settings.backup_every_h:
            found["backup_overdue_seconds"] = max(0.0, age - settings.backup_every_h * 3_600)
        else:
            unknown["backup_overdue_seconds"] = "backup_every_h is 0: nobody said when one is due"
    else:
        why = "the database is elsewhere and no backup_target is set: who runs it backs it up"
        unknown["backup_age_seconds"] = unknown["backup_overdue_seconds"] = why
    machine = of_machine(settings, row.backend)
    unknown |= machine.unknown
    if machine.db_cpu_seconds is not None:
        found["db_cpu_seconds"] = machine.db_cpu_seconds
    if machine.disk_free_ratio is not None:
        found["disk_free_ratio"] = machine.disk_free_ratio
    return found, unknown


def of_stores(database: DatabaseFigures, cache: CacheFigures | None) -> tuple[Figures, dict[str, str]]:
    """What `measuring` found, as figures."""
    found: Figures = {
        "users": database.users,
        "db_connections": database.connections,
        "db_max_connections": database.max_connections,
        "db_size_bytes": database.database_bytes,
        "cache_up": float(cache is not None),
    }
    unknown: dict[str, str] = {}
    if database.replicas is None:
        unknown["db_replicas"] = "the application's role may not see them: GRANT pg_read_all_stats TO it"
    else:
        found["db_replicas"] = database.replicas
    if cache is None:
        unknown["cache_memory_ratio"] = unknown["cache_memory_bytes"] = "the cache does not answer"
    else:
        found["cache_memory_bytes"] = cache.used_bytes
        if cache.max_bytes:
            found["cache_memory_ratio"] = cache.used_bytes / cache.max_bytes
        else:
            unknown["cache_memory_ratio"] = "the cache has no bound: set maxmemory"
    return found, unknown


async def of_queue(url: str) -> tuple[Figures, dict[str, str]]:
    """Jobs by state, and how long the oldest one waits that is due."""
    queue = queues.open_queue(url)
    try:
        depth = {
            "queued": await queue.count("queued"),
            "active": await queue.count("active"),
            "incomplete": await queue.count("incomplete"),
        }
        return {"queue_up": 1.0, "saq_queue_depth": dict(depth), "saq_oldest_job_age_seconds": await queue.oldest_age_s()}, {}
    except (RedisError, OSError, TimeoutError):
        why = "the queue does not answer"
        return {"queue_up": 0.0}, {"saq_queue_depth": why, "saq_oldest_job_age_seconds": why}
    finally:
        await queue.close()


def limits(phase: Phase) -> dict[str, float]:
    """What a phase is made for, by what is measured."""
    return {
        "tps": phase.tps_peak,
        "transactions_a_day": phase.transactions_a_day,
        "users": phase.users,
        "database_bytes": phase.database_gib * GIB,
        "connections": phase.max_connections,
    }


def of_shares(share: Share | None) -> Figures:
    """What the web processes know alone."""
    return {"replica_lag_seconds": dict(share.lag_s)} if share is not None and share.lag_s else {}


def of_machine(settings: Settings, backend: int) -> Machine:
    """The CPU of PostgreSQL's processes and the disk, where they are this machine's."""
    if "postgres" not in embedded_stores(settings.data_dir):
        why = "the database is not this installation's own: look at the platform's figure of its server"
        return Machine(unknown={"db_cpu_ratio": why, "db_cpu_seconds": why, "disk_free_ratio": why})
    unknown: dict[str, str] = {}
    seconds: float | None = None
    try:
        seconds = _cpu_of_postmaster(backend)
    except psutil.Error as cause:
        unknown["db_cpu_ratio"] = unknown["db_cpu_seconds"] = f"its processes cannot be looked at: {type(cause).__name__}"
    usage = shutil.disk_usage(_existing(settings.data_dir))
    return Machine(db_cpu_seconds=seconds, disk_free_ratio=usage.free / usage.total, unknown=unknown)


def cpu_ratio(before: Figures, now: Figures, seconds: float) -> float | None:
    """Of all cores; None where it began anew, or nobody looked before."""
    earlier, later = before.get("db_cpu_seconds"), now.get("db_cpu_seconds")
    if not isinstance(earlier, float) or not isinstance(later, float) or later < earlier or seconds <= 0:
        return None
    return (later - earlier) / (seconds * cores())


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_of_postmaster(backend: int) -> float:
    """Of it, of its processes, and of those that ended: it has waited for them."""
    postmaster = psutil.Process(backend).parent()
    if postmaster is None or "postgres" not in postmaster.name():
        raise psutil.NoSuchProcess(backend)
    own = postmaster.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in postmaster.children(recursive=True):
        try:
            used = child.cpu_times()
        except psutil.NoSuchProcess:  # it has just ended
            continue
        total += used.user + used.system
    return float(total)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _age(now: datetime, since: datetime | None) -> float:
    return AGE_OF_WHAT_IS_NOT_THERE_S if since is None else max(0.0, (now - since).total_seconds())
