"""The worker: SAQ's crons, and rounds beside them.

The outbox sweep, the provider's events and what is to be sent are loops of their own, not crons: SAQ remembers the job of a worker that
was killed for up to its timeout and a minute, and a cron stops when the queue is away, but what a failed write-through left must be
mended within two seconds whatever becomes of the queue, and people wait for their deposit. Everything else is asked for by SAQ.

`run` is a process of its own, `running_worker` the same inside the web process; neither ends because a store is away.
"""

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import structlog
import uvloop
from prometheus_client import start_http_server
from saq import CronJob, Worker

from piggybank import errors, jobs, metrics, queues, telemetry
from piggybank.cache import Cache
from piggybank.capacity.shares import Sharing
from piggybank.db import installation
from piggybank.db.engines import Database
from piggybank.jobs.work import Work
from piggybank.ledger import Ledger
from piggybank.queues import Queue, Schedule
from piggybank.settings import Settings
from piggybank.tracing import tracing
from piggybank.wallet.provider import Provider

CONCURRENCY = 2  # jobs at once
DEQUEUE_TIMEOUT_S = 0.25  # so often an idle worker looks whether it is to stop
DRAIN_S = 20  # a running job may finish when the worker is told to stop
RESTART_PAUSE_S = 1.0
RESTART_PAUSE_LONGEST_S = 30.0

_log = structlog.get_logger()


def run(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT."""
    telemetry.configure(settings.log_level, settings.log_format)
    uvloop.run(_run(settings))


async def _run(settings: Settings) -> None:
    db, cache, queue = Database.of(settings), Cache.of(settings), queues.open_queue(settings.queue_url)
    ledger, provider = Ledger(db, cache), Provider(settings, db)
    told_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop.set)
    sharing = Sharing(db, web=False)
    tracing.start(settings)
    close_metrics = _answer_metrics(settings)
    await ledger.start()
    sharing.start()
    try:
        async with running_worker(Work(settings, db, cache, ledger, provider), queue):
            _log.info("worker_started", jobs=sorted(jobs.JOBS))
            await told_to_stop.wait()
            _log.info("worker_stopping")
    finally:
        await ledger.stop()
        await asyncio.to_thread(tracing.stop)
        close_metrics()
        await sharing.stop()
        await provider.close()
        await queue.close()
        await cache.close()
        await db.close()


def _answer_metrics(settings: Settings) -> Callable[[], None]:
    """On a port of the worker's own where one is set (its counts are nobody else's in a container); returns how that ends."""
    if not settings.worker_metrics_port:
        return lambda: None
    server, thread = start_http_server(settings.worker_metrics_port, settings.worker_metrics_listen, metrics.all_processes())

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return close


@asynccontextmanager
async def running_worker(work: Work, queue: Queue) -> AsyncIterator[None]:
    """The worker at work beside the block; it lets running jobs finish when the block ends."""
    _quieten_saq()
    worker, watch = _JobWorker(work, queue), jobs.alerts.Watch()
    rounds = [
        _Rounds(work, jobs.outbox.sweep),
        _Rounds(work, jobs.outbox.send_mails),
        _Rounds(work, jobs.revio.introduce),
        _Rounds(work, jobs.revio.apply_events, timeout_s=jobs.APPLY_TIMEOUT_S),
        _Rounds(work, watch, failed=watch.missed),
        _Rounds(work, jobs.revio.send_payments, timeout_s=None),  # its calls have timeouts of their own, and are not to be cut off
    ]
    if work.settings.read_replicas:
        rounds.append(_Rounds(work, jobs.heartbeat.beat))
    tasks = [
        asyncio.create_task(_for_ever(worker.start), name="worker"),
        *(asyncio.create_task(each.run(), name=each.name) for each in rounds),
    ]
    try:
        yield
    finally:
        work.provider.stopping = True
        for each in rounds:
            each.stopping.set()
        await worker.stop()
        _, late = await asyncio.wait(tasks, timeout=DRAIN_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _for_ever(start: Callable[[], Awaitable[None]]) -> None:
    """Start again what ended by an exception."""
    pause_s = RESTART_PAUSE_S
    while True:
        try:
            return await start()
        except Exception:
            _log.exception("worker_failed", again_in_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RESTART_PAUSE_LONGEST_S)


class _Rounds:
    """Do a part of the work every second, whatever happens to the stores and to the provider."""

    def __init__(
        self,
        work: Work,
        part: Callable[[Work], Awaitable[int]],
        timeout_s: float | None = jobs.SWEEP_TIMEOUT_S,
        failed: Callable[[Work], Awaitable[int]] | None = None,
    ) -> None:
        self._work = work
        self._part = part
        self._timeout_s = timeout_s
        self._failed = failed  # what is done when the part could not be
        self.name = f"rounds of {getattr(part, '__name__', 'watch')}"
        self._failing = ""
        self.stopping = asyncio.Event()

    async def run(self) -> None:
        while not self.stopping.is_set():
            if not await self._once() and self._failed is not None:
                try:
                    await self._failed(self._work)
                except Exception:
                    _log.exception("job_failed", job=self.name)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), jobs.SWEEP_EVERY_S)

    async def _once(self) -> bool:
        try:
            async with asyncio.timeout(self._timeout_s):
                await _know_epoch(self._work)
                if not self._work.db.recovering:
                    await self._part(self._work)
        except TimeoutError as cause:
            self._tell(type(cause).__name__)
        except errors.Error as cause:
            if not (cause.retryable or isinstance(cause, errors.ProviderNotConfigured)):
                _log.exception("job_failed", job=self.name)
            self._tell(type(cause).__name__)
        except Exception:
            _log.exception("job_failed", job=self.name)
        else:
            self._tell("")
            return True
        return False

    def _tell(self, failing: str) -> None:
        """Once when it begins and once when it ends, not every second."""
        if failing and failing != self._failing:
            _log.warning("work_waits", part=self.name, because=failing)
        elif self._failing and not failing:
            _log.info("work_goes_on", part=self.name)
        self._failing = failing


class _JobWorker(Worker[Any]):
    """SAQ's worker without signal handlers, that finishes its jobs at the end and says once when the queue is away."""

    SIGNALS: list[signal.Signals] = []

    def __init__(self, work: Work, queue: Queue) -> None:
        self._jobs = queue
        self._queue_is_away = False
        super().__init__(
            queue,
            functions=[],
            cron_jobs=[_cron(work, name, job) for name, job in jobs.JOBS.items()],
            concurrency=CONCURRENCY,
            dequeue_timeout=DEQUEUE_TIMEOUT_S,
            after_process=self._tell,
        )

    async def schedule(self, lock: int = 1) -> None:
        """SAQ calls this every second: it puts the crons back that a queue without its data has lost."""
        try:
            await super().schedule(lock)
        except queues.AWAY as cause:
            if not self._queue_is_away:
                _log.warning("queue_is_away", because=type(cause).__name__)
            self._queue_is_away = True
        else:
            if self._queue_is_away:
                _log.info("queue_is_back")
            self._queue_is_away = False

    async def worker_info(self, ttl: int = 60) -> Any:
        """SAQ calls this every ten seconds: it tells the queue that there is a worker, and here also for which jobs."""
        schedules = {name: Schedule(cron=job.cron, timeout_s=job.timeout_s, retries=job.retries) for name, job in jobs.JOBS.items()}
        await self._jobs.announce(schedules)
        return await super().worker_info(ttl)

    async def _tell(self, context: Any) -> None:
        job, cause = context["job"], context.get("exception")
        metrics.JOBS.labels(job.function, str(job.status.value)).inc()
        if isinstance(cause, errors.Error) and cause.retryable:
            _log.warning("job_failed", job=job.function, attempt=job.attempts, because=type(cause).__name__)
        elif cause is not None:
            _log.error("job_failed", job=job.function, attempt=job.attempts, exc_info=cause)
        with suppress(*queues.AWAY):  # the log has it
            await self._jobs.remember(queues.run_of(job, cause))

    async def stop(self) -> None:
        """SAQ's stop cancels; a job that runs may finish first."""
        self.event.set()
        at_work = [task for task in self.tasks if task.get_name() == "process"]
        if at_work:
            await asyncio.wait(at_work, timeout=DRAIN_S)
        await super().stop()


def _cron(work: Work, name: str, job: jobs.Job) -> CronJob[Any]:
    async def run(_context: object) -> int:
        await _know_epoch(work)
        return 0 if work.db.recovering else await job.run(work)

    run.__qualname__ = name  # what SAQ calls it by
    return CronJob(run, job.cron, timeout=job.timeout_s, retries=job.retries, ttl=queues.NOT_KEPT)


async def _know_epoch(work: Work) -> None:
    """The cache is of no use before this process knows which past it belongs to, and that may change; one look serves all rounds."""
    if time.monotonic() - work.cache.known_at < jobs.SWEEP_EVERY_S:
        return
    async with work.db.read() as session:
        epoch, closed, work.db.recovering = await installation.epoch(session)
    work.cache.know(epoch, closed=closed)


def _quieten_saq() -> None:
    """What SAQ says of failed jobs and of a queue that is away is said above, once; that it cancels its idle tasks is no news."""
    logger = logging.getLogger("saq")
    if _is_news not in logger.filters:
        logger.addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    cause = record.exc_info[1] if record.exc_info else None
    return not (isinstance(cause, queues.AWAY) or record.msg.startswith(("Error processing job", "Some tasks did not finish within")))
