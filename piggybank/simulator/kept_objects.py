"""Objects in the book: what is sent, with what nobody outside sees."""

from typing import ClassVar, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from piggybank.simulator.book import Book
from piggybank.simulator.objects import EftCredit, Payment, Payout, Purchase, Sent
from piggybank.simulator.refusals import not_found


class Summary(NamedTuple):
    """What the book knows of an object without opening it."""

    type: str
    id: str
    reference: str
    status: str
    currency: str
    amount: int
    executions: int
    updated_on: int


class KeptPurchase(Struct, kw_only=True):
    """Amounts in minor units of `sent.payment.currency`."""

    kind: ClassVar[str] = "purchase"
    sent: Purchase
    paid: int = 0
    refunded: int = 0
    refunding: int = 0
    charged_back: int = 0
    settled: bool = False
    chargebacks: list[int] = []  # not reversed yet, the oldest first

    def summary(self) -> Summary:
        """With what was paid, or else what is asked for."""
        paid, asked = self.sent.payment, self.sent.purchase
        currency, amount = (paid.currency, paid.amount) if paid else (asked.currency, asked.total)
        return _summary(self.sent, self.kind, currency, amount, 0)


class KeptPayment(Struct, kw_only=True):
    """Of the type that its payment has."""

    kind: ClassVar[str] = "payment"
    sent: Payment

    def summary(self) -> Summary:
        """With the payment's own type: refund, chargeback, chargeback_reversal."""
        block = self.sent.payment
        return _summary(self.sent, block.payment_type, block.currency, block.amount, 0)


class KeptPayout(Struct, kw_only=True):
    """`executions` counts every call of its execution_url, the refused ones too."""

    kind: ClassVar[str] = "payout"
    sent: Payout
    executions: int = 0

    def summary(self) -> Summary:
        """With the executions."""
        return _summary(self.sent, self.kind, self.sent.payment.currency, self.sent.payment.amount, self.executions)


class KeptCredit(Struct, kw_only=True):
    """`account` is the payee's; `currency` is always that of the rail."""

    kind: ClassVar[str] = "eft_credit"
    sent: EftCredit
    account: str
    currency: str
    created_on: int
    updated_on: int

    def summary(self) -> Summary:
        """An EFT credit is executed by being posted."""
        sent = self.sent
        return Summary(self.kind, sent.id, sent.contractReference, sent.status, self.currency, sent.amountCents, 1, self.updated_on)


Kept = KeptPurchase | KeptPayment | KeptPayout | KeptCredit
_K = TypeVar("_K", KeptPurchase, KeptPayment, KeptPayout, KeptCredit)

_DECODERS = {made: msgspec.json.Decoder(made) for made in (KeptPurchase, KeptPayment, KeptPayout, KeptCredit)}
_ENCODER = msgspec.json.Encoder()

_INSERT = """
INSERT INTO objects (type, id, reference, status, currency, amount, executions, updated_on, kept) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_UPDATE = """
UPDATE objects SET type = ?, reference = ?, status = ?, currency = ?, amount = ?, executions = ?, updated_on = ?, kept = ? WHERE id = ?
"""


def insert(book: Book, kept: Kept) -> None:
    """Write a new object."""
    book.execute(_INSERT, (*kept.summary(), _ENCODER.encode(kept)))


def save(book: Book, kept: Kept) -> None:
    """Write an object that has changed."""
    summary = kept.summary()
    book.execute(_UPDATE, (summary.type, *summary[2:], _ENCODER.encode(kept), summary.id))


def load(book: Book, made: type[_K], object_id: str) -> _K:
    """The object of this type; refuses with a 404."""
    row = book.row("SELECT type, kept FROM objects WHERE id = ?", (object_id,))
    if row is None or (row["type"] != made.kind and made is not KeptPayment):
        raise not_found()
    found: _K = _DECODERS[made].decode(row["kept"])  # type: ignore[assignment]  # the table has the decoder of each type
    return found


def _summary(sent: Sent, kind: str, currency: str, amount: int, executions: int) -> Summary:
    return Summary(kind, sent.id, sent.reference, sent.status, currency, amount, executions, sent.updated_on)
