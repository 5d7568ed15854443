"""The phases, what they cost and which goals an installation is measured by: the table of `capacity/phases.toml`, for operators."""

from litestar import get
from msgspec import Struct

from piggybank.capacity import cost, phases
from piggybank.capacity.cost import Cost
from piggybank.capacity.phases import Alert, Goal, Phase
from piggybank.settings import Settings


class PhaseView(Struct, frozen=True, kw_only=True):
    """`built`: there is a command that turns it on."""

    phase: Phase
    cost: Cost
    built: bool


class PhaseTable(Struct, frozen=True, kw_only=True):
    """`current`: the number of the phase that this runs as. Rates and shares are parts of 1."""

    current: int
    phases: list[PhaseView]
    goals: Goal
    thresholds: list[Alert]


@get("/v1/ops/phases", sync_to_thread=False, tags=["operations"], summary="The phases, their costs and the goals")
def list_phases(settings: Settings) -> PhaseTable:
    """Costs are the design's, of a hosted platform at full load."""
    return PhaseTable(
        current=settings.phase,
        phases=[PhaseView(phase=phase, cost=cost.of(phase.number), built=phase.number in phases.BUILT_PHASES) for phase in phases.table()],
        goals=phases.limits().goal,
        thresholds=list(phases.limits().alert),
    )


routes = [list_phases]
