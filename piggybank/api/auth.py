"""Signing in and out, and what one-time links are good for."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from litestar import delete, post
from msgspec import Meta, Struct

from piggybank.api.fields import Name
from piggybank.api.users import Email, NewPassword, UserView, view
from piggybank.db.engines import Database
from piggybank.identity import links, mail, resets, sessions, users
from piggybank.identity.passwords import MAX_CHARACTERS
from piggybank.identity.tokens import Principal, Tokens
from piggybank.settings import Settings

LinkToken = Annotated[str, Meta(min_length=1, max_length=64, description="What follows `=` in the one-time link.", examples=["pbl_3q2.."])]
Password = Annotated[str, Meta(min_length=1, max_length=MAX_CHARACTERS)]


class SignIn(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    email: Email
    password: Password


class NewSession(Struct, frozen=True, kw_only=True):
    """The token is shown this once."""

    id: UUID
    token: Annotated[str, Meta(description="Send it as `Authorization: Bearer <token>`.")]
    expires_at: datetime
    user: UserView


class Claim(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    token: LinkToken
    email: Email
    password: NewPassword
    name: Name | None = None


class ResetRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    email: Email


class ResetAsked(Struct, frozen=True, kw_only=True):
    """The same for every address."""

    link_expires_in_s: Annotated[int, Meta(description="So long the link in the mail is good, if there is one.")]


class Reset(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    token: LinkToken
    password: NewPassword


@post("/v1/sessions", summary="Sign in", tags=["sessions"])
async def sign_in(data: SignIn, db: Database, tokens: Tokens) -> NewSession:
    """For 7 days. After 10 wrong passwords the address is locked for 15 minutes, whether anybody has it or not."""
    made = await sessions.sign_in(db, tokens, users.normalised(data.email), data.password)
    return NewSession(id=made.id, token=made.token, expires_at=made.expires_at, user=view(made.user))


@delete("/v1/sessions/current", summary="Sign out", tags=["sessions"])
async def sign_out(principal: Principal, db: Database, tokens: Tokens) -> None:
    """The token is refused from now on; other processes notice within a second."""
    await sessions.sign_out(db, tokens, principal)


@post("/v1/users/claim", summary="Become an operator", tags=["users"])
async def claim(data: Claim, db: Database) -> UserView:
    """With the one-time link that the installer or `piggybank users operator-link` printed."""
    newcomer = users.Newcomer(email=data.email, password=data.password, name=data.name)
    return view(await users.claim(db, newcomer, data.token))


@post("/v1/users/reset-request", status_code=202, summary="Ask for a new password", tags=["users"])
async def request_reset(data: ResetRequest, db: Database, settings: Settings) -> ResetAsked:
    """Sends a mail with a one-time link if somebody has the address and a mail server is set; the answer is the same if not."""
    if mail.can_send(settings):
        await resets.request(db, data.email, settings.url)
    return ResetAsked(link_expires_in_s=links.TTL_S["reset"])


@post("/v1/users/reset", status_code=204, summary="Set a new password", tags=["users"])
async def reset(data: Reset, db: Database, tokens: Tokens) -> None:
    """With a one-time link; ends every session of the user."""
    await resets.set_password(db, tokens, data.token, data.password)


routes = [sign_in, sign_out, claim, request_reset, reset]
