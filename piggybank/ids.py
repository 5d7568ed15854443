"""Ids that carry their time and their bucket.

A UUIDv7 (RFC 9562, method 3: 12 bits of sub-millisecond time) whose last byte is the user's bucket, on every row of that
user: 48 bits milliseconds, version, 12 bits fraction, variant, 54 random bits, 8 bits bucket. So any id says its month and
its shard without a look-up, a range of ids is a range of time, and ids made one after the other land side by side in an index.
"""

import hashlib
import os
import secrets
import struct
import time
from datetime import UTC, datetime
from uuid import UUID

BUCKETS = 256
POOL_SIZE = 512  # random numbers that the system is asked for at once: a call for each id was 3 % of a deposit
_STEP = 1 << 8  # the smallest distance of two ids in one bucket
_NS_PER_MS = 1_000_000
_VERSION_AND_VARIANT = (0x7 << 76) | (0b10 << 62)


_pool: list[int] = []  # of 64 random bits each
os.register_at_fork(after_in_child=_pool.clear)


def random_64() -> int:
    """64 random bits, for names, not for secrets."""
    try:
        return _pool.pop()
    except IndexError:
        _pool.extend(struct.unpack(f"{POOL_SIZE}Q", os.urandom(POOL_SIZE * 8)))
        return _pool.pop()


def new_bucket() -> int:
    """A user's bucket, fixed at sign-up."""
    return secrets.randbelow(BUCKETS)


def mark_of(name: str) -> int:
    """A fingerprint that takes the place of an id's random bits."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) >> 11


def mark_in(row_id: UUID) -> int:
    """The random bits of an id, or the mark that it was made with."""
    return (row_id.int >> 8) & ((1 << 53) - 1)


def new_id(bucket: int, now_ns: int | None = None, mark: int | None = None) -> UUID:
    """A new id in `bucket`, at `now_ns` (default: now); with a `mark` it tells whether it was made for the same thing as another."""
    milliseconds, rest = divmod(time.time_ns() if now_ns is None else now_ns, _NS_PER_MS)
    fraction = (rest << 12) // _NS_PER_MS
    return UUID(
        int=(milliseconds << 80) | _VERSION_AND_VARIANT | (fraction << 64) | ((random_64() >> 11 if mark is None else mark) << 8) | bucket
    )


def following_id(last: UUID | None, bucket: int, now_ns: int) -> UUID:
    """A new id that sorts after `last`, whatever the clock says: per account, id order is posting order."""
    fresh = new_id(bucket, now_ns)
    if last is None or fresh.int > last.int:
        return fresh
    # 53 random bits leave the top random bit free, so that a step never carries into the variant
    return UUID(int=last.int + _STEP)


def bucket_of(row_id: UUID) -> int:
    """The bucket that an id carries."""
    return row_id.int & 0xFF


def time_of(row_id: UUID) -> datetime:
    """When an id was made, to the millisecond."""
    return datetime.fromtimestamp((row_id.int >> 80) / 1_000, UTC)


def first_id_at(moment: datetime) -> UUID:
    """The smallest id that can be made at `moment`: `id >= first_id_at(a) AND id < first_id_at(b)` is a date filter."""
    milliseconds = int(moment.timestamp() * 1_000)
    return UUID(int=(max(milliseconds, 0) << 80) | _VERSION_AND_VARIANT)
