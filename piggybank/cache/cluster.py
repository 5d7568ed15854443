"""The cache as a cluster: redis-py's client knows the nodes and the slots, this decides whom to believe.

Replication is asynchronous, so a promoted replica may lack the last write-throughs and tombstones of the master that died: what it
has is not to be read. Each master therefore bears a mark, the name of who holds the slots and its epoch (a promotion raises it),
and no process uses a master before it has seen the right mark there. Where it is another's, the whole node is emptied and marked
anew: a cold third of a cache is slower, and right. Emptying twice harms nobody, so processes need not agree on who does it, and
leases go as well, so no reader from before can fill.

Who the masters are is looked up every second, and after any failure; what was not confirmed for TRUSTED_S is not believed, and
redirections are not followed to a node that was not looked at. A node that fails is left alone until the next look. While slots
move, single keys are asked for where they went (ASK), which forgetting does; values come and go with their slot. The cluster is
to be the cache's own: emptying a node takes everything there.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from redis.asyncio import RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import AskError, MaxConnectionsError, MovedError, RedisClusterException, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError

from piggybank.cache import servers
from piggybank.cache.servers import Command, Resting
from piggybank.settings import CLUSTER_SCHEMES, cluster_nodes

LOOK_EVERY_S = 1.0
LOOK_AGAIN_S = 0.1  # after a failure, at the soonest
FIRST_LOOK_S = 1.0  # so long `ping` waits for it
TRUSTED_S = 2.0  # a master that was not confirmed for so long is not believed

_AWAY = (*servers.AWAY, RedisClusterException)
_SLOTS = [key_slot(str(tag).encode()) for tag in range(servers.TAGS)]


def is_cluster(url: str) -> bool:
    """True where `url` names nodes of a cluster."""
    return urlsplit(url).scheme in CLUSTER_SCHEMES


async def close(client: RedisCluster) -> None:
    """Close every connection: redis-py's own `aclose` leaves them open while it means to look up the nodes again."""
    await client.aclose()
    await client.nodes_manager.aclose()
    await client.nodes_manager.aclose("startup_nodes")


def is_moving(result: object) -> bool:
    """True for what a slot on its way to another master answers: some of its keys are here, some there."""
    return isinstance(result, AskError | TryAgainError) and not isinstance(result, MovedError)


def _is_failure(result: object) -> bool:
    return isinstance(result, Exception) and not is_moving(result) and not isinstance(result, MaxConnectionsError)


class Cluster:
    """The masters of a cluster, each for the tags in its slots."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = self._new_client()
        self._places: list[ClusterNode | None] = [None] * servers.TAGS  # by tag: who is to be asked, where anybody is
        self._trusted_until = 0.0
        self._outdated = False  # the client's view of who holds what; a new client has none
        self._asking: set[asyncio.Task[list[Any]]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._closing = False
        self._looked = asyncio.Event()
        self._look_now = asyncio.Event()

    def groups(self, keys: Sequence[str]) -> dict[int, list[int]]:
        return servers.by_tag(keys)

    async def send(self, commands: Sequence[Command], within_s: float) -> list[Any]:
        await self._found(within_s)
        trusted = time.monotonic() < self._trusted_until
        results: list[Any] = [Resting()] * len(commands)
        by_node: dict[ClusterNode, list[int]] = defaultdict(list)
        for at, command in enumerate(commands):
            node = self._places[command.tag] if trusted else None
            if node is not None:
                by_node[node].append(at)
        answers = await asyncio.gather(*(self._ask(node, [commands[at] for at in ats], within_s) for node, ats in by_node.items()))
        for ats, answer in zip(by_node.values(), answers, strict=True):
            for at, result in zip(ats, answer, strict=True):
                results[at] = result
        return results

    async def ping(self) -> bool:
        await self._found(FIRST_LOOK_S)
        return time.monotonic() < self._trusted_until and any(self._places)

    async def close(self) -> None:
        self._closing = True  # redis-py may swallow the cancellation
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, *self._asking, return_exceptions=True)
        await close(self._client)

    async def _ask(self, node: ClusterNode, commands: list[Command], within_s: float) -> list[Any]:
        """One node's share; what a slot on the move has taken along is asked for where it went."""
        asking = asyncio.create_task(self._answers(node, commands), name="cache node")
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)
        # who waits too long leaves, and lets it end: redis-py loses a connection that is cancelled at the wrong moment
        await asyncio.wait([asking], timeout=within_s)
        results = asking.result() if asking.done() else [TimeoutError()] * len(commands)
        failed = {command.tag for command, result in zip(commands, results, strict=True) if _is_failure(result)}
        if any(_is_failure(result) and isinstance(result, RedisConnectionError | OSError | TimeoutError) for result in results):
            failed = {tag for tag, place in enumerate(self._places) if place == node}
        self._distrust(failed)
        return results

    async def _answers(self, node: ClusterNode, commands: list[Command]) -> list[Any]:
        try:
            results = await servers.run(lambda words: self._pipelined(node, words), commands)
            for at, result in enumerate(results):
                if is_moving(result) and isinstance(result, AskError):
                    results[at] = await self._follow(result, commands[at])
        except Exception as cause:  # also what a closed client says: for who asks the node is away
            return [cause] * len(commands)
        return results

    async def _pipelined(self, node: ClusterNode, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        pipeline = self._client.pipeline()
        for words in commands:
            pipeline.execute_command(*words, target_nodes=node)
        return await pipeline.execute(raise_on_error=False, allow_redirections=False)

    async def _follow(self, ask: AskError, command: Command) -> Any:
        node = self._client.get_node(ask.host, ask.port)
        if node is None or node not in self._places:
            return ask
        results = await self._pipelined(node, [("ASKING",), command.packed if command.script is None else command.spelled_out])
        return results[1]

    def _distrust(self, tags: Collection[int]) -> None:
        """Nobody asks for them until somebody has looked."""
        for tag in tags:
            self._places[tag] = None
        if tags:
            self._outdated = True
            self._look_now.set()

    async def _found(self, within_s: float) -> None:
        """The first to come waits for the first look."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="cache cluster")
        if not self._looked.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._looked.wait()

    async def _watch(self) -> None:
        while not self._closing:
            self._look_now.clear()
            began = time.monotonic()
            try:
                self._places = await self._look()
                self._trusted_until = began + TRUSTED_S
            except Exception:  # whatever it is: the cache is away, and the next look begins anew
                await self._start_over()
            self._looked.set()
            await asyncio.sleep(LOOK_AGAIN_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S - LOOK_AGAIN_S):
                    await self._look_now.wait()

    async def _look(self) -> list[ClusterNode | None]:
        """Who holds the slot of each tag, as far as it may be believed."""
        await self._client.initialize()
        if self._outdated:  # it opens every connection anew, so not each time
            await self._client.nodes_manager.initialize()
        held: dict[ClusterNode, list[int]] = defaultdict(list)
        for tag, slot in enumerate(_SLOTS):
            with suppress(RedisClusterException):  # nobody holds it
                held[self._client.nodes_manager.get_node_from_slot(slot)].append(tag)
        believed = await asyncio.gather(*(self._is_to_be_believed(node, tags[0]) for node, tags in held.items()))
        places: list[ClusterNode | None] = [None] * servers.TAGS
        for (node, tags), yes in zip(held.items(), believed, strict=True):
            for tag in tags if yes else ():
                places[tag] = node
        self._outdated = not all(places)
        return places

    async def _is_to_be_believed(self, node: ClusterNode, tag: int) -> bool:
        """A master in a working cluster that bears its own mark; another's mark, and what came with it, is cleared away."""
        key = f"{{{tag}}}:master"
        try:
            name, info, found = await self._pipelined(node, [("CLUSTER MYID",), ("CLUSTER INFO",), ("GET", key)])
            if any(isinstance(answer, Exception) for answer in (name, info, found)) or info["cluster_state"] != "ok":
                return False
            mark = b"%b %b" % (name if isinstance(name, bytes) else name.encode(), info["cluster_my_epoch"].encode())
            if found == mark:
                return True
            answers = await self._pipelined(node, [("FLUSHALL", "ASYNC"), ("SET", key, mark)])
            return not any(isinstance(answer, Exception) for answer in answers)
        except _AWAY:
            return False

    async def _start_over(self) -> None:
        """None of the nodes that were known answers: begin with those of the address again."""
        self._places = [None] * servers.TAGS
        self._outdated = False
        client, self._client = self._client, self._new_client()
        with suppress(*_AWAY):
            await close(client)

    def _new_client(self) -> RedisCluster:
        parts = urlsplit(self._url)
        return RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in cluster_nodes(self._url)],
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            ssl=parts.scheme.startswith(("rediss", "valkeys")),
            ssl_ca_certs=next(iter(parse_qs(parts.query).get("ssl_ca_certs", [])), None),  # as redis-py takes it of one server's address
            require_full_coverage=False,
            retry=Retry(NoBackoff(), 0),  # a miss now is worth more than a value later
            max_connections=servers.MAX_CONNECTIONS,
            socket_timeout=servers.READ_TIMEOUT_S,
            socket_connect_timeout=servers.CONNECT_TIMEOUT_S,
        )
