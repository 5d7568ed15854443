"""Makes the six Valkeys of compose.yaml one cluster, and keeps them one: who comes back with another address is met again.

A node that restarts alone is found by those that stayed. Where more of them moved at once than can tell of each other, nobody would;
their names stay, so here everybody hears of everybody's address of now. `keep_cluster.py healthy` looks, and changes nothing.
"""

import os
import socket
import sys
import time
from urllib.parse import urlsplit

from piggybank import errors
from piggybank.appliance import cache_cluster
from piggybank.appliance.cache_cluster import Node
from piggybank.settings import cluster_nodes

LOOK_EVERY_S = 2.0
BUS_OFFSET = 10_000


def main(url: str, *, look_only: bool) -> int:
    names = cluster_nodes(url)
    if look_only:
        return 0 if is_whole(url, len(names)) else 1
    whole = False
    while True:
        if not is_whole(url, len(names)):
            whole = False
            try:
                made = cache_cluster.form(
                    [Node(socket.gethostbyname(host), port, port + BUS_OFFSET) for host, port in names], password(url)
                )
            except (OSError, errors.StoreFailed) as cause:
                print(f"not whole yet: {cause}", flush=True)
            else:
                print(f"state {made.state}: {len(made.masters)} masters, {len(made.replicas)} replicas", flush=True)
                whole = True
        elif not whole:
            print("whole", flush=True)
            whole = True
        time.sleep(LOOK_EVERY_S)


def is_whole(url: str, count: int) -> bool:
    """Every node says so by itself: one that is cut off from the others is not asked by its neighbours."""
    seen = [cache_cluster.observed_at(cache_cluster.node_url(url, *node).replace("://", "+cluster://", 1)) for node in cluster_nodes(url)]
    return all(one.is_whole and len(one.masters) + len(one.replicas) == count for one in seen)


def password(url: str) -> str:
    return urlsplit(url).password or ""


if __name__ == "__main__":
    sys.exit(main(os.environ["PIGGYBANK_CACHE_URL"], look_only=sys.argv[1:] == ["healthy"]))
