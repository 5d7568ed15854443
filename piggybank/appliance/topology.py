"""What should stand on this machine: the phase's servers, capped by what the machine has.

`phase.toml` in the data folder says which phase was applied, and the settings that it brings; it is never erased by being applied,
so the same phase can be applied again. `run/applying` says which one is being applied: until its stores are there the one before counts,
and a supervisor that finds it there at its start applies it again. What the operator sets in `piggybank.toml` or the environment wins
and is listed.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from piggybank import errors
from piggybank import settings as settings_file
from piggybank.appliance import pooler, processes, store_files
from piggybank.appliance.system_user import SystemUser, ours, shared
from piggybank.capacity import phases, plan
from piggybank.capacity.standing import Facts, standing
from piggybank.settings import Settings

NODES = store_files.NODES
DATABASE = NODES[0]  # the name that `settings.STORES` has for all of them
POOLER = "pooler"
CACHE = "cache"
QUEUE = "queue"
CACHE_NODES = tuple(f"cache-{number}" for number in range(1, 7))  # of the cluster: 3 masters, 3 replicas
ALL_STORES = (*NODES, POOLER, CACHE, *CACHE_NODES, QUEUE)

# Of every server that may be the primary one day: the same in all phases, since a standby with fewer than its primary stands still.
MAX_CONNECTIONS = max(phase.replica_max_connections for phase in phases.table() if phase.number in phases.BUILT_PHASES)
NO_OVERRIDES: Mapping[str, Any] = {}
BUFFERS_LEAST_MIB = 64
CACHE_LEAST_MIB = 16
BUFFERS_PART = 4  # PostgreSQL's own cache is a quarter of the memory that a server has


class Topology(Struct, frozen=True, kw_only=True):
    """The stores of one machine in one phase."""

    phase: int
    embedded: tuple[str, ...]  # of `settings.STORES`: what is not elsewhere
    replicas: int
    pooled: bool
    prepared: bool  # the pooler keeps named statements
    clustered: bool
    synchronous: bool  # a commit waits for one replica
    shared_buffers_mib: int
    effective_cache_mib: int
    max_connections: int
    pooler_clients: int
    pooler_connections: int
    cache_mib: int  # of each node
    archived: bool = False  # the log is kept until it is at the backup target


def wanted(settings: Settings, number: int | None = None) -> Topology:
    """The stores of these settings' phase; or of another one that is to be applied, which an operator's own `phase` wins over."""
    chosen = {"pooler": settings.pooler, "durability": settings.durability}
    phase = settings.phase if number is None or "phase" in overrides(settings) else number
    found = of(phase, chosen, embedded=settings_file.embedded_stores(settings.data_dir))
    return msgspec.structs.replace(found, archived=bool(settings.backup_target))


def to_begin_with(settings: Settings) -> Topology:
    """The stores of a start: of the phase that counts, with the memory of the one being applied, or the primary would start twice more."""
    found = wanted(settings)
    if (number := applying(settings.data_dir)) is None:
        return found
    coming = wanted(settings, number)
    return msgspec.structs.replace(found, shared_buffers_mib=coming.shared_buffers_mib, effective_cache_mib=coming.effective_cache_mib)


def of(number: int, overrides: Mapping[str, Any] = NO_OVERRIDES, *, embedded: tuple[str, ...] = tuple(settings_file.STORES)) -> Topology:
    """The stores of a phase on this machine, changed by what the operator set (`capacity.plan.OVERRIDES`)."""
    phase = phases.of(number)
    stands = standing(phase, overrides, facts())
    here, nodes = DATABASE in embedded, stands.cache_masters + stands.cache_replicas
    buffers = stands.postgres_memory_mib // BUFFERS_PART
    return Topology(
        phase=number,
        embedded=embedded,
        replicas=stands.replicas if here else 0,
        pooled=stands.pooler != "none" and here,
        prepared=stands.pooler == "transaction+prepared",
        clustered=stands.cache_masters > 1 and CACHE in embedded,
        synchronous=stands.synchronous and here,
        shared_buffers_mib=max(buffers, BUFFERS_LEAST_MIB) if number else store_files.between(buffers, store_files.SHARED_BUFFERS_MIB),
        effective_cache_mib=max(stands.postgres_memory_mib, 128),
        max_connections=MAX_CONNECTIONS if stands.replicas and here else phase.max_connections,
        pooler_clients=stands.pooler_clients,
        pooler_connections=stands.pooler_connections,
        cache_mib=max(stands.cache_memory_mib // nodes, CACHE_LEAST_MIB),
    )


def facts() -> Facts:
    """What this machine has."""
    return Facts(
        cores=os.cpu_count() or 1,
        memory_mib=store_files.memory_mib(),
        pgbouncer=pooler.found() is not None,
        pgbouncer_prepares=pooler.prepares(),
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


def overrides(settings: Settings) -> dict[str, Any]:
    """What the operator set although the phase sets it."""
    chosen = settings_file.operator_values(settings.data_dir)
    return {name: getattr(settings, name) for name in ("phase", *plan.OVERRIDES) if name in chosen}


def values_of(number: int) -> dict[str, int]:
    """What the phase sets on this machine."""
    return plan.plan(number, number, NO_OVERRIDES, facts()).settings


def write_phase(data_dir: Path, number: int, user: SystemUser | None) -> None:
    """Write `phase.toml`: what `settings.load` reads from now on."""
    heading = "# Written by `piggybank phase apply`. What you set in piggybank.toml wins over it.\n"
    text = heading + store_files.toml(values_of(number))
    processes.write_file(data_dir / settings_file.PHASE_FILE, text, shared(user, 0o640), ours(user))


def written_phase(data_dir: Path) -> int:
    """The phase that was applied last; 0 where none was."""
    path = data_dir / settings_file.PHASE_FILE
    return int(tomllib.loads(path.read_text(encoding="utf-8")).get("phase", 0)) if path.exists() else 0


def write_applying(data_dir: Path, number: int) -> None:
    """That phase is being applied; it stays written down until that has ended, well or not: a supervisor that is killed does it again."""
    processes.write_file(_applying(data_dir), f"{number}\n", 0o640)


def applying(data_dir: Path) -> int | None:
    """The phase that is being applied, by whoever runs or was killed."""
    try:
        return int(_applying(data_dir).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def forget_applying(data_dir: Path) -> None:
    """It has ended, or is not to be done again."""
    _applying(data_dir).unlink(missing_ok=True)


def _applying(data_dir: Path) -> Path:
    return data_dir / "run" / "applying"
