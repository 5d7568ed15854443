"""Replicas, and what is known of each: is it there, and up to which moment does it show everything?

A look asks the primary how far its log is written, and how far each replica has replayed it (`pg_stat_replication`, found there by
`cluster_name`; not streaming is of no use). A replica that has replayed all of it shows all that was committed before the look; one that
has not shows all that was committed before the last look whose end of the log it has passed. That moment is kept, and a replica answers
while it is less than MAX_LAG_MS ago. So a look that comes late, a primary that is away, a link that is cut and a replay that stands still
are one thing: the moment grows old. Ten minutes without a write do not, since nothing is missing. (`replay_lag` itself is not believed:
of a replay that stands still it tells for up to ten seconds what it was before.)

Where the role may not see that view (it needs pg_read_all_stats), or a replica has no `cluster_name` of its own (CloudNativePG gives all
servers of a cluster the same), the replica itself is asked how far it is. That number means something only if both follow the same
history, so it must show a heartbeat too: a row that the worker writes each second, one that this process has seen on the primary within
HEARTBEAT_MISSING_S.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

import asyncpg
from sqlalchemy import text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from piggybank import telemetry
from piggybank.db import standbys
from piggybank.db.engines import Database, Question, Read, Seen, T, open_engine, said_plainly

MAX_LAG_MS = 100
LOOK_EVERY_S = 0.025  # two looks and some waiting are to be less than MAX_LAG_MS
LOOK_TIMEOUT_S = 1.0
LOOK_AGAIN_S = 0.25  # while the primary does not answer
INTRODUCE_EVERY_S = 1.0
INTRODUCE_TIMEOUT_S = 1.0
HEARTBEAT_MISSING_S = 5.0  # a beat that was the primary's last one until then
POSITIONS = 64  # looks that are remembered
BEATS = 16
CONNECTIONS = 3  # of a process to each replica: a read is one round trip, and a replica serves many processes without a pooler
ANSWER_TIMEOUT_S = 2.0  # then its connection is cut, and the primary asked
WAIT_S = 1  # for a free connection
LONG_AGO = float("-inf")

# The timeline: a position means something within one only, and behind a pooler another server may answer the next look. The view
# pg_stat_replication, without its join to all sessions: 75 us of the primary instead of 120, forty times a second and process.
_LOOK = f"""
SELECT left(pg_walfile_name(pg_current_wal_flush_lsn()), 8) AS timeline,
       CAST(pg_current_wal_flush_lsn() - '0/0'::pg_lsn AS bigint) AS written,
       {standbys.MAY_SEE} AS readable, current_setting('cluster_name') AS name,
       (SELECT beat FROM heartbeat) AS beat,
       session.application_name, sender.{standbys.STREAMS} AS streams, CAST(sender.replay_lsn - '0/0'::pg_lsn AS bigint) AS replayed
FROM (VALUES (1)) AS one
LEFT JOIN (pg_stat_get_wal_senders() AS sender JOIN LATERAL pg_stat_get_activity(sender.pid) AS session ON true) ON true
"""

_INTRODUCE = text("""
SELECT current_setting('cluster_name') AS name, pg_is_in_recovery() AS follows,
       CAST(pg_last_wal_replay_lsn() - '0/0'::pg_lsn AS bigint) AS replayed,
       (SELECT beat FROM heartbeat) AS beat
""")

_log = telemetry.logger("replicas")


class Busy(Exception):
    """All connections to a replica are taken, and none became free in time; it is none the worse for that."""


class Introduction(NamedTuple):
    """What a replica says of itself."""

    name: str
    follows: bool
    replayed: int | None
    beat: object  # a time, and only whether it is the same one matters


class Replica:
    """One standby: its connections, and what is known of it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.cluster_name = ""
        self.there = False  # it answered when it was last asked, and follows a primary
        self.shows_all_before = LONG_AGO  # on the monotonic clock
        # without a transaction around it a read is one round trip; a dead connection is no error here, so none is pinged first
        engine = open_engine(url, pool=CONNECTIONS, wait_s=WAIT_S, connect_s=INTRODUCE_TIMEOUT_S, pre_ping=False)
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")

    @property
    def name(self) -> str:
        """What people know it by; never its password."""
        parts = urlsplit(self.url)
        return self.cluster_name or f"{parts.hostname}:{parts.port or 5432}"

    @property
    def lag_ms(self) -> float:
        """At most so old is what it shows; infinite where nobody knows."""
        return (time.monotonic() - self.shows_all_before) * 1_000

    @property
    def fresh(self) -> bool:
        """True while it may answer."""
        return self.there and self.lag_ms < MAX_LAG_MS

    async def ask(self, question: Question[T], timeout_s: float = ANSWER_TIMEOUT_S) -> Seen[T] | None:
        """What it finds; raises DatabaseUnavailable, also when it takes too long, and Busy."""
        with said_plainly():
            async with Read(self._engine, expire_on_commit=False, autoflush=False) as session:
                try:
                    raw = await (await session.connection()).get_raw_connection()
                except PoolTimeoutError as cause:
                    raise Busy from cause
                assert raw.driver_connection is not None
                # not cancelled: that would wait for the server's word, and it may have stopped answering
                cut = asyncio.get_running_loop().call_later(timeout_s, raw.driver_connection.terminate)
                try:
                    return await question(session)
                finally:
                    cut.cancel()

    async def introduce(self) -> Introduction:
        """Ask who it is, and how far; raises as `ask` does."""

        async def question(read: Read) -> Seen[Introduction]:
            return Seen(0, Introduction(*(await read.execute(_INTRODUCE)).one()))

        seen = await self.ask(question, INTRODUCE_TIMEOUT_S)
        assert seen is not None
        return seen.what

    def lost(self, cause: Exception) -> None:
        """Not asked again before it has introduced itself anew."""
        if self.there:
            _log.warning("replica_lost", replica=self.name, because=type(cause.__cause__ or cause).__name__)
        self.there = False

    async def close(self) -> None:
        """Close its connections."""
        await self._engine.dispose()


class Watch:
    """Looks at the primary and at its replicas, beside the requests."""

    def __init__(self, primary: Database, replicas: Sequence[Replica]) -> None:
        self._primary = primary
        self._replicas = replicas
        self._looks: deque[tuple[float, int]] = deque(maxlen=POSITIONS)  # when, and how far the log was written then
        self._beats: deque[tuple[float, object]] = deque(maxlen=BEATS)  # until when it was the last one
        self._timeline = ""
        self._readable = False
        self._name = ""  # of the primary
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin; nobody needs to be there yet."""
        self._tasks = [asyncio.create_task(self._watch(), name="replication watch")]
        self._tasks += [asyncio.create_task(self._keep_introduced(each), name=f"introduction of {each.name}") for each in self._replicas]

    async def stop(self) -> None:
        """No more looking."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch(self) -> None:
        connection: asyncpg.Connection | None = None
        failing = False
        try:
            while True:
                try:
                    async with asyncio.timeout(LOOK_TIMEOUT_S):
                        connection = connection or await self._primary.connect()
                        asked_at = time.monotonic()
                        self._seen(asked_at, await connection.fetch(_LOOK))
                    failing = False
                    await asyncio.sleep(LOOK_EVERY_S)
                except Exception as cause:  # whatever it is: nothing is proven meanwhile, and the primary answers
                    if not failing:
                        _log.warning("primary_not_watched", because=type(cause).__name__)
                    failing = True
                    _cut(connection)
                    connection = None
                    await asyncio.sleep(LOOK_AGAIN_S)
        finally:
            _cut(connection)

    def _seen(self, asked_at: float, rows: Sequence[asyncpg.Record]) -> None:
        """What a look found: the replicas' moments move on, where they do."""
        first = rows[0]
        if first["timeline"] != self._timeline:  # another history: what was known of the old one is worth nothing
            self._timeline = first["timeline"]
            self._looks.clear()
            self._beats.clear()
            for replica in self._replicas:
                replica.shows_all_before = LONG_AGO
        self._readable, self._name = first["readable"], first["name"]
        self._looks.append((asked_at, first["written"]))
        if self._beats and self._beats[-1][1] == first["beat"]:
            self._beats.pop()
        self._beats.append((asked_at, first["beat"]))
        for replica in self._replicas:
            if self._asks_the_replica(replica):
                continue
            streaming = [row for row in rows if row["streams"] and row["application_name"] == replica.cluster_name]
            replayed = [row["replayed"] for row in streaming if row["replayed"] is not None]
            if replayed:
                self._prove(replica, min(replayed))  # two of one name: whichever is behind
            else:
                replica.shows_all_before = LONG_AGO

    def _asks_the_replica(self, replica: Replica) -> bool:
        return not (self._readable and replica.cluster_name and replica.cluster_name != self._name)

    def _prove(self, replica: Replica, replayed: int) -> None:
        """It has replayed so much: which look's end of the log is behind it?"""
        passed = (at for at, written in reversed(self._looks) if written <= replayed)
        replica.shows_all_before = max(replica.shows_all_before, next(passed, LONG_AGO))

    async def _keep_introduced(self, replica: Replica) -> None:
        while True:
            try:
                self._introduced(replica, await replica.introduce())
            except Busy:
                pass
            except Exception as cause:  # whatever it is: without it nothing is lost but speed
                replica.lost(cause)
            by_its_word = replica.there and self._asks_the_replica(replica)
            await asyncio.sleep(LOOK_EVERY_S if by_its_word else INTRODUCE_EVERY_S)

    def _introduced(self, replica: Replica, said: Introduction) -> None:
        if said.name != replica.cluster_name:  # another server has come in its place
            replica.cluster_name, replica.shows_all_before = said.name, LONG_AGO
        if said.follows and not replica.there:
            _log.info("replica_there", replica=replica.name)
        replica.there = said.follows
        if replica.there and self._asks_the_replica(replica) and said.replayed is not None and _among(self._beats, said.beat):
            self._prove(replica, said.replayed)


def _among(beats: Iterable[tuple[float, object]], beat: object) -> bool:
    oldest = time.monotonic() - HEARTBEAT_MISSING_S
    return beat is not None and any(known == beat and until >= oldest for until, known in beats)


def _cut(connection: asyncpg.Connection | None) -> None:
    if connection is not None:
        connection.terminate()
