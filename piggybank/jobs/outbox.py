"""Do what outbox rows ask for: mend the cache after a failed write-through, repeat a tombstone, send a mail.

The ledger writes through and deletes its rows by itself, and a logout writes its tombstone; a row that is older than a second
has failed, or its process has died. The cache takes a value by its version, so these effects are done first and their rows
deleted afterwards: twice is harmless, and nothing waits for a lease. A mail is claimed first, since people would see it twice
(see db/outbox.py). While the cache is away its rows stay as they are.

A row is dropped when it has outlived what it could mend: a value that it could replace was put into the cache at most moments
after the row and has expired by itself, and what a sweep writes is given only the rest of its row's time. So a long outage leaves
little to catch up with, and the table stays small during it. A reset mail is dropped when its link has expired.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec
import structlog
from msgspec import Struct

from piggybank import cache, errors, ids
from piggybank.cache import TOMBSTONE, Entry
from piggybank.db import outbox
from piggybank.db.outbox import Row
from piggybank.identity import links, mail
from piggybank.jobs.work import Work

OLDER_THAN_S = 1.0
SLICE_ROWS = 100
SLICES_MAX = 100  # of one sweep and topic; the next sweep begins a second later
WRITE_ENTRIES = 256  # values in one call of the cache
FAILED_PAUSE_S = 5.0  # doubled with every attempt
FAILED_PAUSE_LONGEST_S = 3_600.0

DROP_MARGIN_S = 300  # after a value's time to live: a fill may be a lease and a slow commit late
MAIL_LEASE_S = 120.0  # longer than sending a slice of mails takes
MAILS = 10  # a slice

_log = structlog.get_logger()


class _Balance(Struct, frozen=True):
    account_id: str
    version: int


class _Revoked(Struct, frozen=True):
    key: str


class _Reset(Struct, frozen=True):
    email: str
    link: str


def _balances(payload: str) -> list[Entry]:
    entries = []
    for raw in msgspec.json.decode(payload, type=list[msgspec.Raw]):
        balance = msgspec.json.decode(raw, type=_Balance)
        entries.append(Entry(balance.account_id, balance.version, bytes(raw)))
    return entries


def _tombstones(payload: str) -> list[Entry]:
    return [Entry(msgspec.json.decode(payload, type=_Revoked).key, TOMBSTONE, b"")]


async def _send_reset(work: Work, payload: str) -> None:
    reset = msgspec.json.decode(payload, type=_Reset)
    await mail.send_reset(work.settings, reset.email, reset.link)


class CacheTopic(NamedTuple):
    """Which values a row of the topic puts into the cache."""

    kind: str
    ttl_s: int
    entries: Callable[[str], list[Entry]]


class MailTopic(NamedTuple):
    """How a row of the topic is sent, and for how long that makes sense."""

    send: Callable[[Work, str], Awaitable[None]]
    kept_s: int


CACHE_TOPICS = {
    "ledger.posted": CacheTopic("balance", cache.BALANCE_TTL_S, _balances),
    "token.revoked": CacheTopic("token", cache.SESSION_TTL_S, _tombstones),
}
MAIL_TOPICS = {
    "mail.reset": MailTopic(_send_reset, links.TTL_S["reset"]),
}
KEPT_S = {topic: row.ttl_s + DROP_MARGIN_S for topic, row in CACHE_TOPICS.items()} | {
    topic: row.kept_s for topic, row in MAIL_TOPICS.items()
}


async def sweep(work: Work) -> int:
    """Everything that is due now, in slices; answers how many rows were dealt with."""
    dealt_with = 0
    for topic in KEPT_S:
        dealt_with += await _drop_outlived(work, topic)
    if await work.cache.ping():
        for topic in CACHE_TOPICS:
            dealt_with += await _mend(work, topic)
    if mail.can_send(work.settings):
        for topic in MAIL_TOPICS:
            dealt_with += await _send(work, topic)
    return dealt_with


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
    """Write the values of the topic's rows through again; stops where the cache does."""
    mended = 0
    for _ in range(SLICES_MAX):
        async with work.db.write() as write:  # on the primary: a replica may not have them yet
            rows = await outbox.due(write, topic, older_than_s=OLDER_THAN_S, limit=SLICE_ROWS)
        if not rows:
            break
        entries, failed = _readable(rows, CACHE_TOPICS[topic])
        if not await _written(work, CACHE_TOPICS[topic], entries, ids.time_of(rows[0].id)):
            break
        async with work.db.write() as write:
            await outbox.delete(write, [row.id for row in rows if row not in failed])
            for row in failed:
                await outbox.put_off(write, row, pause_s=pause_s(row.attempts))
        mended += len(rows) - len(failed)
        if len(rows) < SLICE_ROWS:
            break
    return mended


def _readable(rows: Sequence[Row], topic: CacheTopic) -> tuple[list[Entry], list[Row]]:
    """The newest value for each key, and the rows that make no sense."""
    newest: dict[str, Entry] = {}
    failed = []
    for row in rows:
        try:
            entries = topic.entries(row.payload)
        except msgspec.MsgspecError as cause:
            _tell(row, cause)
            failed.append(row)
            continue
        for entry in entries:
            if entry.key not in newest or entry.version > newest[entry.key].version:
                newest[entry.key] = entry
    return list(newest.values()), failed


async def _written(work: Work, topic: CacheTopic, entries: Sequence[Entry], since: datetime) -> bool:
    ttl_s = max(1, topic.ttl_s - int((datetime.now(UTC) - since).total_seconds()))
    for first in range(0, len(entries), WRITE_ENTRIES):
        if not await work.cache.write(topic.kind, entries[first : first + WRITE_ENTRIES], ttl_s):
            return False
    return True


async def _send(work: Work, topic: str) -> int:
    """One slice a sweep: people's mails may wait for a second, and a slow mail server is not to hold up the cache."""
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
