"""API keys: how a team's own backend signs in. Shown once, stored as a hash, limited to scopes."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import func, select, update

from piggybank import errors, ids
from piggybank.db.engines import Database, Read, Write
from piggybank.db.tables.people import ApiKey
from piggybank.identity import audit
from piggybank.identity.tokens import API_KEY_PREFIX, Tokens, hash_of, new_token, tell_revoked

HINT_CHARS = 4

SCOPES = {
    "users:read": "Read every user.",
    "users:write": "Create users for others.",
    "accounts:read": "Read every account, its history, its payments and the reports.",
    "accounts:write": "Open, change, freeze, unfreeze and close accounts.",
    "ledger:write": "Move money: direct deposits and withdrawals, transfers, batches, reversals.",
    "payments:write": "Complete and cancel payments.",
    "ops:read": "Read the state of the installation, its open payments and events without their bodies, but not the audit log.",
    "metrics:read": "Read the metrics, and nothing else.",
}


async def create(write: Write, *, name: str, scopes: Sequence[str], actor: str, created_by: UUID | None = None) -> tuple[ApiKey, str]:
    """A new key and its token, which nobody can read again. Raises `errors.InvalidRequest` for an unknown scope."""
    unknown = sorted(set(scopes) - SCOPES.keys())
    if unknown or not scopes:
        said = f"unknown: {', '.join(unknown)}" if unknown else "at least one is needed"
        raise errors.InvalidRequest(field="scopes", message=f"{said}; allowed: {', '.join(SCOPES)}")
    token = new_token(API_KEY_PREFIX)
    key = ApiKey(
        id=ids.new_id(0),
        name=name,
        token_hash=hash_of(token),
        hint=token[-HINT_CHARS:],
        scopes=sorted(set(scopes)),
        created_by=created_by,
    )
    write.add(key)
    audit.record(write, actor, "apikey.create", f"key:{key.id}", {"name": name, "scopes": key.scopes})
    return key, token


async def page(read: Read, after: UUID | None, limit: int) -> Sequence[ApiKey]:
    """Keys that are in force, newest first, those before `after`."""
    query = select(ApiKey).where(ApiKey.revoked_at.is_(None)).order_by(ApiKey.id.desc()).limit(limit)
    if after is not None:
        query = query.where(ApiKey.id < after)
    return (await read.scalars(query)).all()


async def revoke(db: Database, tokens: Tokens, key_id: UUID, *, actor: str) -> None:
    """End a key for good; raises `errors.NotFound`."""
    async with db.write() as write:
        token_hash = await write.scalar(
            update(ApiKey)
            .where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
            .values(revoked_at=func.now())
            .returning(ApiKey.token_hash)
        )
        if token_hash is None:
            raise errors.NotFound(key=str(key_id))
        await tell_revoked(write, [token_hash])
        audit.record(write, actor, "apikey.revoke", f"key:{key_id}")
    await tokens.bury([token_hash])
