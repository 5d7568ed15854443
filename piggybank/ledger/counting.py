"""What the ledger counts: once for each batch, whatever its size."""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import prometheus_client

from piggybank import errors, metrics
from piggybank.ledger import commands
from piggybank.ledger.commands import Command
from piggybank.ledger.posting import Posted
from piggybank.ledger.rules import Submission
from piggybank.tracing import tracing

POSTED = "posted"


def count(batch: Sequence[Submission], posted: Posted, waited_s: float, took_s: float) -> None:
    """A batch that is committed."""
    if tracing.on:
        tracing.batch(len(batch), took_s)
    metrics.BATCH_SIZE.observe(len(batch))
    metrics.BATCH_SECONDS.observe(took_s)
    metrics.COMMIT_SECONDS.observe(posted.commit_s)
    metrics.QUEUE_WAIT.observe(waited_s)
    decided: Counter[tuple[str, str]] = Counter()
    replays = 0
    for submission, outcome in zip(batch, posted.outcomes, strict=True):
        if outcome.replayed:
            replays += 1
        else:
            decision = outcome.decision
            decided[kind_of(submission.command), decision.code if isinstance(decision, errors.Error) else POSTED] += 1
    for (kind, outcome_name), number in decided.items():
        _postings(kind, outcome_name).inc(number)
    if replays:
        metrics.REPLAYS.inc(replays)


def kind_of(command: Command) -> str:
    """What people call it: `deposit`, `transfer`, `settled_withdrawal`."""
    return f"settled_{command.kind}" if isinstance(command, commands.Settle) else _KINDS[type(command)]


@lru_cache(maxsize=1_024)
def _postings(kind: str, outcome: str) -> prometheus_client.Counter:
    return metrics.POSTINGS.labels(kind, outcome)


_KINDS: dict[type[Command], str] = {
    commands.Deposit: "deposit",
    commands.Withdraw: "withdrawal",
    commands.Transfer: "transfer",
    commands.Reverse: "reversal",
    commands.OpenPayment: "open_payment",
    commands.CompletePayment: "complete_payment",
    commands.CancelPayment: "cancel_payment",
    commands.Advance: "advance_payment",
    commands.Observe: "observe_payment",
    commands.Freeze: "freeze",
    commands.Unfreeze: "unfreeze",
    commands.Close: "close",
}
