"""What should stand on this machine: the phase's servers, capped by what the machine has.

`phase.toml` in the data folder says which phase was applied, and the settings that it brings; it is never erased by being applied,
so the same phase can be applied again. What the operator sets in `piggybank.toml` or the environment wins and is listed.
"""

import os
import tomllib
from pathlib import Path

from msgspec import Struct

from piggybank import errors
from piggybank import settings as settings_file
from piggybank.appliance import pooler, processes, store_files
from piggybank.appliance.system_user import SystemUser, ours, shared
from piggybank.capacity import phases
from piggybank.settings import Settings

NODES = (store_files.FIRST_POSTGRES, "postgres-2", "postgres-3")  # PostgreSQL servers, one of them the primary
DATABASE = NODES[0]  # the name that `settings.STORES` has for all of them
POOLER = "pooler"
CACHE = "cache"
QUEUE = "queue"
CACHE_NODES = tuple(f"cache-{number}" for number in range(1, 7))  # of the cluster: 3 masters, 3 replicas
ALL_STORES = (*NODES, POOLER, CACHE, *CACHE_NODES, QUEUE)

WEB_LEAST = 2  # of a phase that has several: one can be replaced while another answers
BUFFERS_PART = 4  # PostgreSQL's own cache is a quarter of the memory that a server has


class Topology(Struct, frozen=True, kw_only=True):
    """The stores of one machine in one phase."""

    phase: int
    embedded: tuple[str, ...]  # of `settings.STORES`: what is not elsewhere
    replicas: int
    pooled: bool
    clustered: bool
    synchronous: bool  # a commit waits for one replica
    shared_buffers_mib: int
    effective_cache_mib: int
    max_connections: int
    pooler_clients: int
    pooler_connections: int
    cache_mib: int  # of each node


def wanted(settings: Settings) -> Topology:
    """The stores of these settings' phase."""
    return of(
        settings.phase,
        pooled=settings.pooler != "none",
        synchronous=settings.durability == "synchronous",
        embedded=settings_file.embedded_stores(settings.data_dir),
    )


def of(number: int, *, pooled: bool = True, synchronous: bool = True, embedded: tuple[str, ...] = tuple(settings_file.STORES)) -> Topology:
    """The stores of a phase on this machine; without a pooler, or with commits that wait for nobody, where that is chosen."""
    phase = phases.of(number)
    here = DATABASE in embedded
    memory = store_files.memory_mib()
    nodes = 1 + phase.replicas
    if phase.number == 0:
        buffers = store_files.between(memory // 8, store_files.SHARED_BUFFERS_MIB)
    else:  # half of the machine for PostgreSQL, the rest for the processes and the caches
        share = min(phase.postgres_memory_mib, memory // 2 // nodes)
        buffers = max(share // BUFFERS_PART, store_files.SHARED_BUFFERS_MIB[0])
    return Topology(
        phase=phase.number,
        embedded=embedded,
        replicas=phase.replicas if here else 0,
        pooled=phase.pooled and pooled and here,
        clustered=phase.clustered and CACHE in embedded,
        synchronous=phase.replicas > 0 and synchronous and here,
        shared_buffers_mib=buffers,
        effective_cache_mib=max(memory // 2 // nodes, 128),
        max_connections=phase.max_connections,
        pooler_clients=phase.pooler_clients,
        pooler_connections=phase.pooler_connections,
        cache_mib=_cache_mib(phase, memory),
    )


def primary_of(stores_dir: Path) -> str:
    """The name of the PostgreSQL server that takes writes; raises `errors.CannotProceed` where the file names another thing."""
    path = stores_dir / "primary"
    name = path.read_text(encoding="utf-8").strip() if path.exists() else NODES[0]
    if name not in NODES:
        raise errors.CannotProceed(what=f"{path} names {name!r}", do=f"write one of {', '.join(NODES)} into it")
    return name


def standbys_of(stores_dir: Path, replicas: int) -> tuple[str, ...]:
    """The servers that should follow the primary; those that have their folder already come first."""
    others = [name for name in NODES if name != primary_of(stores_dir)]
    return tuple(sorted(others, key=lambda name: not (stores_dir / name).exists())[:replicas])


def names(stores_dir: Path, topology: Topology) -> tuple[str, ...]:
    """All stores, in the order in which they start."""
    found: set[str] = {QUEUE} & set(topology.embedded)
    if DATABASE in topology.embedded:
        found |= {primary_of(stores_dir), *standbys_of(stores_dir, topology.replicas)}
    if topology.pooled:
        found.add(POOLER)
    if CACHE in topology.embedded:
        found |= set(CACHE_NODES) if topology.clustered else {CACHE}
    return tuple(name for name in ALL_STORES if name in found)


def _cache_mib(phase: phases.Phase, memory: int) -> int:
    nodes = len(CACHE_NODES) if phase.clustered else 1
    return max(min(phase.cache_memory_mib, memory // 16) // nodes, store_files.CACHE_MIB[0] // nodes)


def values_of(number: int) -> dict[str, int]:
    """What the phase sets on this machine: web and worker processes, capped by its cores."""
    phase = phases.of(number)
    cores = os.cpu_count() or 1
    return {
        "phase": number,
        "web_processes": min(phase.native_web, max(cores, WEB_LEAST)),
        "worker_processes": min(phase.native_worker, max(cores // 2, 1)),
    }


def caps_of(number: int) -> list[str]:
    """What this machine has less of than the phase asks for, in words."""
    phase, values, memory = phases.of(number), values_of(number), store_files.memory_mib()
    found = [
        f"{name}: {values[name]} of the phase's {asked}, because this machine has {os.cpu_count()} core(s)"
        for name, asked in (("web_processes", phase.native_web), ("worker_processes", phase.native_worker))
        if values[name] < asked
    ]
    if number and memory // 2 < phase.postgres_memory_mib * (1 + phase.replicas):
        found.append(f"PostgreSQL's memory: half of this machine's {memory:,} MiB, shared by {1 + phase.replicas} server(s)")
    return found


def missing(settings: Settings, number: int) -> errors.CannotProceed | None:
    """What this machine lacks for the phase; None: it can be built."""
    if phases.of(number).pooled and settings.pooler != "none" and pooler.found() is None:
        return errors.CannotProceed(what=f"phase {number} needs PgBouncer, which is not installed", do=f"as root: {pooler.APT_LINE}")
    return None


def overrides(settings: Settings) -> dict[str, object]:
    """What the operator set although the phase sets it."""
    chosen = settings_file.operator_values(settings.data_dir)
    return {name: chosen[name] for name in (*values_of(settings.phase), "pooler", "durability") if name in chosen}


def write_phase(data_dir: Path, number: int, user: SystemUser | None) -> None:
    """Write `phase.toml`: what `settings.load` reads from now on."""
    heading = "# Written by `piggybank phase apply`. What you set in piggybank.toml wins over it.\n"
    text = heading + store_files.toml(values_of(number))
    processes.write_file(data_dir / settings_file.PHASE_FILE, text, shared(user, 0o640), ours(user))


def written_phase(data_dir: Path) -> int:
    """The phase that was applied last; 0 where none was."""
    path = data_dir / settings_file.PHASE_FILE
    return int(tomllib.loads(path.read_text(encoding="utf-8")).get("phase", 0)) if path.exists() else 0
