"""Every act of an operator is in the audit log: what goes through the ledger is written down in the transaction that does it.

A team's own backend is not: it makes all of the movements there are, and history has them.
"""

from typing import Any

from piggybank import ids
from piggybank.identity.tokens import Principal
from piggybank.ledger.commands import Act


def of(principal: Principal, action: str, target: str, details: dict[str, Any]) -> Act | None:
    """What an operator does, for `Submission`; None where somebody else does it."""
    return Act(ids.new_id(0), principal.actor, action, target, details) if principal.role == "operator" else None
