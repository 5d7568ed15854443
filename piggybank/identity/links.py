"""One-time links: whoever holds one may become an operator, sign up, or set a new password, once.

The token travels in the fragment of the address (`/welcome#reset=..`), which browsers do not send, so no log has it.
"""

from typing import Literal
from uuid import UUID

from sqlalchemy import ColumnElement, func, select, text, update

from piggybank import errors, ids
from piggybank.db.engines import Read, Write
from piggybank.db.tables.people import Link
from piggybank.identity.tokens import LINK_PREFIX, hash_of, new_token

Purpose = Literal["operator", "invite", "reset"]
TTL_S: dict[Purpose, int] = {"operator": 24 * 3_600, "invite": 7 * 24 * 3_600, "reset": 3_600}


async def create(write: Write, purpose: Purpose, user_id: UUID | None = None) -> str:
    """A new link's token."""
    token = new_token(LINK_PREFIX)
    expires_at = await write.scalar(select(func.now() + text("make_interval(secs => :ttl)").bindparams(ttl=TTL_S[purpose])))
    write.add(Link(id=ids.new_id(0), token_hash=hash_of(token), purpose=purpose, user_id=user_id, expires_at=expires_at))
    return token


def address(url: str, purpose: Purpose, token: str) -> str:
    """Where people open it."""
    return f"{url}/welcome#{purpose}={token}"


async def check(read: Read, token: str, purpose: Purpose) -> Link:
    """The link, if it can still be used (another may use it first); raises `errors.LinkInvalid`."""
    link = (await read.scalars(select(Link).where(*_usable(token, purpose)))).one_or_none()
    if link is None:
        raise errors.LinkInvalid
    return link


async def use(write: Write, token: str, purpose: Purpose) -> None:
    """Use it up, under its row lock: of two at once the second finds it used. Raises `errors.LinkInvalid`."""
    used = await write.scalar(update(Link).where(*_usable(token, purpose)).values(used_at=func.now()).returning(Link.id))
    if used is None:
        raise errors.LinkInvalid


async def end_resets(write: Write, user_id: UUID) -> None:
    """After a new password no older link may set another."""
    await write.execute(
        update(Link).where(Link.user_id == user_id, Link.purpose == "reset", Link.used_at.is_(None)).values(used_at=func.now())
    )


def _usable(token: str, purpose: Purpose) -> tuple[ColumnElement[bool], ...]:
    return (Link.token_hash == hash_of(token), Link.purpose == purpose, Link.used_at.is_(None), Link.expires_at > func.now())
