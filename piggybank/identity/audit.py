"""The log of what operators, services and the command line did: who, what, to whom. Never a secret, never an address."""

from typing import Any

from piggybank import ids
from piggybank.db.engines import Write
from piggybank.db.tables.people import AuditEntry

COMMAND_LINE = "cli"  # the actor of `piggybank users ..`: whoever may run commands on the machine


def record(write: Write, actor: str, action: str, target: str, details: dict[str, Any] | None = None) -> None:
    """Add a row with the change that it tells about."""
    write.add(AuditEntry(id=ids.new_id(0), actor=actor, action=action, target=target, details=details or {}))
