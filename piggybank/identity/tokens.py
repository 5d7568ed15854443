"""Who is asking: a bearer token becomes a `Principal`.

A token is random and opaque, and only its hash is stored. Looked up in the process (1 s, so a revocation is everywhere within
that), then in the cache, then in Postgres, on the primary: a replica may not have the session of a moment ago. Logout writes a
tombstone after the commit and before the answer; the outbox row committed with it repairs the cache when that could not be written.
"""

import hashlib
import re
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

import msgspec
from sqlalchemy import text

from piggybank import errors, ids
from piggybank.cache import SESSION_TTL_S, Cache, Entry
from piggybank.db.engines import Database, Write

SESSION_PREFIX = "pbs_"
API_KEY_PREFIX = "pbk_"
LINK_PREFIX = "pbl_"
TOKEN_BYTES = 32  # 43 characters
KEY_TTL_S = 300
REMEMBERED_S = 1.0  # a process believes itself for so long
REMEMBERED_MAX = 10_000  # tokens
REVOKED_TOPIC = "token.revoked"
_KIND = "token"
_TOKEN = re.compile(r"pb[sk]_[A-Za-z0-9_-]{43}")

_SESSION = text(
    "SELECT s.id, s.user_id, s.expires_at, u.role FROM sessions s JOIN users u ON u.id = s.user_id"
    " WHERE s.token_hash = :hash AND s.revoked_at IS NULL"
)
_API_KEY = text("SELECT id, name, scopes FROM api_keys WHERE token_hash = :hash AND revoked_at IS NULL")
_OUTBOX = text("INSERT INTO outbox (id, bucket, topic, payload) VALUES (:id, 0, :topic, CAST(:payload AS jsonb))")


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Whoever is asking. `name` is an API key's name; empty for a user, whose name may change while tokens are cached."""

    kind: Literal["user", "service"]
    role: Literal["user", "operator", "service"]
    token_id: UUID
    user_id: UUID | None = None
    scopes: frozenset[str] = frozenset()
    name: str = ""

    @property
    def actor(self) -> str:
        """Who, for the audit log."""
        return f"user:{self.user_id}" if self.kind == "user" else f"key:{self.token_id}"


class _Known(msgspec.Struct, frozen=True):
    """What the cache keeps of a token: `expires_at` in seconds since 1970, 0 for never."""

    principal: Principal
    expires_at: float

    @property
    def expired(self) -> bool:
        return 0 < self.expires_at <= time.time()


def new_token(prefix: str) -> str:
    """A new secret, `<prefix><43 url-safe characters>`."""
    return prefix + secrets.token_urlsafe(TOKEN_BYTES)


def hash_of(token: str) -> bytes:
    """What is stored of a token. 256 random bits need no salt and no slow hash."""
    return hashlib.sha256(token.encode()).digest()


async def tell_revoked(write: Write, hashes: Sequence[bytes]) -> None:
    """With the revocation, in its transaction: the sweep buries these when `Tokens.bury` could not."""
    if hashes:
        rows = [
            {"id": ids.new_id(0), "topic": REVOKED_TOPIC, "payload": msgspec.json.encode({"key": token_hash.hex()}).decode()}
            for token_hash in hashes
        ]
        await write.execute(_OUTBOX, rows)


class Tokens:
    """One process's view of the tokens."""

    def __init__(self, db: Database, cache: Cache) -> None:
        self._db = db
        self._cache = cache
        self._remembered: dict[str, tuple[float, _Known]] = {}

    async def authenticate(self, token: str) -> Principal:
        """Whose token this is; raises `errors.Unauthenticated`, also for one that was revoked or has expired."""
        if not _TOKEN.fullmatch(token):
            raise errors.Unauthenticated
        token_hash = hash_of(token)
        key = token_hash.hex()
        asked_at = time.monotonic()  # before looking, so that what is remembered is at most REMEMBERED_S old
        until, known = self._remembered.get(key, (0.0, None))
        if known is None or until <= asked_at:
            self._remembered.pop(key, None)
            known = await self._look_up(token_hash, key, is_session=token.startswith(SESSION_PREFIX))
            self._remember(key, asked_at, known)
        if known.expired:
            raise errors.Unauthenticated
        return known.principal

    async def bury(self, hashes: Sequence[bytes]) -> None:
        """After the commit of a revocation and before its answer: nobody is to believe these tokens again."""
        keys = [token_hash.hex() for token_hash in hashes]
        for key in keys:
            self._remembered.pop(key, None)
        if keys:
            # False when the cache is away: then the outbox row of `tell_revoked` stays and is repeated
            await self._cache.bury(_KIND, keys, SESSION_TTL_S)

    def _remember(self, key: str, asked_at: float, known: _Known) -> None:
        while len(self._remembered) >= REMEMBERED_MAX:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[key] = (asked_at + REMEMBERED_S, known)

    async def _look_up(self, token_hash: bytes, key: str, *, is_session: bool) -> _Known:
        found = await self._cache.read(_KIND, key)
        if found.is_tombstone:
            raise errors.Unauthenticated
        if found.payload is not None:
            return msgspec.json.decode(found.payload, type=_Known)
        known = await (self._session(token_hash) if is_session else self._api_key(token_hash))
        ttl_s = int(known.expires_at - time.time()) if known.expires_at else KEY_TTL_S
        if ttl_s > 0:
            await self._cache.fill(_KIND, found, Entry(key, 0, msgspec.json.encode(known)), min(ttl_s, SESSION_TTL_S))
        return known

    async def _session(self, token_hash: bytes) -> _Known:
        async with self._db.read() as read:
            row = (await read.execute(_SESSION, {"hash": token_hash})).one_or_none()
        if row is None or row.expires_at <= datetime.now(UTC):
            raise errors.Unauthenticated
        principal = Principal(kind="user", role=row.role, token_id=row.id, user_id=row.user_id)
        return _Known(principal, row.expires_at.timestamp())

    async def _api_key(self, token_hash: bytes) -> _Known:
        async with self._db.read() as read:
            row = (await read.execute(_API_KEY, {"hash": token_hash})).one_or_none()
        if row is None:
            raise errors.Unauthenticated
        return _Known(Principal(kind="service", role="service", token_id=row.id, scopes=frozenset(row.scopes), name=row.name), 0)
