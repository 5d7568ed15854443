"""The minutes and the alerts, for operators and for the console."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

from litestar import get
from litestar.params import QueryParameter
from msgspec import Meta, Struct

from piggybank import errors
from piggybank.api.moments import From, To, moment
from piggybank.capacity import runbooks, usage, watching
from piggybank.capacity.alerts import Severity
from piggybank.capacity.runbooks import Runbook
from piggybank.capacity.usage import Minute
from piggybank.capacity.watching import Fired, State
from piggybank.db.engines import Database
from piggybank.settings import Settings

MINUTES_DEFAULT = 60
MINUTES_MOST = 1_500  # a day and some more

MinutesLimit = Annotated[int, QueryParameter(ge=1, le=MINUTES_MOST, description="Rows; the newest are taken.")]
Which = Annotated[State, QueryParameter(name="state", description="`firing`: now; `all`: those that have ended, too.")]


class Minutes(Struct, frozen=True, kw_only=True):
    """Newest first. Minutes for a week, then hours."""

    items: list[Minute]


class AlertItem(Struct, frozen=True, kw_only=True):
    """An alert that fires, or did."""

    name: str
    severity: Severity
    since: datetime
    resolved_at: Annotated[datetime | None, Meta(description="Null: it fires.")]
    value: Annotated[float, Meta(description="What was measured last while it fired.")]
    threshold: float
    message: str
    do: Annotated[list[str], Meta(description="What to do about it; code between backticks.")]
    runbook: Annotated[str, Meta(description="Its page in the console: what it means, what to look at, what to do.")]
    told: Annotated[list[str], Meta(description="Through which channels it was told, as `email:firing`.")]


class Alerts(Struct, frozen=True, kw_only=True):
    """Newest first."""

    items: list[AlertItem]


@get("/v1/ops/minutes", tags=["operations"], summary="What was carried, minute by minute")
async def list_minutes(db: Database, since: From = None, until: To = None, limit: MinutesLimit = MINUTES_DEFAULT) -> Minutes:
    """As a worker wrote it down, of all processes together. Null is what nobody could measure, never 0; no row: nobody wrote it."""
    end = moment("to", until) or datetime.now(UTC)
    start = moment("from", since) or end - timedelta(days=usage.KEPT_DAYS)
    async with db.read() as read:
        return Minutes(items=await usage.minutes(read, start, end, limit))


@get("/v1/ops/alerts", tags=["operations"], summary="What is wrong")
async def list_alerts(db: Database, settings: Settings, which: Which = "firing") -> Alerts:
    """The alerts that the worker looks for each minute, with what to do. At most the newest 200."""
    async with db.read() as read:
        return Alerts(items=[_item(fired, settings.url) for fired in await watching.listed(read, which)])


@get("/v1/ops/runbooks/{name:str}", sync_to_thread=False, tags=["operations"], summary="The page of an alert")
def get_runbook(name: str) -> Runbook:
    """What it means, what to look at, what to do: steps in words, code between backticks."""
    page = runbooks.table().get(name)
    if page is None:
        raise errors.NotFound(runbook=name)
    return page


def _item(fired: Fired, url: str) -> AlertItem:
    return AlertItem(
        name=fired.name,
        severity=fired.severity,
        since=fired.since,
        resolved_at=fired.resolved_at,
        value=fired.value,
        threshold=fired.threshold,
        message=fired.message,
        do=runbooks.steps(fired.name),
        runbook=runbooks.address(url, fired.name),
        told=fired.told,
    )


routes = [list_minutes, list_alerts, get_runbook]
