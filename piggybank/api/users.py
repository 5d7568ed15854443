"""Users: signing up, oneself, and for services and operators everybody."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from litestar import get, patch, post
from litestar.params import Parameter
from msgspec import UNSET, Meta, Struct, UnsetType

from piggybank import errors, ids
from piggybank.api import problems
from piggybank.api.fields import EXTERNAL_ID_MAX_CHARACTERS, SEARCH_MAX_CHARACTERS, ExternalId, Metadata, Name
from piggybank.db.engines import Database
from piggybank.db.tables.people import User
from piggybank.identity import users
from piggybank.identity.passwords import MAX_CHARACTERS, MIN_CHARACTERS
from piggybank.identity.tokens import Principal, Tokens
from piggybank.settings import Settings

PAGE_MAX = 100

Email = Annotated[
    str,
    Meta(
        pattern=f"^ *{users.EMAIL_PATTERN} *$",
        max_length=users.EMAIL_MAX_CHARACTERS,
        description="Kept in lower case, without spaces around it.",
        examples=["ada@example.com"],
    ),
]
NewPassword = Annotated[
    str,
    Meta(
        min_length=MIN_CHARACTERS,
        max_length=MAX_CHARACTERS,
        description="Not one of the most common ones, not the e-mail address.",
        examples=["correct horse battery"],
    ),
]
Limit = Annotated[int, Parameter(ge=1, le=PAGE_MAX, description="Items a page.")]
Cursor = Annotated[UUID | None, Parameter(description="`next_cursor` of the page before.")]
ExternalIdFilter = Annotated[
    str | None, Parameter(min_length=1, max_length=EXTERNAL_ID_MAX_CHARACTERS, description="The user that you know by this id.")
]

Search = Annotated[
    str | None,
    Parameter(
        min_length=1,
        max_length=SEARCH_MAX_CHARACTERS,
        description="How the e-mail address, the `external_id` or a word of the name begins; or the whole id.",
    ),
]


class NewUser(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Signing up takes `email` and `password`; a service or an operator may leave both out and give an `external_id`."""

    email: Email | None = None
    password: NewPassword | None = None
    name: Name | None = None
    external_id: ExternalId | None = None
    metadata: Metadata | None = None
    invite: Annotated[str, Meta(min_length=1, max_length=64, description="What follows `=` in the link of an invite.")] | None = None


class ChangeUser(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is not sent stays as it was. A new `password` needs the `current_password` and ends all other sessions."""

    name: Name | UnsetType | None = UNSET
    metadata: Metadata | UnsetType = UNSET
    password: NewPassword | None = None
    current_password: Annotated[str, Meta(min_length=1, max_length=MAX_CHARACTERS)] | None = None


class UserView(Struct, frozen=True, kw_only=True):
    id: UUID
    email: str | None
    name: str | None
    role: str
    external_id: str | None
    metadata: dict[str, str]
    created_at: datetime


class UserPage(Struct, frozen=True, kw_only=True):
    items: list[UserView]
    next_cursor: str | None


def view(user: User) -> UserView:
    """What others may see of a row: never the hash."""
    return UserView(
        id=user.id,
        email=user.email,
        name=user.name,
        role=user.role,
        external_id=user.external_id,
        metadata=user.extra,
        created_at=ids.time_of(user.id),
    )


@post("/v1/users", summary="Sign up, or create a user", tags=["users"])
async def create_user(data: NewUser, principal: Principal | None, db: Database, settings: Settings) -> UserView:
    """Without a token one signs up oneself, where that is open or with an invite; services and operators create users for others."""
    newcomer = users.Newcomer(
        email=data.email, password=data.password, name=data.name, external_id=data.external_id, metadata=data.metadata or {}
    )
    if principal is not None:
        if data.email is None and data.external_id is None:
            raise problems.invalid("external_id", "is required where there is no email", "required")
        if data.email is None and data.password is not None:
            raise problems.invalid("email", "is required with a password", "required")
        return view(await users.create(db, newcomer, role="user", actor=principal.actor))
    if settings.sign_up == "closed":
        raise errors.SignUpClosed
    if data.external_id is not None:
        # it is how a team's backend finds its users: nobody may take one for themselves
        raise errors.Forbidden(detail="Only an API key or an operator may set an external_id.")
    for field in ("email", "password"):
        if getattr(data, field) is None:
            raise problems.invalid(field, "is required", "required")
    return view(await users.sign_up(db, newcomer, invite=data.invite, needs_invite=settings.sign_up == "invite"))


@get("/v1/users", summary="List users", tags=["users"])
async def list_users(
    db: Database, external_id: ExternalIdFilter = None, search: Search = None, cursor: Cursor = None, limit: Limit = 25
) -> UserPage:
    """Newest first; with `external_id` the one user of that id, with `search` those whom people mean."""
    async with db.read() as read:
        found = await users.page(read, after=cursor, limit=limit + 1, external_id=external_id, search=search)
    return UserPage(items=[view(user) for user in found[:limit]], next_cursor=str(found[limit - 1].id) if len(found) > limit else None)


@get("/v1/users/me", summary="Who am I", tags=["users"])
async def get_me(principal: Principal, db: Database) -> UserView:
    """The user of this session."""
    assert principal.user_id is not None
    async with db.read() as read:
        return view(await users.of_id(read, principal.user_id))


@patch("/v1/users/me", summary="Change name, metadata or password", tags=["users"])
async def change_me(data: ChangeUser, principal: Principal, db: Database, tokens: Tokens) -> UserView:
    """All or nothing."""
    if data.password is not None and data.current_password is None:
        raise problems.invalid("current_password", "is required with a new password", "required")
    changes = users.Changes(name=data.name, metadata=data.metadata, password=data.password, current_password=data.current_password)
    return view(await users.change(db, tokens, principal, changes))


@get("/v1/users/{user_id:uuid}", summary="One user", tags=["users"])
async def get_user(user_id: UUID, principal: Principal, db: Database) -> UserView:
    """Services and operators see everybody, a user only themselves."""
    if principal.role == "user" and principal.user_id != user_id:
        raise errors.NotFound(user_id=str(user_id))
    async with db.read() as read:
        return view(await users.of_id(read, user_id))


routes = [create_user, list_users, get_me, change_me, get_user]
