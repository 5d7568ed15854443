"""API keys, for operators."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from litestar import delete, get, post
from litestar.params import Parameter
from msgspec import Meta, Struct

from piggybank import ids
from piggybank.api.fields import Name
from piggybank.db.engines import Database
from piggybank.db.tables.people import ApiKey
from piggybank.identity import apikeys
from piggybank.identity.tokens import Principal, Tokens

PAGE_MAX = 100

# the same names as `apikeys.SCOPES`, which a type cannot be made of
Scope = Literal[
    "users:read", "users:write", "accounts:read", "accounts:write", "ledger:write", "payments:write", "ops:read", "metrics:read"
]
Limit = Annotated[int, Parameter(ge=1, le=PAGE_MAX, description="Items a page.")]
Cursor = Annotated[UUID | None, Parameter(description="`next_cursor` of the page before.")]


class NewKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Name
    scopes: Annotated[list[Scope], Meta(min_length=1, max_length=len(apikeys.SCOPES), description="What the key may do.")]


class KeyView(Struct, frozen=True, kw_only=True):
    id: UUID
    name: str
    scopes: list[str]
    hint: Annotated[str, Meta(description="The token's last characters.")]
    created_by: UUID | None
    created_at: datetime


class CreatedKey(KeyView, frozen=True, kw_only=True):
    """The token is shown this once."""

    token: str


class KeyPage(Struct, frozen=True, kw_only=True):
    items: list[KeyView]
    next_cursor: str | None


@post("/v1/api-keys", summary="Create an API key", tags=["api-keys"])
async def create_key(data: NewKey, principal: Principal, db: Database) -> CreatedKey:
    """The answer holds the token; only its hash is kept."""
    async with db.write() as write:
        key, token = await apikeys.create(write, name=data.name, scopes=data.scopes, actor=principal.actor, created_by=principal.user_id)
    return CreatedKey(**_fields(key), token=token)


@get("/v1/api-keys", summary="List API keys", tags=["api-keys"])
async def list_keys(db: Database, cursor: Cursor = None, limit: Limit = 25) -> KeyPage:
    """Those in force, newest first."""
    async with db.read() as read:
        found = await apikeys.page(read, cursor, limit + 1)
    return KeyPage(
        items=[KeyView(**_fields(key)) for key in found[:limit]], next_cursor=str(found[limit - 1].id) if len(found) > limit else None
    )


@delete("/v1/api-keys/{key_id:uuid}", summary="Revoke an API key", tags=["api-keys"])
async def revoke_key(key_id: UUID, principal: Principal, db: Database, tokens: Tokens) -> None:
    """Refused from now on; other processes notice within a second."""
    await apikeys.revoke(db, tokens, key_id, actor=principal.actor)


routes = [create_key, list_keys, revoke_key]


def _fields(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "scopes": key.scopes,
        "hint": key.hint,
        "created_by": key.created_by,
        "created_at": ids.time_of(key.id),
    }
