"""What one process counted since it last told: each minute a row of its own, which whoever records the minute adds up.

So a minute is of all processes, wherever they run. A row that could not be written is not lost: the next one has its counts, too. Where
nobody records, each process forgets what is too old to be of any minute: the table does not grow.
"""

import asyncio
import random
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import msgspec
from msgspec import Struct
from prometheus_client import Counter, Histogram
from prometheus_client.samples import Sample
from sqlalchemy import text

from piggybank import errors, metrics, telemetry
from piggybank.db.engines import Database, Read, Write
from piggybank.db.routing import Routed

TOLD_WITHIN_S = 6.0  # after a minute's end, each process at a moment of its own; what is recorded 15 s after it has them all
KEPT_MINUTES = 30  # that nobody recorded; as far back minutes are made up for (usage.py)
LAG_MOST_S = 86_400.0  # nobody needs more

_WRITE = text("INSERT INTO minute_shares (process, at, share) VALUES (:process, :at, CAST(:share AS jsonb))")
_AGE_OUT = text("DELETE FROM minute_shares WHERE at < :before")
_LIST = text("SELECT process, at, CAST(share AS text) AS share FROM minute_shares WHERE at <= :until")
_FORGET = text("""
DELETE FROM minute_shares
USING unnest(CAST(:process AS uuid[]), CAST(:at AS timestamptz[])) AS done (process, at)
WHERE minute_shares.process = done.process AND minute_shares.at = done.at
""")

_log = telemetry.logger("shares")


class Share(Struct, frozen=True, kw_only=True):
    """Counts since the last one. Lists: how many in each bucket of `metrics.SECONDS` and `metrics.LAGS_S`, and above the last.

    Probes are not among the requests. `lag_s`: of each replica, as this process sees it now. `web`: whether a web process is among those
    who told; None: one of a version that does not say.
    """

    requests: int = 0
    errors: int = 0
    seconds: list[int] = []
    hits: int = 0
    misses: int = 0
    slow_queries: int = 0
    bad_signatures: int = 0
    webhook_lags: list[int] = []
    lag_s: dict[str, float] = {}
    web: bool | None = None

    def __add__(self, other: "Share") -> "Share":
        return Share(
            requests=self.requests + other.requests,
            errors=self.errors + other.errors,
            seconds=_added(self.seconds, other.seconds),
            hits=self.hits + other.hits,
            misses=self.misses + other.misses,
            slow_queries=self.slow_queries + other.slow_queries,
            bad_signatures=self.bad_signatures + other.bad_signatures,
            webhook_lags=_added(self.webhook_lags, other.webhook_lags),
            lag_s={name: max(self.lag_s.get(name, 0.0), other.lag_s.get(name, 0.0)) for name in self.lag_s.keys() | other.lag_s.keys()},
            web=self.web or other.web or (None if None in (self.web, other.web) else False),
        )

    def since(self, before: "Share") -> "Share":
        """What was counted after `before`."""
        return Share(
            requests=self.requests - before.requests,
            errors=self.errors - before.errors,
            seconds=_added(self.seconds, [-count for count in before.seconds]),
            hits=self.hits - before.hits,
            misses=self.misses - before.misses,
            slow_queries=self.slow_queries - before.slow_queries,
            bad_signatures=self.bad_signatures - before.bad_signatures,
            webhook_lags=_added(self.webhook_lags, [-count for count in before.webhook_lags]),
            lag_s=self.lag_s,
            web=self.web,
        )


class Sharing:
    """Of one process: it tells each minute what it counted, and once more at its end."""

    def __init__(self, db: Database, *, web: bool) -> None:
        self._db = db
        self._web = web
        self._process = uuid4()
        self._told = counted(db)
        self._telling: asyncio.Task[None] | None = None
        self._failing = False

    def start(self) -> None:
        """Begin; the database may be away."""
        self._telling = asyncio.create_task(self._each_minute(), name="shares")

    async def stop(self) -> None:
        """Tell what is left, where somebody listens."""
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)
            await self.tell()

    async def tell(self) -> bool:
        """Write down what was counted since the last time; False where the database does not take it."""
        now, at = counted(self._db), datetime.now(UTC)
        share = msgspec.json.encode(msgspec.structs.replace(now.since(self._told), web=self._web)).decode()
        try:
            async with self._db.write(lasting=False) as write:
                await write.execute(_AGE_OUT, {"before": at - timedelta(minutes=KEPT_MINUTES)})
                await write.execute(_WRITE, {"process": self._process, "at": at, "share": share})
        except Exception as cause:  # whatever it is: the next one has these, too
            if not (self._failing or isinstance(cause, errors.DatabaseUnavailable)):
                _log.warning("share_not_told", because=type(cause).__name__)
            self._failing = True
            return False
        self._told, self._failing = now, False
        return True

    async def _each_minute(self) -> None:
        while True:
            now = datetime.now(UTC)
            await asyncio.sleep(60 - now.second - now.microsecond / 1e6 + random.uniform(0, TOLD_WITHIN_S))  # noqa: S311 - no secret
            with suppress(errors.Error):
                await self.tell()


def counted(db: Database) -> Share:
    """All that this process has counted since it started."""
    requests = [sample for sample in _samples(metrics.REQUESTS) if sample.labels["http_route"] not in metrics.PROBES]
    lookups = _samples(metrics.LOOKUPS)
    return Share(
        requests=_sum(sample for sample in requests if sample.name.endswith("_count")),
        errors=_sum(
            sample for sample in requests if sample.name.endswith("_count") and sample.labels["http_response_status_code"].startswith("5")
        ),
        seconds=_buckets(requests, metrics.SECONDS),
        hits=_sum(sample for sample in lookups if sample.labels.get("result") == "hit" and sample.name.endswith("_total")),
        misses=_sum(sample for sample in lookups if sample.labels.get("result") == "miss" and sample.name.endswith("_total")),
        slow_queries=_total(metrics.SLOW_QUERIES),
        bad_signatures=_total(metrics.BAD_SIGNATURES),
        webhook_lags=_buckets(_samples(metrics.WEBHOOK_LAG), metrics.LAGS_S),
        lag_s={each.name: round(min(each.lag_ms / 1_000, LAG_MOST_S), 6) for each in db.replicas} if isinstance(db, Routed) else {},
    )


async def told(read: Read, until: datetime) -> tuple[Share | None, list[tuple[UUID, datetime]]]:
    """What all processes told until then, and which rows say so; None: nobody did."""
    rows = (await read.execute(_LIST, {"until": until})).all()
    whole: Share | None = None
    for row in rows:
        share = _of_our_shape(msgspec.json.decode(row.share, type=Share))
        whole = share if whole is None else whole + share
    return whole, [(row.process, row.at) for row in rows]


async def forget(write: Write, rows: Sequence[tuple[UUID, datetime]]) -> None:
    """They are in a minute now."""
    await write.execute(_FORGET, {"process": [process for process, _ in rows], "at": [at for _, at in rows]})


def quantile(rank: float, counts: Sequence[int], bounds: Sequence[float]) -> float | None:
    """As PromQL's histogram_quantile has it: straight within a bucket, at most the last bound; None: nothing was counted."""
    whole = sum(counts)
    if not whole:
        return None
    wanted, below, low = rank * whole, 0, 0.0
    for count, bound in zip(counts, bounds, strict=False):
        if count and below + count >= wanted:
            return low + (bound - low) * (wanted - below) / count
        below, low = below + count, bound
    return bounds[-1]


def _samples(metric: Counter | Histogram) -> list[Sample]:
    return [sample for family in metric.collect() for sample in family.samples]


def _sum(samples: Iterable[Sample]) -> int:
    return int(sum(sample.value for sample in samples))


def _total(counter: Counter) -> int:
    return _sum(sample for sample in _samples(counter) if sample.name.endswith("_total"))


def _buckets(samples: Iterable[Sample], bounds: Sequence[float]) -> list[int]:
    """How many in each; the library's are how many at most."""
    at_most = dict.fromkeys((*bounds, float("inf")), 0)
    for sample in samples:
        if sample.name.endswith("_bucket"):
            at_most[float(sample.labels["le"])] += int(sample.value)
    counts = list(at_most.values())
    return [count - before for count, before in zip(counts, [0, *counts], strict=False)]


def _of_our_shape(share: Share) -> Share:
    """Without the buckets of a version that has others: while one is replaced by the other both tell."""
    seconds, lags = len(metrics.SECONDS) + 1, len(metrics.LAGS_S) + 1
    return msgspec.structs.replace(
        share,
        seconds=share.seconds if len(share.seconds) == seconds else [],
        webhook_lags=share.webhook_lags if len(share.webhook_lags) == lags else [],
    )


def _added(one: Sequence[int], other: Sequence[int]) -> list[int]:
    if not (one and other):
        return list(one or other)
    return [a + b for a, b in zip(one, other, strict=True)]
