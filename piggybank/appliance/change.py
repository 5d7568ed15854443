"""From one phase to another: what is declared, the plan with this installation's facts, and doing it.

Who does it depends on where the installation runs. On one machine the supervisor starts and stops what the phase has. With stores of
your own the servers are yours: we look whether they are there, and change where reads and writes go. On containers the platform does
it, so the command is printed that tells the platform, and nothing else is done.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import asyncpg
import msgspec

from piggybank import errors
from piggybank import settings as settings_file
from piggybank.appliance import data_folder, external, folder, observed, orders, topology
from piggybank.capacity import helm, phases, railway
from piggybank.capacity.plan import Plan, Refusal
from piggybank.capacity.plan import plan as planned
from piggybank.capacity.standing import HERE, Facts, Target
from piggybank.db import storage
from piggybank.db.partitions import MONTHS_ARE_ON
from piggybank.settings import Settings

ASK_TIMEOUT_S = 5.0
SAID_BY_PLATFORM = ("phase", "web_processes", "worker_processes", "pool_connections")
COMMANDS: dict[str, str] = {
    "compose": "installer/install.sh --docker --phase {number}",
    "ecs": "export PHASE={number} POOL_CONNECTIONS={pool}  # then register the definitions: deploy/ecs/README.md\n"
    "aws ecs update-service --service piggybank-web --desired-count {web} --task-definition piggybank-web ..\n"
    "aws ecs update-service --service piggybank-worker --desired-count {worker} --task-definition piggybank-worker ..",
}

_FACTS = f"""
SELECT current_setting('max_connections')::int AS max_connections, {MONTHS_ARE_ON} AS months_on,
       (SELECT count(*) FROM archived_months) AS archived_months,
       EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') AS citus
"""


class Change(NamedTuple):
    """A plan, and who carries it out; `command`: what to type where that is not us, a line each."""

    plan: Plan
    target: Target
    command: str


def target_of(settings: Settings) -> Target:
    """Where this installation runs. A supervisor starts and stops its processes in a container, too; a platform runs none."""
    if topology.DATABASE in settings_file.embedded_stores(settings.data_dir):
        return "native"
    if folder.read_card(settings.data_dir) is not None:
        return "external"
    return settings_file.platform() or "external"


def declared(settings: Settings) -> dict[str, Any]:
    """The phase as it is written down, for `phase show`."""
    phase, target = phases.of(settings.phase), target_of(settings)
    facts = msgspec.structs.replace(topology.facts(), target=target)
    kept = planned(settings.phase, settings.phase, _overrides(settings, target), facts).overrides
    return {
        "phase": phase.number,
        "name": phase.name,
        "profile": phase.profile,
        "serves": f"{phase.users:,} users, {phase.transactions_a_day:,} transactions a day, {phase.tps_peak:,} a second at the peak",
        "target": target,
        "applying": topology.applying(settings.data_dir),
        "declared": observed.declared(settings),
        "overrides": msgspec.to_builtins(kept),
    }


async def plan(settings: Settings, number: int, target: Target | None = None) -> Change:
    """What `apply` would do; `refused` in it says why not. Raises `errors.CannotProceed` where the database does not answer."""
    target = target or target_of(settings)
    made = planned(settings.phase, number, _overrides(settings, target), await _facts(settings, target))
    if target_of(settings) == "external" and target in ("external", "native") and not made.refused:
        outside = [
            Refusal(what=finding.what, do=finding.do)
            for finding in await external.check(settings, number, caches=not _caches_are_here(settings))
        ]
        made = msgspec.structs.replace(made, refused=outside)
    return Change(made, target, _command(settings, number, target))


def apply(settings: Settings, number: int) -> Iterator[str]:
    """Do it; lines of progress. Where nothing runs it is only written down: the next start does it.

    Raises `errors.CannotProceed`.
    """
    data_folder.prepare_folder(settings.data_dir)
    if folder.read_card(settings.data_dir) is None:
        write_down(settings, number)
        return
    yield from orders.carry_out(settings.data_dir, "phase", str(number))


def write_down(settings: Settings, number: int) -> None:
    """For the next start, where nothing runs. It serves as what stands, and applies it then, where the database has to be copied first."""
    data_dir = settings.data_dir
    user = data_folder.prepare_folder(data_dir)
    stores, before = data_dir / "stores", topology.written_phase(data_dir)
    copies = phases.of(number).replicas and not phases.of(before).replicas and (stores / topology.primary_of(stores)).exists()
    if copies:
        topology.write_applying(data_dir, number)
    else:
        topology.write_phase(data_dir, number, user)
        topology.forget_applying(data_dir)


def _command(settings: Settings, number: int, target: Target) -> str:
    current, phase = phases.of(settings.phase), phases.of(number)
    if target == "railway":
        return "\n".join(railway.commands(current, phase))
    if target == "helm":
        release = helm.Release.of(*settings_file.helm_release(), settings.database_url)
        return "\n".join(helm.commands(release, current, phase))
    if target not in COMMANDS:
        return ""
    return COMMANDS[target].format(number=number, pool=phase.pool, web=phase.web, worker=phase.worker)


async def _facts(settings: Settings, target: Target) -> Facts:
    facts = msgspec.structs.replace(topology.facts(), target=target, **(_disk(settings) if target == "native" else {}))
    if target == "native" and folder.read_card(settings.data_dir) is None:
        return facts  # nothing runs that could be asked
    try:
        connection = await asyncpg.connect(settings.database_url, timeout=ASK_TIMEOUT_S)
    except (OSError, TimeoutError, asyncpg.PostgresError) as cause:
        raise errors.CannotProceed(what=f"the database does not answer: {cause}", do="piggybank status") from cause
    try:
        row = await connection.fetchrow(_FACTS)
    except asyncpg.PostgresError as cause:
        raise errors.CannotProceed(what=f"the database cannot be looked at: {cause}", do="piggybank migrate, then again") from cause
    finally:
        await connection.close()
    facts = msgspec.structs.replace(facts, **dict(row))
    if target == "native":
        return facts
    if _caches_are_here(settings):
        masters = max(phase.cache_masters for phase in phases.table())  # the supervisor makes as many as the phase has
    else:
        masters = int((await observed.cache(settings) or "1").partition("+")[0])
    return msgspec.structs.replace(facts, pgbouncer=bool(settings.pooler_url), replicas=len(settings.replica_urls), cache_masters=masters)


def _disk(settings: Settings) -> dict[str, int]:
    """What copies of the database find here; nothing before there is one."""
    stores = settings.data_dir / "stores"
    if not (primary := stores / topology.primary_of(stores)).is_dir():
        return {}
    copies = sum((stores / name).is_dir() for name in topology.NODES if name != primary.name)
    return {"copies": copies, "database_mib": storage.size_mib(primary), "free_mib": storage.free_mib(stores)}


def _overrides(settings: Settings, target: Target) -> dict[str, Any]:
    """What the operator set over the phase. On containers the platform says in the environment what the phase it runs has."""
    chosen = topology.overrides(settings)
    return chosen if target in HERE else {name: value for name, value in chosen.items() if name not in SAID_BY_PLATFORM}


def _caches_are_here(settings: Settings) -> bool:
    return topology.CACHE in settings_file.embedded_stores(settings.data_dir)
