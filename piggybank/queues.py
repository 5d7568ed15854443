"""The queue of jobs: a nudge, never the truth.

What must be done is in the database (outbox rows, days without a report, old keys), and every job looks there; a queue that lost
its data is filled again by the crons within a second. So nothing here is waited for by a request.
"""

import asyncio
import time

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


def open_queue(url: str) -> Queue:
    """The queue in the Valkey at `url`; connects at the first need."""
    redis = Redis.from_url(
        url.replace("valkey", "redis", 1) if url.startswith("valkey") else url,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=ANSWER_TIMEOUT_S,
        retry=Retry(ExponentialBackoff(cap=RETRY_LONGEST_S, base=RETRY_FIRST_S), RETRIES, (RedisConnectionError, RedisTimeoutError)),
    )
    return Queue(redis, name=NAME)
