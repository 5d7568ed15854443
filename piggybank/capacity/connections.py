"""How many connections all processes may hold at once, and whether they fit: those that a rollout starts beside the old ones count, too.

A process holds its pool, the ledger's own connection and, where there are replicas, the one that it watches them by. With a pooler all
that are its clients; without one they are PostgreSQL's own. Each replica is reached directly, by connections of its own (`db/replicas.py`).
"""

import math
from typing import NamedTuple

from piggybank.capacity import phases
from piggybank.capacity.phases import Phase
from piggybank.db import replicas

LANE = 1  # of a process: the ledger's own
WATCH = 1  # of a process, from the phase with replicas on
POOL_LEAST = 2  # what `pool_connections` may be
RESERVED = 10  # for the superuser, migrations, backups, a person with psql


class Processes(NamedTuple):
    """How many run when most do, and what each keeps in its pool."""

    web: int
    worker: int
    pool: int

    def with_surge(self, surge: float) -> int:
        """All at once, in the middle of a rollout."""
        return sum(count + math.ceil(surge * count) for count in (self.web, self.worker))


class Shortage(NamedTuple):
    """What does not fit, and what to do."""

    what: str
    do: str


def most(phase: Phase) -> Processes:
    """The most that a phase lets run."""
    return Processes(phase.web_max, phase.worker_max, phase.pool)


def own(phase: Phase) -> int:
    """What a process holds beside its pool, at the primary or its pooler."""
    return LANE + (WATCH if phase.replicas else 0)


def needed(phase: Phase, processes: Processes) -> int:
    """Connections to the primary, or to its pooler, in the middle of a rollout."""
    return processes.with_surge(phases.limits().rollout.surge) * (processes.pool + own(phase))


def pooler(phase: Phase) -> tuple[int, int]:
    """Clients and server connections; of the first phase with a pooler for somebody who put one there earlier."""
    pooled = phase if phase.pooled else next(each for each in phases.table() if each.pooled)
    return pooled.pooler_clients, pooled.pooler_connections


def shortages(
    phase: Phase,
    processes: Processes | None = None,
    *,
    max_connections: int | None = None,
    pooled: bool | None = None,
    surge: float | None = None,
) -> list[Shortage]:
    """Why a phase must not be run so; empty: everything fits.

    Without `processes` with the most that the phase lets run; `max_connections` is what PostgreSQL says, `surge` what the platform starts
    beside the old processes, else the table's.
    """
    processes = processes or most(phase)
    surge = phases.limits().rollout.surge if surge is None else surge
    max_connections = max_connections or phase.max_connections
    found = []
    if phase.pooled if pooled is None else pooled:
        clients, servers = pooler(phase)
        found += _too_many(processes, processes.pool, own(phase), "the pooler", clients, surge, reserved=0)
        if servers > max_connections - RESERVED:
            what = f"the pooler opens {servers} connections, PostgreSQL takes {max_connections}, {RESERVED} of them reserved"
            found.append(Shortage(what, f"set max_connections to {servers + RESERVED} or more and start PostgreSQL again"))
    else:
        found += _too_many(processes, processes.pool, own(phase), "PostgreSQL", max_connections, surge)
    if phase.replicas:
        found += _too_many(processes, 0, replicas.CONNECTIONS, "each replica", phase.replica_max_connections, surge)
    return found


def _too_many(
    processes: Processes, pool: int, beside: int, taker: str, takes: int, surge: float, *, reserved: int = RESERVED
) -> list[Shortage]:
    """One shortage, or none. `pool`: what of a process's connections `pool_connections` sets; 0: nothing of them."""
    count, free = processes.with_surge(surge), takes - reserved
    if count * (pool + beside) <= free:
        return []
    kept = f", {reserved} of them reserved" if reserved else ""
    fits = free // count - beside
    smaller = f"set pool_connections to {fits} or less, or run" if pool and fits >= POOL_LEAST else "run"
    return [
        Shortage(
            f"{count} processes ({processes.web} web, {processes.worker} worker, and a rollout's {surge:.0%} more) may open"
            f" {count * (pool + beside)} connections; {taker} takes {takes}{kept}",
            f"{smaller} fewer processes, or let {taker} take more",
        )
    ]
