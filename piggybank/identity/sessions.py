"""Sessions: signing in, signing out, and the lock after too many failures.

An address that nobody has is treated as one that somebody has: the same work, the same count of failures, the same answers.
"""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, func, select, text, update

from piggybank import errors, ids
from piggybank.db.engines import Database, Read, Write
from piggybank.db.tables.people import FailedSignIns, Session, User
from piggybank.identity import audit, passwords
from piggybank.identity.tokens import SESSION_PREFIX, Principal, Tokens, hash_of, new_token, tell_revoked

SESSION_S = 7 * 24 * 3_600
SESSIONS_MAX = 100  # of one user; a new sign-in ends the oldest
FAILURES_MAX = 10  # then the address is locked
LOCK_S = 15 * 60
FAILURES_KEPT_S = 24 * 3_600  # failures older than this do not count

_FAIL = text("""
INSERT INTO failed_sign_ins AS f (address_hash, failures, updated_at) VALUES (:address_hash, 1, now())
ON CONFLICT (address_hash) DO UPDATE SET
    failures = CASE WHEN f.updated_at < now() - make_interval(secs => :kept_s) OR f.locked_until < now() THEN 1 ELSE f.failures + 1 END,
    locked_until = CASE WHEN f.locked_until < now() THEN NULL
        WHEN f.failures + 1 >= :failures_max AND f.updated_at >= now() - make_interval(secs => :kept_s)
        THEN now() + make_interval(secs => :lock_s) END,
    updated_at = now()
""")
_UNLOCK = text("DELETE FROM failed_sign_ins WHERE address_hash = :address_hash")


class SignedIn(NamedTuple):
    """A new session; the token is told once."""

    id: UUID
    token: str
    expires_at: datetime
    user: User


async def sign_in(db: Database, tokens: Tokens, email: str, password: str) -> SignedIn:
    """Raises `errors.WrongCredentials`, also for an unknown address, and `errors.SignInLocked`."""
    # The turn is held from the look at the lock to the count of the failure, so that many guesses at once are not more guesses.
    async with passwords.turn() as turn:
        async with db.write() as write:  # the primary: a lock or a new password of a moment ago counts
            await refuse_locked(write, email)
            user = (await write.scalars(select(User).where(User.email == email))).one_or_none()
        stored = user.password_hash if user else None
        if not await turn.matches(stored, password) or user is None or stored is None:
            async with db.write() as write:
                await count_failure(write, email)
            raise errors.WrongCredentials
        renewed = await turn.hash(password) if passwords.is_outdated(stored) else stored
    token = new_token(SESSION_PREFIX)
    expires_at = datetime.now(UTC) + timedelta(seconds=SESSION_S)
    async with db.write() as write:
        locked = (await write.scalars(select(User).where(User.id == user.id).with_for_update())).one()
        if locked.password_hash != stored:
            raise errors.WrongCredentials  # changed since it was compared
        locked.password_hash = renewed
        ended = await _end_oldest(write, user.id)
        session = Session(id=ids.new_id(ids.bucket_of(user.id)), user_id=user.id, token_hash=hash_of(token), expires_at=expires_at)
        write.add(session)
        if locked.role == "operator":
            audit.record(write, f"user:{user.id}", "session.start", f"user:{user.id}", {"session": str(session.id)})
        await unlock(write, email)
    await tokens.bury(ended)
    return SignedIn(session.id, token, expires_at, locked)


async def sign_out(db: Database, tokens: Tokens, principal: Principal) -> None:
    """End the session that asks."""
    async with db.write() as write:
        ended = await _end(write, Session.id == principal.token_id)
        if principal.role == "operator":
            audit.record(write, principal.actor, "session.end", principal.actor, {"session": str(principal.token_id)})
    await tokens.bury(ended)


async def end_all(write: Write, user_id: UUID, but: UUID | None = None) -> Sequence[bytes]:
    """End a user's sessions; the caller buries what this returns, after the commit."""
    return await _end(write, Session.user_id == user_id, *([Session.id != but] if but else []))


async def unlock(write: Write, email: str) -> None:
    """Forget the failures of an address."""
    await write.execute(_UNLOCK, {"address_hash": _address_hash(email)})


async def locked_until(read: Read, email: str) -> datetime | None:
    """Until when signing in is refused; None when it is not."""
    query = select(FailedSignIns.locked_until).where(
        FailedSignIns.address_hash == _address_hash(email), FailedSignIns.locked_until > func.now()
    )
    return await read.scalar(query)


async def refuse_locked(write: Write, email: str) -> None:
    """Raises `errors.SignInLocked`."""
    until = await locked_until(write, email)
    if until is not None:
        raise errors.SignInLocked(retry_after_s=max(1, int((until - datetime.now(UTC)).total_seconds())))


async def count_failure(write: Write, email: str) -> None:
    """One more wrong password for an address; the last one locks it."""
    await write.execute(
        _FAIL, {"address_hash": _address_hash(email), "failures_max": FAILURES_MAX, "lock_s": LOCK_S, "kept_s": FAILURES_KEPT_S}
    )


async def _end(write: Write, *which: ColumnElement[bool]) -> Sequence[bytes]:
    ended = (
        await write.scalars(
            update(Session)
            .where(Session.revoked_at.is_(None), Session.expires_at > func.now(), *which)
            .values(revoked_at=func.now())
            .returning(Session.token_hash)
            .execution_options(synchronize_session=False)
        )
    ).all()
    await tell_revoked(write, ended)
    return ended


async def _end_oldest(write: Write, user_id: UUID) -> Sequence[bytes]:
    newest = (
        select(Session.id)
        .where(Session.user_id == user_id, Session.revoked_at.is_(None), Session.expires_at > func.now())
        .order_by(Session.id.desc())
        .limit(SESSIONS_MAX - 1)
    )
    return await _end(write, Session.user_id == user_id, Session.id.not_in(newest))


def _address_hash(email: str) -> bytes:
    return hashlib.sha256(email.encode()).digest()
