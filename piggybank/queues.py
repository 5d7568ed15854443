"""The queue of jobs: a nudge, never the truth.

What must be done is in the database (outbox rows, days without a report, old keys), and every job looks there; a queue that lost
its data is filled again by the crons within a second. So nothing here is waited for by a request.

Beside SAQ's own keys lie what jobs the workers know and how their last runs ended, for whoever looks after them: SAQ forgets a job
when it ends, and web processes know no jobs.
"""

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec
from msgspec import Struct
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from saq.job import Job
from saq.queue.redis import RedisQueue

NAME = "piggybank"
CONNECT_TIMEOUT_S = 2
ANSWER_TIMEOUT_S = 10  # longer than any blocking read of a worker
RETRIES = 2
RETRY_FIRST_S = 0.1
RETRY_LONGEST_S = 1.0
LOOKED_AT = 50  # jobs that wait: they are taken in order, so the oldest is among the first
AWAY_PAUSE_S = 1.0  # between two looks at a queue that is away
AWAY = (RedisError, OSError, TimeoutError)
FAILURES_KEPT = 100
ERROR_MAX_CHARACTERS = 500
NOT_KEPT = -1  # SAQ's word for: what a job answered is not stored, the log has it


class Schedule(Struct, frozen=True, kw_only=True):
    """How a job is run: `cron` has a sixth field for seconds; `retries` counts the attempts of one run."""

    cron: str
    timeout_s: int
    retries: int


class Run(Struct, frozen=True, kw_only=True):
    """How one attempt ended. `error` is null where it went well; `final`: it is not tried again by itself before its next turn."""

    job: str
    ended_at: datetime
    took_s: float
    attempt: int
    error: str | None
    final: bool


class State(Struct, frozen=True, kw_only=True):
    """The queue, as it is. `scheduled` wait for their time, `queued` for a worker; `failures` are the newest attempts that failed."""

    workers: int
    queued: int
    active: int
    scheduled: int
    jobs: dict[str, Schedule]
    last_runs: dict[str, Run]
    failures: list[Run]


class Queue(RedisQueue):
    """SAQ's queue that waits while its store is away; SAQ alone asks again at once, in a hot loop."""

    async def dequeue(self, timeout: float = 0.0, poll_interval: float = 0.0) -> Job | None:
        """The next job; None after `timeout` seconds, or a pause when the store is away."""
        try:
            return await super().dequeue(timeout, poll_interval)
        except AWAY:
            await asyncio.sleep(AWAY_PAUSE_S)
            return None

    async def ping(self) -> bool:
        """True when the store answers."""
        try:
            return bool(await self.redis.ping())
        except AWAY:
            return False

    async def announce(self, jobs: Mapping[str, Schedule]) -> None:
        """A worker tells which jobs there are, instead of those of an older version."""
        known = self.namespace("jobs")
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.delete(known)
            pipe.hset(known, mapping={name: msgspec.json.encode(schedule) for name, schedule in jobs.items()})
            await pipe.execute()

    async def remember(self, run: Run) -> None:
        """A worker tells how a run ended."""
        encoded = msgspec.json.encode(run)
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.hset(self.namespace("runs"), run.job, encoded)
            if run.error is not None:
                pipe.lpush(self.namespace("failures"), encoded)
                pipe.ltrim(self.namespace("failures"), 0, FAILURES_KEPT - 1)
            await pipe.execute()

    async def state(self) -> State | None:
        """What waits, what runs and what failed; None while the store is away."""
        try:
            info = await self.info()
            jobs = {name.decode(): msgspec.json.decode(row, type=Schedule) for name, row in (await self._all("jobs")).items()}
            runs = {name.decode(): msgspec.json.decode(row, type=Run) for name, row in (await self._all("runs")).items()}
            failures = [msgspec.json.decode(row, type=Run) for row in await self.redis.lrange(self.namespace("failures"), 0, -1)]
        except AWAY:
            return None
        return State(
            workers=len(info["workers"]),
            queued=info["queued"],
            active=info["active"],
            scheduled=max(0, info["scheduled"]),
            jobs=jobs,
            last_runs={name: run for name, run in runs.items() if name in jobs},
            failures=failures,
        )

    async def run_now(self, name: str) -> bool | None:
        """Ask for a run of a job beside its rhythm: False when one that was asked for still waits or runs; None: there is no such job."""
        row = await self.redis.hget(self.namespace("jobs"), name)
        if row is None:
            return None
        schedule = msgspec.json.decode(row, type=Schedule)
        job = await self.enqueue(name, key=f"now:{name}", timeout=schedule.timeout_s, retries=schedule.retries, ttl=NOT_KEPT)
        return job is not None

    async def _all(self, kind: str) -> dict[bytes, bytes]:
        return await self.redis.hgetall(self.namespace(kind))  # type: ignore[return-value] # nothing is decoded here

    async def oldest_age_s(self) -> float:
        """How long the oldest job has waited that is due; 0: none does. Raises what redis raises."""
        waiting = await self.redis.lrange(self.namespace("queued"), 0, LOOKED_AT - 1)
        stored = await self.redis.mget(waiting) if waiting else []
        due = [max(job.queued / 1_000, job.scheduled) for job in map(self.deserialize, stored) if job is not None]
        return max(0.0, time.time() - min(due)) if due else 0.0

    async def close(self) -> None:
        """Close every connection, also when the store is away."""
        try:
            await self.disconnect()
        except AWAY:
            await self.redis.connection_pool.disconnect(inuse_connections=True)


def run_of(job: Job, cause: BaseException | None) -> Run:
    """How an attempt of a job ended just now."""
    now = datetime.now(UTC)
    return Run(
        job=job.function,
        ended_at=now,
        took_s=round(now.timestamp() - job.started / 1_000, 3),
        attempt=job.attempts,
        error=None if cause is None else f"{type(cause).__name__}: {cause}"[:ERROR_MAX_CHARACTERS],
        final=cause is None or job.attempts >= job.retries,
    )


def open_queue(url: str) -> Queue:
    """The queue in the Valkey at `url`; connects at the first need."""
    redis = Redis.from_url(
        url.replace("valkey", "redis", 1) if url.startswith("valkey") else url,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=ANSWER_TIMEOUT_S,
        retry=Retry(ExponentialBackoff(cap=RETRY_LONGEST_S, base=RETRY_FIRST_S), RETRIES, (RedisConnectionError, RedisTimeoutError)),
    )
    return Queue(redis, name=NAME)
