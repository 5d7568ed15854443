"""A Valkey cluster as the cache: the nodes' configuration, forming the cluster, and what the servers say of it.

The first half of the nodes become masters, the others replicas. A node keeps its name (`nodes.conf`), never its data. `form` may be
repeated at every start: it meets again who moved to another port, hands out what nobody holds and leaves the rest as it is, so a
replica that was promoted stays a master.
"""

import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from msgspec import Struct
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from piggybank import errors
from piggybank.appliance.store_files import valkey_conf
from piggybank.cache.servers import plain_url
from piggybank.settings import cluster_nodes

SLOTS = 16_384
NODE_TIMEOUT_MS = 1_500  # so long a silent node is waited for; its replica takes over a second later
FORM_TIMEOUT_S = 60
ANSWER_TIMEOUT_S = 2.0
POLL_S = 0.1
NODES_FILE = "nodes.conf"
AWAY = "away"  # the state of what does not answer
BUS_AFTER = 10_000  # the bus's port is so many after the clients', where nobody says otherwise


class Node(NamedTuple):
    """Where one node listens; the others reach it on `bus_port`."""

    host: str
    port: int
    bus_port: int


class Member(Struct, frozen=True, kw_only=True):
    """A node as the cluster knows it. `master_id`: whom a replica follows."""

    node_id: str
    host: str
    port: int
    master_id: str | None
    slots: int
    up: bool


class Observed(Struct, frozen=True, kw_only=True):
    """What a cluster says of itself; `state` is AWAY where no node answers."""

    state: str
    slots_covered: int
    members: list[Member]

    @property
    def masters(self) -> list[Member]:
        """Those that hold slots and answer."""
        return [one for one in self.members if one.up and one.master_id is None and one.slots]

    @property
    def replicas(self) -> list[Member]:
        """Those that follow a master and answer."""
        return [one for one in self.members if one.up and one.master_id is not None]

    @property
    def is_whole(self) -> bool:
        """Every slot is held, and every member answers."""
        return self.state == "ok" and self.slots_covered == SLOTS and all(one.up for one in self.members)


_NOBODY = Observed(state=AWAY, slots_covered=0, members=[])


def cluster_conf(node: Node, password: str, folder: Path, memory_mib: int) -> str:
    """`valkey.conf` of a node: forgets the least used, never saved, and answers for its own slots while others are away."""
    values = {
        "maxmemory": f"{memory_mib}mb",
        "maxmemory-policy": "allkeys-lru",
        "appendonly": "no",
        "masterauth": password,
        "cluster-enabled": "yes",
        "cluster-config-file": NODES_FILE,
        "cluster-port": node.bus_port,
        "cluster-announce-ip": node.host,
        "cluster-node-timeout": NODE_TIMEOUT_MS,
        "cluster-require-full-coverage": "no",
        "cluster-allow-replica-migration": "no",  # a replica that left for another master would be missed when its own dies
        "cluster-replica-validity-factor": 0,  # what it lacks is forgotten at once (cache/cluster.py): any replica will do
        "repl-diskless-sync-delay": 0,
    }
    return valkey_conf(node.port, password, folder) + "".join(f"{name} {value}\n" for name, value in values.items())


def form(nodes: Sequence[Node], password: str) -> Observed:
    """Make the running `nodes` one cluster, or find that they are; raises `errors.StoreFailed`."""
    clients = {node: _client(node, password) for node in nodes}
    until = time.monotonic() + FORM_TIMEOUT_S
    try:
        _wait(lambda: all(client.ping() for client in clients.values()), until, "not all nodes answer")
        _meet(clients, until)
        _hand_out_slots(clients)
        _wait(lambda: _replicate(clients) and all(_is_formed(each, len(nodes)) for each in clients.values()), until, "it is not whole")
        return _observe(clients[nodes[0]])
    finally:
        for client in clients.values():
            client.close()


def form_at(url: str) -> Observed:
    """The same for the nodes that the setting `cache_url` names, where each is looked up anew; raises OSError, too.

    Nodes are containers here: their names stay, their addresses do not, and one whose disk was lost comes back as another. What is down
    and at none of these addresses is forgotten, when all that are there agree that it is none of them.
    """
    password = unquote(urlsplit(url).password or "")
    nodes = [_node_at(socket.gethostbyname(host), port, password) for host, port in cluster_nodes(url)]
    seen = list(said_by_each(url).values())
    if all(one.is_whole and len(one.members) == len(nodes) for one in seen):
        return seen[0]
    _forget_gone(nodes, password)
    return form(nodes, password)


def _node_at(host: str, port: int, password: str) -> Node:
    client = _client(Node(host, port, 0), password)
    try:
        return Node(host, port, int(client.config_get("cluster-port")["cluster-port"] or 0) or port + BUS_AFTER)
    except RedisError as cause:
        raise errors.StoreFailed(store="cache cluster", says=f"{host}:{port}: {cause}") from cause
    finally:
        client.close()


def _forget_gone(nodes: Sequence[Node], password: str) -> None:
    clients = [_client(node, password) for node in nodes]
    try:
        here = {_ask(client, "CLUSTER MYID") for client in clients}
        for client in clients:
            for gone in {one.node_id for one in _members(client) if not one.up} - here:
                _ask(client, "CLUSTER FORGET", gone)
    except (OSError, RedisError):
        return  # not all are there: who is missing may come back
    finally:
        for client in clients:
            client.close()


def observed(nodes: Sequence[Node], password: str) -> Observed:
    """What the first node that answers says."""
    places = ",".join(f"{node.host}:{node.port}" for node in nodes)
    return observed_at(f"redis+cluster://:{quote(password, safe='')}@{places}")


def observed_at(url: str) -> Observed:
    """The same of a cluster that the setting `cache_url` names."""
    said = (_said_by(node_url(url, *node)) for node in cluster_nodes(url))
    return next((one for one in said if one.state != AWAY), _NOBODY)


def said_by_each(url: str) -> dict[str, Observed]:
    """What every node that `url` names says itself: one that is cut off from the others is not asked by its neighbours."""
    return {f"{host}:{port}": _said_by(node_url(url, host, port)) for host, port in cluster_nodes(url)}


def _said_by(url: str) -> Observed:
    client = _client_at(url)
    try:
        return _observe(client)
    except (OSError, RedisError):
        return _NOBODY
    finally:
        client.close()


def node_url(url: str, host: str, port: int) -> str:
    """The address of one node of the cluster that `url` names."""
    parts = urlsplit(plain_url(url))
    who = parts.netloc.rpartition("@")[0]
    return f"{parts.scheme.partition('+')[0]}://{who + '@' if who else ''}{host}:{port}/0{'?' + parts.query if parts.query else ''}"


def _client(node: Node, password: str) -> Redis:
    return _client_at(f"redis://:{quote(password, safe='')}@{node.host}:{node.port}/0")


def _client_at(url: str) -> Redis:
    return Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=ANSWER_TIMEOUT_S,
        socket_connect_timeout=ANSWER_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),  # `form` waits by itself
    )


def _ask(client: Redis, *words: str | int) -> Any:
    return client.execute_command(*words)  # type: ignore[no-untyped-call]


def _meet(clients: dict[Node, Redis], until: float) -> None:
    """Every node hears of every other, by its address of now. New nodes first get an epoch each, so none has to be settled."""
    for number, client in enumerate(clients.values(), 1):
        info = _ask(client, "CLUSTER INFO")
        if info["cluster_known_nodes"] == "1" and info["cluster_my_epoch"] == "0":
            _ask(client, "CLUSTER SET-CONFIG-EPOCH", number)
    ids = {_ask(client, "CLUSTER MYID") for client in clients.values()}
    first, *others = clients
    for other in others:
        _ask(clients[first], "CLUSTER MEET", other.host, other.port, other.bus_port)
    _wait(lambda: all(ids <= _connected(client) for client in clients.values()), until, "the nodes did not find each other")


def _connected(client: Redis) -> set[str]:
    return {one.node_id for one in _members(client) if one.up}


def _hand_out_slots(clients: dict[Node, Redis]) -> None:
    """What nobody holds goes to the masters in equal runs: all of it the first time, nothing later."""
    nodes = list(clients)
    members = {(one.host, one.port): one for one in _members(clients[nodes[0]])}
    held = set().union(*(_held(client) for client in clients.values()))
    free = [slot for slot in range(SLOTS) if slot not in held]
    masters = [node for node in nodes if members[node.host, node.port].slots] or nodes[: (len(nodes) + 1) // 2]
    for number, node in enumerate(masters):
        mine = free[len(free) * number // len(masters) : len(free) * (number + 1) // len(masters)]
        if mine:
            _ask(clients[node], "CLUSTER ADDSLOTSRANGE", *_ranges(mine))


def _held(client: Redis) -> set[int]:
    """The slots of a node, as it says itself."""
    rows = _ask(client, "CLUSTER NODES").values()
    return {slot for row in rows if "myself" in row["flags"] for low, high in map(_bounds, row["slots"]) for slot in range(low, high + 1)}


def _ranges(slots: Sequence[int]) -> list[int]:
    """Pairs of first and last."""
    starts = [slot for before, slot in zip([-2, *slots], slots, strict=False) if slot != before + 1]
    ends = [slot for slot, after in zip(slots, [*slots[1:], -2], strict=False) if after != slot + 1]
    return [bound for pair in zip(starts, ends, strict=True) for bound in pair]


def _replicate(clients: dict[Node, Redis]) -> bool:
    """Who holds nothing, and who is one too many with its master, follows a master that nobody follows; True when all is so."""
    members = _members(next(iter(clients.values())))
    followers = {one.node_id: [other for other in members if other.master_id == one.node_id] for one in members if one.slots}
    idle = [one for one in members if one.master_id is None and not one.slots]
    lonely = [node_id for node_id, theirs in followers.items() if not theirs]
    spare = idle + [one for theirs in followers.values() for one in theirs[1:] if lonely]
    by_address = {(node.host, node.port): client for node, client in clients.items()}
    for one in spare:
        chosen = min(followers, key=lambda node_id: len(followers[node_id]))
        try:
            _ask(by_address[one.host, one.port], "CLUSTER REPLICATE", chosen)
        except (ResponseError, KeyError):  # it has not heard of that master yet, or is no node of ours
            return False
        followers[chosen].append(one)
    return not spare


def _is_formed(client: Redis, count: int) -> bool:
    """Also that it has its master's data: a replica still copying cannot take over."""
    seen = _observe(client)
    copied = client.info("replication").get("master_link_status", "up") == "up"
    return copied and seen.is_whole and len(seen.masters) + len(seen.replicas) == count


def _observe(client: Redis) -> Observed:
    info: dict[str, str] = _ask(client, "CLUSTER INFO")
    return Observed(state=info["cluster_state"], slots_covered=int(info["cluster_slots_ok"]), members=_members(client))


def _members(client: Redis) -> list[Member]:
    return [_member(address, row) for address, row in _ask(client, "CLUSTER NODES").items()]


def _member(address: str, row: dict[str, Any]) -> Member:
    host, _, port = address.rpartition(":")
    flags = set(row["flags"].split(","))
    slots = sum(high - low + 1 for low, high in map(_bounds, row["slots"]))
    return Member(
        node_id=row["node_id"],
        host=host,
        port=int(port),
        master_id=None if row["master_id"] == "-" else row["master_id"],
        slots=slots,
        up=("myself" in flags or row["connected"]) and not flags & {"fail", "fail?", "handshake", "noaddr"},
    )


def _bounds(run: Sequence[str]) -> tuple[int, int]:
    return int(run[0]), int(run[-1])


def _wait(done: Callable[[], bool], until: float, says: str) -> None:
    while True:
        try:
            if done():
                return
        except (OSError, RedisError) as cause:
            says = f"{says}: {cause}"[:200]
        if time.monotonic() > until:
            raise errors.StoreFailed(store="cache cluster", says=says)
        time.sleep(POLL_S)
