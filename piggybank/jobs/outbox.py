"""Do what outbox rows ask for: mend the cache after a failed write-through, repeat a tombstone, send a mail.

The ledger writes through and deletes its rows by itself, and a logout writes its tombstone; a row that is older than a second
has failed, or its process has died. What it names is forgotten by the cache, so the next read fills it from the database: an old
balance must not be written into a cache that lost the newer one. These effects are done first and their rows deleted afterwards:
twice is harmless, and nothing waits for a lease. A mail is claimed first, since people would see it twice (see db/outbox.py).
While the cache is away its rows stay as they are.

A row is dropped when it has outlived what it could mend: the value from before it has expired by itself. So a long outage leaves
little to catch up with, and the table stays small during it. A reset mail is dropped when its link has expired.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple
from uuid import UUID

import msgspec
import structlog
from msgspec import Struct

from piggybank import errors
from piggybank.cache import BALANCE_TTL_S, SESSION_TTL_S, Cache
from piggybank.db import outbox
from piggybank.db.outbox import Row
from piggybank.identity import links, mail
from piggybank.jobs.work import Work

OLDER_THAN_S = 1.0
SLICE_ROWS = 500
SLICES_MAX = 100  # of one sweep and topic; the next sweep begins a second later
KEYS_AT_ONCE = 512  # keys in one call of the cache
FAILED_PAUSE_S = 5.0  # doubled with every attempt
FAILED_PAUSE_LONGEST_S = 3_600.0

FIRST_ID = UUID(int=0)
DROP_MARGIN_S = 300  # after a value's time to live: a fill may be a lease and a slow commit late
MAIL_LEASE_S = 120.0  # longer than sending a slice of mails takes
MAILS = 10  # a slice

_log = structlog.get_logger()


class _Revoked(Struct, frozen=True):
    key: str


class _Reset(Struct, frozen=True):
    email: str
    link: str


def _accounts(payload: str) -> list[str]:
    return [str(account_id) for account_id in msgspec.json.decode(payload, type=list[UUID])]


async def _forget(cache: Cache, kind: str, keys: Sequence[str]) -> bool:
    return await cache.forget(kind, keys)


def _token(payload: str) -> list[str]:
    return [msgspec.json.decode(payload, type=_Revoked).key]


async def _bury(cache: Cache, kind: str, keys: Sequence[str]) -> bool:
    return await cache.bury(kind, keys, SESSION_TTL_S)


async def _send_reset(work: Work, payload: str) -> None:
    reset = msgspec.json.decode(payload, type=_Reset)
    await mail.send_reset(work.settings, reset.email, reset.link)


class CacheTopic(NamedTuple):
    """Which values a row of the topic names, and what is to become of them; False when the cache is away."""

    kind: str
    ttl_s: int
    keys: Callable[[str], list[str]]
    mend: Callable[[Cache, str, Sequence[str]], Awaitable[bool]]


class MailTopic(NamedTuple):
    """How a row of the topic is sent, and for how long that makes sense."""

    send: Callable[[Work, str], Awaitable[None]]
    kept_s: int


CACHE_TOPICS = {
    "ledger.posted": CacheTopic("balance", BALANCE_TTL_S, _accounts, _forget),
    "token.revoked": CacheTopic("token", SESSION_TTL_S, _token, _bury),
}
MAIL_TOPICS = {
    "mail.reset": MailTopic(_send_reset, links.TTL_S["reset"]),
}
KEPT_S = {topic: row.ttl_s + DROP_MARGIN_S for topic, row in CACHE_TOPICS.items()} | {
    topic: row.kept_s for topic, row in MAIL_TOPICS.items()
}


async def sweep(work: Work) -> int:
    """Every row that the cache is due, in slices; answers how many were dealt with."""
    dealt_with = 0
    for topic in KEPT_S:
        dealt_with += await _drop_outlived(work, topic)
    if await work.cache.ping():
        for topic in CACHE_TOPICS:
            dealt_with += await _mend(work, topic)
    return dealt_with


async def send_mails(work: Work) -> int:
    """Apart from the sweep: a slow mail server is not to hold up the cache. Answers how many were sent."""
    if not mail.can_send(work.settings):
        return 0
    return sum([await _send(work, topic) for topic in MAIL_TOPICS])


async def _drop_outlived(work: Work, topic: str) -> int:
    dropped = 0
    for _ in range(SLICES_MAX):
        async with work.db.write() as write:
            slice_rows = await outbox.delete_older(write, topic, older_than_s=KEPT_S[topic], limit=SLICE_ROWS)
        dropped += slice_rows
        if slice_rows < SLICE_ROWS:
            break
    return dropped


async def _mend(work: Work, topic: str) -> int:
    """Mend what the topic's rows name; stops where the cache does, passes those of a part of it that is away."""
    mended = 0
    after = FIRST_ID
    for _ in range(SLICES_MAX):
        async with work.db.write() as write:  # on the primary: a replica may not have them yet
            rows = await outbox.due(write, topic, older_than_s=OLDER_THAN_S, limit=SLICE_ROWS, after=after)
        if not rows:
            break
        after = rows[-1].id
        keys, failed = _readable(rows, CACHE_TOPICS[topic])
        if await _mended(work, CACHE_TOPICS[topic], keys):
            async with work.db.write() as write:
                await outbox.delete(write, [row.id for row in rows if row not in failed])
                for row in failed:
                    await outbox.put_off(write, row, pause_s=pause_s(row.attempts))
            mended += len(rows) - len(failed)
        elif not await work.cache.ping():
            break
        if len(rows) < SLICE_ROWS:
            break
    return mended


def _readable(rows: Sequence[Row], topic: CacheTopic) -> tuple[list[str], list[Row]]:
    """The keys that the rows name, and the rows that make no sense."""
    keys: set[str] = set()
    failed = []
    for row in rows:
        try:
            keys.update(topic.keys(row.payload))
        except msgspec.MsgspecError as cause:
            _tell(row, cause)
            failed.append(row)
    return list(keys), failed


async def _mended(work: Work, topic: CacheTopic, keys: Sequence[str]) -> bool:
    """All of them are tried: of a cluster a part may be away."""
    parts = [keys[first : first + KEYS_AT_ONCE] for first in range(0, len(keys), KEYS_AT_ONCE)]
    return all([await topic.mend(work.cache, topic.kind, part) for part in parts])


async def _send(work: Work, topic: str) -> int:
    """One slice a round."""
    async with work.db.write() as write:
        rows = await outbox.claim(write, topic, older_than_s=0, limit=MAILS, lease_s=MAIL_LEASE_S)
    sent = 0
    for row in rows:
        try:
            await MAIL_TOPICS[topic].send(work, row.payload)
        except (errors.MailFailed, msgspec.MsgspecError) as cause:
            _tell(row, cause)
            async with work.db.write() as write:
                await outbox.put_off(write, row, pause_s=pause_s(row.attempts))
        else:
            sent += 1
            async with work.db.write() as write:
                await outbox.delete(write, [row.id])
    return sent


def _tell(row: Row, cause: Exception) -> None:
    """Without the payload, and without the cause's own words about it: they may hold an address or a link."""
    reason = cause.details.get("reason") if isinstance(cause, errors.Error) else None
    _log.error("outbox_row_failed", row=str(row.id), topic=row.topic, attempt=row.attempts + 1, because=reason or type(cause).__name__)


def pause_s(attempts: int) -> float:
    """How long a row that failed `attempts` times before is put off."""
    return float(min(FAILED_PAUSE_S * 2 ** min(attempts, 20), FAILED_PAUSE_LONGEST_S))
