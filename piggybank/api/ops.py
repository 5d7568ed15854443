"""What an operator looks at first."""

import time
from datetime import UTC, datetime
from typing import Annotated, Literal

from litestar import get
from msgspec import Meta, Struct
from sqlalchemy import text

import piggybank
from piggybank import errors, ids
from piggybank.api.health import Readiness
from piggybank.cache import Cache
from piggybank.db.engines import Database
from piggybank.db.routing import Routed
from piggybank.ledger import Ledger
from piggybank.queues import Queue
from piggybank.settings import ProviderMode
from piggybank.wallet.provider import Provider

LAG_SHOWN_MS = 24 * 3_600_000  # beyond it nobody needs the number

_OUTBOX = text(
    "SELECT count(*) AS waiting, (array_agg(id ORDER BY id))[1] AS oldest FROM (SELECT id FROM outbox ORDER BY id LIMIT 10000) AS head"
)


class Counts(Struct, frozen=True, kw_only=True):
    """Of this process, since it started."""

    hits: int
    misses: int


class ReplicaStatus(Struct, frozen=True, kw_only=True):
    """One replica, as this process sees it."""

    name: Annotated[str, Meta(description="Its `cluster_name`, else where it is.")]
    fresh: Annotated[bool, Meta(description="It may answer reads now.")]
    lag_ms: Annotated[float | None, Meta(description="At most so old is what it shows; null: nobody knows, or very old.")]
    reads: int


class Reads(Struct, frozen=True, kw_only=True):
    """Which server answered the reads that a replica may answer; of this process, since it started."""

    replicas: list[ReplicaStatus]
    primary: Annotated[
        dict[str, int],
        Meta(
            description="By the reason why it was the primary. `away`: no replica answers; `lag`: none is fresh enough; `version`: it was"
            " older than what is known; `cold`: the cache cannot tell what is known; `missing`: it did not have it; `failed`: it could not."
        ),
    ]


class Stores(Struct, frozen=True, kw_only=True):
    """Which stores answer right now."""

    database: bool
    cache: bool
    queue: bool


class Outbox(Struct, frozen=True, kw_only=True):
    """Events that are committed and not yet carried out."""

    waiting: Annotated[int, Meta(description="Rows, counted up to 10,000.")]
    oldest_age_s: float


class ProviderStatus(Struct, frozen=True, kw_only=True):
    """The payment provider; counts are of this process, since it started."""

    mode: Annotated[Literal["simulator", "live"] | None, Meta(description="`simulator`: no real money moves. Null: not known yet.")]
    configured: Annotated[bool, Meta(description="False: payments through the provider are refused.")]
    wrong_signatures: Annotated[int, Meta(description="Events that no key of this installation had signed; refused with 401.")]


class Status(Struct, frozen=True, kw_only=True):
    """One process's view of the installation."""

    version: str
    schema_revision: str
    epoch: str
    started_at: datetime
    uptime_s: float
    ready: bool
    reasons: list[str]
    clock_off_s: float
    ledger_waiting: Annotated[int, Meta(description="Commands that wait for their batch in this process.")]
    cache: Annotated[dict[str, Counts], Meta(description="Hits and misses by kind of value.")]
    reads: Annotated[Reads | None, Meta(description="Null: there are no replicas, the primary answers all.")]
    outbox: Outbox | None
    stores: Stores
    provider: ProviderStatus


_started = time.time()


@get("/v1/ops/status", tags=["operations"], summary="How the installation is")
async def status(db: Database, cache: Cache, ledger: Ledger, queue: Queue, readiness: Readiness, provider: Provider) -> Status:
    """Answers also while stores are away: what is not known is null."""
    outbox = await _outbox(db)
    reasons = readiness.reasons
    return Status(
        version=piggybank.__version__,
        schema_revision=readiness.revision,
        epoch=cache.epoch,
        started_at=datetime.fromtimestamp(_started, UTC),
        uptime_s=round(time.time() - _started, 1),
        ready=not reasons,
        reasons=reasons,
        clock_off_s=round(readiness.clock_off_s, 3),
        ledger_waiting=ledger.waiting,
        cache={kind: Counts(hits=cache.hits[kind], misses=cache.misses[kind]) for kind in sorted(cache.hits.keys() | cache.misses.keys())},
        reads=_reads(db) if isinstance(db, Routed) else None,
        outbox=outbox,
        stores=Stores(database=outbox is not None, cache=await cache.ping(), queue=await queue.ping()),
        provider=await _provider(provider),
    )


def _reads(db: Routed) -> Reads:
    replicas = [
        ReplicaStatus(
            name=replica.name,
            fresh=replica.fresh,
            lag_ms=round(replica.lag_ms, 1) if replica.lag_ms < LAG_SHOWN_MS else None,
            reads=db.by_replica[replica.name],
        )
        for replica in db.replicas
    ]
    return Reads(replicas=replicas, primary={str(why): count for why, count in sorted(db.by_primary.items())})


async def _provider(provider: Provider) -> ProviderStatus:
    mode: ProviderMode | None = None
    configured = False
    try:
        mode = await provider.mode()
        configured = await provider.check() == mode
    except (errors.DatabaseUnavailable, errors.ProviderNotConfigured):
        pass
    return ProviderStatus(mode=mode, configured=configured, wrong_signatures=provider.wrong_signatures)


async def _outbox(db: Database) -> Outbox | None:
    try:
        async with db.read() as read:
            row = (await read.execute(_OUTBOX)).one()
    except errors.DatabaseUnavailable:
        return None
    age_s = (datetime.now(UTC) - ids.time_of(row.oldest)).total_seconds() if row.oldest else 0.0
    return Outbox(waiting=row.waiting, oldest_age_s=round(max(0.0, age_s), 1))


routes = [status]
