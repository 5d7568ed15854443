"""What Revio sends: whole objects, in events and in answers alike. Read loosely where it does not matter, strictly where money does.

Unknown fields are passed over (the API grows); a field that we use and that has another type makes the object unreadable.
"""

from typing import Any

import msgspec
from msgspec import Struct

STAMP_HISTORY_BITS = 16
STAMP_RANK_BITS = 4
HISTORY_MAX = (1 << STAMP_HISTORY_BITS) - 1
FAILURE_MAX_CHARACTERS = 200


class Money(Struct, frozen=True, kw_only=True):
    """The `payment` block: minor units. `fee_amount` is what the provider keeps of it."""

    amount: int
    currency: str
    payment_type: str = ""
    is_outgoing: bool = False
    fee_amount: int | None = None


class Related(Struct, frozen=True, kw_only=True):
    """The object that a refund or chargeback is about."""

    type: str
    id: str


class Change(Struct, frozen=True, kw_only=True):
    """One entry of the history."""

    status: str
    timestamp: int = 0


class Snapshot(Struct, frozen=True, kw_only=True):
    """A purchase, a payout or a payment (a refund, a chargeback) as it was when it was sent; `event_type` only in events."""

    id: str
    type: str
    event_type: str = ""
    status: str = ""
    status_history: list[Change] = []
    updated_on: int = 0
    reference: str | None = None
    is_test: bool = False
    checkout_url: str | None = None
    execution_url: str | None = None
    refundable_amount: int | None = None
    payment: Money | None = None
    related_to: Related | None = None
    transaction_data: dict[str, Any] | None = None
    error: dict[str, Any] | str | None = None

    @property
    def was(self) -> frozenset[str]:
        """Every status that it has had."""
        return frozenset(change.status for change in self.status_history) | {self.status}

    def stamp(self, rank: int) -> int:
        """Grows with each change of the object: its time, how much it has been through, and, for equal ones, `rank` (0..15)."""
        history = min(len(self.status_history), HISTORY_MAX)
        return (((max(0, self.updated_on) << STAMP_HISTORY_BITS) | history) << STAMP_RANK_BITS) | rank

    @property
    def failure(self) -> str | None:
        """Why, in the provider's words, where it says so: the newest attempt comes first."""
        attempts = (self.transaction_data or {}).get("attempts")
        error = attempts[0].get("error") if isinstance(attempts, list) and attempts and isinstance(attempts[0], dict) else self.error
        if isinstance(error, dict):
            error = error.get("code") or error.get("message")
        return str(error)[:FAILURE_MAX_CHARACTERS] if error else None


class Webhook(Struct, frozen=True, kw_only=True):
    """A registered webhook with the public half of its own key pair."""

    id: str
    callback: str
    public_key: str
    title: str = ""
    all_events: bool = False
    events: list[str] = []


class WebhookPage(Struct, frozen=True, kw_only=True):
    results: list[Webhook]
    next: str | None = None


class Standing(Struct, frozen=True, kw_only=True):
    """What the provider owes us in one currency."""

    balance: int
    gross_balance: int = 0
    available_balance: int = 0
    reserved: int = 0
    pending_outgoing: int = 0


class Statement(Struct, frozen=True, kw_only=True):
    """An export that is made in the background: `queued`, `processing`, then `finished` with a `download_url`."""

    id: str
    status: str
    download_url: str | None = None


snapshot = msgspec.json.Decoder(Snapshot).decode
