"""Reports: sums of a day, kept; sums of a day, week or month in somebody's time zone, asked for.

A row of `reports` is written once, when its UTC day is over, and never changes; `installation.reports_through` says how far they
go. A summary takes from them the finished UTC days that lie wholly inside a period, and the rest (edges of days elsewhere in the
world, today) from the transactions themselves, so it is always exact. It first asks how far the reports go and then reads
everything in one statement: what was reported a moment ago is still the same, so the two need no common snapshot.
"""

from collections import defaultdict
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

from msgspec import Struct
from sqlalchemy import Row, text

from piggybank import errors, ids
from piggybank.db import archived
from piggybank.db.engines import Read, Seen, Write

By = Literal["day", "week", "month"]

RANGE_DAYS_MAX = 366
MARGIN_MINUTES = 5  # after midnight: whatever was posted before it is committed by then
BUILD_TIMEOUT_S = 60
DAY = timedelta(days=1)
LONGEST_PERIOD = {"day": 1, "week": 7, "month": 31}  # days
_FIRST_DAY = date(1970, 1, 1)
_BUILD_TIMEOUT = text(f"SET LOCAL statement_timeout = '{BUILD_TIMEOUT_S}s'")


class KindSum(Struct, frozen=True, kw_only=True):
    """What one kind of movement came to in a period."""

    kind: str
    count: int
    credit: int
    debit: int


class PeriodSum(Struct, frozen=True, kw_only=True):
    """One currency in one period: from `start` on, before `end`. `net = credit - debit`; minor units."""

    start: datetime
    end: datetime
    currency: str
    count: int
    credit: int
    debit: int
    net: int
    kinds: list[KindSum]


_HOW_FAR = text("SELECT reports_through FROM installation FOR UPDATE SKIP LOCKED")
_NEXT = text("SELECT id FROM transactions WHERE id >= :lowest ORDER BY id LIMIT 1")

# A commit may wait (for a standby, say) while its rows already bear yesterday's ids: then the day is not over yet.
_STILL_WRITING = text("""
SELECT EXISTS (
    SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_xid IS NOT NULL AND xact_start < :before
)
""")

_BUILD = text("""
INSERT INTO reports (account_id, day, kind, bucket, count, credit, debit)
SELECT account_id, CAST(:day AS date), kind, bucket, count(*),
       CAST(COALESCE(sum(amount) FILTER (WHERE amount > 0), 0) AS bigint),
       CAST(COALESCE(-sum(amount) FILTER (WHERE amount < 0), 0) AS bigint)
FROM transactions
WHERE id >= :lowest AND id < :below
GROUP BY account_id, kind, bucket
ON CONFLICT (account_id, day, kind, bucket)
DO UPDATE SET count = excluded.count, credit = excluded.credit, debit = excluded.debit
""")
_ADVANCE = text("UPDATE installation SET reports_through = :day")

_OF_WHAT = text("""
SELECT (SELECT reports_through FROM installation) AS through, array_agg(DISTINCT currency ORDER BY currency) AS currencies,
       max(version) AS version
FROM accounts
WHERE (CAST(:only_user AS uuid) IS NULL OR user_id = :only_user)
  AND (CAST(:account_id AS uuid) IS NULL OR (bucket = :bucket AND id = :account_id))
""")

# LATERAL with a sum inside makes it what it should be: one range of an index for each account and stretch.
_SUMS = text("""
WITH mine AS MATERIALIZED (
    SELECT id, currency
    FROM accounts
    WHERE (CAST(:only_user AS uuid) IS NULL OR user_id = :only_user)
      AND (CAST(:account_id AS uuid) IS NULL OR (bucket = :bucket AND id = :account_id))
), posted AS (
    SELECT stretch.period, mine.currency, sums.*
    FROM mine
    CROSS JOIN unnest(CAST(:periods AS int[]), CAST(:lowest AS uuid[]), CAST(:below AS uuid[])) AS stretch (period, lowest, below)
    CROSS JOIN LATERAL (
        SELECT kind, count(*) AS movements, sum(GREATEST(amount, 0)) AS credit, sum(GREATEST(-amount, 0)) AS debit
        FROM transactions
        WHERE account_id = mine.id AND id >= stretch.lowest AND id < stretch.below
        GROUP BY kind
    ) sums
), reported AS (
    SELECT days.period, mine.currency, sums.*
    FROM mine
    CROSS JOIN unnest(CAST(:day_periods AS int[]), CAST(:first AS date[]), CAST(:after AS date[])) AS days (period, first, after)
    CROSS JOIN LATERAL (
        SELECT kind, sum(count) AS movements, sum(credit) AS credit, sum(debit) AS debit
        FROM reports
        WHERE account_id = mine.id AND day >= days.first AND day < days.after
        GROUP BY kind
    ) sums
)
SELECT period, currency, kind,
       CAST(sum(movements) AS bigint) AS movements, CAST(sum(credit) AS bigint) AS credit, CAST(sum(debit) AS bigint) AS debit
FROM (SELECT * FROM posted UNION ALL SELECT * FROM reported) AS every
GROUP BY period, currency, kind
ORDER BY period, currency, kind
""")

# Asked after the sums: what was archived before them is written down by then.
_ARCHIVED = text("""
SELECT min(CAST(c.first_id AS text)) AS first, max(CAST(c.last_id AS text)) AS last
FROM accounts a
JOIN account_checkpoints c ON c.bucket = a.bucket AND c.account_id = a.id
WHERE (CAST(:only_user AS uuid) IS NULL OR a.user_id = :only_user)
  AND (CAST(:account_id AS uuid) IS NULL OR (a.bucket = :bucket AND a.id = :account_id))
""")


async def build_next_day(write: Write, now: datetime) -> bool:
    """Write the reports of the next day that has transactions and is over; False when there is none, or another process does it."""
    locked = (await write.execute(_HOW_FAR)).one_or_none()
    finished = (now - timedelta(minutes=MARGIN_MINUTES)).astimezone(UTC).date() - DAY
    following = _FIRST_DAY if locked is None or locked.reports_through is None else locked.reports_through + DAY
    if locked is None or following > finished:
        return False
    if await write.scalar(_STILL_WRITING, {"before": _midnight(finished + DAY) + timedelta(minutes=MARGIN_MINUTES)}):
        return False
    found = await write.scalar(_NEXT, {"lowest": ids.first_id_at(_midnight(following))})
    day = None if found is None else ids.time_of(found).date()
    if day is None or day > finished:  # nothing in between
        await write.execute(_ADVANCE, {"day": finished})
        return False
    await write.execute(_BUILD_TIMEOUT)
    bounds = {"lowest": ids.first_id_at(_midnight(day)), "below": ids.first_id_at(_midnight(day + DAY))}
    await write.execute(_BUILD, {"day": day, **bounds})
    await write.execute(_ADVANCE, {"day": day})
    return True


async def summary(
    read: Read, *, since: datetime, until: datetime, by: By, zone: ZoneInfo, account_id: UUID | None, only_user: UUID | None
) -> Seen[list[PeriodSum]] | None:
    """Every period between `since` and `until`, in each currency, of one account or of all of `only_user`.

    At least at the version that comes with it, which is one account's; None: there is no such account. Raises InvalidRequest for a
    range that is empty or too long, and Archived where a period begins or ends inside a UTC day of archived rows: the sums of whole
    days are kept.
    """
    given = {"only_user": only_user, "account_id": account_id, "bucket": account_id and ids.bucket_of(account_id)}
    known = (await read.execute(_OF_WHAT, given)).one()
    if account_id is not None and known.currencies is None:
        return None
    between = periods(since, until, by, zone)
    stretches, days = _sources(between, known.through)
    rows = await read.execute(
        _SUMS,
        {
            **given,
            "periods": [period for period, _, _ in stretches],
            "lowest": [ids.first_id_at(start) for _, start, _ in stretches],
            "below": [ids.first_id_at(end) for _, _, end in stretches],
            "day_periods": [period for period, _, _ in days],
            "first": [first for _, first, _ in days],
            "after": [after for _, _, after in days],
        },
    )
    await _check_stretches(read, given, [(ids.first_id_at(start), ids.first_id_at(end)) for _, start, end in stretches])
    sums = defaultdict(list)
    for row in rows:
        sums[row.period, row.currency].append(row)
    found = [
        _period_sum(start, end, currency, sums[number, currency])
        for number, (start, end) in enumerate(between)
        for currency in known.currencies or ()
    ]
    return Seen(known.version or 0, found)


async def _check_stretches(read: Read, given: dict[str, Any], stretches: list[tuple[UUID, UUID]]) -> None:
    """Raises Archived when the transactions of one were, or may have been, archived."""
    if not stretches:
        return
    span = (await read.execute(_ARCHIVED, given)).one()
    if span.first is None:
        return
    first, last = UUID(span.first), UUID(span.last)
    for lowest, below in stretches:
        if lowest <= last and first < below:
            await archived.check(read, last, below=below)


def periods(since: datetime, until: datetime, by: By, zone: ZoneInfo) -> list[tuple[datetime, datetime]]:
    """The days, weeks (from Monday) or months of `zone` between the two, in UTC; the first and the last may be cut short.

    Raises InvalidRequest.
    """
    # times of posting are in milliseconds
    since, until = (_whole_milliseconds(moment) for moment in (since, until))
    if not since < until:
        raise _invalid("is not before `to`")
    if until - since > RANGE_DAYS_MAX * DAY or since.date() < _FIRST_DAY:
        raise _invalid(f"is out of range: at most {RANGE_DAYS_MAX} days before `to`, from 1970 on")
    found = []
    first = _first_day(since.astimezone(zone).date(), by)
    start = since
    while start < until:
        first = _first_day(first + LONGEST_PERIOD[by] * DAY, by)
        # a midnight that the clock skips is the moment of skipping: zoneinfo reads it by the offset before
        end = min(datetime.combine(first, time(), zone).astimezone(UTC), until)
        if start < end:
            found.append((start, end))
            start = end
    return found


def _first_day(day: date, by: By) -> date:
    match by:
        case "day":
            return day
        case "week":
            return day - day.weekday() * DAY
        case "month":
            return day.replace(day=1)


def _sources(
    between: list[tuple[datetime, datetime]], through: date | None
) -> tuple[list[tuple[int, datetime, datetime]], list[tuple[int, date, date]]]:
    """For each period, by its number: stretches of time that only the transactions know, and days that are in the reports."""
    stretches = []
    days = []
    for number, (start, end) in enumerate(between):
        first = start.date() if start == _midnight(start.date()) else start.date() + DAY
        after = first if through is None else min(end.date(), through + DAY)
        if first >= after:
            stretches.append((number, start, end))
            continue
        days.append((number, first, after))
        stretches += [(number, *edge) for edge in ((start, _midnight(first)), (_midnight(after), end)) if edge[0] < edge[1]]
    return stretches, days


def _period_sum(start: datetime, end: datetime, currency: str, rows: list[Row[Any]]) -> PeriodSum:
    credit, debit = sum(row.credit for row in rows), sum(row.debit for row in rows)
    return PeriodSum(
        start=start,
        end=end,
        currency=currency,
        count=sum(row.movements for row in rows),
        credit=credit,
        debit=debit,
        net=credit - debit,
        kinds=[KindSum(kind=row.kind, count=row.movements, credit=row.credit, debit=row.debit) for row in rows],
    )


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _whole_milliseconds(moment: datetime) -> datetime:
    moment = moment.astimezone(UTC) + timedelta(microseconds=999)
    return moment.replace(microsecond=moment.microsecond // 1_000 * 1_000)


def _invalid(message: str) -> errors.InvalidRequest:
    return errors.InvalidRequest(errors=[{"field": "from", "message": message, "code": "out_of_range"}])
