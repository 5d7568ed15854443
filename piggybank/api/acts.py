"""Every act of an operator is in the audit log: what moves money through the ledger is written down here, right after its commit.

A team's own backend is not: it makes all of the movements there are, and history has them.
"""

from typing import Any

from piggybank.db.engines import Database
from piggybank.identity import audit
from piggybank.identity.tokens import Principal


async def record(db: Database, principal: Principal, action: str, target: str, details: dict[str, Any] | None = None) -> None:
    """Write it down where an operator did it; asked again with the same key it is there again, marked `replayed`."""
    if principal.role != "operator":
        return
    async with db.write() as write:
        audit.record(write, principal.actor, action, target, details)
