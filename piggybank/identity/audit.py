"""The log of what operators, services and the command line did: who, what, to whom. Never a secret, never an address."""

from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import text

from piggybank import ids
from piggybank.db.engines import Write
from piggybank.db.tables.people import AuditEntry

COMMAND_LINE = "cli"  # the actor of `piggybank users ..`: whoever may run commands on the machine


_ONCE = text("""
INSERT INTO audit_log (id, actor, action, target, details)
VALUES (:id, :actor, :action, :target, CAST(:details AS jsonb))
ON CONFLICT (id) DO NOTHING
""")


async def record_once(write: Write, about: UUID, actor: str, action: str, target: str, details: dict[str, Any]) -> None:
    """Add a row whose id is that of the thing that was made: however often a request is repeated, it is there once."""
    given = {"id": about, "actor": actor, "action": action, "target": target, "details": msgspec.json.encode(details).decode()}
    await write.execute(_ONCE, given)


def record(write: Write, actor: str, action: str, target: str, details: dict[str, Any] | None = None) -> None:
    """Add a row with the change that it tells about."""
    write.add(AuditEntry(id=ids.new_id(0), actor=actor, action=action, target=target, details=details or {}))
