"""Which server answers a read: a replica where that cannot be noticed, else the primary.

A replica answers only if it shows all that was committed until less than MAX_LAG_MS ago (`db/replicas.py`) and if its version of the
account, read in the same snapshot as the rows, is at least the one that the cache or the client knows. The batcher tells the cache
before it answers a client, so whoever was answered is never shown less, whichever process and server answer next; what never changes
once it is there (a posted transaction) needs no version. Whatever a replica does not have, is too old for, or fails at, the primary is
asked: no error of a replica reaches a client. Where the cache cannot tell (it is away, or was emptied less than two seconds ago)
replicas are not asked at all.

Always on the primary: what money is decided by, tokens and sessions and their revocation, users and their passwords, lists of accounts (no
version covers a list), the provider's work, jobs, and what operators look at. While the primary is away nobody knows how far a replica is
behind, so reads that the cache does not have are 503, as writes are.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

from sqlalchemy.exc import DBAPIError

from piggybank import errors, metrics
from piggybank.db.engines import POOL_MOST, Database, Question, Seen, T
from piggybank.db.replicas import Busy, Replica, Watch
from piggybank.db.storage import Storage
from piggybank.settings import Durability, Pooling, Settings

# Why the primary answered. away: no replica answers at all; lag: none is fresh enough; version: it was older than what is known;
# cold: the cache cannot tell what is known; missing: it did not have it (yet); failed: all its connections were taken, or the read was
# in the way of its replay.
Why = Literal["away", "lag", "version", "cold", "missing", "failed"]

_BY_REPLICA = metrics.READS.labels("replica", "fresh")


class Routed(Database):
    """A database with replicas; `start` begins to watch them."""

    has_replicas = True

    def __init__(
        self,
        url: str,
        replica_urls: Sequence[str],
        *,
        pooling: Pooling = "none",
        pool: int = POOL_MOST,
        waits_for: Durability = "disk",
        storage: Storage | None = None,
    ) -> None:
        super().__init__(url, pooling=pooling, pool=pool, waits_for=waits_for, storage=storage)
        self.replicas = [Replica(replica_url) for replica_url in replica_urls]
        self.by_replica: Counter[str] = Counter()  # reads that each answered
        self.by_primary: Counter[Why] = Counter()  # reads that might have gone to a replica, and why they did not
        self._watch = Watch(self, self.replicas)
        self._turn = 0

    async def start(self) -> None:
        """Begin to watch: until the first look all reads go to the primary."""
        self._watch.start()

    async def ask(self, question: Question[T], floor: int | None = 0) -> T | None:
        """What `question` finds, on a replica if that is sure to be new enough; None: the primary does not have it either."""
        found: Seen[T] | Why = "cold" if floor is None else await self._ask_replicas(question, floor)
        if not isinstance(found, str):
            return found.what
        self.by_primary[found] += 1
        metrics.READS.labels("primary", found).inc()
        return await super().ask(question)

    async def close(self) -> None:
        """Stop watching, and close every connection."""
        await self._watch.stop()
        for replica in self.replicas:
            await replica.close()
        await super().close()

    async def _ask_replicas(self, question: Question[T], floor: int) -> Seen[T] | Why:
        for replica in self._in_turn():
            try:
                seen = await replica.ask(question)
            except errors.DatabaseUnavailable as cause:
                replica.lost(cause)
                continue  # the next one
            except (Busy, DBAPIError):
                return "failed"
            if seen is None:
                return "missing"
            if seen.version < floor:
                return "version"
            self.by_replica[replica.name] += 1
            _BY_REPLICA.inc()
            return seen
        return "lag" if any(replica.there for replica in self.replicas) else "away"

    def _in_turn(self) -> Iterator[Replica]:
        self._turn += 1
        for number in range(len(self.replicas)):
            replica = self.replicas[(self._turn + number) % len(self.replicas)]
            if replica.fresh:
                yield replica


def open_database(settings: Settings) -> Database:
    """Those of an installation, with its replicas where its phase has them."""
    if not settings.read_replicas:
        return Database.of(settings)
    return Routed(
        Database.address(settings),
        settings.read_replicas,
        pooling=settings.pooling,
        pool=settings.pool_connections,
        waits_for=settings.waits_for,
        storage=Storage.of(settings),
    )
