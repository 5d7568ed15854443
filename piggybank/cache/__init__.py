"""The cache: written through by version, filled by lease, never believed about money.

A value is stored as `<version>:<payload>`. Who commits writes through (`write`): a value replaces only an older version. Who
misses takes a lease and fills under it (`fill`): the write-through of somebody else removes the lease, so a slow reader cannot
put an older value back. A tombstone is a version that nothing exceeds. Keys carry the installation's epoch (new at failover and
restore), so a cache from another past is never read. When the cache is away every call says "miss" at once and nothing fails:
slower, and right; what a failed write-through leaves behind is forgotten by the sweep of the outbox.

One server or a cluster of them (`servers`, `cluster`): keys fall into a few tags, each in one slot, so a batch of 256 accounts is at
most 64 script calls, in one pipeline to each master.

Where replicas answer reads, the cache also says how new they must be (`floor`): as new as the value, which whoever wrote it was answered
after. A missing value says that nothing was written for longer than a replica may lag, except while its group is cold: `warm` is missing
(it was emptied, or is of a new epoch), or was put there less than COLD_MS ago. What is forgotten leaves a fence for as long.

A kind that is switched off is neither read nor filled. A change still drops what is there: processes are switched one after the
other, and what one of them put in must not outlive the others' changes.
"""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple, Self

import prometheus_client

from piggybank import metrics
from piggybank.cache import cluster, servers
from piggybank.cache.cluster import Cluster
from piggybank.cache.servers import READ_TIMEOUT_S, Command, Servers, Single
from piggybank.settings import Settings

WRITE_TIMEOUT_S = 0.05  # an answer waits no longer for its write-through
MAX_GATHERED = 256  # reads in one command
LEASE_MS = 3_000
COLD_MS = 2_000  # longer than a replica may lag, and than a write-through may take
TOMBSTONE = 2**53  # a version that nothing exceeds

BALANCE_TTL_S = 300
PAGE_TTL_S = 60
SESSION_TTL_S = 7 * 24 * 3_600
SWITCHES = {"balance": "cache_balances", "count": "cache_counts", "page": "cache_pages", "token": "cache_sessions"}  # kinds, settings

_FENCE = b"-"  # in a value's place: it was forgotten a moment ago, and nobody knows its version

# KEYS: value, lease, value, lease, ..; ARGV: ttl_ms, version, value, version, value, ..
_WRITE = servers.script("""
for i = 1, #KEYS, 2 do
  local current = redis.call('GET', KEYS[i])
  if not current or tonumber(ARGV[i + 1]) > (tonumber(string.match(current, '^%d+')) or -1) then
    redis.call('SET', KEYS[i], ARGV[i + 2], 'PX', ARGV[1])
  end
  redis.call('DEL', KEYS[i + 1])
end
""")

# KEYS: value, lease; ARGV: ttl_ms, version, value, token
_FILL = servers.script("""
if redis.call('GET', KEYS[2]) ~= ARGV[4] then return 0 end
redis.call('DEL', KEYS[2])
local current = redis.call('GET', KEYS[1])
if current and (tonumber(string.match(current, '^%d+')) or tonumber(ARGV[2])) >= tonumber(ARGV[2]) then return 0 end
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[1])
return 1
""")

# KEYS: value, lease, value, lease, ..; ARGV: cold_ms
_FENCE_OFF = servers.script("""
for i = 1, #KEYS, 2 do
  redis.call('DEL', KEYS[i + 1])
  redis.call('SET', KEYS[i], '-', 'PX', ARGV[1])
end
""")

# KEYS: warm, cold; ARGV: cold_ms. Both at once: an emptying of the cache takes both away.
_WARM = servers.script("""
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('SET', KEYS[2], 1, 'PX', ARGV[1])
  redis.call('SET', KEYS[1], 1)
end
""")


class Entry(NamedTuple):
    """One value: `version` decides which of two is newer; `payload` is JSON, empty for a tombstone."""

    key: str
    version: int
    payload: bytes


class Found(NamedTuple):
    """What was in the cache, or (payload None) what one needs to fill it."""

    payload: bytes | None
    version: int
    lease: str  # empty: somebody else fills, or the cache is away
    settled: bool = False  # missing since longer than a replica may lag; never said where there are no replicas

    @property
    def floor(self) -> int | None:
        """The version that a replica must show at least; None: nobody can tell."""
        if self.payload is not None:
            return self.version
        return 0 if self.settled else None

    @property
    def is_tombstone(self) -> bool:
        return self.version == TOMBSTONE


MISS = Found(None, -1, "")


class _Asked(NamedTuple):
    """A read that waits for the next command."""

    key: str
    name: str
    wants_lease: bool
    future: asyncio.Future[Found]


class Cache:
    """One process's connection to the cache. `epoch` is set when the installation's row was read; before that all is a miss.

    `off`: kinds that are switched off; `has_replicas`: replicas answer reads, so it must be told apart what is missing and what nobody
    knows.
    """

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The cache of this installation, with what its operator switched off."""
        off = (kind for kind, name in SWITCHES.items() if not getattr(settings, name))
        return cls(settings.cache_url, off, has_replicas=bool(settings.read_replicas))

    def __init__(self, url: str, off: Iterable[str] = (), *, has_replicas: bool = False) -> None:
        self._servers: Servers = Cluster(url) if cluster.is_cluster(url) else Single(url)
        self._off = frozenset(off)
        self._has_replicas = has_replicas
        self._asked: list[_Asked] = []
        self._asking: asyncio.Task[None] | None = None
        self.epoch = ""
        self._closed = False
        self.known_at = float("-inf")  # when somebody looked what the epoch is
        self.hits: Counter[str] = Counter()
        self.misses: Counter[str] = Counter()

    def know(self, epoch: str, *, closed: bool) -> None:
        """What the installation's row says: `closed` while the epoch, or the cache, is being changed (`db/installation.py`)."""
        self.epoch, self._closed = epoch, closed
        self.known_at = time.monotonic()

    def keeps(self, kind: str) -> bool:
        """False for what is switched off."""
        return kind not in self._off

    async def read(self, kind: str, key: str) -> Found:
        """The value of `key`, or a miss, with a lease if nobody else holds one."""
        if kind in self._off:
            return MISS
        found = await self._get(key, self._name(kind, key)) if self.epoch and not self._closed else MISS
        (self.misses if found.payload is None else self.hits)[kind] += 1
        _lookups(kind, "miss" if found.payload is None else "hit").inc()
        return found

    async def floor(self, kind: str, key: str) -> int | None:
        """The version that a replica must show at least; None: nobody can tell, the primary must be asked. Takes no lease."""
        if kind in self._off or self._closed or not self.epoch:
            return None
        return (await self._get(key, self._name(kind, key), wants_lease=False)).floor

    async def fill(self, kind: str, found: Found, entry: Entry, ttl_s: int) -> None:
        """Put in what was read from the database after the miss `found`; refused when its lease is gone."""
        if not (found.lease and self.epoch) or self._closed:
            return
        name = self._name(kind, entry.key)
        words = (2, name, _lease(name), ttl_s * 1_000, entry.version, _stored(entry), found.lease)
        await self._servers.send([Command(servers.tag_of(entry.key), words, _FILL)], READ_TIMEOUT_S)

    async def write(self, kind: str, entries: Sequence[Entry], ttl_s: int) -> bool:
        """Write through what was just committed; False when the cache is away, in whole or in part (the outbox mends it)."""
        if not self.epoch:
            return False
        if kind in self._off or self._closed:
            return await self.forget(kind, [entry.key for entry in entries])
        groups = self._servers.groups([entry.key for entry in entries])
        commands = [Command(tag, self._written(kind, [entries[at] for at in ats], ttl_s), _WRITE) for tag, ats in groups.items()]
        moving: list[str] = []
        for ats, result in zip(groups.values(), await self._servers.send(commands, WRITE_TIMEOUT_S), strict=True):
            if cluster.is_moving(result):  # a script wants all of its keys in one place
                moving += [entries[at].key for at in ats]
            elif isinstance(result, Exception):
                return False
        return not moving or await self.forget(kind, moving)

    async def bury(self, kind: str, keys: Sequence[str], ttl_s: int) -> bool:
        """Put tombstones that no fill replaces: a logout, a revoked key. False when the cache is away."""
        return await self.write(kind, [Entry(key, TOMBSTONE, b"") for key in keys], ttl_s)

    async def forget(self, kind: str, keys: Sequence[str]) -> bool:
        """Drop values and leases: a read after COLD_MS fills them anew, and no read that began before can. False when the cache is away.

        A replica may not have yet what was written a moment ago, so a fence stands there that long, also where this process has no
        replicas: while the phase is changed, another one has.

        This is how a missed write-through is mended: a value from the past, put into a cache that was emptied meanwhile, would
        have nothing there to be older than.
        """
        if not self.epoch:
            return False
        groups = self._servers.groups(keys)
        pairs = {tag: self._pairs(kind, [keys[at] for at in ats]) for tag, ats in groups.items()}
        commands = [Command(tag, (len(names), *names, COLD_MS), _FENCE_OFF) for tag, names in pairs.items()]
        moving: list[str] = []
        for ats, result in zip(groups.values(), await self._servers.send(commands, WRITE_TIMEOUT_S), strict=True):
            if cluster.is_moving(result):
                moving += [keys[at] for at in ats]
            elif isinstance(result, Exception):
                return False
        return await self._forget_one_by_one(kind, moving)

    async def _forget_one_by_one(self, kind: str, keys: Sequence[str]) -> bool:
        """While a slot moves, a key is here or there. Leases first: a fill between the two would stay."""
        names = [(servers.tag_of(key), self._name(kind, key)) for key in keys]
        leases = [Command(tag, ("DEL", _lease(name))) for tag, name in names]
        for commands in (leases, [Command(tag, ("SET", name, _FENCE, "PX", COLD_MS)) for tag, name in names]):
            results = await self._servers.send(commands, WRITE_TIMEOUT_S)
            if any(isinstance(result, Exception) for result in results):
                return False
        return True

    async def ping(self) -> bool:
        """True when the cache answers; of a cluster, one master."""
        return await self._servers.ping()

    async def close(self) -> None:
        """Close every connection."""
        await self._servers.close()

    def _get(self, key: str, name: str, *, wants_lease: bool = True) -> asyncio.Future[Found]:
        """Reads gather as postings do: while one command is under way the next collects. A GET each cost more than all else of a read."""
        future: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._asked.append(_Asked(key, name, wants_lease, future))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name="cache reads")
        return future

    async def _ask(self) -> None:
        try:
            while self._asked:
                asked, self._asked = self._asked[:MAX_GATHERED], self._asked[MAX_GATHERED:]
                try:
                    found = await self._look_up(asked)
                except Exception as cause:  # it is theirs who asked, and theirs who would wait for the same
                    asked, self._asked = asked + self._asked, []
                    for each in asked:
                        if not each.future.done():
                            each.future.set_exception(cause)
                            each.future.exception()  # seen: who hung up leaves no warning behind
                else:
                    for each, one in zip(asked, found, strict=True):
                        if not each.future.done():
                            each.future.set_result(one)
        finally:
            self._asking = None

    async def _look_up(self, asked: Sequence[_Asked]) -> list[Found]:
        """Values, and a lease for each that is missing, where one is wanted."""
        found = [MISS] * len(asked)
        missing: list[tuple[int, int, bool]] = []  # where, its group, and whether that is warm
        cold: list[int] = []
        groups = self._servers.groups([each.key for each in asked])
        commands = [Command(tag, ("MGET", *(asked[at].name for at in ats), *self._marks(tag))) for tag, ats in groups.items()]
        for (tag, ats), values in zip(groups.items(), await self._servers.send(commands, READ_TIMEOUT_S), strict=True):
            if isinstance(values, Exception):
                continue
            warm, cooling = values[len(ats) :] or (None, None)
            if warm is None and self._has_replicas:
                cold.append(tag)
            for at, value in zip(ats, values, strict=False):
                if value is None:
                    missing.append((at, tag, warm is not None and cooling is None))
                else:
                    found[at] = _found(value)
        if cold:
            await self._servers.send([Command(tag, (2, *self._marks(tag), COLD_MS), _WARM) for tag in cold], READ_TIMEOUT_S)
        for at, _, settled in missing:
            found[at] = Found(None, -1, "", settled)
        leasing = [(at, tag, secrets.token_hex(8)) for at, tag, _ in missing if asked[at].wants_lease]
        if leasing:
            leases = [Command(tag, ("SET", _lease(asked[at].name), token, "PX", LEASE_MS, "NX")) for at, tag, token in leasing]
            for (at, _, token), taken in zip(leasing, await self._servers.send(leases, READ_TIMEOUT_S), strict=True):
                if taken and not isinstance(taken, Exception):
                    found[at] = found[at]._replace(lease=token)
        return found

    def _marks(self, tag: int) -> tuple[str, ...]:
        """`warm` and `cold` of a group; none where nobody needs them."""
        return (f"{self.epoch}:warm:{{{tag}}}", f"{self.epoch}:cold:{{{tag}}}") if self._has_replicas else ()

    def _written(self, kind: str, entries: Sequence[Entry], ttl_s: int) -> tuple[str | int | bytes, ...]:
        """The words of `_WRITE`."""
        names = self._pairs(kind, [entry.key for entry in entries])
        arguments = [part for entry in entries for part in (entry.version, _stored(entry))]
        return (len(names), *names, ttl_s * 1_000, *arguments)

    def _pairs(self, kind: str, keys: Sequence[str]) -> list[str]:
        """Value, lease, value, lease, .."""
        return [part for key in keys for name in (self._name(kind, key),) for part in (name, _lease(name))]

    def _name(self, kind: str, key: str) -> str:
        return f"{self.epoch}:{kind}:{{{servers.tag_of(key)}}}:{key}"


@lru_cache(maxsize=64)
def _lookups(kind: str, result: str) -> prometheus_client.Counter:
    return metrics.LOOKUPS.labels(kind, result)


def _lease(name: str) -> str:
    # what is in braces is the slot of a cluster: a value and its lease are in one
    return f"{name}:lease"


def _found(stored: bytes) -> Found:
    version, _, payload = stored.partition(b":")
    return Found(payload, int(version), "") if version.isdigit() else MISS  # not ours: a miss


def _stored(entry: Entry) -> bytes:
    return b"%d:%b" % (entry.version, entry.payload)
