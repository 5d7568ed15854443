"""The phases, read from `phases.toml`: the one table that the command line, the chart, the cost and the alerts are made from."""

import tomllib
from functools import cache
from pathlib import Path

import msgspec
from msgspec import Struct

LAST_PHASE = 4
BUILT_PHASES = (0, 1, 2, 3)  # 4 is shown and costed; there is no command that turns it on


class Phase(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One phase: whom it serves, and what stands there for it. Counts are containers; `native_*` are processes on one machine."""

    number: int
    name: str
    profile: str
    users: int
    transactions_a_day: int
    tps_peak: int
    web: int
    web_max: int
    worker: int
    worker_max: int
    native_web: int
    native_worker: int
    postgres_cpus: int
    postgres_memory_mib: int
    max_connections: int  # of PostgreSQL
    replicas: int
    pooler_clients: int  # 0: no pooler
    pooler_connections: int
    cache_memory_mib: int  # all nodes together
    cache_masters: int  # more than 1: a cluster
    cache_replicas: int
    own_queue: bool
    partitions: bool
    cost_usd_a_month: int

    @property
    def pooled(self) -> bool:
        return self.pooler_clients > 0

    @property
    def clustered(self) -> bool:
        return self.cache_masters > 1


class _Table(Struct, frozen=True, forbid_unknown_fields=True):
    phase: list[Phase]


@cache
def table() -> tuple[Phase, ...]:
    """All phases, in order."""
    text = (Path(__file__).with_name("phases.toml")).read_text(encoding="utf-8")
    return tuple(msgspec.convert(tomllib.loads(text), _Table).phase)


def of(number: int) -> Phase:
    """The phase of that number, 0 to LAST_PHASE."""
    return table()[number]
