"""From one phase to another: what is declared, the plan with this installation's facts, and doing it.

Who does it depends on where the installation runs. On one machine the supervisor starts and stops what the phase has. With stores of
your own the servers are yours: we look whether they are there, and change where reads and writes go. On containers the platform does
it, so the command is printed that tells the platform, and nothing else is done.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import asyncpg

from piggybank import errors
from piggybank import settings as settings_file
from piggybank.appliance import data_folder, external, folder, observed, orders, topology
from piggybank.capacity import phases
from piggybank.capacity import plan as plans
from piggybank.settings import Settings

Target = Literal["native", "external", "compose", "helm", "railway"]

ASK_TIMEOUT_S = 5.0
COMMANDS: dict[str, str] = {
    "compose": "PIGGYBANK_PHASE={number} docker compose --profile {profile} up --detach --remove-orphans",
    "helm": "helm upgrade piggybank deploy/helm/piggybank --reuse-values --set phase={number}",
    "railway": "PIGGYBANK_PHASE={number} railway config plan && PIGGYBANK_PHASE={number} railway config apply",
}

_ROWS = """
SELECT coalesce(sum(greatest(reltuples, 0)), 0)::bigint FROM pg_class JOIN pg_partition_tree('transactions') ON relid = oid WHERE isleaf
"""
_BYTES = "SELECT pg_database_size(current_database())"


class Change(NamedTuple):
    """A plan, and who carries it out; `command`: what to type where that is not us."""

    plan: plans.Plan
    target: Target
    command: str
    refused: list[str]


def target_of(settings: Settings) -> Target:
    """Where this installation runs."""
    if topology.DATABASE in settings_file.embedded_stores(settings.data_dir):
        return "native"
    return settings_file.platform() or "external"


def declared(settings: Settings) -> dict[str, Any]:
    """The phase as it is written down, for `phase show`."""
    phase = phases.of(settings.phase)
    return {
        "phase": phase.number,
        "name": phase.name,
        "profile": phase.profile,
        "serves": f"{phase.users:,} users, {phase.transactions_a_day:,} transactions a day, {phase.tps_peak:,} a second at the peak",
        "target": target_of(settings),
        "declared": observed.declared(settings),
        "overrides": topology.overrides(settings),
        "caps": topology.caps_of(settings.phase) if target_of(settings) == "native" else [],
    }


async def plan(settings: Settings, number: int, target: Target | None = None) -> Change:
    """What `apply` would do; `refused` says why not."""
    target = target or target_of(settings)
    made = plans.plan(settings.phase, number, topology.overrides(settings), await _facts(settings))
    refused = list(made.refused)
    phase = phases.of(number)
    if target == "native" and (missing := topology.missing(settings, number)) is not None:
        refused.append(f"{missing.details['what']}; {missing.details['do']}")
    if target == "external" and number in phases.BUILT_PHASES:
        refused += [f"{finding.what}: {finding.do}" for finding in await external.check(settings, number)]
    command = COMMANDS[target].format(number=number, profile=phase.profile) if target in COMMANDS else ""
    return Change(made, target, command, refused)


def apply(settings: Settings, number: int) -> Iterator[str]:
    """Do it; lines of progress. Where nothing runs it is only written down: the next start does it.

    Raises `errors.CannotProceed`.
    """
    user = data_folder.prepare_folder(settings.data_dir)
    if folder.read_card(settings.data_dir) is None:
        topology.write_phase(settings.data_dir, number, user)
        return
    yield from orders.carry_out(settings.data_dir, "phase", str(number))


async def _facts(settings: Settings) -> plans.Facts:
    """What the plan must know of the database; raises `errors.CannotProceed` where it does not answer."""
    try:
        connection = await asyncpg.connect(settings.database_url, timeout=ASK_TIMEOUT_S)
    except (OSError, TimeoutError, asyncpg.PostgresError) as cause:
        raise errors.CannotProceed(what=f"the database does not answer: {cause}", do="piggybank status") from cause
    try:
        return plans.Facts(rows=await connection.fetchval(_ROWS), bytes=await connection.fetchval(_BYTES))
    finally:
        await connection.close()
