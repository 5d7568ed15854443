"""Where the cache's commands go: to one server, or to the masters of a cluster.

Both take commands with the tag that their keys have, and answer each with its result or with what went wrong, as a value: what
befalls one server takes nothing from the others. Whoever failed is left alone for a while, so a cache that is away costs nobody time.
"""

import asyncio
import hashlib
import time
import zlib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Protocol

from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import NoScriptError, RedisError

READ_TIMEOUT_S = 0.1
CONNECT_TIMEOUT_S = 0.25
REST_S = 1.0  # after a failure, so long nobody asks
MAX_CONNECTIONS = 64  # of a process, to each server
TAGS = 64  # groups that keys fall into: what has one tag is in one slot of a cluster, and "0" to "63" lie evenly over three masters

AWAY = (RedisError, OSError, TimeoutError)


class Script(NamedTuple):
    """A Lua script; servers know it by its hash once they have seen it."""

    source: str
    sha: str


class Command(NamedTuple):
    """A command whose keys all have `tag`; a script is its own first word."""

    tag: int
    words: tuple[Any, ...]
    script: Script | None = None

    @property
    def packed(self) -> tuple[Any, ...]:
        return self.words if self.script is None else ("EVALSHA", self.script.sha, *self.words)

    @property
    def spelled_out(self) -> tuple[Any, ...]:
        """For a server that has not seen the script."""
        assert self.script is not None
        return ("EVAL", self.script.source, *self.words)


class Resting(RedisError):
    """Nobody was asked: the server failed a moment ago."""


class Servers(Protocol):
    """One server or many."""

    def groups(self, keys: Sequence[str]) -> dict[int, list[int]]:
        """The positions of the keys that one command may name together, by a tag that they share."""

    async def send(self, commands: Sequence[Command], within_s: float) -> list[Any]:
        """For each command its result, or the exception; never raises one of AWAY."""

    async def ping(self) -> bool:
        """True when one answers."""

    async def close(self) -> None:
        """Close every connection."""


def tag_of(key: str) -> int:
    """The group that `key` falls into, the same in every process and version."""
    return zlib.crc32(key.encode()) % TAGS


def script(source: str) -> Script:
    """`source` with the hash that servers know it by."""
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


def plain_url(url: str) -> str:
    """redis-py knows the schemes of Redis only."""
    return url.replace("valkey", "redis", 1) if url.startswith("valkey") else url


class Single:
    """One server, with everything."""

    def __init__(self, url: str) -> None:
        pool = BlockingConnectionPool.from_url(
            plain_url(url),
            timeout=READ_TIMEOUT_S,  # so long a command waits for a connection
            socket_timeout=READ_TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            max_connections=MAX_CONNECTIONS,
        )
        self._redis: Redis = Redis.from_pool(pool)
        self._resting_until = 0.0

    def groups(self, keys: Sequence[str]) -> dict[int, list[int]]:
        return {0: list(range(len(keys)))}

    async def send(self, commands: Sequence[Command], within_s: float) -> list[Any]:
        if time.monotonic() < self._resting_until:
            return [Resting()] * len(commands)
        try:
            async with asyncio.timeout(within_s):
                return await run(self._pipelined, commands)
        except AWAY as cause:
            self._resting_until = time.monotonic() + REST_S
            return [cause] * len(commands)

    async def ping(self) -> bool:
        try:
            return bool(await self._redis.ping())
        except AWAY:
            return False

    async def close(self) -> None:
        await self._redis.aclose()

    async def _pipelined(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        if len(commands) == 1:  # without the pipeline's detours
            try:
                return [await self._redis.execute_command(*commands[0])]  # type: ignore[no-untyped-call]
            except NoScriptError as cause:
                return [cause]
        async with self._redis.pipeline(transaction=False) as pipeline:
            for words in commands:
                pipeline.execute_command(*words)
            return await pipeline.execute(raise_on_error=False)


async def run(send: Callable[[Sequence[tuple[Any, ...]]], Awaitable[list[Any]]], commands: Sequence[Command]) -> list[Any]:
    """`send` the commands; scripts that the server has not seen go once more, spelled out."""
    results = await send([command.packed for command in commands])
    unseen = [at for at, result in enumerate(results) if isinstance(result, NoScriptError)]
    if unseen:
        for at, result in zip(unseen, await send([commands[at].spelled_out for at in unseen]), strict=True):
            results[at] = result
    return results


def by_tag(keys: Sequence[str]) -> dict[int, list[int]]:
    """The positions of `keys` by their tags."""
    found: dict[int, list[int]] = defaultdict(list)
    for at, key in enumerate(keys):
        found[tag_of(key)].append(at)
    return found
