"""Speak to Revio: the orchestration API, two ways of paying out, signatures. The simulator is spoken to by the same code.

Knows nothing of our payments: what an answer means for them is decided in `wallet/`.
"""

from piggybank.revio.client import Client, Credentials, Person
from piggybank.revio.http import Refused, Unclear, Unsent
from piggybank.revio.objects import Snapshot
from piggybank.revio.payouts import EftPayouts, OrchestrationPayouts, Payouts

__all__ = [
    "Client",
    "Credentials",
    "EftPayouts",
    "OrchestrationPayouts",
    "Payouts",
    "Person",
    "Refused",
    "Snapshot",
    "Unclear",
    "Unsent",
]
