"""From one phase to another: what is declared, the plan with this installation's facts, and doing it."""

from collections.abc import Iterator
from typing import Any

from piggybank import settings as settings_file
from piggybank.appliance import data_folder, external, folder, observed, orders, pooler, system_user, topology
from piggybank.capacity import phases
from piggybank.capacity.plan import Facts, Plan
from piggybank.capacity.plan import plan as planned
from piggybank.settings import Settings


def declared(settings: Settings) -> dict[str, Any]:
    """The phase as it is written down, for `phase show`."""
    phase = phases.of(settings.phase)
    return {
        "phase": phase.number,
        "name": phase.name,
        "profile": phase.profile,
        "serves": f"{phase.users:,} users, {phase.transactions_a_day:,} transactions a day, {phase.tps_peak:,} a second at the peak",
        "declared": observed.declared(settings),
        "overrides": topology.overrides(settings),
        "caps": topology.caps_of(settings.phase),
    }
