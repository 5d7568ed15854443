"""The history of what was carried, in PostgreSQL: a row a minute, an hour's rows rolled into one after a week, kept 400 days.

Transactions are counted by their ids, which carry their time: exact for every minute, whoever posted them and whoever counts, after a
crash (PostgreSQL's own counters begin anew then) and after a month was taken off. It reads one stretch of an index that is still in
memory: about 0.1 s for a minute of 3,000 a second. So minutes that nobody recorded are made up for; what only that moment knew stays null.
"""

from datetime import UTC, date, datetime, timedelta

import msgspec
from msgspec import Struct
from sqlalchemy import text

from piggybank import ids, metrics
from piggybank.capacity import figures, shares
from piggybank.capacity.figures import Figures
from piggybank.capacity.measuring import CacheFigures, DatabaseFigures
from piggybank.capacity.shares import Share
from piggybank.db.engines import Read, Write

MINUTES_KEPT_DAYS = 7  # then they are hours
KEPT_DAYS = 400
SETTLED_AFTER_S = 10  # a commit may come so late for the id that it bears
CAUGHT_UP_MINUTES = shares.KEPT_MINUTES
LOOKUPS_ENOUGH = 1_000  # of a day: a hit rate of fewer says nothing
MINUTE = timedelta(minutes=1)


class Day(Struct, frozen=True, kw_only=True):
    """A day in UTC: sums and peaks of what was recorded. `minutes`: of how many; null: nobody knew."""

    day: date
    minutes: int
    transactions: int
    tps_peak: float  # of the busiest minute
    connections: int | None
    max_connections: int | None
    replicas: int | None
    lag_ms: float | None
    cache_used_bytes: int | None
    cache_max_bytes: int | None
    cache_hit_rate: float | None
    database_bytes: int | None
    transactions_bytes: int | None
    users: int | None


class Noted(Struct, frozen=True, kw_only=True):
    """What a minute's row keeps beside its columns: for a week, then it is forgotten."""

    share: Share | None = None
    figures: Figures = {}
    unknown: dict[str, str] = {}


_LAST = text("""
SELECT at, cache_hits_total, cache_misses_total, CAST(figures AS text) AS noted
FROM usage_minutes
WHERE NOT rolled AND at < :minute
ORDER BY at DESC
LIMIT 1
""")

_COUNT = text("SELECT count(*) FROM transactions WHERE id >= :lowest AND id < :below")

# Whoever comes second finds the minute recorded.
_RECORD = text("""
INSERT INTO usage_minutes (at, phase, transactions, busiest_minute, connections, max_connections, replicas, lag_ms, cache_used_bytes,
    cache_max_bytes, cache_hits, cache_misses, cache_hits_total, cache_misses_total, database_bytes, transactions_bytes, users,
    requests, errors, p95_ms, lookup_hits, lookup_misses, db_cpu_ratio, disk_free_ratio, figures)
VALUES (:at, :phase, :transactions, :transactions, :connections, :max_connections, :replicas, :lag_ms, :cache_used_bytes,
    :cache_max_bytes, :cache_hits, :cache_misses, :cache_hits_total, :cache_misses_total, :database_bytes, :transactions_bytes, :users,
    :requests, :errors, :p95_ms, :lookup_hits, :lookup_misses, :db_cpu_ratio, :disk_free_ratio, CAST(:figures AS jsonb))
ON CONFLICT DO NOTHING
RETURNING 1
""")
_CATCH_UP = text("""
INSERT INTO usage_minutes (at, phase, transactions, busiest_minute)
SELECT missed.at, :phase, missed.transactions, missed.transactions
FROM unnest(CAST(:at AS timestamptz[]), CAST(:transactions AS bigint[])) AS missed (at, transactions)
ON CONFLICT DO NOTHING
RETURNING 1
""")

# Of two that roll up at once one waits for the other's rows and finds them gone.
_ROLL_UP = text("""
WITH minute AS (
    DELETE FROM usage_minutes WHERE NOT rolled AND at < :before RETURNING *
), hour AS (
    INSERT INTO usage_minutes (at, rolled, minutes, phase, transactions, busiest_minute, connections, max_connections, replicas, lag_ms,
        cache_used_bytes, cache_max_bytes, cache_hits, cache_misses, database_bytes, transactions_bytes, users, requests, errors, p95_ms,
        lookup_hits, lookup_misses, db_cpu_ratio, disk_free_ratio)
    SELECT date_trunc('hour', at, 'UTC'), true, count(*), max(phase), sum(transactions), max(busiest_minute), max(connections),
           max(max_connections), min(replicas), max(lag_ms), max(cache_used_bytes), max(cache_max_bytes), sum(cache_hits),
           sum(cache_misses), max(database_bytes), max(transactions_bytes), max(users), sum(requests), sum(errors), max(p95_ms),
           sum(lookup_hits), sum(lookup_misses), max(db_cpu_ratio), min(disk_free_ratio)
    FROM minute
    GROUP BY date_trunc('hour', at, 'UTC')
    ON CONFLICT DO NOTHING
)
SELECT count(*) FROM minute
""")
_PRUNE = text("DELETE FROM usage_minutes WHERE rolled AND at < :before RETURNING 1")

_DAYS = text("""
SELECT CAST(at AT TIME ZONE 'UTC' AS date) AS day, CAST(sum(minutes) AS integer) AS minutes,
       CAST(sum(transactions) AS bigint) AS transactions, CAST(max(busiest_minute) / 60.0 AS double precision) AS tps_peak,
       max(connections) AS connections, max(max_connections) AS max_connections, min(replicas) AS replicas, max(lag_ms) AS lag_ms,
       max(cache_used_bytes) AS cache_used_bytes, max(cache_max_bytes) AS cache_max_bytes,
       CASE WHEN sum(cache_hits) + sum(cache_misses) >= :enough
            THEN CAST(sum(cache_hits) / (sum(cache_hits) + sum(cache_misses)) AS double precision) END AS cache_hit_rate,
       max(database_bytes) AS database_bytes, max(transactions_bytes) AS transactions_bytes, max(users) AS users
FROM usage_minutes
WHERE at >= :since
GROUP BY day
ORDER BY day
""")


_MINUTES = text("""
SELECT at, minutes, phase, transactions, requests, errors, p95_ms,
       CAST(lookup_hits AS double precision) / nullif(lookup_hits + lookup_misses, 0) AS cache_hit_ratio,
       lag_ms AS replica_lag_ms, replicas, connections, max_connections, db_cpu_ratio,
       CAST(cache_used_bytes AS double precision) / nullif(cache_max_bytes, 0) AS cache_memory_ratio, disk_free_ratio, database_bytes, users
FROM usage_minutes
WHERE at >= :since AND at < :until
ORDER BY at DESC, rolled
LIMIT :limit
""")
_NOTED = text("""
SELECT at, CAST(figures AS text) AS noted
FROM usage_minutes
WHERE NOT rolled AND at >= :since AND at <= :until AND figures IS NOT NULL
ORDER BY at
""")


def last_minute(now: datetime) -> datetime:
    """The newest minute that is over and settled."""
    settled = now.astimezone(UTC) - timedelta(seconds=SETTLED_AFTER_S)
    return settled.replace(second=0, microsecond=0) - MINUTE


class Looked(Struct, frozen=True, kw_only=True):
    """What was found just now, to be written down: the servers, and what else is known of this moment (`figures.py`)."""

    database: DatabaseFigures
    cache: CacheFigures | None = None
    figures: Figures = {}
    unknown: dict[str, str] = {}


async def record(write: Write, now: datetime, phase: int, looked: Looked) -> int:
    """Write down the last minute, and what can be known of those before it that nobody did; answers how many are new.

    What the processes told (`shares.py`) is of this minute then, whenever they began to count.
    """
    minute = last_minute(now)
    database, cache = looked.database, looked.cache
    last = (await write.execute(_LAST, {"minute": minute})).one_or_none()
    first = minute if last is None else max(last.at + MINUTE, minute - CAUGHT_UP_MINUTES * MINUTE)
    minutes = [first + number * MINUTE for number in range((minute - first) // MINUTE + 1)]
    *missed, transactions = [await _count(write, at) for at in minutes]
    before = None if last is None or last.cache_hits_total is None else (last.cache_hits_total, last.cache_misses_total)
    hits, misses = _since(before, cache)
    share, told = await shares.told(write, now)
    noted = _noted(looked, share, _decoded(last.noted) if last else None, None if last is None else minute - last.at)
    p95_s = shares.quantile(0.95, share.seconds, metrics.SECONDS) if share else None
    row = {
        "at": minute,
        "phase": phase,
        "transactions": transactions,
        "connections": database.connections,
        "max_connections": database.max_connections,
        "replicas": database.replicas,
        "lag_ms": max(share.lag_s.values()) * 1_000 if share and share.lag_s else database.lag_ms,
        "cache_used_bytes": cache and cache.used_bytes,
        "cache_max_bytes": cache and cache.max_bytes,
        "cache_hits": hits,
        "cache_misses": misses,
        "cache_hits_total": cache and cache.hits_total,
        "cache_misses_total": cache and cache.misses_total,
        "database_bytes": database.database_bytes,
        "transactions_bytes": database.transactions_bytes,
        "users": database.users,
        "requests": share and share.requests,
        "errors": share and share.errors,
        "p95_ms": p95_s and p95_s * 1_000,
        "lookup_hits": share and share.hits,
        "lookup_misses": share and share.misses,
        "db_cpu_ratio": noted.figures.get("db_cpu_ratio"),
        "disk_free_ratio": noted.figures.get("disk_free_ratio"),
        "figures": msgspec.json.encode(noted).decode(),
    }
    recorded = len((await write.execute(_RECORD, row)).all())
    if recorded:
        await shares.forget(write, told)
    if missed:
        recorded += len((await write.execute(_CATCH_UP, {"phase": phase, "at": minutes[:-1], "transactions": missed})).all())
    return recorded


def _noted(looked: Looked, share: Share | None, before: Noted | None, gap: timedelta | None) -> Noted:
    """The figures of this moment, with those that need the minute before."""
    found, unknown = looked.figures | figures.of_shares(share), dict(looked.unknown)
    if "db_cpu_seconds" in found:
        ratio = None if before is None or gap is None else figures.cpu_ratio(before.figures, found, gap.total_seconds())
        if ratio is None:
            unknown["db_cpu_ratio"] = "it takes two minutes, and PostgreSQL or the recording has just begun"
        else:
            found["db_cpu_ratio"] = ratio
    return Noted(share=share, figures=found, unknown=unknown)


def _decoded(noted: str | None) -> Noted | None:
    return None if noted is None else msgspec.json.decode(noted, type=Noted)


async def roll_up(write: Write, now: datetime) -> int:
    """Turn minutes that are old enough into hours, and forget hours that are too old; answers how many rows went."""
    before = (now.astimezone(UTC) - timedelta(days=MINUTES_KEPT_DAYS)).replace(minute=0, second=0, microsecond=0)
    rolled: int = (await write.execute(_ROLL_UP, {"before": before})).scalar_one()
    return rolled + len((await write.execute(_PRUNE, {"before": now - timedelta(days=KEPT_DAYS)})).all())


async def days(read: Read, now: datetime, how_many: int) -> list[Day]:
    """The days of which something was recorded, oldest first; today is the last."""
    since = datetime.combine(now.astimezone(UTC).date(), datetime.min.time(), UTC) - timedelta(days=how_many - 1)
    return [Day(**row) for row in (await read.execute(_DAYS, {"since": since, "enough": LOOKUPS_ENOUGH})).mappings()]


class Minute(Struct, frozen=True, kw_only=True):
    """One minute, or an hour of them after a week (`minutes` 60: sums, and the worst of what goes up and down). Null: nobody knew."""

    at: datetime
    minutes: int
    phase: int
    transactions: int
    requests: int | None
    errors: int | None
    p95_ms: float | None
    cache_hit_ratio: float | None
    replica_lag_ms: float | None
    replicas: int | None
    connections: int | None
    max_connections: int | None
    db_cpu_ratio: float | None
    cache_memory_ratio: float | None
    disk_free_ratio: float | None
    database_bytes: int | None
    users: int | None


async def minutes(read: Read, since: datetime, until: datetime, limit: int) -> list[Minute]:
    """The newest of those that begin in [since, until), the newest first."""
    return [Minute(**row) for row in (await read.execute(_MINUTES, {"since": since, "until": until, "limit": limit})).mappings()]


async def noted(read: Read, since: datetime, until: datetime) -> list[tuple[datetime, Noted]]:
    """What was noted of each minute that begins in [since, until], the oldest first."""
    rows = (await read.execute(_NOTED, {"since": since, "until": until})).all()
    return [(row.at, msgspec.json.decode(row.noted, type=Noted)) for row in rows]


async def _count(read: Read, minute: datetime) -> int:
    """A statement a minute: together they could outlive the role's timeout."""
    bounds = {"lowest": ids.first_id_at(minute), "below": ids.first_id_at(minute + MINUTE)}
    return int((await read.execute(_COUNT, bounds)).scalar_one())


def _since(before: tuple[int, int] | None, now: CacheFigures | None) -> tuple[int | None, int | None]:
    """Hits and misses between two looks; None where there is but one, or the cache began to count anew."""
    if before is None or now is None or now.hits_total < before[0] or now.misses_total < before[1]:
        return None, None
    return now.hits_total - before[0], now.misses_total - before[1]
