"""What this costs, now and in each phase: for operators."""

from datetime import UTC, date, datetime
from typing import Annotated, Literal

from litestar import get
from litestar.params import QueryParameter
from msgspec import Meta, Struct

from piggybank.capacity import phases, prices, projection, usage
from piggybank.capacity.projection import Projection
from piggybank.db.engines import Database
from piggybank.settings import Settings

DAYS_LOOKED_AT = 30

Whose = Annotated[Literal["railway", "aws"], QueryParameter(name="provider", description="Whose prices.")]


class Costs(Struct, frozen=True, kw_only=True):
    """US dollars a month, without tax."""

    provider: str
    title: str
    read_on: Annotated[date, Meta(description="When the prices were read.")]
    read_from: str
    now: Annotated[
        Projection | None, Meta(description="Of the measured load, in the phase that this runs as. Null: no whole day is known.")
    ]
    phases: Annotated[list[Projection], Meta(description="Each built phase at its full load.")]


@get("/v1/ops/cost", tags=["operations"], summary="What this costs, now and in each phase")
async def get_cost(db: Database, settings: Settings, prices_of: Whose = "railway") -> Costs:
    """A dated price table and the CPU that a transaction was measured to take, beside the design's figures and why they differ."""
    of, measured = prices.of(prices_of), prices.table().measured
    async with db.read() as read:
        load = projection.measured_load(await usage.days(read, datetime.now(UTC), DAYS_LOOKED_AT))
    built = [phases.of(number) for number in phases.BUILT_PHASES]
    return Costs(
        provider=of.name,
        title=of.title,
        read_on=of.read_on,
        read_from=of.read_from,
        now=None if load is None else projection.project(of, phases.of(settings.phase), load, measured),
        phases=[projection.project(of, phase, projection.full(phase), measured) for phase in built],
    )


routes = [get_cost]
