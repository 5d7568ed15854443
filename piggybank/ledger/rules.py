"""Decide each command in order, in memory: no `await` in here, and no I/O.

A `Book` is what the batch read under its locks, and what it will write. A rule looks first and acts last, so a refused command
leaves no trace; the next command sees what those before it did.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple
from uuid import UUID

from msgspec import Struct

from piggybank import errors, ids, money
from piggybank.ledger import commands
from piggybank.ledger.commands import Command, SystemAccount
from piggybank.ledger.idempotency import Answer, Decision, Scope

MAX_SYSTEM_COLUMN = 2**62  # minor units exchanged with one system account, net; bigint ends at 2**63
NS_PER_MS = 1_000_000

OPEN = frozenset({"creating", "pending", "processing", "unknown"})
REVERSIBLE = frozenset({"deposit", "withdrawal", "transfer_in", "transfer_out"})

# kind of settlement -> (system account, sign as the account sees it)
SETTLEMENTS: dict[commands.SettlementKind, tuple[SystemAccount, Literal[1, -1]]] = {
    "deposit": ("clearing", 1),
    "refund": ("clearing", -1),
    "chargeback": ("clearing", -1),
    "chargeback_reversal": ("clearing", 1),
    "payout_return": ("clearing", 1),
    "fee": ("fees", -1),
    "adjustment": ("adjustments", 1),
}


class Account(Struct):
    """An account row under lock; fields in the order of `posting.LOCK`."""

    id: UUID
    user_id: UUID
    currency: str
    status: str
    balance: int
    held: int
    owed: int
    clearing: int
    fees: int
    transfers: int
    adjustments: int
    version: int
    sequence: int
    transactions_count: int
    open_payments: int
    last_transaction_id: UUID | None

    @property
    def available(self) -> int:
        return self.balance - self.held


class Payment(Struct):
    """A payment that a command names; fields in the order of `posting.REFERRED`."""

    id: UUID
    account_id: UUID
    status: str
    amount: int
    held: int
    transaction_id: UUID | None = None


class TransactionRow(NamedTuple):
    """One posted row, in the order of `posting.WRITE`."""

    id: UUID
    account_id: UUID
    amount: int
    balance_after: int
    sequence: int
    kind: str
    system_account: SystemAccount
    transfer_id: UUID | None
    payment_id: UUID | None
    reverses: UUID | None
    reference: str | None
    description: str | None
    metadata: dict[str, str] | None


class PaymentRow(NamedTuple):
    """One new payment, in the order of `posting.WRITE`."""

    id: UUID
    account_id: UUID
    kind: str
    method: str
    status: str
    amount: int
    held: int
    destination: dict[str, str] | None
    reference: str | None
    description: str | None
    metadata: dict[str, str] | None


class EffectRow(NamedTuple):
    """One thing that may happen once."""

    bucket: int
    source: str
    effect: str
    transaction_id: UUID


class KeyRow(NamedTuple):
    """One key with its answer, before it is encoded."""

    scope: Scope
    fingerprint: bytes
    decision: Answer | errors.Refusal


class Book:
    """What a batch knows and what it will write."""

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns
        self.accounts: dict[UUID, Account] = {}
        self.busy: frozenset[UUID] = frozenset()
        self.payments: dict[UUID, Payment] = {}
        self.effects: dict[tuple[int, str, str], UUID] = {}
        self.keys: dict[Scope, tuple[bytes, Decision]] = {}
        self.changed: dict[UUID, Account] = {}
        self.new_transactions: list[TransactionRow] = []
        self.new_payments: list[PaymentRow] = []
        self.changed_payments: dict[UUID, Payment] = {}
        self.new_effects: list[EffectRow] = []
        self.new_keys: list[KeyRow] = []

    def account(self, account_id: UUID) -> Account:
        """Raises NotFound, or AccountBusy when something else has held its lock for too long."""
        account = self.accounts.get(account_id)
        if account is None:
            raise errors.AccountBusy() if account_id in self.busy else errors.NotFound(account_id=str(account_id))
        return account

    def touch(self, account: Account) -> None:
        """The account's row or payments changed: a new version."""
        account.owed = max(0, account.held - account.balance)
        account.version += 1
        self.changed[account.id] = account

    def post(
        self,
        account: Account,
        kind: str,
        system_account: SystemAccount,
        amount: int,
        command: Command,
        *,
        transfer_id: UUID | None = None,
        payment_id: UUID | None = None,
        reverses: UUID | None = None,
    ) -> TransactionRow:
        """One row: `amount`, as the account sees it, against a system account."""
        account.balance += amount
        setattr(account, system_account, getattr(account, system_account) - amount)
        account.sequence += 1
        account.transactions_count += 1
        account.last_transaction_id = ids.following_id(account.last_transaction_id, ids.bucket_of(account.id), self.now_ns)
        self.touch(account)
        row = TransactionRow(
            account.last_transaction_id,
            account.id,
            amount,
            account.balance,
            account.sequence,
            kind,
            system_account,
            transfer_id,
            payment_id,
            reverses,
            command.reference,
            command.description,
            command.metadata,
        )
        self.new_transactions.append(row)
        return row

    def answer(
        self, account: Account, row: TransactionRow | None = None, *, transfer_id: UUID | None = None, payment_id: UUID | None = None
    ) -> Answer:
        """The source account as it is now, and what was made."""
        return Answer(
            account.currency,
            account.balance,
            account.held,
            account.owed,
            account.version,
            self.now_ns // NS_PER_MS,
            row.id if row else None,
            row.sequence if row else None,
            transfer_id,
            payment_id,
        )


class Submission(NamedTuple):
    """A command with who asks and, where it moves money by request, its key (empty: none) and fingerprint."""

    command: Command
    actor: commands.Actor
    key: str = ""
    fingerprint: bytes = b""


class Outcome(NamedTuple):
    """A decision; `replayed` when it was made before."""

    decision: Decision
    replayed: bool = False


def decide(book: Book, submission: Submission) -> Outcome:
    """The outcome of one command, and its effect on the book."""
    command, actor, key, fingerprint = submission
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
    try:
        outcome = _RULES[type(command)](book, account, command)
    except errors.Error as error:
        outcome = Outcome(error)
    if key and isinstance(outcome.decision, Answer | errors.Refusal):
        book.keys[scope] = (fingerprint, outcome.decision)
        book.new_keys.append(KeyRow(scope, fingerprint, outcome.decision))
    return outcome


def _deposit(book: Book, account: Account, command: commands.Deposit) -> Outcome:
    _open(account, command.currency)
    _room(account, command.amount, "clearing")
    return Outcome(book.answer(account, book.post(account, "deposit", "clearing", command.amount, command)))


def _withdraw(book: Book, account: Account, command: commands.Withdraw) -> Outcome:
    _open(account, command.currency)
    _funds(account, command.amount)
    _room(account, -command.amount, "clearing")
    return Outcome(book.answer(account, book.post(account, "withdrawal", "clearing", -command.amount, command)))


def _hold(book: Book, account: Account, command: commands.Hold) -> Outcome:
    _open(account, command.currency)
    _funds(account, command.amount)
    payment_id = ids.new_id(ids.bucket_of(account.id), book.now_ns)
    account.held += command.amount
    account.open_payments += 1
    book.touch(account)
    book.new_payments.append(
        PaymentRow(
            payment_id,
            account.id,
            "withdrawal",
            "direct",
            "pending",
            command.amount,
            command.amount,
            command.destination,
            command.reference,
            command.description,
            command.metadata,
        )
    )
    return Outcome(book.answer(account, payment_id=payment_id))


def _complete(book: Book, account: Account, command: commands.CompletePayment) -> Outcome:
    payment = _open_payment(book, account, command.payment_id)
    account.held -= payment.held
    account.open_payments -= 1
    row = book.post(account, "withdrawal", "clearing", -payment.amount, command, payment_id=payment.id)
    payment.status, payment.held, payment.transaction_id = "completed", 0, row.id
    book.changed_payments[payment.id] = payment
    return Outcome(book.answer(account, row, payment_id=payment.id))


def _cancel(book: Book, account: Account, command: commands.CancelPayment) -> Outcome:
    payment = _open_payment(book, account, command.payment_id)
    account.held -= payment.held
    account.open_payments -= 1
    book.touch(account)
    payment.status, payment.held = "cancelled", 0
    book.changed_payments[payment.id] = payment
    return Outcome(book.answer(account, payment_id=payment.id))


def _transfer(book: Book, account: Account, command: commands.Transfer) -> Outcome:
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
    return Outcome(book.answer(account, row, transfer_id=transfer_id))


def _reverse(book: Book, account: Account, command: commands.Reverse) -> Outcome:
    subject = command.transfer_id or command.transaction_id
    effect = (ids.bucket_of(subject), "reversal", str(subject))
    if effect in book.effects:
        raise errors.AlreadyReversed(transaction_id=str(book.effects[effect]))
    sides = [(book.account(leg.account_id), leg) for leg in command.legs]
    for side, leg in sides:
        if leg.kind not in REVERSIBLE:
            raise errors.NotReversible(kind=leg.kind)
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
    _happened(book, effect, row.id)
    return Outcome(book.answer(account, row, transfer_id=transfer_id))


def _freeze(book: Book, account: Account, _: commands.Freeze) -> Outcome:
    return _set_status(book, account, "frozen")


def _unfreeze(book: Book, account: Account, _: commands.Unfreeze) -> Outcome:
    return _set_status(book, account, "active")


def _set_status(book: Book, account: Account, status: str) -> Outcome:
    if account.status == "closed":
        raise errors.AccountClosed(account_id=str(account.id))
    if account.status != status:
        account.status = status
        book.touch(account)
    return Outcome(book.answer(account))


def _close(book: Book, account: Account, _: commands.Close) -> Outcome:
    if account.status == "closed":
        return Outcome(book.answer(account))
    if account.balance or account.held or account.owed or account.open_payments:
        raise errors.AccountNotEmpty(balance=account.balance, held=account.held, owed=account.owed, open_payments=account.open_payments)
    account.status = "closed"
    book.touch(account)
    return Outcome(book.answer(account))


def _settle(book: Book, account: Account, command: commands.Settle) -> Outcome:
    effect = (ids.bucket_of(account.id), command.source, command.effect)
    if effect in book.effects:
        return Outcome(book.answer(account), replayed=True)
    system_account, sign = SETTLEMENTS[command.kind]
    row = book.post(account, command.kind, system_account, sign * command.amount, command, payment_id=command.payment_id)
    _happened(book, effect, row.id)
    return Outcome(book.answer(account, row, payment_id=command.payment_id))


def _happened(book: Book, effect: tuple[int, str, str], transaction_id: UUID) -> None:
    book.effects[effect] = transaction_id
    book.new_effects.append(EffectRow(*effect, transaction_id))


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
    if abs(account.balance + amount) > money.MAX_BALANCE or abs(getattr(account, system_account) - amount) > MAX_SYSTEM_COLUMN:
        raise errors.BalanceLimit(limit=money.MAX_BALANCE, currency=account.currency)


def _open_payment(book: Book, account: Account, payment_id: UUID) -> Payment:
    payment = book.payments.get(payment_id)
    if payment is None or payment.account_id != account.id:
        raise errors.NotFound(payment_id=str(payment_id))
    if payment.status not in OPEN:
        raise errors.PaymentNotOpen(payment_id=str(payment_id), status=payment.status)
    return payment


_RULES: dict[type[Command], Callable[[Book, Account, Any], Outcome]] = {
    commands.Deposit: _deposit,
    commands.Withdraw: _withdraw,
    commands.Hold: _hold,
    commands.CompletePayment: _complete,
    commands.CancelPayment: _cancel,
    commands.Transfer: _transfer,
    commands.Reverse: _reverse,
    commands.Freeze: _freeze,
    commands.Unfreeze: _unfreeze,
    commands.Close: _close,
    commands.Settle: _settle,
}
