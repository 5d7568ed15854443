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
    scale: int  # times phase 0
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
    pool: int  # connections that a process keeps to the primary or its pooler
    replicas: int
    replica_max_connections: int
    pooler_clients: int  # 0: no pooler
    pooler_connections: int
    cache_memory_mib: int  # all nodes together
    cache_masters: int  # more than 1: a cluster
    cache_replicas: int
    own_queue: bool
    partitions: bool
    database_gib: int
    cost_usd_a_month: int

    @property
    def pooled(self) -> bool:
        return self.pooler_clients > 0

    @property
    def clustered(self) -> bool:
        return self.cache_masters > 1

    @property
    def open_ended(self) -> bool:
        """The last phase serves "and more"."""
        return self.number == LAST_PHASE


class Caching(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the cache keeps, and for how long."""

    balance_ttl_s: int
    count_ttl_s: int
    page_ttl_s: int
    session_ttl_s: int
    balance_hit_rate: float


class Goal(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator wants to see, in every phase. Rates and shares are parts of 1."""

    p95_ms: int
    cached_ms: int
    uncached_ms: int
    error_rate: float
    connections_used: float
    lag_ms: int
    slow_query_ms: int
    replica_share: float
    cache_hit_rate: float
    cache_memory_used: float


class Alert(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From where on somebody is told; `above`: worse is more."""

    name: str
    above: bool
    warning: float
    critical: float


class Rollout(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`surge`: new processes beside the old ones, as a part of them, rounded up; the rest is what an autoscaler aims at."""

    surge: float
    cpu_used: float
    memory_used: float


class Managed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a managed cloud costs, times ours."""

    cost_times_least: int
    cost_times_most: int


class Before(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the design started from."""

    web_workers: int
    tps: int


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    phase: tuple[Phase, ...]
    cache: Caching
    goal: Goal
    alert: tuple[Alert, ...]
    rollout: Rollout
    managed: Managed
    before: Before


@cache
def limits() -> Limits:
    """Everything that `phases.toml` says."""
    text = (Path(__file__).with_name("phases.toml")).read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), Limits)


def table() -> tuple[Phase, ...]:
    """All phases, in order."""
    return limits().phase


def of(number: int) -> Phase:
    """The phase of that number, 0 to LAST_PHASE."""
    return table()[number]
