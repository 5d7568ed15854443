"""Group commit: one lane a process; while a batch is being committed the next one gathers.

There is no timer: a quiet system has batches of one and no added latency, a busy one amortises the commit. The lane owns its
connection and runs in a task of its own, so a caller that hangs up cancels nothing. Requests and bulk commands queue apart and
take turns. What can pass (a lost connection, a conflict, a restart) is tried again by the batch's own keys for RETRY_FOR_S; what
cannot (a poisoned command) is found by posting the batch one by one.

Where a commit waits for a standby (`db/commits.py`) that wait may be long, and nothing shortens it: the lane stays with its COMMIT, whose
callers are told after RETRY_FOR_S that the outcome is unknown, and from STANDBY_LATE_S on whoever else comes is refused at once, as is
everybody when the batch finds no standby at all. A lane that waits so is not dead, and its process does not end for it; the lane goes on
when a standby confirms. It leaves its COMMIT only when the primary cannot be reached or knows of nobody who waits: then the connection
is gone, and the batch is tried again by its keys.
"""

import asyncio
import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from uuid import UUID

import asyncpg
import structlog
from msgspec import Struct

from piggybank import cache, errors, metrics
from piggybank.cache import Cache
from piggybank.db.engines import Database
from piggybank.ledger import balances, counting, posting
from piggybank.ledger.commands import accounts_of
from piggybank.ledger.rules import Outcome, Submission

MAX_BATCH = 256  # commands in one transaction
MAX_QUEUE = 512  # commands that wait, before the next is refused: a tenth of a second at 5,000 a second
MAX_BULK_QUEUE = 16_384  # the same for bulk commands
RETRY_FOR_S = 10  # then the outcome is unknown, or the database away
RETRY_PAUSE_S = 0.1  # between tries while the database is away
STUCK_AFTER_S = 30  # a batch that long means that the lane is dead
WATCH_EVERY_S = 1
STANDBY_LATE_S = 2.0  # a COMMIT that takes longer waits for a standby that may not come
ASK_PRIMARY_S = 5.0  # so often it is then looked whether the primary still knows of it
BUSY_FOR_S = 2.0  # so long an account that somebody else held is not waited for again
MAX_BUSY = 4_096  # such accounts that are remembered
MAX_CLASHES = 3  # tries with keys read before the batch is split
MAX_FORGOTTEN = 1_024  # outbox rows that one batch deletes

log = structlog.get_logger()


class _Waiting(Struct):
    submission: Submission
    future: asyncio.Future[Outcome]
    since: float


class Ledger:
    """The one door through which money changes."""

    def __init__(self, db: Database, store: Cache) -> None:
        self._db = db
        self._cache = store
        self._line: posting.Line | None = None
        self._queue: deque[_Waiting] = deque()
        self._bulk: deque[_Waiting] = deque()
        self._bulk_turn = False
        self._work = asyncio.Event()
        self._lane: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._answering: set[asyncio.Task[None]] = set()
        self._in_flight: list[_Waiting] = []
        self._in_flight_since = 0.0
        self._moved_at = 0.0  # when the lane last began or ended something
        self._asked_primary_at = 0.0
        self._refusing = False
        self._without_cache = False
        self._forget: deque[UUID] = deque(maxlen=MAX_FORGOTTEN)
        self._busy: dict[UUID, float] = {}
        self.draining = False

    @property
    def alive(self) -> bool:
        """False when the lane has ended or hangs: the process must go."""
        running = self._lane is not None and not self._lane.done()
        return running and (not self._in_flight or self._waits_for_standby > 0 or time.monotonic() - self._moved_at < STUCK_AFTER_S)

    @property
    def waiting(self) -> int:
        """Commands in the queues."""
        return len(self._queue) + len(self._bulk)

    @property
    def full(self) -> bool:
        """True while `submit` would refuse: those who wait already would make the next one wait too long."""
        return len(self._queue) >= MAX_QUEUE

    @property
    def _waits_for_standby(self) -> float:
        """So many seconds the COMMIT under way has waited for a standby."""
        line = self._line
        return time.monotonic() - line.committing_since if line and line.committing_since and line.waits_for == "synchronous" else 0.0

    async def start(self) -> None:
        """Start the lane; the database may be away."""
        if self._db.waits_for == "local":
            log.warning("durability = local: a lost primary may lose answered writes")
        self._lane = asyncio.create_task(self._run(), name="ledger lane")
        self._watch = asyncio.create_task(self._look_after(), name="ledger watch")

    async def stop(self) -> None:
        """Take nothing more, finish what waits, close the connection."""
        self.draining = True
        self._work.set()
        if self._lane is not None:
            _, late = await asyncio.wait([self._lane], timeout=RETRY_FOR_S + WATCH_EVERY_S)
            if late:
                self._disconnect()  # first: cancelling a task makes the driver cancel its COMMIT
            self._lane.cancel()
            _fail(self._in_flight, errors.OutcomeUnknown())
            _fail([*self._queue, *self._bulk], errors.ShuttingDown())
        if self._answering:
            await asyncio.wait(self._answering)
        if self._watch is not None:
            self._watch.cancel()
        self._disconnect()

    async def submit(self, submission: Submission) -> Outcome:
        """Post one command: a batch of one, or part of a larger one.

        Raises what is not an answer: Overloaded, ShuttingDown, InRecovery, DatabaseUnavailable, NoSynchronousStandby, StandbysNotVisible,
        StorageFull, AccountBusy, IdempotencyKeyInUse, OutcomeUnknown, InternalError.
        """
        return await self._enqueue(self._queue, submission, MAX_QUEUE)

    async def submit_many(self, submissions: Sequence[Submission]) -> list[Outcome | errors.Error]:
        """Post many, each for itself: an outcome, or what went wrong, for each, in order. They queue apart from the rest."""
        futures = [self._enqueue(self._bulk, submission, MAX_BULK_QUEUE) for submission in submissions]
        results = await asyncio.gather(*futures, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, errors.Error):
                raise result
        return [result for result in results if isinstance(result, Outcome | errors.Error)]

    def _enqueue(self, queue: deque[_Waiting], submission: Submission, limit: int) -> asyncio.Future[Outcome]:
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        if self.draining:
            future.set_exception(errors.ShuttingDown())
        elif self._db.recovering:
            future.set_exception(errors.InRecovery())
        elif self._waits_for_standby > STANDBY_LATE_S:
            future.set_exception(errors.NoSynchronousStandby())
        elif self._db.storage.full:
            future.set_exception(errors.StorageFull())
        elif len(queue) >= limit:
            future.set_exception(errors.Overloaded())
        else:
            queue.append(_Waiting(submission, future, time.monotonic()))
            self._work.set()
        return future

    async def _run(self) -> None:
        while not (self.draining and not self.waiting):
            if not self.waiting:
                self._work.clear()
                await self._work.wait()
                continue
            batch = self._take()
            self._in_flight, self._in_flight_since = batch, time.monotonic()
            self._moved_at = self._in_flight_since
            until = self._in_flight_since + RETRY_FOR_S
            free, busy = self._apart(batch)
            if free:
                await self._post(free, until)
            if busy:
                await self._post(busy, until, skip_locked=True)
            self._in_flight = []

    def _take(self) -> list[_Waiting]:
        """The next batch: bulk commands and the rest take turns, so neither starves the other."""
        self._bulk_turn = bool(self._bulk) and (not self._queue or not self._bulk_turn)
        queue = self._bulk if self._bulk_turn else self._queue
        return [queue.popleft() for _ in range(min(len(queue), MAX_BATCH))]

    def _apart(self, batch: list[_Waiting]) -> tuple[list[_Waiting], list[_Waiting]]:
        """Those that name an account which somebody else held a moment ago wait for nobody, and nobody waits for them."""
        if not self._busy:
            return batch, []
        now = time.monotonic()
        self._busy = {account_id: until for account_id, until in self._busy.items() if until > now}
        free: list[_Waiting] = []
        busy: list[_Waiting] = []
        for one in batch:
            named = accounts_of(one.submission.command)
            (busy if any(account_id in self._busy for account_id in named) else free).append(one)
        return free, busy

    async def _post(self, batch: list[_Waiting], until: float, *, skip_locked: bool = False, maybe_committed: bool = False) -> None:
        """Post a batch and see that everyone in it is answered, whatever happens.

        `maybe_committed`: of an earlier try; then nobody is told that nothing was changed.
        """
        read_keys, clashes = maybe_committed, 0
        while True:
            try:
                await self._try(batch, read_keys=read_keys, skip_locked=skip_locked, maybe_committed=maybe_committed)
                return
            except posting.KeyClash:
                metrics.RETRIES.labels("key").inc()
                read_keys, clashes = True, clashes + 1
                if clashes > MAX_CLASHES:
                    await self._split(batch, until, errors.IdempotencyKeyInUse(), maybe_committed=maybe_committed)
                    return
            except posting.Blocked as blocked:
                metrics.RETRIES.labels("locked").inc()
                if blocked.on_key:
                    await self._split(batch, until, errors.IdempotencyKeyInUse(), maybe_committed=maybe_committed)
                    return
                skip_locked = True
            except (errors.NoSynchronousStandby, errors.StandbysNotVisible, errors.StorageFull) as cause:
                self._tell_refused(cause)
                _fail(batch, errors.OutcomeUnknown() if maybe_committed else cause)
                return
            except Exception as cause:
                if not posting.is_passing(cause):
                    log.exception("a command could not be posted", commands=len(batch))
                    await self._split(batch, until, errors.InternalError(), maybe_committed=maybe_committed)
                    return
                metrics.RETRIES.labels("lost").inc()
                maybe_committed |= isinstance(cause, posting.OutcomeLost)
                read_keys = True
                self._disconnect()
                # a database that moved away takes no writes ever again, and whoever asks again finds the next process
                moved = self.draining and isinstance(cause, asyncpg.ReadOnlySQLTransactionError)
                if moved or time.monotonic() >= until:
                    log.warning("the database is away", error=repr(cause), commands=len(batch))
                    _fail(batch, errors.OutcomeUnknown() if maybe_committed else errors.DatabaseUnavailable())
                    return
                await asyncio.sleep(RETRY_PAUSE_S)

    async def _split(self, batch: list[_Waiting], until: float, error: errors.Error, *, maybe_committed: bool) -> None:
        """One of these stands in the way: post them one by one, fail the one that fails alone."""
        if len(batch) == 1:
            _fail(batch, errors.OutcomeUnknown() if maybe_committed else error)
            return
        for one in batch:
            if time.monotonic() < until:
                await self._post([one], until, maybe_committed=maybe_committed)
            else:
                _fail([one], errors.OutcomeUnknown() if maybe_committed else errors.Overloaded())

    async def _try(self, batch: list[_Waiting], *, read_keys: bool, skip_locked: bool, maybe_committed: bool) -> None:
        if self._line is None:
            self._line = await posting.connect(self._db)
        forget = list(self._forget)
        began_at = time.monotonic()
        posted = await posting.post(
            self._line,
            [one.submission for one in batch],
            forget=forget,
            read_keys=read_keys,
            skip_locked=skip_locked,
        )
        self._moved_at = time.monotonic()
        try:
            counting.count([one.submission for one in batch], posted, began_at - batch[0].since, self._moved_at - began_at)
        except Exception:  # it is committed: what nobody could count is answered all the same, and not posted again
            log.exception("a batch was not counted", commands=len(batch))
        self._tell_refused(None)
        for _ in forget:
            self._forget.popleft()
        if skip_locked:
            self._busy |= dict.fromkeys(sorted(posted.busy)[: MAX_BUSY - len(self._busy)], time.monotonic() + BUSY_FOR_S)
        if maybe_committed:  # an account may be locked by the earlier try itself
            _fail(
                [one for one, outcome in zip(batch, posted.outcomes, strict=True) if isinstance(outcome.decision, errors.AccountBusy)],
                errors.OutcomeUnknown(),
            )
        task = asyncio.create_task(self._answer(batch, posted))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, batch: list[_Waiting], posted: posting.Posted) -> None:
        """Write the cache through, then answer; the lane is on its next batch already."""
        try:
            if posted.changed:
                told = await self._cache.write(balances.KIND, [one.entry for one in posted.changed], cache.BALANCE_TTL_S)
                self._tell_cache(missed=not told)
                if told:
                    assert posted.outbox_id is not None
                    self._forget.append(posted.outbox_id)
        finally:  # it is committed: nothing that befalls the cache keeps the answer back
            for one, outcome in zip(batch, posted.outcomes, strict=True):
                if not one.future.done():
                    one.future.set_result(outcome)

    def _disconnect(self) -> None:
        if self._line is not None:
            self._line.connection.terminate()
            self._line = None

    def _tell_cache(self, *, missed: bool) -> None:
        """Once when it begins and once when it ends: until a sweep has mended it, others may read a balance that is two seconds old."""
        if missed and not self._without_cache:
            log.warning("a write-through was missed")
        elif self._without_cache and not missed:
            log.info("write-throughs arrive again")
        self._without_cache = missed

    def _tell_refused(self, cause: errors.Error | None) -> None:
        """Once when it begins and once when it ends."""
        if cause and not self._refusing:
            log.error("writes are refused", because=cause.code)
        elif self._refusing and not cause:
            log.info("writes are taken again")
        self._refusing = cause is not None

    async def _look_after_commit(self) -> None:
        """A COMMIT that waits for a standby: nobody queues behind it, and its connection is dropped when the primary has lost it."""
        self._tell_refused(errors.NoSynchronousStandby())
        for queue in (self._queue, self._bulk):
            _fail(queue, errors.NoSynchronousStandby())
            queue.clear()
        if self._waits_for_standby < RETRY_FOR_S or time.monotonic() - self._asked_primary_at < ASK_PRIMARY_S:
            return
        waiting = self._line
        if waiting is None:
            return
        since = waiting.committing_since
        known = await self._db.waits(waiting.transaction)
        self._asked_primary_at = time.monotonic()
        if not known and waiting is self._line and since and waiting.committing_since == since:
            log.warning("the primary has lost the commit that waited for a standby")
            self._disconnect()

    async def _look_after(self) -> None:
        """Once a second: tell those who wait too long, and end the process when the lane is dead."""
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            if self._waits_for_standby > STANDBY_LATE_S:
                await self._look_after_commit()
            now = time.monotonic()
            for queue in (self._queue, self._bulk):
                while queue and now - queue[0].since > RETRY_FOR_S:
                    _fail([queue.popleft()], errors.Overloaded())  # it was not started
            if self._in_flight and now - self._in_flight_since > RETRY_FOR_S + WATCH_EVERY_S:
                _fail(self._in_flight, errors.OutcomeUnknown())
            if not (self.alive or self.draining):
                log.critical("the ledger's lane is dead; this process ends")
                os.kill(os.getpid(), signal.SIGKILL)


def _fail(batch: Sequence[_Waiting], error: errors.Error) -> None:
    for one in batch:
        if not one.future.done():
            one.future.set_exception(error)
            one.future.exception()  # seen: a caller that hung up leaves no warning behind
