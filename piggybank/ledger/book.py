"""The book of a batch: what was read under its locks, and what it will write. In memory, no I/O."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from msgspec import Struct

from piggybank import errors, ids
from piggybank.ledger.commands import Command, Method, PaymentKind, PaymentStatus, SystemAccount
from piggybank.ledger.idempotency import Answer, Decision, Scope
from piggybank.settings import ProviderMode

NS_PER_MS = 1_000_000

Effect = tuple[int, str, str]  # bucket, source, effect


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
    """A payment that a command names; fields in the order of `posting.REFERRED`, then what can only be set."""

    id: UUID
    account_id: UUID
    kind: PaymentKind
    method: Method
    status: PaymentStatus
    amount: int
    held: int
    transaction_id: UUID | None
    provider_id: str | None
    refund_of: UUID | None
    stamp: int
    paid: int
    refunded: int
    refunding: int
    charged_back: int
    failure: str | None
    provider_url: str | None = None


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
    kind: PaymentKind
    method: Method
    status: PaymentStatus
    amount: int
    held: int
    destination: dict[str, str] | None
    reference: str | None
    description: str | None
    metadata: dict[str, str] | None
    provider: ProviderMode | None
    refund_of: UUID | None
    return_url: str | None
    expires_at: datetime | None


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
        self.mark: int | None = None  # of the key of the command that is being decided
        self.accounts: dict[UUID, Account] = {}
        self.busy: frozenset[UUID] = frozenset()
        self.payments: dict[UUID, Payment] = {}
        self.effects: dict[Effect, UUID] = {}
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

    def happened(self, effect: Effect, transaction_id: UUID) -> None:
        """It has its effect now, and never again."""
        self.effects[effect] = transaction_id
        self.new_effects.append(EffectRow(*effect, transaction_id))

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
