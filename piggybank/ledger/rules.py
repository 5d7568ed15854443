"""Decide each command in order, in memory: no `await` in here, and no I/O.

A rule looks first and acts last, so a refused command leaves no trace; the next command sees what those before it did.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from piggybank import errors, ids, money
from piggybank.ledger import commands, settlements
from piggybank.ledger.book import Account, Book, KeyRow, Payment, PaymentRow
from piggybank.ledger.commands import Command, SystemAccount
from piggybank.ledger.idempotency import Answer, Decision

MAX_SYSTEM_COLUMN = 2**62  # minor units exchanged with one system account, net; bigint ends at 2**63

REVERSIBLE = frozenset({"deposit", "withdrawal", "transfer_in", "transfer_out"})


class Submission(NamedTuple):
    """A command with who asks and, where it moves money by request, its key (empty: none) and fingerprint; an operator's with its `act`."""

    command: Command
    actor: commands.Actor
    key: str = ""
    fingerprint: bytes = b""
    act: commands.Act | None = None


class Outcome(NamedTuple):
    """A decision; `replayed` when it was made before."""

    decision: Decision
    replayed: bool = False


def decide(book: Book, submission: Submission) -> Outcome:
    """The outcome of one command, and its effect on the book."""
    command, actor, key, fingerprint, _ = submission
    try:
        account = book.account(command.account_id)
        if actor.kind == "user" and account.user_id != actor.user_id:
            raise errors.NotFound(account_id=str(account.id))
    except errors.Error as error:
        return Outcome(error)
    scope = (account.user_id, actor.letter, key)
    known = book.keys.get(scope) if key else None
    if known is not None:
        return Outcome(known[1], replayed=True) if known[0] == fingerprint else Outcome(errors.IdempotencyKeyReused())
    book.mark = ids.mark_of(f"{account.user_id} {actor.letter} {key}") if key and isinstance(command, commands.OpenPayment) else None
    try:
        outcome = Outcome(_RULES[type(command)](book, account, command))
    except settlements.Replayed:
        outcome = Outcome(book.answer(account), replayed=True)
    except errors.Error as error:
        outcome = Outcome(error)
    if key and isinstance(outcome.decision, Answer | errors.Refusal):
        book.keys[scope] = (fingerprint, outcome.decision)
        book.new_keys.append(KeyRow(scope, fingerprint, outcome.decision))
    return outcome


def _deposit(book: Book, account: Account, command: commands.Deposit) -> Answer:
    _open(account, command.currency)
    _room(account, command.amount, "clearing")
    return book.answer(account, book.post(account, "deposit", "clearing", command.amount, command))


def _withdraw(book: Book, account: Account, command: commands.Withdraw) -> Answer:
    _open(account, command.currency)
    _funds(account, command.amount)
    _room(account, -command.amount, "clearing")
    return book.answer(account, book.post(account, "withdrawal", "clearing", -command.amount, command))


def _open_payment(book: Book, account: Account, command: commands.OpenPayment) -> Answer:
    _open(account, command.currency)
    if command.kind == "deposit":
        _room(account, command.amount, "clearing")
    else:
        _funds(account, command.amount)
    if command.refund_of is not None:
        refunded = _refundable(book, account, command)
        refunded.refunding = command.amount
        book.changed_payments[refunded.id] = refunded
    # a payment's id carries its key: a database that was restored knows by it what the provider did for the same key in the time it lost
    payment_id = ids.new_id(ids.bucket_of(account.id), book.now_ns, book.mark)
    held = 0 if command.kind == "deposit" else command.amount
    account.held += held
    account.open_payments += 1
    book.touch(account)
    book.new_payments.append(
        PaymentRow(
            payment_id,
            account.id,
            command.kind,
            command.method,
            "pending" if command.method == "direct" else "creating",
            command.amount,
            held,
            command.destination,
            command.reference,
            command.description,
            command.metadata,
            command.provider,
            command.refund_of,
            command.return_url,
            command.expires_at,
        )
    )
    return book.answer(account, payment_id=payment_id)


def _refundable(book: Book, account: Account, command: commands.OpenPayment) -> Payment:
    payment = book.payments.get(command.refund_of) if command.refund_of else None
    if payment is None or payment.account_id != account.id:
        raise errors.NotFound(payment_id=str(command.refund_of))
    left = payment.paid - payment.refunded - payment.charged_back
    if payment.kind != "deposit" or payment.method != command.method or payment.status != "completed" or command.amount > left:
        raise errors.NotRefundable(
            payment_id=str(payment.id), payment_status=payment.status, refundable=max(0, left), requested=command.amount
        )
    if payment.refunding:
        raise errors.RefundUnderWay(payment_id=str(payment.id), amount=payment.refunding)
    return payment


def _transfer(book: Book, account: Account, command: commands.Transfer) -> Answer:
    if command.to_account == account.id:
        raise errors.SameAccount()
    target = book.account(command.to_account)
    _open(account, command.currency)
    _open(target, account.currency)
    _funds(account, command.amount)
    _room(account, -command.amount, "transfers")
    _room(target, command.amount, "transfers")
    transfer_id = ids.new_id(ids.bucket_of(account.id), book.now_ns)
    row = book.post(account, "transfer_out", "transfers", -command.amount, command, transfer_id=transfer_id)
    book.post(target, "transfer_in", "transfers", command.amount, command, transfer_id=transfer_id)
    return book.answer(account, row, transfer_id=transfer_id)


def _reverse(book: Book, account: Account, command: commands.Reverse) -> Answer:
    subject = command.transfer_id or command.transaction_id
    effect = (ids.bucket_of(subject), "reversal", str(subject))
    if effect in book.effects:
        raise errors.AlreadyReversed(transaction_id=str(book.effects[effect]))
    sides = [(book.account(leg.account_id), leg) for leg in command.legs]
    for side, leg in sides:
        if leg.kind not in REVERSIBLE or leg.method != "direct":
            raise errors.NotReversible(kind=leg.kind, method=leg.method)
        _open(side, None)
        if leg.amount > 0:
            _funds(side, leg.amount)
        _room(side, -leg.amount, leg.system_account)
    transfer_id = ids.new_id(ids.bucket_of(account.id), book.now_ns) if command.transfer_id else None
    # `account` is one of the sides: the one whose transaction was named
    rows = {
        leg.transaction_id: book.post(
            side, "reversal", leg.system_account, -leg.amount, command, transfer_id=transfer_id, reverses=leg.transaction_id
        )
        for side, leg in sides
    }
    row = rows[command.transaction_id]
    book.happened(effect, row.id)
    return book.answer(account, row, transfer_id=transfer_id)


def _freeze(book: Book, account: Account, _: commands.Freeze) -> Answer:
    return _set_status(book, account, "frozen")


def _unfreeze(book: Book, account: Account, _: commands.Unfreeze) -> Answer:
    return _set_status(book, account, "active")


def _set_status(book: Book, account: Account, status: str) -> Answer:
    if account.status == "closed":
        raise errors.AccountClosed(account_id=str(account.id))
    if account.status != status:
        account.status = status
        book.touch(account)
    return book.answer(account)


def _close(book: Book, account: Account, _: commands.Close) -> Answer:
    if account.status == "closed":
        return book.answer(account)
    if account.status == "frozen":
        raise errors.AccountFrozen(account_id=str(account.id))
    if account.balance or account.held or account.owed or account.open_payments:
        raise errors.AccountNotEmpty(balance=account.balance, held=account.held, owed=account.owed, open_payments=account.open_payments)
    account.status = "closed"
    book.touch(account)
    return book.answer(account)


def _open(account: Account, currency: str | None) -> None:
    if account.status == "closed":
        raise errors.AccountClosed(account_id=str(account.id))
    if account.status == "frozen":
        raise errors.AccountFrozen(account_id=str(account.id))
    if currency is not None and currency != account.currency:
        raise errors.CurrencyMismatch(account_currency=account.currency, currency=currency)


def _funds(account: Account, amount: int) -> None:
    if account.owed:
        raise errors.AccountOwes(owed=account.owed, currency=account.currency)
    if account.available < amount:
        raise errors.InsufficientFunds(available=account.available, requested=amount, currency=account.currency)


def _room(account: Account, amount: int, system_account: SystemAccount) -> None:
    after = account.balance + amount
    # what a settlement took beyond the limit may still come down
    beyond = abs(after) > money.MAX_BALANCE and abs(after) > abs(account.balance)
    if beyond or abs(getattr(account, system_account) - amount) > MAX_SYSTEM_COLUMN:
        raise errors.BalanceLimit(limit=money.MAX_BALANCE, currency=account.currency)


_RULES: dict[type[Command], Callable[[Book, Account, Any], Answer]] = {
    commands.Deposit: _deposit,
    commands.Withdraw: _withdraw,
    commands.OpenPayment: _open_payment,
    commands.CompletePayment: settlements.complete,
    commands.CancelPayment: settlements.cancel,
    commands.Transfer: _transfer,
    commands.Reverse: _reverse,
    commands.Freeze: _freeze,
    commands.Unfreeze: _unfreeze,
    commands.Close: _close,
    commands.Advance: settlements.advance,
    commands.Observe: settlements.observe,
    commands.Settle: settlements.settle,
}
