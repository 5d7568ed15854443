"""A new password for who forgot theirs: asked for by address, set by a one-time link."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import msgspec
from sqlalchemy import select, text

from piggybank import ids
from piggybank.db.engines import Database, Write
from piggybank.db.tables.people import Link, User
from piggybank.identity import audit, links, passwords, sessions, users
from piggybank.identity.tokens import Tokens

MAIL_TOPIC = "mail.reset"
ANSWER_S = 0.25  # every request takes this long, so that its time does not tell whether the address is known
EVERY_S = 60  # one mail to an address in this time

_OUTBOX = text("INSERT INTO outbox (id, bucket, topic, payload) VALUES (:id, 0, :topic, CAST(:payload AS jsonb))")


async def request(db: Database, email: str, url: str) -> None:
    """Leave a mail with a link in the outbox, if the address is known; tells nobody whether it was."""
    started = time.monotonic()
    async with db.write() as write:
        user = await users.of_email(write, users.normalised(email))
        if user is not None:
            user = await users.locked(write, user.id)  # of two requests at once the second sees the first one's link
            if not await _sent_lately(write, user):
                token = await links.create(write, "reset", user.id)
                payload = {"email": user.email, "link": links.address(url, "reset", token)}
                row = {"id": ids.new_id(0), "topic": MAIL_TOPIC, "payload": msgspec.json.encode(payload).decode()}
                await write.execute(_OUTBOX, row)
    await asyncio.sleep(max(0.0, started + ANSWER_S - time.monotonic()))


async def set_password(db: Database, tokens: Tokens, link: str, new: str) -> None:
    """By a reset link; ends all sessions and the lock. Raises `errors.LinkInvalid`, `errors.WeakPassword`."""
    async with db.read() as read:
        user_id = (await links.check(read, link, "reset")).user_id
        assert user_id is not None
        email = (await users.of_id(read, user_id)).email
    passwords.check(new, email)
    async with passwords.turn() as turn:
        password_hash = await turn.hash(new)
    async with db.write() as write:
        await links.use(write, link, "reset")
        user = await users.locked(write, user_id)
        user.password_hash = password_hash
        user.updated_at = datetime.now(UTC)
        ended = await sessions.end_all(write, user_id)
        await links.end_resets(write, user_id)
        if email is not None:
            await sessions.unlock(write, email)
        audit.record(write, f"user:{user_id}", "user.reset", f"user:{user_id}", {"sessions_ended": len(ended)})
    await tokens.bury(ended)


async def _sent_lately(write: Write, user: User) -> bool:
    since = ids.first_id_at(datetime.now(UTC) - timedelta(seconds=EVERY_S))
    query = select(Link.id).where(Link.user_id == user.id, Link.purpose == "reset", Link.id >= since).limit(1)
    return await write.scalar(query) is not None
