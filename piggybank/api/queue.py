"""What is done beside the requests: jobs, how their runs ended, and events that wait; for operators."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from litestar import get, post
from msgspec import Meta, Struct

from piggybank import errors
from piggybank.db import outbox
from piggybank.db.engines import Database
from piggybank.db.outbox import Failing
from piggybank.identity import audit
from piggybank.identity.tokens import Principal
from piggybank.queues import AWAY, Queue, Run

FAILING_SHOWN_MAX = 100


class JobView(Struct, frozen=True, kw_only=True):
    """A job that the workers know. `last_run` is null where none has ended yet."""

    name: str
    cron: Annotated[str, Meta(description="When it runs, in UTC; a sixth field is of seconds.")]
    timeout_s: int
    retries: int
    last_run: Run | None


class OutboxView(Struct, frozen=True, kw_only=True):
    """Events that are committed and not yet carried out."""

    waiting: Annotated[int, Meta(description="Rows, counted up to 10,000.")]
    oldest_at: datetime | None
    failing: list[Failing]


class QueueView(Struct, frozen=True, kw_only=True):
    """All numbers are null while the queue's store is away; its jobs come back by themselves."""

    answers: bool
    workers: int | None
    queued: int | None
    active: int | None
    scheduled: int | None
    jobs: list[JobView]
    failures: Annotated[list[Run], Meta(description="The newest 100 attempts that failed, newest first.")]
    outbox: OutboxView


class Asked(Struct, frozen=True, kw_only=True):
    """`started` is false where a run that was asked for before still waits or runs."""

    job: str
    started: bool


class Hurried(Struct, frozen=True, kw_only=True):
    """The event is tried again within seconds."""

    id: UUID
    topic: str


@get("/v1/ops/queue", tags=["operations"], summary="Jobs, queue and outbox")
async def get_queue(queue: Queue, db: Database) -> QueueView:
    """What waits, what runs, how each job's last run ended, and what failed."""
    state = await queue.state()
    async with db.read() as read:
        count, oldest_at = await outbox.waiting(read)
        waiting = OutboxView(waiting=count, oldest_at=oldest_at, failing=await outbox.failing(read, limit=FAILING_SHOWN_MAX))
    if state is None:
        return QueueView(answers=False, workers=None, queued=None, active=None, scheduled=None, jobs=[], failures=[], outbox=waiting)
    jobs = [
        JobView(name=name, cron=row.cron, timeout_s=row.timeout_s, retries=row.retries, last_run=state.last_runs.get(name))
        for name, row in sorted(state.jobs.items())
    ]
    return QueueView(
        answers=True,
        workers=state.workers,
        queued=state.queued,
        active=state.active,
        scheduled=state.scheduled,
        jobs=jobs,
        failures=state.failures,
        outbox=waiting,
    )


@post("/v1/ops/queue/jobs/{name:str}/run", status_code=202, tags=["operations"], summary="Run a job now")
async def run_job(name: str, principal: Principal, queue: Queue, db: Database) -> Asked:
    """Beside its rhythm. Every job looks for what is left to do, so running it twice does nothing twice."""
    try:
        started = await queue.run_now(name)
    except AWAY as cause:
        raise errors.QueueUnavailable from cause
    if started is None:
        raise errors.NotFound(job=name)
    async with db.write() as write:
        audit.record(write, principal.actor, "job.run", f"job:{name}", {"started": started})
    return Asked(job=name, started=started)


@post("/v1/ops/outbox/{row_id:uuid}/retry", status_code=202, tags=["operations"], summary="Try an event again now")
async def retry_event(row_id: UUID, principal: Principal, db: Database) -> Hurried:
    """One whose effect failed, and that waits for its next attempt."""
    async with db.write() as write:
        topic = await outbox.hurry(write, row_id)
        if topic is None:
            raise errors.NotFound(outbox=str(row_id))
        audit.record(write, principal.actor, "outbox.retry", f"outbox:{row_id}", {"topic": topic})
    return Hurried(id=row_id, topic=topic)


routes = [get_queue, run_job, retry_event]
