"""What is carried, against the limits of the phase: for operators."""

from datetime import UTC, datetime
from typing import Annotated

from litestar import get
from litestar.params import QueryParameter

from piggybank.capacity import usage
from piggybank.capacity.outlook import Outlook, outlook
from piggybank.db.engines import Database
from piggybank.settings import Settings

DAYS_DEFAULT = 30

Days = Annotated[int, QueryParameter(ge=1, le=usage.KEPT_DAYS, description="So many days back; growth is told from 7 days of data on.")]


@get("/v1/ops/capacity", tags=["operations"], summary="What is carried, and which limit comes first")
async def get_capacity(db: Database, settings: Settings, days: Days = DAYS_DEFAULT) -> Outlook:
    """Measured load against the limits of the phase that this runs as. Null is what nobody could measure, never 0."""
    now = datetime.now(UTC)
    async with db.read() as read:
        known = await usage.days(read, now, days)
    return outlook(settings.phase, known, now)


routes = [get_capacity]
