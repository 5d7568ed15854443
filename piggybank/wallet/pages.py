"""Keyset pages: an opaque cursor is the last id of a page and a check that it belongs to the same list."""

import base64
import binascii
import hashlib
from datetime import datetime, timedelta
from uuid import UUID

import msgspec

from piggybank import errors, ids

LIMIT_DEFAULT = 25
LIMIT_MAX = 100
_CHECK_BYTES = 6
_ID_BYTES = 16
FIRST_ID = UUID(int=0)
LAST_ID = UUID(int=2**128 - 1)


def cursor_after(last: UUID, *query: object) -> str:
    """The cursor of the page that follows `last` in the list that `query` describes."""
    return base64.urlsafe_b64encode(last.bytes + _check(last, query)).decode()


def last_id(cursor: str, *query: object) -> UUID:
    """The id that the page goes on after; raises `errors.InvalidRequest` for a cursor of another list, or of none."""
    try:
        raw = base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True)
        last = UUID(bytes=raw[:_ID_BYTES])
    except (ValueError, binascii.Error):
        last, raw = FIRST_ID, b""
    if raw[_ID_BYTES:] != _check(last, query):
        wrong = {"field": "cursor", "message": "is not a next_cursor of this list with these filters", "code": "malformed"}
        raise errors.InvalidRequest(errors=[wrong])
    return last


def id_at(moment: datetime | None, otherwise: UUID) -> UUID:
    """The smallest id whose `created_at`, which is in milliseconds, is not before `moment`."""
    return otherwise if moment is None else ids.first_id_at(moment + timedelta(microseconds=999))


def _check(last: UUID, query: tuple[object, ...]) -> bytes:
    return hashlib.blake2b(last.bytes + msgspec.json.encode(query), digest_size=_CHECK_BYTES).digest()
