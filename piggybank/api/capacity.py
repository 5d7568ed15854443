"""What is carried, against the limits of the phase: for operators."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated

from litestar import get
from litestar.params import QueryParameter

from piggybank.capacity import usage
from piggybank.capacity.forecast import Forecast, forecast
from piggybank.capacity.outlook import Outlook, outlook
from piggybank.db.engines import Database
from piggybank.settings import Settings

DAYS_DEFAULT = 30
FORECAST_DAYS = 90

Days = Annotated[int, QueryParameter(ge=1, le=usage.KEPT_DAYS, description="So many days back; growth is told from 7 days of data on.")]


@get("/v1/ops/capacity", tags=["operations"], summary="What is carried, and which limit comes first")
async def get_capacity(db: Database, settings: Settings, days: Days = DAYS_DEFAULT) -> Outlook:
    """Measured load against the limits of the phase that this runs as. Null is what nobody could measure, never 0."""
    now = datetime.now(UTC)
    async with db.read() as read:
        known = await usage.days(read, now, days)
    return outlook(settings.phase, known, now)


@get("/v1/ops/capacity/forecast", tags=["operations"], summary="When each limit is reached, and how sure that is")
async def get_forecast(db: Database, settings: Settings, days: Days = FORECAST_DAYS) -> Forecast:
    """Growth fitted to the history: each limit's date with an interval that holds it four times out of five, and how long each phase
    carries it. Null is what nobody could tell, never 0."""
    now = datetime.now(UTC)
    async with db.read() as read:
        known = await usage.days(read, now, days)
    return await asyncio.to_thread(forecast, settings.phase, known, now)  # some ten milliseconds that no deposit waits for


routes = [get_capacity, get_forecast]
