"""What the ledger can be told to do.

A request (`Deposit` to `Close`) may be refused; what the provider says (`Settle`, `Observe`) is a fact and is not. `account_id` is
the account whose owner the idempotency key belongs to. What a command needs that never changes (a posted row, the account of a
payment) the caller has looked up; what may change is read by the ledger under the lock.
"""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from msgspec import Struct

from piggybank.settings import ProviderMode

SystemAccount = Literal["clearing", "fees", "transfers", "adjustments"]
SettlementKind = Literal["deposit", "withdrawal", "refund", "chargeback", "chargeback_reversal", "payout_return", "fee", "adjustment"]
PaymentKind = Literal["deposit", "withdrawal", "refund"]
PaymentStatus = Literal["creating", "pending", "processing", "unknown", "completed", "failed", "cancelled", "returned"]
Method = Literal["direct", "revio"]
Destination = dict[str, str]
TRANSFER_LEGS = 2  # rows of one transfer: both or none


class Actor(Struct, frozen=True):
    """Who asks. A `user` reaches their own accounts only; the rest reach all. Keys of different kinds never meet."""

    kind: Literal["user", "operator", "service", "system"]
    user_id: UUID | None = None

    @property
    def letter(self) -> str:
        """What an idempotency key is stored under."""
        return {"user": "u", "operator": "o", "service": "s", "system": "y"}[self.kind]


SYSTEM = Actor("system")


class Act(Struct, frozen=True):
    """A row of the audit log, written in the transaction of what it tells about: once, by its `id`, and only if that is not refused.

    The ledger adds to `details` what it made: `transaction`, `transfer`, `payment`.
    """

    id: UUID
    by: str
    action: str
    target: str
    details: dict[str, Any]


class Command(Struct, frozen=True, kw_only=True):
    """What every command takes."""

    account_id: UUID
    reference: str | None = None
    description: str | None = None
    metadata: dict[str, str] | None = None


class Deposit(Command, frozen=True, kw_only=True):
    """Money came in, recorded by the team's own backend."""

    amount: int
    currency: str | None = None


class Withdraw(Command, frozen=True, kw_only=True):
    """Money went out at once."""

    amount: int
    currency: str | None = None


class OpenPayment(Command, frozen=True, kw_only=True):
    """Something that ends later: reserves `amount` of what is to go out (a withdrawal, a refund), nothing for a deposit."""

    amount: int
    currency: str | None = None
    kind: PaymentKind = "withdrawal"
    method: Method = "direct"
    provider: ProviderMode | None = None  # with method `revio`: which one it is
    refund_of: UUID | None = None  # the payment that a refund gives back
    destination: Destination | None = None
    return_url: str | None = None  # where the checkout sends people afterwards
    expires_at: datetime | None = None


class CompletePayment(Command, frozen=True, kw_only=True):
    """The held withdrawal was paid out: post it and release the hold. A fact: no rule refuses it while the payment is open."""

    payment_id: UUID


class CancelPayment(Command, frozen=True, kw_only=True):
    """Release the hold; nothing is posted. Refused once a provider executes it."""

    payment_id: UUID


class Advance(Command, frozen=True, kw_only=True):
    """We did something about a payment: from one of the states `was` to `status`; refused where it is elsewhere by now."""

    payment_id: UUID
    was: frozenset[PaymentStatus]
    status: PaymentStatus
    provider_id: str | None = None
    provider_url: str | None = None  # the checkout page, or where a payout is executed
    stamp: int = 0
    failure: str | None = None


class Transfer(Command, frozen=True, kw_only=True):
    """From `account_id` to `to_account`, both or none."""

    to_account: UUID
    amount: int
    currency: str | None = None


class Leg(Struct, frozen=True):
    """A posted row that is to be reversed; `method` is that of its payment. What a provider moved, only the provider moves back."""

    transaction_id: UUID
    account_id: UUID
    kind: str
    system_account: SystemAccount
    amount: int
    method: str


class Reverse(Command, frozen=True, kw_only=True):
    """Undo a posted transaction with a row of its own; both legs of a transfer or none, once."""

    transaction_id: UUID
    transfer_id: UUID | None
    legs: tuple[Leg, ...]


class Freeze(Command, frozen=True, kw_only=True):
    """Refuse every request on the account from now on."""


class Unfreeze(Command, frozen=True, kw_only=True):
    """Take requests again."""


class Close(Command, frozen=True, kw_only=True):
    """End an empty account for good."""


class Settle(Command, frozen=True, kw_only=True):
    """A fact from outside, once for each (source, effect): posted whatever the account's state; a shortage becomes `owed`.

    `amount` is positive; the kind gives the sign, except for an `adjustment`, which is signed. `refund_id` is our payment that asked
    for the refund, `object_id` the provider's name for what happened, `stamp` how new the news is (see `Observe`).
    """

    kind: SettlementKind
    amount: int
    source: str
    effect: str
    payment_id: UUID | None = None
    refund_id: UUID | None = None
    object_id: str | None = None
    stamp: int = 0


class Observe(Command, frozen=True, kw_only=True):
    """What the provider says of a payment that moves no money by itself; the newest news counts, whenever it arrives.

    `stamp` grows with every change of the provider's object. Failed news of a payout that was paid means that it came back.
    """

    payment_id: UUID
    status: Literal["pending", "processing", "failed", "cancelled"]
    stamp: int
    failure: str | None = None


def accounts_of(command: Command) -> tuple[UUID, ...]:
    """Every account that the command locks."""
    if isinstance(command, Transfer):
        return command.account_id, command.to_account
    if isinstance(command, Reverse):
        return tuple(leg.account_id for leg in command.legs)
    return (command.account_id,)
