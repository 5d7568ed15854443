"""Money out through the provider: payouts, and refunds of deposits. Held first, sent once, asked about for as long as it takes.

    creating    held; nothing is known at the provider
    pending     created there, not executed (two-step payouts)
    processing  the call that moves money has been made, or is being made
    unknown     and nobody knows what became of it: an event, the statement or two operators will tell; it is never sent again

Before the call that moves money the payment is `processing`, committed. Only when the provider certainly did not hear it, it goes back
and is sent again. A process that dies in between leaves `processing`, which the sweep asks about and, when that tells nothing, calls
`unknown`.
"""

from collections.abc import Callable, Coroutine, Set
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import structlog

from piggybank import errors
from piggybank.db.engines import Database
from piggybank.ledger import SYSTEM, Ledger, Submission
from piggybank.ledger.commands import Advance, PaymentStatus
from piggybank.ledger.settlements import UNSENT
from piggybank.revio import OrchestrationPayouts, Refused, Snapshot, Unclear, Unsent
from piggybank.wallet import lost, orders, settlement
from piggybank.wallet.lost import Lost
from piggybank.wallet.orders import Payment, together
from piggybank.wallet.provider import Provider
from piggybank.wallet.settlement import Unmatched

AT_ONCE = 6  # payments that are sent together; claimed together, so that the lease outlives their calls
PAYMENTS_MAX = 600  # of one round
ADVANCE = b"advance"  # what stands for a fingerprint: each key is used by one step alone
NEWEST_RANK = 15  # of a moment: what is known when we ask is older than everything that follows

_log = structlog.get_logger()


async def send_due(db: Database, ledger: Ledger, provider: Provider) -> int:
    """Send what waits, a few at a time; answers how many were looked at. Raises ProviderNotConfigured, DatabaseUnavailable."""
    mode = await provider.check()
    sent = 0
    while sent < PAYMENTS_MAX and not provider.stopping and (due := await orders.claim(db, orders.TO_SEND, mode, limit=AT_ONCE)):
        await together(_one(db, ledger, provider, payment_id) for payment_id in due)
        sent += len(due)
    return sent


async def _one(db: Database, ledger: Ledger, provider: Provider, payment_id: UUID) -> None:
    payment = await orders.get(db, payment_id)
    steps = {"withdrawal": _pay_out, "refund": _refund}
    try:
        await steps[payment.kind](db, ledger, provider, payment)
    except errors.PaymentMovedOn:
        pass  # cancelled, or somebody else's turn
    except (Unsent, Unclear) as cause:  # of what may be repeated
        _log.info("payment_waits", payment=str(payment_id), because=str(cause))
        await orders.put_off(db, payment)
    except Unmatched as cause:
        _log.error("provider_answer_not_posted", payment=str(payment_id), because=str(cause))
        await orders.put_off(db, payment)
    except Refused as refused:
        if refused.passing:
            _log.error("provider_refuses_everything", status=refused.status, code=refused.code)
            await orders.put_off(db, payment)
        else:
            await _quietly(_advance(ledger, payment, UNSENT, "failed", failure=refused.code))
    except errors.InvalidRequest as error:  # nobody to pay it to
        await _quietly(_advance(ledger, payment, {"creating"}, "failed", failure="no_email"))
        _log.error("payout_failed", payment=str(payment_id), because=error.details["message"])


async def _pay_out(db: Database, ledger: Ledger, provider: Provider, payment: Payment) -> None:
    mode = await provider.mode()
    # one that was created stays with the way that it was created in, whatever the settings say now
    driver = OrchestrationPayouts(await provider.client()) if payment.provider_url else await provider.payouts()
    order = payment.order(provider.email(mode))
    if (wrong := driver.missing(order.currency, order.amount, order.destination)) is not None:
        raise Refused(0, "not_possible", " ".join(wrong))
    if payment.status == "creating" and (made := await lost.find(db, mode, "withdrawal", payment.id)) is not None:
        await _take_place(db, ledger, provider, payment, made)
        return
    if payment.status == "creating" and await lost.is_like_one(db, mode, payment.account_id, payment.amount, payment.currency):
        await _advance(ledger, payment, {"creating"}, "unknown", failure="like_one_paid_before_the_restore")
        return
    if driver.two_steps and payment.status == "creating":
        created = await driver.create(order)
        await _advance(ledger, payment, {"creating"}, "pending", provider_id=created.id, provider_url=created.execution_url)
        payment = await orders.get(db, payment.id)
    await _execute(db, ledger, provider, payment, lambda: driver.execute(order, payment.provider_url))


async def _take_place(db: Database, ledger: Ledger, provider: Provider, payment: Payment, made: Lost) -> None:
    """It was paid out before the database was restored: never again. What became of it is asked; what differs two operators decide."""
    await lost.take(db, made, payment.id)
    if (made.amount, made.currency) != (payment.amount, payment.currency):
        await _advance(ledger, payment, {"creating"}, "unknown", failure="paid_before_the_restore_with_another_amount")
        return
    await _advance(ledger, payment, {"creating"}, "processing", provider_id=made.provider_id)
    try:
        snapshot = await (await provider.client()).payout(made.provider_id)
    except (Refused, Unsent, Unclear) as cause:  # an EFT credit, or nobody answers: the statement tells
        _log.info("payment_not_told", payment=str(payment.id), because=str(cause))
        return
    await settlement.apply(db, ledger, payment.provider, snapshot)


async def _refund(db: Database, ledger: Ledger, provider: Provider, payment: Payment) -> None:
    client, purchase_id = await provider.client(), payment.purchase_id
    if purchase_id is None:
        raise Refused(0, "no_purchase", "the deposit has no purchase")
    if payment.refund_of is not None and payment.status == "creating":
        mode = await provider.mode()
        made = await lost.find_refund(db, mode, payment.refund_of, payment.amount, payment.id)
        if made is not None:  # it is in the books already, from the statement: whoever wants another asks once more
            await lost.take(db, made, payment.id)
            raise Refused(0, "refunded_before_the_restore", f"{made.provider_id} gave {made.amount} back")
    before = await client.purchase(purchase_id)
    if before.refundable_amount is not None and before.refundable_amount < payment.amount:
        raise Refused(0, "not_refundable", f"{before.refundable_amount} can be refunded")
    stamp = before.stamp(NEWEST_RANK)  # an older failure is not this refund's
    await _execute(db, ledger, provider, payment, lambda: client.refund(purchase_id, payment.amount), stamp=stamp)


async def _execute(
    db: Database, ledger: Ledger, provider: Provider, payment: Payment, send: Callable[[], Coroutine[Any, Any, Snapshot]], *, stamp: int = 0
) -> None:
    """The one call that moves money, between two commits."""
    back = payment.status
    if back not in UNSENT:  # somebody else took it while we looked
        raise errors.PaymentMovedOn(payment_id=str(payment.id), payment_status=back)
    if provider.stopping:  # this process ends: whoever comes next sends it
        await orders.hand_back(db, payment)
        return
    await _advance(ledger, payment, {back}, "processing", stamp=stamp)
    try:
        answer = await send()
    except Unsent:
        await _advance(ledger, payment, {"processing"}, back)
        raise
    except Unclear as cause:
        _log.warning("payment_unknown", payment=str(payment.id), kind=payment.kind, because=str(cause))
        await _quietly(_advance(ledger, payment, {"processing"}, "unknown", failure="no_answer"))
        return
    except Refused as refused:
        if refused.passing:  # a limit, a key: it was not done
            await _advance(ledger, payment, {"processing"}, back)
            raise
        if payment.kind == "withdrawal" and payment.provider_id and await _has_moved(db, ledger, provider, payment):
            return
        await _quietly(_advance(ledger, payment, {"processing"}, "failed", failure=refused.code))
        return
    if answer.id and payment.provider_id is None and payment.kind == "withdrawal":
        await _quietly(_advance(ledger, payment, {"processing"}, "processing", provider_id=answer.id))
    if payment.kind == "withdrawal" and not answer.updated_on:  # an answer without a time: only what certainly happened counts
        return
    await settlement.apply(db, ledger, payment.provider, answer)


async def _has_moved(db: Database, ledger: Ledger, provider: Provider, payment: Payment) -> bool:
    """It refused to execute: because it has been done before? Its own word on that counts."""
    assert payment.provider_id is not None
    client = await provider.client()
    try:
        snapshot = await client.payout(payment.provider_id)
    except (Refused, Unsent, Unclear):
        await _quietly(_advance(ledger, payment, {"processing"}, "unknown", failure="refused_and_not_told"))
        return True
    if snapshot.status == "initialized":
        return False
    await settlement.apply(db, ledger, payment.provider, snapshot)
    return True


async def ask(db: Database, ledger: Ledger, provider: Provider, payment: Payment) -> None:
    """Ask what became of something that was sent. Raises ProviderUnavailable."""
    client = await provider.client()
    try:
        if payment.kind == "refund":
            await _ask_refund(ledger, payment, await client.purchase(payment.purchase_id or ""))
            return
        if payment.provider_id is not None and payment.provider_url is not None:
            snapshot = await client.payout(payment.provider_id)
            await settlement.apply(db, ledger, payment.provider, snapshot)
            if snapshot.status != "initialized":
                return
    except (Refused, Unsent, Unclear) as cause:
        raise errors.ProviderUnavailable(payment_id=str(payment.id)) from cause
    if payment.provider_id is None or payment.provider_url is not None:  # sent, or nearly; nobody says that it was executed
        await _quietly(_advance(ledger, payment, {"processing"}, "unknown", failure="not_executed_or_not_told"))


async def _ask_refund(ledger: Ledger, payment: Payment, purchase: Snapshot) -> None:
    """A purchase does not list its refunds: it tells only that one is under way. What happened is told by its event or the statement."""
    if purchase.status == "pending_refund":
        await _quietly(_advance(ledger, payment, {"unknown"}, "processing"))
    else:
        await _quietly(_advance(ledger, payment, {"processing"}, "unknown", failure="not_executed_or_not_told"))


async def _advance(
    ledger: Ledger,
    payment: Payment,
    was: Set[PaymentStatus],
    status: PaymentStatus,
    *,
    provider_id: str | None = None,
    provider_url: str | None = None,
    failure: str | None = None,
    stamp: int = 0,
) -> None:
    """Raises PaymentMovedOn, and what `Ledger.submit` raises."""
    command = Advance(
        account_id=payment.account_id,
        payment_id=payment.id,
        was=frozenset(was),
        status=status,
        provider_id=provider_id,
        provider_url=provider_url,
        stamp=stamp,
        failure=failure,
    )
    # with a key: a commit whose answer was lost is known again, and not taken for somebody else's step
    decision = (await ledger.submit(Submission(command, SYSTEM, f"advance:{uuid4()}", ADVANCE))).decision
    if isinstance(decision, errors.Error):
        raise decision


async def _quietly(step: Coroutine[Any, Any, None]) -> None:
    """An event was quicker: then it knows better."""
    with suppress(errors.PaymentMovedOn):
        await step
