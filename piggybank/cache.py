"""The cache: written through by version, filled by lease, never believed about money.

A value is stored as `<version>:<payload>`. Who commits writes through (`write`): a value replaces only an older version. Who
misses takes a lease and fills under it (`fill`): the write-through of somebody else removes the lease, so a slow reader cannot
put an older value back. A tombstone is a version that nothing exceeds. Keys carry the installation's epoch (new at failover and
restore), so a cache from another past is never read. When the cache is away every call says "miss" at once and nothing fails:
slower, and right; what a failed write-through leaves behind is forgotten by the sweep of the outbox.

Where replicas answer reads, the cache also says how new they must be (`floor`): as new as the value, which whoever wrote it was answered
after. A missing value says that nothing was written for longer than a replica may lag, except while the cache is cold: `warm` is missing
(it was emptied, or is of a new epoch), or was put there less than COLD_MS ago. What is forgotten leaves a fence for as long.
"""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

WRITE_TIMEOUT_S = 0.05  # an answer waits no longer for its write-through
READ_TIMEOUT_S = 0.1
CONNECT_TIMEOUT_S = 0.25
REST_S = 1.0  # after a failure, so long nobody asks
MAX_CONNECTIONS = 64  # of a process
MAX_GATHERED = 256  # reads in one command
LEASE_MS = 3_000
COLD_MS = 2_000  # longer than a replica may lag, and than a write-through may take
TOMBSTONE = 2**53  # a version that nothing exceeds

BALANCE_TTL_S = 300
PAGE_TTL_S = 60
SESSION_TTL_S = 7 * 24 * 3_600

_AWAY = (RedisError, OSError, TimeoutError, asyncio.TimeoutError)

_FENCE = b"-"  # in a value's place: it was forgotten a moment ago, and nobody knows its version

# KEYS: value, lease, value, lease, ..; ARGV: ttl_ms, version, value, version, value, ..
_WRITE = """
for i = 1, #KEYS, 2 do
  local current = redis.call('GET', KEYS[i])
  if not current or tonumber(ARGV[i + 1]) > (tonumber(string.match(current, '^%d+')) or -1) then
    redis.call('SET', KEYS[i], ARGV[i + 2], 'PX', ARGV[1])
  end
  redis.call('DEL', KEYS[i + 1])
end
"""

# KEYS: value, lease; ARGV: ttl_ms, version, value, token
_FILL = """
if redis.call('GET', KEYS[2]) ~= ARGV[4] then return 0 end
redis.call('DEL', KEYS[2])
local current = redis.call('GET', KEYS[1])
if current and (tonumber(string.match(current, '^%d+')) or tonumber(ARGV[2])) >= tonumber(ARGV[2]) then return 0 end
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[1])
return 1
"""

# KEYS: warm, cold; ARGV: cold_ms. Both at once: an emptying of the cache takes both away.
_WARM = """
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('SET', KEYS[2], 1, 'PX', ARGV[1])
  redis.call('SET', KEYS[1], 1)
end
"""


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


class Cache:
    """One process's connection to the cache. `epoch` is set when the installation's row was read; before that all is a miss.

    `has_replicas`: replicas answer reads, so it must be told apart what is missing and what nobody knows.
    """

    def __init__(self, url: str, *, has_replicas: bool = False) -> None:
        pool = BlockingConnectionPool.from_url(
            url.replace("valkey", "redis", 1) if url.startswith("valkey") else url,
            timeout=READ_TIMEOUT_S,  # so long a command waits for a connection
            socket_timeout=READ_TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            max_connections=MAX_CONNECTIONS,
        )
        self._redis: Redis = Redis.from_pool(pool)
        self._write_script = self._redis.register_script(_WRITE)
        self._fill_script = self._redis.register_script(_FILL)
        self._warm_script = self._redis.register_script(_WARM)
        self._has_replicas = has_replicas
        self._resting_until = 0.0
        self._asked: list[tuple[str, str, asyncio.Future[Found]]] = []
        self._asking: asyncio.Task[None] | None = None
        self.epoch = ""
        self.hits: Counter[str] = Counter()
        self.misses: Counter[str] = Counter()

    async def read(self, kind: str, key: str) -> Found:
        """The value of `key`, or a miss, with a lease if nobody else holds one."""
        if not self._usable():
            self.misses[kind] += 1
            return Found(None, -1, "")
        try:
            found = await self._get(*self._keys(kind, key))
        except _AWAY:
            self._rest()
            found = Found(None, -1, "")
        (self.misses if found.payload is None else self.hits)[kind] += 1
        return found

    async def floor(self, kind: str, key: str) -> int | None:
        """The version that a replica must show at least; None: nobody can tell, the primary must be asked. Takes no lease."""
        if not self._usable():
            return None
        try:
            return (await self._get(self._keys(kind, key)[0], "")).floor
        except _AWAY:
            self._rest()
            return None

    async def fill(self, kind: str, found: Found, entry: Entry, ttl_s: int) -> None:
        """Put in what was read from the database after the miss `found`; refused when its lease is gone."""
        if not (found.lease and self._usable()):
            return
        try:
            await self._fill_script(keys=self._keys(kind, entry.key), args=[ttl_s * 1_000, entry.version, _stored(entry), found.lease])
        except _AWAY:
            self._rest()

    async def write(self, kind: str, entries: Sequence[Entry], ttl_s: int) -> bool:
        """Write through what was just committed; False when the cache is away (the outbox mends it)."""
        if not self._usable():
            return False
        keys: list[str] = []
        arguments: list[bytes | int] = [ttl_s * 1_000]
        for entry in entries:
            keys += self._keys(kind, entry.key)
            arguments += (entry.version, _stored(entry))
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await self._write_script(keys=keys, args=arguments)
        except _AWAY:
            self._rest()
            return False
        return True

    async def bury(self, kind: str, keys: Sequence[str], ttl_s: int) -> bool:
        """Put tombstones that no fill replaces: a logout, a revoked key. False when the cache is away."""
        return await self.write(kind, [Entry(key, TOMBSTONE, b"") for key in keys], ttl_s)

    async def forget(self, kind: str, keys: Sequence[str]) -> bool:
        """Drop values and leases: the next read fills them anew, and no read that began before can. False when the cache is away.

        This is how a missed write-through is mended: a value from the past, put into a cache that was emptied meanwhile, would
        have nothing there to be older than.
        """
        if not self._usable():
            return False
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                if self._has_replicas:
                    await self._fence(kind, keys)
                else:
                    await self._redis.delete(*(name for key in keys for name in self._keys(kind, key)))
        except _AWAY:
            self._rest()
            return False
        return True

    async def ping(self) -> bool:
        """True when the cache answers."""
        try:
            return bool(await self._redis.ping())
        except _AWAY:
            return False

    async def close(self) -> None:
        """Close every connection."""
        await self._redis.aclose()

    async def _fence(self, kind: str, keys: Sequence[str]) -> None:
        """A replica may not have yet what was written a moment ago."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                value_key, lease_key = self._keys(kind, key)
                pipeline.delete(lease_key)
                pipeline.set(value_key, _FENCE, px=COLD_MS)
            await pipeline.execute()

    def _get(self, value_key: str, lease_key: str) -> asyncio.Future[Found]:
        """Reads gather as postings do: while one command is under way the next collects. A GET each cost more than all else of a read."""
        future: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._asked.append((value_key, lease_key, future))
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name="cache reads")
        return future

    async def _ask(self) -> None:
        try:
            while self._asked:
                asked, self._asked = self._asked[:MAX_GATHERED], self._asked[MAX_GATHERED:]
                try:
                    found = await self._look_up([(value_key, lease_key) for value_key, lease_key, _ in asked])
                except Exception as cause:  # it is theirs who asked, and theirs who would wait for the same
                    asked, self._asked = asked + self._asked, []
                    for *_, future in asked:
                        if not future.done():
                            future.set_exception(cause)
                            future.exception()  # seen: who hung up leaves no warning behind
                else:
                    for (*_, future), one in zip(asked, found, strict=True):
                        if not future.done():
                            future.set_result(one)
        finally:
            self._asking = None

    async def _look_up(self, keys: Sequence[tuple[str, str]]) -> list[Found]:
        """Values, and a lease for each that is missing, where one is asked for (an empty key asks for none)."""
        marks = self._marks() if self._has_replicas else ()
        values: Sequence[bytes | None] = await self._redis.mget([*(value_key for value_key, _ in keys), *marks])  # type: ignore[assignment] # not decoded
        settled = False
        if marks:
            *values, warm, cold = values
            settled = warm is not None and cold is None
            if warm is None:
                await self._warm_script(keys=marks, args=[COLD_MS])
        missing = [lease_key for (_, lease_key), value in zip(keys, values, strict=True) if value is None and lease_key]
        leases: Iterator[str] = iter(())
        if missing:
            tokens = [secrets.token_hex(8) for _ in missing]
            async with self._redis.pipeline(transaction=False) as pipeline:
                for lease_key, token in zip(missing, tokens, strict=True):
                    pipeline.set(lease_key, token, px=LEASE_MS, nx=True)
                taken = await pipeline.execute()
            leases = iter([token if mine else "" for token, mine in zip(tokens, taken, strict=True)])
        return [
            Found(None, -1, next(leases) if lease_key else "", settled) if value is None else _found(value)
            for (_, lease_key), value in zip(keys, values, strict=True)
        ]

    def _marks(self) -> tuple[str, str]:
        """`warm` and `cold`, in one slot of a cluster."""
        return f"{self.epoch}:warm:{{warm}}", f"{self.epoch}:cold:{{warm}}"

    def _keys(self, kind: str, key: str) -> tuple[str, str]:
        # the braces put a value and its lease into one slot of a cluster
        return f"{self.epoch}:{kind}:{{{key}}}", f"{self.epoch}:{kind}:{{{key}}}:lease"

    def _usable(self) -> bool:
        return bool(self.epoch) and time.monotonic() >= self._resting_until

    def _rest(self) -> None:
        self._resting_until = time.monotonic() + REST_S


def _found(stored: bytes) -> Found:
    version, _, payload = stored.partition(b":")
    return Found(payload, int(version), "") if version.isdigit() else Found(None, -1, "")  # not ours: a miss


def _stored(entry: Entry) -> bytes:
    return b"%d:%b" % (entry.version, entry.payload)
