"""The ledger: commands in, outcomes out, everything in between under one lock order."""

from piggybank.ledger.batcher import Ledger
from piggybank.ledger.commands import SYSTEM, Actor
from piggybank.ledger.rules import Outcome, Submission

__all__ = ["SYSTEM", "Actor", "Ledger", "Outcome", "Submission"]
