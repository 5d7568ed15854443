"""What a restored database must learn from the provider before anything is written or paid again.

It knows nothing after its restore point, while the provider went on: payments that were open have ended, others were made that no row
tells of. So, in this order, and nothing of it is sent twice however often it is repeated:

1. events that had come, matched or not, are applied;
2. the statement since then is compared: what was posted there and is ours is posted here, and what is ours by its id, with no
   row, is written down as lost (wallet/lost.py), refunds, too;
3. every payment that had not ended is asked about; what nobody can tell becomes `unknown`, for its event or two operators;
4. what the provider says it is still paying out, and what it owes us, must be accounted for: a payout that is neither ours nor in the
   statement is one of the lost time, under way or not booked yet. Until the statement has it, nothing may be paid out, since its request
   may come again.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import msgspec
from msgspec import Struct
from sqlalchemy import text

from piggybank import errors, ids
from piggybank.db.engines import Database
from piggybank.ledger import SYSTEM, Ledger, Submission
from piggybank.ledger.commands import Advance, PaymentStatus
from piggybank.revio import Refused, Unclear, Unsent, statements
from piggybank.revio.objects import Standing
from piggybank.settings import ProviderMode
from piggybank.wallet import clearing, deposits, inbox, lost, orders, reconciliation, withdrawals
from piggybank.wallet.lost import Lost
from piggybank.wallet.orders import Payment
from piggybank.wallet.provider import Provider
from piggybank.wallet.reconciliation import Reconciliation
from piggybank.wallet.settlement import Unmatched

MARGIN = timedelta(hours=2)  # before the restore point: their clock, and what they book late
PAYMENTS_SLICE = 500
ASKED_TOGETHER = 6

Tell = Callable[[str], None]


class Found(Struct, frozen=True, kw_only=True):
    """What was learnt: payments by the state that they have now, and what is for people to look at."""

    mode: ProviderMode
    events: int
    asked: int
    states: dict[str, int]
    unknown: list[UUID]
    lost: list[Lost]
    reconciliation: Reconciliation | None
    unexplained: dict[str, int]  # in each currency: under way at the provider, and nothing of ours
    missing: dict[str, int]  # in each currency: what the provider owes us less than our book and its statement come to


_OPEN = text("""
SELECT id FROM payments
WHERE status IN ('creating', 'pending', 'processing', 'unknown') AND method = 'revio' AND provider = :provider AND id > :after
ORDER BY id LIMIT :limit
""")
_USED = text("SELECT EXISTS (SELECT FROM payments WHERE method = 'revio')")
# those that the provider has just said it carries out: one that nobody knows of explains nothing
_SENT = text("""
SELECT a.currency, CAST(sum(p.amount) AS bigint) AS amount
FROM payments p JOIN accounts a ON a.bucket = p.bucket AND a.id = p.account_id
WHERE p.status = 'processing' AND p.provider_id IS NOT NULL AND p.kind = 'withdrawal' AND p.method = 'revio' AND p.provider = :provider
GROUP BY a.currency
""")


async def is_used(db: Database) -> bool:
    """Whether there is a payment of the provider at all."""
    async with db.read() as read:
        return bool(await read.scalar(_USED))


async def check_answers(provider: Provider) -> None:
    """Raises ProviderNotConfigured, ProviderUnavailable."""
    await provider.check()
    await _balance(provider)


async def learn(db: Database, ledger: Ledger, provider: Provider, point: datetime, tell: Tell) -> Found:
    """All four steps. Raises ProviderNotConfigured, and ProviderUnavailable where the provider cannot be asked: then again later."""
    mode = await provider.check()
    tell("applying events that had come")
    await inbox.retry_unmatched(db, mode)
    events = 0
    while applied := await inbox.apply_due(db, ledger, mode):
        events += applied
    since, until = point - MARGIN, datetime.now(UTC) + timedelta(minutes=1)
    tell(f"reading the provider's statement since {since:%Y-%m-%d %H:%M}")
    found_lost = await _lost(db, provider, mode, since, until)
    compared = await reconciliation.reconcile(db, ledger, provider, since, until, tell)
    asked = await _ask_about_all(db, ledger, provider, mode, tell)
    tell("looking for payouts that are under way and unknown here")
    theirs = await _balance(provider)
    return Found(
        mode=mode,
        events=events,
        asked=len(asked),
        states=_counted([payment.status for payment in asked]),
        unknown=[payment.id for payment in asked if payment.status == "unknown"],
        lost=found_lost,
        reconciliation=compared,
        unexplained=await _unexplained(db, mode, theirs),
        missing=await _missing(db, mode, theirs, found_lost),
    )


async def _lost(db: Database, provider: Provider, mode: ProviderMode, since: datetime, until: datetime) -> list[Lost]:
    client = await provider.client()
    try:
        lines = statements.read(await client.statement(since, until))
    except (Refused, Unsent, Unclear, ValueError) as cause:
        raise errors.ProviderUnavailable(reason=str(cause)) from cause
    return await lost.keep(db, mode, lines)


async def _ask_about_all(db: Database, ledger: Ledger, provider: Provider, mode: ProviderMode, tell: Tell) -> list[Payment]:
    """The payments that had not ended, as they are now."""
    asked: list[Payment] = []
    after = UUID(int=0)
    while True:
        async with db.write() as read:
            found = (await read.scalars(_OPEN, {"provider": mode, "after": after, "limit": PAYMENTS_SLICE})).all()
        if not found:
            return asked
        for first in range(0, len(found), ASKED_TOGETHER):
            together = found[first : first + ASKED_TOGETHER]
            await orders.together(_ask(db, ledger, provider, payment_id) for payment_id in together)
            asked += [await orders.get(db, payment_id) for payment_id in together]
        tell(f"{len(asked)} open payments asked about")
        after = found[-1]


async def _ask(db: Database, ledger: Ledger, provider: Provider, payment_id: UUID) -> None:
    """Raises ProviderUnavailable where nobody answers: then nothing is decided."""
    payment = await orders.get(db, payment_id)
    try:
        if payment.kind == "deposit":
            if payment.provider_id is not None:  # else nobody had its address yet
                await deposits.ask(db, ledger, provider, payment)
        elif payment.kind == "refund":
            await _ask_refund(ledger, provider, payment)
        elif payment.status == "creating":  # sent since, or never: its statement would have told, but may come late
            await _become_unknown(ledger, payment)
        elif payment.status == "pending":  # created; did the lost time execute it?
            await _ask_payout(db, ledger, provider, payment)
        else:
            await withdrawals.ask(db, ledger, provider, payment)
    except errors.ProviderRefused:
        pass  # what it says cannot be posted: the comparison lists it
    except Unmatched:
        await _become_unknown(ledger, await orders.get(db, payment_id))
    except errors.PaymentMovedOn:
        pass


async def _ask_payout(db: Database, ledger: Ledger, provider: Provider, payment: Payment) -> None:
    client = await provider.client()
    if payment.provider_id is None:
        return await _become_unknown(ledger, payment)
    try:
        snapshot = await client.payout(payment.provider_id)
    except Refused:
        return await _become_unknown(ledger, payment)
    except (Unsent, Unclear) as cause:
        raise errors.ProviderUnavailable(payment_id=str(payment.id)) from cause
    if snapshot.status != "initialized":  # else it was never executed, and may be
        await withdrawals.ask(db, ledger, provider, payment)
    return None


async def _ask_refund(ledger: Ledger, provider: Provider, payment: Payment) -> None:
    """A refund that was not sent at the restore point may have been since; a purchase says only what is left of it."""
    if payment.status in ("creating", "pending"):
        await _become_unknown(ledger, payment)
    else:
        await withdrawals.ask(provider.db, ledger, provider, payment)


async def _become_unknown(ledger: Ledger, payment: Payment) -> None:
    was: frozenset[PaymentStatus] = frozenset({"creating", "pending", "processing"})
    command = Advance(account_id=payment.account_id, payment_id=payment.id, was=was, status="unknown", failure="not_told_after_the_restore")
    decision = (await ledger.submit(Submission(command, SYSTEM, f"advance:{uuid4()}", b"advance"))).decision
    if isinstance(decision, errors.Error) and not isinstance(decision, errors.PaymentMovedOn):
        raise decision


async def _balance(provider: Provider) -> dict[str, Standing]:
    client = await provider.client()
    try:
        return await client.balance()
    except (Refused, Unsent, Unclear) as cause:
        raise errors.ProviderUnavailable(reason=str(cause)) from cause


async def _unexplained(db: Database, mode: ProviderMode, theirs: dict[str, Standing]) -> dict[str, int]:
    async with db.write() as read:
        ours = {row.currency: row.amount for row in await read.execute(_SENT, {"provider": mode})}
    left = {currency: standing.pending_outgoing - ours.get(currency, 0) for currency, standing in theirs.items()}
    return {currency: amount for currency, amount in left.items() if amount > 0}


async def _missing(db: Database, mode: ProviderMode, theirs: dict[str, Standing], found: list[Lost]) -> dict[str, int]:
    """Payments that have left it already and that its statement does not list yet. What is known to be under way may be booked or not."""
    expected = dict(await clearing.owed(db, mode))
    deposits = {ids.mark_in(one.reference) for one in found if one.kind == "deposit"}
    for one in found:
        sign = 1 if one.kind == "deposit" else -1
        if one.kind == "refund" and ids.mark_in(one.reference) not in deposits:
            continue  # posted: its deposit is here
        expected[one.currency] = expected.get(one.currency, 0) + sign * one.amount - one.fee_amount
    under_way = await clearing.under_way(db, mode)
    left = {
        currency: amount - under_way.get(currency, 0) - (theirs[currency].balance if currency in theirs else 0)
        for currency, amount in expected.items()
    }
    return {currency: amount for currency, amount in left.items() if amount > 0}


def _counted(states: list[PaymentStatus]) -> dict[str, int]:
    return {state: states.count(state) for state in sorted(set(states))}


def report(found: Found) -> bytes:
    """As it is kept."""
    return msgspec.json.encode(found)
