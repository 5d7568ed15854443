"""What stands there in a phase, on this machine or platform, with what the operator set: the same words for before and after."""

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

from piggybank.capacity import railway
from piggybank.capacity.connections import Processes
from piggybank.capacity.connections import pooler as pooler_of
from piggybank.capacity.phases import Phase

Target = Literal["native", "external", "compose", "helm", "railway", "ecs"]

WEB_LEAST = 2  # of a phase that has several: one answers while another is replaced
# One web process a core: on 2 cores 1, 2, 4 and 6 of them posted 4,050, 3,916, 3,153 and 2,519 deposits a second (tests/bench/RESULTS.md).
CORES_A_WORKER = 2
PROCESS_MIB = 160  # a web process takes about 130
PROCESSES_OF_MEMORY = 2  # web and workers get one of so many parts of it
POSTGRES_OF_MEMORY = 2
CACHE_OF_MEMORY = 8
HERE: tuple[Target, ...] = ("native", "external")  # our supervisor starts the processes
AUTOSCALED: tuple[Target, ...] = ("helm", "ecs")
ASYNCHRONOUS: tuple[Target, ...] = ("railway",)  # no standby there confirms a commit


class Facts(Struct, frozen=True, kw_only=True):
    """What is there now, as the servers and the machine say; what nobody could read keeps its default."""

    target: Target = "native"
    cores: int = 2
    memory_mib: int = 4_096
    max_connections: int | None = None  # None: as in the table
    months_on: bool = False
    archived_months: int = 0
    pgbouncer_prepares: bool = False  # native: it is 1.21 or newer
    pgbouncer: bool = False  # the program is installed (native), or `pooler_url` is set (external)
    replicas: int = 0  # external: addresses that are set
    cache_masters: int = 1  # external: of what `cache_url` leads to
    citus: bool = False
    copies: int = 0  # native: of the database, beside the primary's
    database_mib: int = 0  # native: with its log
    free_mib: int | None = None  # native: on the disk of the copies


class Standing(Struct, frozen=True, kw_only=True):
    """Processes, stores and switches of a phase, as they will run here."""

    phase: int
    web: int
    web_most: int
    worker: int
    worker_most: int
    pool: int
    postgres_memory_mib: int
    replicas: int
    synchronous: bool
    pooler: str  # `none`, `transaction` or `transaction+prepared`
    pooler_clients: int
    pooler_connections: int
    cache_memory_mib: int
    cache_masters: int
    cache_replicas: int
    own_queue: bool
    months: bool

    @property
    def most(self) -> Processes:
        return Processes(self.web_most, self.worker_most, self.pool)

    def words(self, target: Target) -> dict[str, str]:
        """Every part by its name, in words: two of these are compared."""
        unit = "processes" if target in HERE else "containers"
        queue = "an instance of its own" if self.own_queue or target in ("native", "helm", "compose") else "in the cache's instance"
        cluster = f", {self.cache_masters} masters and {self.cache_replicas} replicas" if self.cache_masters > 1 else ", one instance"
        pooler = f"PgBouncer, {self.pooler_clients:,} clients over {self.pooler_connections} connections, {self.pooler}"
        return {
            f"web {unit}": _up_to(self.web, self.web_most),
            f"worker {unit}": _up_to(self.worker, self.worker_most) if self.worker else "inside the web process",
            "pool": f"{self.pool} connections a process",
            "PostgreSQL": f"{self.postgres_memory_mib:,} MiB",
            "replicas": f"{self.replicas}, reads go there" if self.replicas else "none",
            "commit": "waits for 1 replica" if self.synchronous else "on the primary's disk",
            "pooler": "none" if self.pooler == "none" else pooler,
            "cache": f"{self.cache_memory_mib:,} MiB{cluster}",
            "queue": queue,
            "transactions": "a partition a month" if self.months else "one partition",
        }


def standing(phase: Phase, overrides: Mapping[str, Any], facts: Facts) -> Standing:
    """The phase as it runs here: capped by the machine where that is ours or by the platform, changed by what the operator set."""
    phase = railway.runs(phase) if facts.target == "railway" else phase
    web, worker = capped(phase, facts) if facts.target in HERE else (phase.web, phase.worker)
    set_web, set_worker = overrides.get("web_processes"), overrides.get("worker_processes")
    pooler = overrides.get("pooler", "phase")
    if pooler == "phase":
        pooler = "transaction" if phase.pooled else "none"
    clients, servers = pooler_of(phase)
    web_most, worker_most = (phase.web_max, phase.worker_max) if facts.target in AUTOSCALED else (web, worker)
    return Standing(
        phase=phase.number,
        web=web if set_web is None else set_web,
        web_most=web_most if set_web is None else set_web,
        worker=worker if set_worker is None else set_worker,
        worker_most=worker_most if set_worker is None else set_worker,
        pool=overrides.get("pool_connections", phase.pool),
        postgres_memory_mib=postgres_memory_mib(phase, facts),
        replicas=phase.replicas,
        synchronous=phase.replicas > 0 and facts.target not in ASYNCHRONOUS and overrides.get("durability", "synchronous") == "synchronous",
        pooler=pooler,
        pooler_clients=clients,
        pooler_connections=servers,
        cache_memory_mib=cache_memory_mib(phase, facts),
        cache_masters=phase.cache_masters,
        cache_replicas=phase.cache_replicas,
        own_queue=phase.own_queue,
        months=phase.partitions or facts.months_on,  # they stay on
    )


def capped(phase: Phase, facts: Facts) -> tuple[int, int]:
    """Web and worker processes of a phase that this machine's cores and memory are enough for."""
    by_memory = max(1, facts.memory_mib // PROCESSES_OF_MEMORY // PROCESS_MIB)
    web = min(phase.native_web, max(WEB_LEAST, facts.cores), by_memory)
    worker = min(phase.native_worker, max(1, facts.cores // CORES_A_WORKER), max(1, by_memory - web))
    return web, worker


def postgres_memory_mib(phase: Phase, facts: Facts) -> int:
    """The phase's, or what there is of it: a machine of ours shares its memory among the primary, the replicas and the rest."""
    if facts.target != "native":
        return phase.postgres_memory_mib
    return min(phase.postgres_memory_mib, facts.memory_mib // POSTGRES_OF_MEMORY // (1 + phase.replicas))


def cache_memory_mib(phase: Phase, facts: Facts) -> int:
    """All nodes of the cache together, capped in the same way."""
    return phase.cache_memory_mib if facts.target != "native" else min(phase.cache_memory_mib, facts.memory_mib // CACHE_OF_MEMORY)


def _up_to(count: int, most: int) -> str:
    return f"{count}, up to {most}" if most > count else str(count)
