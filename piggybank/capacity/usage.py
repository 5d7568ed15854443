"""The history of what was carried, in PostgreSQL: a row a minute, an hour's rows rolled into one after a week, kept 400 days.

Transactions are counted by their ids, which carry their time: exact for every minute, whoever posted them and whoever counts, after a
crash (PostgreSQL's own counters begin anew then) and after a month was taken off. It reads one stretch of an index that is still in
memory: about 0.1 s for a minute of 3,000 a second. So minutes that nobody recorded are made up for; what only that moment knew stays null.
"""

from datetime import UTC, date, datetime, timedelta

from msgspec import Struct
from sqlalchemy import text

from piggybank import ids
from piggybank.capacity.measuring import CacheFigures, DatabaseFigures
from piggybank.db.engines import Read, Write

MINUTES_KEPT_DAYS = 7  # then they are hours
KEPT_DAYS = 400
SETTLED_AFTER_S = 10  # a commit may come so late for the id that it bears
CAUGHT_UP_MINUTES = 30  # that nobody recorded
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


_LAST = text("""
SELECT at, cache_hits_total, cache_misses_total FROM usage_minutes WHERE NOT rolled AND at < :minute ORDER BY at DESC LIMIT 1
""")

_COUNT = text("SELECT count(*) FROM transactions WHERE id >= :lowest AND id < :below")

# Whoever comes second finds the minute recorded.
_RECORD = text("""
INSERT INTO usage_minutes (at, phase, transactions, busiest_minute, connections, max_connections, replicas, lag_ms, cache_used_bytes,
    cache_max_bytes, cache_hits, cache_misses, cache_hits_total, cache_misses_total, database_bytes, transactions_bytes, users)
VALUES (:at, :phase, :transactions, :transactions, :connections, :max_connections, :replicas, :lag_ms, :cache_used_bytes,
    :cache_max_bytes, :cache_hits, :cache_misses, :cache_hits_total, :cache_misses_total, :database_bytes, :transactions_bytes, :users)
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
        cache_used_bytes, cache_max_bytes, cache_hits, cache_misses, database_bytes, transactions_bytes, users)
    SELECT date_trunc('hour', at, 'UTC'), true, count(*), max(phase), sum(transactions), max(busiest_minute), max(connections),
           max(max_connections), min(replicas), max(lag_ms), max(cache_used_bytes), max(cache_max_bytes), sum(cache_hits),
           sum(cache_misses), max(database_bytes), max(transactions_bytes), max(users)
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


def last_minute(now: datetime) -> datetime:
    """The newest minute that is over and settled."""
    settled = now.astimezone(UTC) - timedelta(seconds=SETTLED_AFTER_S)
    return settled.replace(second=0, microsecond=0) - MINUTE


async def record(write: Write, now: datetime, phase: int, database: DatabaseFigures, cache: CacheFigures | None) -> int:
    """Write down the last minute, and what can be known of those before it that nobody did; answers how many are new."""
    minute = last_minute(now)
    last = (await write.execute(_LAST, {"minute": minute})).one_or_none()
    first = minute if last is None else max(last.at + MINUTE, minute - CAUGHT_UP_MINUTES * MINUTE)
    minutes = [first + number * MINUTE for number in range((minute - first) // MINUTE + 1)]
    *missed, transactions = [await _count(write, at) for at in minutes]
    before = None if last is None or last.cache_hits_total is None else (last.cache_hits_total, last.cache_misses_total)
    hits, misses = _since(before, cache)
    row = {
        "at": minute,
        "phase": phase,
        "transactions": transactions,
        "connections": database.connections,
        "max_connections": database.max_connections,
        "replicas": database.replicas,
        "lag_ms": database.lag_ms,
        "cache_used_bytes": cache and cache.used_bytes,
        "cache_max_bytes": cache and cache.max_bytes,
        "cache_hits": hits,
        "cache_misses": misses,
        "cache_hits_total": cache and cache.hits_total,
        "cache_misses_total": cache and cache.misses_total,
        "database_bytes": database.database_bytes,
        "transactions_bytes": database.transactions_bytes,
        "users": database.users,
    }
    recorded = len((await write.execute(_RECORD, row)).all())
    if missed:
        recorded += len((await write.execute(_CATCH_UP, {"phase": phase, "at": minutes[:-1], "transactions": missed})).all())
    return recorded


async def roll_up(write: Write, now: datetime) -> int:
    """Turn minutes that are old enough into hours, and forget hours that are too old; answers how many rows went."""
    before = (now.astimezone(UTC) - timedelta(days=MINUTES_KEPT_DAYS)).replace(minute=0, second=0, microsecond=0)
    rolled: int = (await write.execute(_ROLL_UP, {"before": before})).scalar_one()
    return rolled + len((await write.execute(_PRUNE, {"before": now - timedelta(days=KEPT_DAYS)})).all())


async def days(read: Read, now: datetime, how_many: int) -> list[Day]:
    """The days of which something was recorded, oldest first; today is the last."""
    since = datetime.combine(now.astimezone(UTC).date(), datetime.min.time(), UTC) - timedelta(days=how_many - 1)
    return [Day(**row) for row in (await read.execute(_DAYS, {"since": since, "enough": LOOKUPS_ENOUGH})).mappings()]


async def _count(read: Read, minute: datetime) -> int:
    """A statement a minute: together they could outlive the role's timeout."""
    bounds = {"lowest": ids.first_id_at(minute), "below": ids.first_id_at(minute + MINUTE)}
    return int((await read.execute(_COUNT, bounds)).scalar_one())


def _since(before: tuple[int, int] | None, now: CacheFigures | None) -> tuple[int | None, int | None]:
    """Hits and misses between two looks; None where there is but one, or the cache began to count anew."""
    if before is None or now is None or now.hits_total < before[0] or now.misses_total < before[1]:
        return None, None
    return now.hits_total - before[0], now.misses_total - before[1]
