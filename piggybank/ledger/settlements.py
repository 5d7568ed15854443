"""Payments that go on, and facts from outside: decided under the lock like everything else, but no rule refuses a fact.

News of one payment come twice, late and in any order, and the same set of news leaves the same rows. Two things make it so. What
moves money is posted once for each effect, whatever the payment's state. What moves none counts by its stamp, which grows with every
change of the provider's object: the newest wins, whenever it arrives.
"""

from typing import Literal
from uuid import UUID

from piggybank import errors, ids
from piggybank.ledger import commands
from piggybank.ledger.book import Account, Book, Payment
from piggybank.ledger.commands import PaymentStatus, SystemAccount
from piggybank.ledger.idempotency import Answer

OPEN: frozenset[PaymentStatus] = frozenset({"creating", "pending", "processing", "unknown"})
UNSENT: frozenset[PaymentStatus] = frozenset({"creating", "pending"})  # nobody was asked to move money yet
SENT = OPEN - UNSENT  # somebody may have moved it
PROVIDER = "revio"  # the source of a provider's effects

# kind of settlement -> (system account, sign as the account sees it)
SETTLEMENTS: dict[commands.SettlementKind, tuple[SystemAccount, Literal[1, -1]]] = {
    "deposit": ("clearing", 1),
    "withdrawal": ("clearing", -1),
    "refund": ("clearing", -1),
    "chargeback": ("clearing", -1),
    "chargeback_reversal": ("clearing", 1),
    "payout_return": ("clearing", 1),
    "fee": ("fees", -1),
    "adjustment": ("adjustments", 1),
}


class Replayed(Exception):
    """It was done before; the answer is the account as it is now."""


def payout_effect(payment_id: UUID) -> str:
    """A payout is paid once: named by our payment, since the provider's own id may be unknown."""
    return f"payout:{payment_id}"


def return_effect(payment_id: UUID) -> str:
    """And comes back once."""
    return f"payout:{payment_id}:returned"


def complete(book: Book, account: Account, command: commands.CompletePayment) -> Answer:
    """A held withdrawal was paid out by the team itself."""
    payment = _open_payment(book, account, command.payment_id)
    if payment.method != "direct":
        raise errors.NotDirect(payment_id=str(payment.id), method=payment.method)
    _move(book, account, payment, "completed")
    row = book.post(account, "withdrawal", "clearing", -payment.amount, command, payment_id=payment.id)
    payment.transaction_id = row.id
    return book.answer(account, row, payment_id=payment.id)


def cancel(book: Book, account: Account, command: commands.CancelPayment) -> Answer:
    """Nothing was paid, and nothing will be. (A purchase is cancelled at the provider first.)"""
    payment = _open_payment(book, account, command.payment_id)
    if payment.method != "direct" and payment.status not in UNSENT:
        raise errors.PaymentUnderWay(payment_id=str(payment.id), payment_status=payment.status)
    _move(book, account, payment, "cancelled")
    book.touch(account)
    return book.answer(account, payment_id=payment.id)


def advance(book: Book, account: Account, command: commands.Advance) -> Answer:
    """One step of ours, unless somebody else has taken another one."""
    payment = _payment(book, account, command.payment_id)
    another_took_it = command.provider_id is not None and payment.provider_id not in (None, command.provider_id)
    if payment.status not in command.was or another_took_it:
        raise errors.PaymentMovedOn(payment_id=str(payment.id), payment_status=payment.status)
    _move(book, account, payment, command.status)
    payment.provider_id = command.provider_id or payment.provider_id
    payment.provider_url = command.provider_url
    payment.stamp = max(payment.stamp, command.stamp)
    payment.failure = command.failure
    book.touch(account)
    return book.answer(account, payment_id=payment.id)


def observe(book: Book, account: Account, command: commands.Observe) -> Answer:
    """The newest news of a payment that move no money by themselves."""
    payment = _payment(book, account, command.payment_id)
    if payment.kind == "refund" and payment.status in UNSENT:
        raise Replayed  # news of an earlier one: this one is not known to the provider yet
    known = command.stamp <= payment.stamp
    if known and not (payment.status == "unknown" and command.stamp == payment.stamp):  # what is known is better than unknown
        raise Replayed
    payment.stamp = command.stamp
    book.changed_payments[payment.id] = payment
    if payment.status in OPEN:
        if command.status != "pending" or payment.kind == "deposit":  # a payout on its way stays on its way
            _move(book, account, payment, command.status)
        payment.failure = command.failure
    elif payment.status in ("failed", "cancelled") and command.status in ("failed", "cancelled"):
        payment.status, payment.failure = command.status, command.failure
    elif payment.kind == "withdrawal" and payment.status == "completed" and command.status == "failed":
        payment.failure = command.failure
        _came_back(book, account, payment, command)
        return book.answer(account, payment_id=payment.id)
    book.touch(account)
    return book.answer(account, payment_id=payment.id)


def settle(book: Book, account: Account, command: commands.Settle) -> Answer:
    """Post a fact, and let its payment know."""
    effect = (ids.bucket_of(account.id), command.source, command.effect)
    if effect in book.effects:
        raise Replayed
    payment = _payment(book, account, command.payment_id) if command.payment_id else None
    refund = _refund(book, command)
    if command.refund_id is not None and command.object_id is None and (refund is None or refund.status != "unknown"):
        raise Replayed  # two operators decided what the provider has told meanwhile
    if refund is not None and refund.transaction_id is not None:  # two operators had said so before the provider did
        refund.provider_id = command.object_id
        book.changed_payments[refund.id] = refund
        book.happened(effect, refund.transaction_id)
        book.touch(account)
        return book.answer(account, payment_id=command.payment_id)
    # failed news that are newer than this came first: it was paid, and came back
    came_back = command.kind == "withdrawal" and payment is not None and payment.status == "failed" and payment.stamp > command.stamp
    why = payment.failure if payment is not None else None
    if payment is not None:
        _count(book, account, payment, command)
    if refund is not None:
        _move(book, account, refund, "completed")
        refund.paid, refund.provider_id, refund.failure = command.amount, command.object_id, None
    system_account, sign = SETTLEMENTS[command.kind]
    row = book.post(account, command.kind, system_account, sign * command.amount, command, payment_id=command.payment_id)
    book.happened(effect, row.id)
    if payment is not None and command.kind in ("deposit", "withdrawal") and payment.transaction_id is None:
        payment.transaction_id = row.id
    if refund is not None:
        refund.transaction_id = row.id
    if came_back and payment is not None:
        payment.failure = why
        _came_back(book, account, payment, command)
    return book.answer(account, row, payment_id=command.payment_id)


def _count(book: Book, account: Account, payment: Payment, command: commands.Settle) -> None:
    match command.kind:
        case "deposit" | "withdrawal":
            payment.paid += command.amount
            payment.stamp = max(payment.stamp, command.stamp)
            payment.failure = None
            payment.provider_id = payment.provider_id or command.object_id
            if payment.status != "returned":
                _move(book, account, payment, "completed")
        case "refund":
            payment.refunded += command.amount
        case "chargeback":
            payment.charged_back += command.amount
        case "chargeback_reversal":
            payment.charged_back -= command.amount
    book.changed_payments[payment.id] = payment


def _refund(book: Book, command: commands.Settle) -> Payment | None:
    """Our payment that asked for this refund, unless it got another one meanwhile, or was never sent."""
    refund = book.payments.get(command.refund_id) if command.refund_id else None
    if refund is None or refund.status in UNSENT or refund.provider_id not in (None, command.object_id):
        return None
    return refund


def _came_back(book: Book, account: Account, payment: Payment, command: commands.Settle | commands.Observe) -> None:
    effect = (ids.bucket_of(account.id), PROVIDER, return_effect(payment.id))
    payment.status = "returned"
    if effect not in book.effects:
        row = book.post(account, "payout_return", "clearing", payment.paid, command, payment_id=payment.id)
        book.happened(effect, row.id)


def _move(book: Book, account: Account, payment: Payment, status: PaymentStatus) -> None:
    """To another state; what is reserved is free again with the last open one. The caller posts, or touches."""
    if payment.status in OPEN and status not in OPEN:
        account.held -= payment.held
        account.open_payments -= 1
        payment.held = 0
        if payment.refund_of is not None:
            refunded = book.payments[payment.refund_of]
            refunded.refunding = 0
            book.changed_payments[refunded.id] = refunded
    payment.status = status
    book.changed_payments[payment.id] = payment


def _payment(book: Book, account: Account, payment_id: UUID) -> Payment:
    payment = book.payments.get(payment_id)
    if payment is None or payment.account_id != account.id:
        raise errors.NotFound(payment_id=str(payment_id))
    return payment


def _open_payment(book: Book, account: Account, payment_id: UUID) -> Payment:
    payment = _payment(book, account, payment_id)
    if payment.status not in OPEN:
        raise errors.PaymentNotOpen(payment_id=str(payment_id), payment_status=payment.status)
    return payment
