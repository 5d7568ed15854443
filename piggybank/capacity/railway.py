"""What Railway makes of a phase, what it cannot do, and which commands change it there. Pure.

Its PostgreSQL is not in our file (`deploy/railway`): HA and PgBouncer are its own products, which change that service in place and add
others, and a file that named it would put it back. So they are commands of their own, before the file or after it.
"""

from typing import NamedTuple

import msgspec

from piggybank.capacity import connections
from piggybank.capacity.phases import Phase

SURGE = 1.0  # a deployment starts the whole new set beside the old one, whatever `[rollout]` says of others
DATABASE = "Postgres"  # the name that `railway add --database postgres` gives it
HA_MAX_CONNECTIONS = 200  # of the HA image, on each node

# Its limits, as its documentation had them on 2026-08-21.
VOLUME_IOPS = 3_000  # reads, and as many writes, whatever the plan
HOBBY_REPLICAS = 6
HOBBY_VOLUME_GB = 5
PRO_VOLUME_GB = 1_000
GB_OF_GIB = 1.073741824


class Difference(NamedTuple):
    """Where Railway runs something else than the phase says."""

    setting: str
    value: str
    phase_wants: str
    because: str


def runs(phase: Phase) -> Phase:
    """The phase as it runs there."""
    there = msgspec.structs.replace(
        phase,
        web_max=phase.web,
        worker_max=phase.worker,
        cache_masters=1,
        cache_replicas=0,
        own_queue=True,
        replica_max_connections=HA_MAX_CONNECTIONS if phase.replicas else 0,
    )
    return msgspec.structs.replace(there, pool=_pool(there))


def differences(phase: Phase) -> list[Difference]:
    """Each of them, with its reason."""
    there, found = runs(phase), []
    for name, least, most in (("web", phase.web, phase.web_max), ("worker", phase.worker, phase.worker_max)):
        if most > least:
            why = "Railway does not scale by itself: count them by hand in deploy/railway/.railway/railway.ts"
            found.append(Difference(f"{name} containers", str(least), f"{least} to {most}", why))
    if there.pool != phase.pool:
        why = f"a deployment there runs all {2 * (phase.web + phase.worker)} processes, old and new, at once"
        found.append(Difference("pool_connections", str(there.pool), str(phase.pool), why))
    if phase.replicas:
        why = "Railway's HA replicates asynchronously: losing the primary may lose answered writes (RPO above 0)"
        found.append(Difference("durability", "local", "synchronous", why))
    if phase.clustered:
        why = "Railway has no Valkey or Redis cluster, only one server; losing it costs speed, never money"
        found.append(Difference("cache nodes", "1", f"{phase.cache_masters} masters and {phase.cache_replicas} replicas", why))
    if not phase.own_queue:
        found.append(Difference("queue", "an instance of its own", "in the cache's instance", "one policy cannot both forget and keep"))
    return found


def notes(current: Phase, phase: Phase) -> list[str]:
    """What to know before one relies on it."""
    said = [
        f"Railway's volumes do {VOLUME_IOPS:,} reads and {VOLUME_IOPS:,} writes a second, whatever the plan: measure before you promise",
        "Railway has no region in Africa: from there every request takes the way to Amsterdam or further",
        "Railway asks for /health/ready only while it deploys, never after",
    ]
    database_gb = phase.database_gib * GB_OF_GIB
    if database_gb > PRO_VOLUME_GB:
        said.append(f"{phase.database_gib:,} GiB of database are more than a Pro volume's {PRO_VOLUME_GB:,} GB: that takes Enterprise")
    wants = []
    if database_gb > HOBBY_VOLUME_GB:
        wants.append(f"the phase's database has {phase.database_gib:,} GiB and a Hobby volume {HOBBY_VOLUME_GB} GB")
    if phase.web > HOBBY_REPLICAS:
        wants.append(f"{phase.web} web containers are more than Hobby's {HOBBY_REPLICAS}")
    if wants:
        said.append(f"this takes the Pro plan: {'; '.join(wants)}")
    if phase.replicas != current.replicas:
        said.append("changing HA drops every connection to PostgreSQL: writes answer 503 meanwhile, and nobody here measured how long")
    if phase.replicas:
        said.append("where no answered write may be lost with the primary, run phase 2 and 3 elsewhere: Helm, or servers of your own")
    return said


def commands(current: Phase, target: Phase) -> list[str]:
    """What to type, in order, from the checkout's folder; a line that begins with # is for a person to do."""
    database = f"--service {DATABASE}"
    file = f"PIGGYBANK_PHASE={target.number} railway config"
    said = []
    if target.replicas and not current.replicas:
        said.append(f"railway postgres ha convert {database} --replicas {target.replicas}")
    elif target.replicas != current.replicas and target.replicas:
        said.append(f"railway postgres ha scale {database} --replicas {target.replicas}")
    if target.pooled and not current.pooled:
        said.append(f"railway postgres pgbouncer add {database} --pool-mode transaction")
    if target.pooled and (current.pooler_clients, current.pooler_connections) != (target.pooler_clients, target.pooler_connections):
        sizes = f"--max-client-conn {target.pooler_clients} --default-pool-size {target.pooler_connections}"
        said.append(f"railway postgres pgbouncer configure {database} {sizes}")
    if (target.replicas, target.pooled) != (current.replicas, current.pooled):
        said.append("# set the addresses of the database for web and worker: deploy/railway/README.md, The database's addresses")
    said += ["cd deploy/railway", f"{file} plan", f"{file} apply"]
    if target.partitions and not current.partitions:
        said.append("railway ssh --service worker piggybank partitions enable")
    if current.pooled and not target.pooled:
        said.append(f"railway postgres pgbouncer remove {database}")
    if current.replicas and not target.replicas:
        said.append(f"railway postgres ha revert {database}")
    return said


def _pool(phase: Phase) -> int:
    """The phase's, or as many as fit while a deployment runs."""
    count = connections.most(phase).with_surge(SURGE)
    takes = phase.pooler_clients if phase.pooled else phase.max_connections - connections.RESERVED
    return min(phase.pool, takes // count - connections.own(phase))
