"""The log of what operators, services and the command line did: who, what, to whom. Never a secret, never an address."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct
from sqlalchemy import select

from piggybank import ids
from piggybank.db.engines import Read, Write
from piggybank.db.tables.people import ApiKey, AuditEntry, User

_USER, _KEY = "user:", "key:"


class Entry(Struct, frozen=True, kw_only=True):
    """One act. `actor` is `user:<id>`, `key:<id>` or `cli`; the names are those of today, null where there is none."""

    id: UUID
    at: datetime
    actor: str
    actor_name: str | None
    action: str
    target: str
    target_name: str | None
    details: dict[str, Any]


def record(write: Write, actor: str, action: str, target: str, details: dict[str, Any] | None = None) -> None:
    """Add a row with the change that it tells about."""
    write.add(AuditEntry(id=ids.new_id(0), actor=actor, action=action, target=target, details=details or {}))


async def page(
    read: Read,
    *,
    actor: str | None = None,
    action: str | None = None,
    target: str | None = None,
    lowest: UUID | None = None,
    below: UUID | None = None,
    limit: int,
) -> list[Entry]:
    """The newest `limit` rows with ids from `lowest` on, before `below`; of that actor, of actions that begin so, about that target."""
    query = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
    if actor is not None:
        query = query.where(AuditEntry.actor == actor)
    if action is not None:
        query = query.where(AuditEntry.action.startswith(action, autoescape=True))
    if target is not None:
        query = query.where(AuditEntry.target.in_([target, *(f"{kind}:{target}" for kind in _kinds_of(target))]))
    if lowest is not None:
        query = query.where(AuditEntry.id >= lowest)
    if below is not None:
        query = query.where(AuditEntry.id < below)
    rows = (await read.scalars(query)).all()
    names = await _names(read, {part for row in rows for part in (row.actor, row.target)})
    return [
        Entry(
            id=row.id,
            at=ids.time_of(row.id),
            actor=row.actor,
            actor_name=names.get(row.actor),
            action=row.action,
            target=row.target,
            target_name=names.get(row.target),
            details=row.details,
        )
        for row in rows
    ]


def _kinds_of(target: str) -> tuple[str, ...]:
    """What a bare id may be the id of."""
    return ("user", "key", "payment", "provider_event", "transaction") if ":" not in target else ()


async def _names(read: Read, parts: Iterable[str]) -> dict[str, str]:
    """What people call the users and keys among `parts`."""
    known: dict[str, str] = {}
    parts = list(parts)
    if users := _ids_of(parts, _USER):
        for user in await read.scalars(select(User).where(User.id.in_(users))):
            known[f"{_USER}{user.id}"] = user.name or user.email or user.external_id or ""
    if keys := _ids_of(parts, _KEY):
        for key in await read.scalars(select(ApiKey).where(ApiKey.id.in_(keys))):
            known[f"{_KEY}{key.id}"] = key.name
    return {part: name for part, name in known.items() if name}


def _ids_of(parts: Iterable[str], prefix: str) -> list[UUID]:
    return [UUID(part.removeprefix(prefix)) for part in parts if part.startswith(prefix)]
