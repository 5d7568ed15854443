"""Idempotency: a key, a fingerprint and the answer that was given.

Scope: (owner of the source account, kind of actor, key), so a client cannot reach another's or the system's keys, and rotating
an API key changes nothing. The answer is stored in the posting transaction, compactly: what the body says is not stored again,
since the same fingerprint means the same body. Refusals stick; everything else that fails is not stored.
"""

from hashlib import blake2b
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct

from piggybank import errors

MAX_KEY_LENGTH = 255  # characters
KEPT_DAYS = 90

Scope = tuple[UUID, str, str]  # owner, kind of actor (its letter), key


class Answer(Struct, frozen=True, array_like=True):
    """What a command did: the source account after it, and the rows that it made."""

    currency: str
    balance: int
    held: int
    owed: int
    version: int
    at_ms: int
    transaction_id: UUID | None = None
    sequence: int | None = None
    transfer_id: UUID | None = None
    payment_id: UUID | None = None


class _Stored(Struct, frozen=True, array_like=True):
    answer: Answer | None = None
    refusal: str | None = None
    details: dict[str, Any] | None = None


Decision = Answer | errors.Error

_canonical = msgspec.json.Encoder(order="sorted")
_encoder = msgspec.msgpack.Encoder(uuid_format="bytes")
_decoder = msgspec.msgpack.Decoder(_Stored)


def fingerprint(route: str, body: Struct) -> bytes:
    """16 bytes that tell one request from another: the route with its ids, and the decoded body.

    In sorted order and (by the body's `omit_defaults`) without what was not sent, so that a retry is known again whatever order a
    client writes, and after an upgrade that gave the body a new optional field.
    """
    return blake2b(_canonical.encode((route, body)), digest_size=16).digest()


def stored(decision: Answer | errors.Refusal) -> bytes:
    """The bytes of an answer, as they are kept with its key."""
    if isinstance(decision, Answer):
        return _encoder.encode(_Stored(decision))
    return _encoder.encode(_Stored(None, decision.code, decision.details))


def recalled(answer: bytes) -> Decision:
    """The answer as it was then."""
    kept = _decoder.decode(answer)
    if kept.answer is not None:
        return kept.answer
    return errors.BY_CODE[kept.refusal or ""](**(kept.details or {}))
