"""Money in through the provider: a payment of ours, then a checkout at the provider, then whatever its events say.

Making a checkout may be repeated: nobody has seen the address of the one that was lost, and it ends by itself. So a crash or a
timeout leaves the payment `creating`, and the next request with the same key, or the sweep, makes another. Should somebody pay the
lost one nevertheless, it is credited: what was paid is a fact.
"""

import asyncio
from collections.abc import Awaitable
from datetime import UTC, datetime
from uuid import UUID

import structlog

from piggybank import errors
from piggybank.db.engines import Database
from piggybank.ledger import SYSTEM, Ledger, Submission
from piggybank.ledger.commands import Advance
from piggybank.revio import Client, Refused, Snapshot, Unclear, Unsent
from piggybank.wallet import lost, orders, settlement
from piggybank.wallet.orders import Payment
from piggybank.wallet.provider import Provider
from piggybank.wallet.settlement import Unmatched

CHECKOUT_WITHIN_S = 8.0  # so long a deposit waits for its checkout, tries included; the sweep goes on
CHECKOUT_FOR_S = 3_600  # a checkout can be paid for an hour
PRODUCT = "Wallet top-up"

_log = structlog.get_logger()


async def checkout(db: Database, ledger: Ledger, provider: Provider, payment_id: UUID) -> Payment:
    """The payment with its checkout; makes one where there is none yet.

    Raises ProviderUnavailable (the payment waits), ProviderRefused (it failed), ProviderNotConfigured.
    """
    payment = await orders.get(db, payment_id)
    if payment.status != "creating" or payment.provider_url is not None:
        return payment
    client, mode = await provider.client(), await provider.mode()
    if payment.provider != mode or payment.expires_at is None:
        raise errors.ProviderNotConfigured(payment_id=str(payment_id), provider=payment.provider, mode=mode)
    if (paid := await lost.find(db, mode, "deposit", payment.id)) is not None:  # before the database was restored
        await lost.take(db, paid, payment.id)
        made = await _asked(client, payment, paid.provider_id)
        await _keep(ledger, client, payment, made)
        await ask(db, ledger, provider, await orders.get(db, payment_id))
        return await orders.get(db, payment_id)
    try:
        person = payment.person(provider.email(mode))
        made = await _within(
            CHECKOUT_WITHIN_S,
            client.create_purchase(
                reference=str(payment.id),
                amount=payment.amount,
                currency=payment.currency,
                name=payment.description or PRODUCT,
                person=person,
                due=payment.expires_at,
                return_url=payment.return_url,
            ),
        )
    except errors.InvalidRequest as error:
        await _fail(ledger, payment, "no_email")
        raise errors.ProviderRefused(payment_id=str(payment_id), reason="no_email", detail=error.details["message"]) from error
    except Refused as refused:
        if refused.passing:
            _log.error("provider_refuses_everything", status=refused.status, code=refused.code)
            raise errors.ProviderUnavailable(payment_id=str(payment_id)) from refused
        await _fail(ledger, payment, refused.code)
        raise errors.ProviderRefused(payment_id=str(payment_id), reason=refused.code, detail=refused.message) from refused
    except (Unsent, Unclear, TimeoutError) as cause:
        raise errors.ProviderUnavailable(payment_id=str(payment_id)) from cause
    if made.is_test != (mode == "simulator"):
        await _fail(ledger, payment, "test_key")
        raise errors.ProviderNotConfigured(detail="The provider's key is a test key: its payments are not real.")
    await _keep(ledger, client, payment, made)
    return await orders.get(db, payment_id)


async def _asked(client: Client, payment: Payment, purchase_id: str) -> Snapshot:
    try:
        return await client.purchase(purchase_id)
    except (Refused, Unsent, Unclear) as cause:
        raise errors.ProviderUnavailable(payment_id=str(payment.id)) from cause


async def _within(seconds: float, call: Awaitable[Snapshot]) -> Snapshot:
    """Somebody waits for it: a provider that hangs is no reason to."""
    async with asyncio.timeout(seconds):
        return await call


async def _keep(ledger: Ledger, client: Client, payment: Payment, made: Snapshot) -> None:
    """The checkout is this payment's, unless another one has become it, or the payment has ended: then nobody shall pay it."""
    command = Advance(
        account_id=payment.account_id,
        payment_id=payment.id,
        was=frozenset({"creating", "pending", "processing"}),
        status="pending",
        provider_id=made.id,
        provider_url=made.checkout_url,
    )
    decision = (await ledger.submit(Submission(command, SYSTEM))).decision
    if isinstance(decision, errors.PaymentMovedOn):
        try:
            await client.cancel_purchase(made.id)
        except (Refused, Unsent, Unclear) as cause:  # nobody has its address, and it ends by itself
            _log.info("spare_checkout_left", because=str(cause))
    elif isinstance(decision, errors.Error):
        raise decision


async def _fail(ledger: Ledger, payment: Payment, why: str) -> None:
    command = Advance(account_id=payment.account_id, payment_id=payment.id, was=frozenset({"creating"}), status="failed", failure=why)
    decision = (await ledger.submit(Submission(command, SYSTEM))).decision
    if isinstance(decision, errors.Error) and not isinstance(decision, errors.PaymentMovedOn):
        raise decision


async def cancel_checkout(db: Database, ledger: Ledger, provider: Provider, payment: Payment) -> None:
    """See that nobody can pay it any more; the ledger is told by the caller. Raises ProviderUnavailable, ProviderNotConfigured."""
    if payment.provider_id is None:
        return
    client = await provider.client()
    try:
        await client.cancel_purchase(payment.provider_id)
    except Refused as refused:
        if refused.passing:
            raise errors.ProviderUnavailable(payment_id=str(payment.id)) from refused
        await ask(db, ledger, provider, payment)  # it was paid, or has ended: its own word on that counts
    except (Unsent, Unclear) as cause:
        raise errors.ProviderUnavailable(payment_id=str(payment.id)) from cause


async def ask(db: Database, ledger: Ledger, provider: Provider, payment: Payment) -> None:
    """Ask what became of a checkout, and post it; one that was never made is made, or has failed when its time is over.

    Raises ProviderUnavailable, ProviderRefused.
    """
    over = payment.expires_at is not None and payment.expires_at <= datetime.now(UTC)
    if payment.provider_id is None:
        if over:
            await _fail(ledger, payment, "not_created")
        else:
            await checkout(db, ledger, provider, payment.id)
        return
    client, mode = await provider.client(), await provider.mode()
    try:
        snapshot = await client.purchase(payment.provider_id)
    except Refused as refused:
        _log.error("provider_does_not_know_a_purchase", payment=str(payment.id), status=refused.status)
        raise errors.ProviderUnavailable(payment_id=str(payment.id)) from refused
    except (Unsent, Unclear) as cause:
        raise errors.ProviderUnavailable(payment_id=str(payment.id)) from cause
    try:
        await settlement.apply(db, ledger, mode, snapshot)
    except Unmatched as cause:
        _log.error("provider_answer_not_posted", payment=str(payment.id), because=str(cause))
        raise errors.ProviderRefused(payment_id=str(payment.id), reason="not_posted", detail=str(cause)) from cause
