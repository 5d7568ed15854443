"""Who did what: for operators."""

from typing import Annotated
from uuid import UUID

from litestar import get
from litestar.params import QueryParameter
from msgspec import Struct

from piggybank import ids
from piggybank.api.accounts import Limit
from piggybank.api.moments import From, To, moment
from piggybank.db.engines import Database
from piggybank.identity import audit
from piggybank.identity.audit import Entry
from piggybank.wallet import pages

FILTER_MAX_CHARACTERS = 100

Actor = Annotated[
    str | None, QueryParameter(min_length=1, max_length=FILTER_MAX_CHARACTERS, description="`user:<id>`, `key:<id>` or `cli`.")
]
Action = Annotated[
    str | None,
    QueryParameter(min_length=1, max_length=FILTER_MAX_CHARACTERS, description="What it begins with: `apikey.` is all of API keys."),
]
Target = Annotated[
    str | None,
    QueryParameter(min_length=1, max_length=FILTER_MAX_CHARACTERS, description="An id of what it was done to, alone or as it is shown."),
]
Cursor = Annotated[UUID | None, QueryParameter(description="`next_cursor` of the page before.")]


class AuditPage(Struct, frozen=True, kw_only=True):
    """Newest first."""

    items: list[Entry]
    next_cursor: str | None


@get("/v1/ops/audit", tags=["operations"], summary="Who did what")
async def list_audit(
    db: Database,
    actor: Actor = None,
    action: Action = None,
    target: Target = None,
    since: From = None,
    until: To = None,
    cursor: Cursor = None,
    limit: Limit = pages.LIMIT_DEFAULT,
) -> AuditPage:
    """Acts of operators, services and the command line; rows are only ever added."""
    begin, end = moment("from", since), moment("to", until)
    bounds = [bound for bound in (None if end is None else ids.first_id_at(end), cursor) if bound is not None]
    async with db.read() as read:
        found = await audit.page(
            read,
            actor=actor,
            action=action,
            target=target,
            lowest=None if begin is None else ids.first_id_at(begin),
            below=min(bounds) if bounds else None,
            limit=limit + 1,
        )
    return AuditPage(items=found[:limit], next_cursor=str(found[limit - 1].id) if len(found) > limit else None)


routes = [list_audit]
