"""Users: who they are, how they come, what they may change of themselves."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

import msgspec
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError

from piggybank import errors, ids
from piggybank.db import search as finding
from piggybank.db.engines import Database, Read, Write
from piggybank.db.tables.people import User
from piggybank.identity import audit, links, passwords, sessions
from piggybank.identity.tokens import Principal, Tokens

EMAIL_MAX_CHARACTERS = 254
# One @, something on both sides, a dot in the domain, ASCII: what every mail server takes. Whether it is theirs only a mail can tell.
EMAIL_PATTERN = r"[!-?A-~]{1,64}@[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})+"
_EMAIL = re.compile(EMAIL_PATTERN)
_FOUND = text(finding.USERS).columns(User.id)
_TAKEN = {"users_email": errors.EmailTaken, "users_external_id_key": errors.ExternalIdTaken}


class Newcomer(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a user before there is one."""

    email: str | None = None
    password: str | None = None
    name: str | None = None
    external_id: str | None = None
    metadata: dict[str, str] = {}


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """What to change; UNSET stays as it is."""

    name: str | msgspec.UnsetType | None = msgspec.UNSET
    metadata: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    password: str | None = None
    current_password: str | None = None


def normalised(email: str) -> str:
    """One spelling of an address; raises `errors.InvalidRequest`."""
    plain = email.strip().lower()
    if len(plain) > EMAIL_MAX_CHARACTERS or not _EMAIL.fullmatch(plain):
        raise errors.InvalidRequest(field="email", message="is not an address like name@example.com")
    return plain


async def sign_up(db: Database, newcomer: Newcomer, *, invite: str | None, needs_invite: bool) -> User:
    """Somebody comes on their own, with an invite where one is needed.

    Raises `errors.InviteRequired`, `errors.LinkInvalid`, `errors.EmailTaken`, `errors.WeakPassword`.
    """
    if needs_invite and invite is None:
        raise errors.InviteRequired
    if invite is not None:
        async with db.read() as read:  # before the hash, which costs; for certain with the insert
            await links.check(read, invite, "invite")
    user = await _prepared(newcomer, "user")
    async with db.write() as write:
        if invite is not None:
            await links.use(write, invite, "invite")
        await _insert(write, user)
        audit.record(write, f"user:{user.id}", "user.sign_up", f"user:{user.id}", {"invited": invite is not None})
    return user


async def create(db: Database, newcomer: Newcomer, *, role: str, actor: str) -> User:
    """A service, an operator or the command line makes a user.

    Raises `errors.EmailTaken`, `errors.ExternalIdTaken`, `errors.WeakPassword`.
    """
    if newcomer.email is None and newcomer.external_id is None:
        raise errors.InvalidRequest(field="email", message="is required, or external_id, or both")
    if newcomer.email is None and newcomer.password is not None:
        raise errors.InvalidRequest(field="password", message="goes only together with an email")
    user = await _prepared(newcomer, role)
    async with db.write() as write:
        await _insert(write, user)
        audit.record(write, actor, "user.create", f"user:{user.id}", {"role": role})
    return user


async def claim(db: Database, newcomer: Newcomer, link: str) -> User:
    """Whoever holds an operator link becomes an operator, once; raises `errors.LinkInvalid`, `errors.EmailTaken`, `errors.WeakPassword`."""
    async with db.read() as read:
        await links.check(read, link, "operator")
    user = await _prepared(newcomer, "operator")
    async with db.write() as write:
        await links.use(write, link, "operator")
        await _insert(write, user)
        audit.record(write, f"user:{user.id}", "user.claim", f"user:{user.id}", {"role": "operator"})
    return user


async def of_id(read: Read, user_id: UUID) -> User:
    """Raises `errors.NotFound`."""
    user = await read.get(User, user_id)
    if user is None:
        raise errors.NotFound(user=str(user_id))
    return user


async def of_email(read: Read, email: str) -> User | None:
    """The user with this address, which is normalised."""
    return (await read.scalars(select(User).where(User.email == email))).one_or_none()


async def page(read: Read, *, after: UUID | None, limit: int, external_id: str | None = None, search: str | None = None) -> Sequence[User]:
    """Users, newest first, those before `after`; with `search` those that it finds (`db/search.py`)."""
    query = select(User).order_by(User.id.desc()).limit(limit)
    if after is not None:
        query = query.where(User.id < after)
    if external_id is not None:
        query = query.where(User.external_id == external_id)
    if search is not None:
        query = query.where(User.id.in_(_FOUND.bindparams(**finding.given(search))))
    return (await read.scalars(query)).all()


async def change(db: Database, tokens: Tokens, principal: Principal, changes: Changes) -> User:
    """What a user changes of themselves; a new password needs the current one and ends every other session.

    Raises `errors.WrongCredentials`, `errors.WeakPassword`, `errors.SignInLocked`.
    """
    assert principal.user_id is not None
    proven = None if changes.password is None else await _proven(db, principal.user_id, changes.current_password or "", changes.password)
    ended: Sequence[bytes] = ()
    async with db.write() as write:
        user = await locked(write, principal.user_id)
        if changes.name is not msgspec.UNSET:
            user.name = changes.name
        if changes.metadata is not msgspec.UNSET:
            user.extra = changes.metadata
        if proven is not None:
            if user.password_hash != proven.before:
                raise errors.WrongCredentials  # changed meanwhile: what was given is no longer the current one
            user.password_hash = proven.after
            ended = await sessions.end_all(write, user.id, but=principal.token_id)
            await links.end_resets(write, user.id)
            audit.record(write, principal.actor, "user.password", f"user:{user.id}", {"sessions_ended": len(ended)})
        fields = [name for name in ("name", "metadata") if getattr(changes, name) is not msgspec.UNSET]
        if fields and principal.role == "operator":
            audit.record(write, principal.actor, "user.change", f"user:{user.id}", {"fields": fields})
        user.updated_at = datetime.now(UTC)
    await tokens.bury(ended)
    return user


async def demote(db: Database, tokens: Tokens, email: str, *, actor: str, even_the_last: bool) -> int:
    """Make an operator a user like others; answers how many sessions ended, since a token says what it was made for.

    Raises `errors.UserNotFound`, and CannotProceed for who is no operator or, unless told, the last one.
    """
    async with db.write() as write:
        # all of them, so that of two who go at once the second sees that they would be the last
        operators = (await write.scalars(select(User).where(User.role == "operator").order_by(User.id).with_for_update())).all()
        user = next((one for one in operators if one.email == normalised(email)), None)
        if user is None:
            if await of_email(write, normalised(email)) is None:
                raise errors.UserNotFound(email=email)
            raise errors.CannotProceed(what=f"{email} is no operator", do="see who is: piggybank users list")
        if len(operators) == 1 and not even_the_last:
            do = "make another one first: piggybank users operator-link; or say --even-the-last"
            raise errors.CannotProceed(what=f"{email} is the last operator: nobody could sign in to the console", do=do)
        user.role, user.updated_at = "user", datetime.now(UTC)
        ended = await sessions.end_all(write, user.id)
        audit.record(write, actor, "user.demote", f"user:{user.id}", {"sessions_ended": len(ended)})
    await tokens.bury(ended)
    return len(ended)


async def locked(write: Write, user_id: UUID) -> User:
    """The user, for this transaction alone; raises `errors.NotFound`."""
    user = (await write.scalars(select(User).where(User.id == user_id).with_for_update())).one_or_none()
    if user is None:
        raise errors.NotFound(user=str(user_id))
    return user


class _Proven(NamedTuple):
    """Hashes of the password that was given as the current one and of the new one."""

    before: str | None
    after: str


async def _proven(db: Database, user_id: UUID, current: str, new: str) -> _Proven:
    async with passwords.turn() as turn:
        async with db.write() as write:
            user = await of_id(write, user_id)
            await sessions.refuse_locked(write, user.email or "")
        if not await turn.matches(user.password_hash, current):
            async with db.write() as write:  # a stolen session is not a place to guess the password
                await sessions.count_failure(write, user.email or "")
            raise errors.WrongCredentials
        passwords.check(new, user.email)
        return _Proven(user.password_hash, await turn.hash(new))


async def _prepared(newcomer: Newcomer, role: str) -> User:
    """A user who is not stored yet: checks, then the slow hash, outside of any transaction."""
    email = normalised(newcomer.email) if newcomer.email is not None else None
    password_hash = None
    if newcomer.password is not None:
        passwords.check(newcomer.password, email)
        async with passwords.turn() as turn:
            password_hash = await turn.hash(newcomer.password)
    return User(
        id=ids.new_id(ids.new_bucket()),
        email=email,
        password_hash=password_hash,
        role=role,
        external_id=newcomer.external_id,
        name=newcomer.name,
        extra=newcomer.metadata,
        updated_at=datetime.now(UTC),
    )


async def _insert(write: Write, user: User) -> None:
    write.add(user)
    try:
        await write.flush()
    except IntegrityError as cause:
        for constraint, error in _TAKEN.items():
            if constraint in str(cause.orig):
                raise error from cause
        raise
