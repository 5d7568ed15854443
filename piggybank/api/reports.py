"""Reports: sums by day, week or month, in the time zone of who asks."""

from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

from litestar import get
from litestar.params import QueryParameter
from msgspec import Struct, field

from piggybank import errors, reports
from piggybank.api import problems
from piggybank.api.moments import From, To, moment
from piggybank.cache import Cache
from piggybank.db.engines import Database, Read, Seen
from piggybank.identity.tokens import Principal
from piggybank.ledger import balances
from piggybank.reports import By, PeriodSum

RANGE_DAYS_DEFAULT = 30
ZONE_MAX_CHARACTERS = 64

Zone = Annotated[
    str, QueryParameter(max_length=ZONE_MAX_CHARACTERS, description="IANA name of the time zone that days begin in: `Africa/Johannesburg`.")
]
OneAccount = Annotated[UUID | None, QueryParameter(description="Only this account. An API key has no accounts of its own and needs it.")]
ByPeriod = Annotated[By, QueryParameter(description="Weeks begin on Monday.")]


class Summary(Struct, frozen=True, kw_only=True):
    """`items` has every period for each currency, oldest first; the first and the last are cut at `from` and `to`."""

    since: datetime = field(name="from")
    until: datetime = field(name="to")
    by: By
    tz: str
    items: list[PeriodSum]


@get("/v1/reports/summary", summary="Sums by day, week or month", tags=["reports"])
async def get_summary(
    principal: Principal,
    db: Database,
    cache: Cache,
    account_id: OneAccount = None,
    since: From = None,
    until: To = None,
    by: ByPeriod = "day",
    tz: Zone = "UTC",
) -> Summary:
    """Of one account, or of all of one's own: at most 366 days, by default the last 30. Exact up to the last commit."""
    if account_id is None and principal.user_id is None:
        raise problems.invalid("account_id", "is required: an API key has no accounts of its own", "required")
    if tz not in _zones():
        raise problems.invalid("tz", "is not the name of a time zone, like Europe/Berlin", "not_allowed")
    last = moment("to", until) or datetime.now(UTC)
    first = moment("from", since) or last - timedelta(days=RANGE_DAYS_DEFAULT)
    # of one account, an operator sees anybody's; without one, everybody sees their own
    only_user = None if account_id is not None and principal.role != "user" else principal.user_id

    def sums(read: Read) -> Awaitable[Seen[list[PeriodSum]] | None]:
        return reports.summary(read, since=first, until=last, by=by, zone=ZoneInfo(tz), account_id=account_id, only_user=only_user)

    if account_id is None:  # of several accounts, and a replica may not know the newest one yet: the primary's
        async with db.read() as read:
            seen = await sums(read)
        items = None if seen is None else seen.what
    else:
        items = await balances.newest(db, cache, account_id, sums)
    if items is None:
        raise errors.NotFound(account_id=str(account_id))
    return Summary(since=first, until=last, by=by, tz=tz, items=items)


@lru_cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


routes = [get_summary]
