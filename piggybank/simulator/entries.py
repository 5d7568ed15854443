"""Entries: what moved money, one row each, and their sums.

    balance = what came in (purchases without their fees, reversals, returned payouts) - what went out

An entry is never changed. A purchase's is written when it is paid, a payout's when it succeeds, an EFT credit's when it is posted,
since the money leaves then; what comes back later is an entry of its own.
"""

from typing import NamedTuple

from msgspec import Struct

from piggybank.simulator.book import Book

SIGN = {
    "purchase": 1,
    "refund": -1,
    "chargeback": -1,
    "chargeback_reversal": 1,
    "payout": -1,
    "payout_return": 1,
    "settlement": -1,
}

RESERVED, OUTGOING = "reserved", "pending_outgoing"  # kinds of money on its way: refunds, payouts

_INSERT = """
INSERT INTO entries (type, id, object_id, related_to, reference, currency, amount, fee_amount, net_amount, created_on)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_ADD_UP = """
INSERT INTO sums (currency, type, amount, fee_amount, entries) VALUES (?, ?, ?, ?, 1)
ON CONFLICT (currency, type) DO UPDATE
SET amount = amount + excluded.amount, fee_amount = fee_amount + excluded.fee_amount, entries = entries + 1
"""
_ADD_PENDING = """
INSERT INTO pending (currency, kind, amount) VALUES (?, ?, ?)
ON CONFLICT (currency, kind) DO UPDATE SET amount = amount + excluded.amount
"""


class Entry(NamedTuple):
    """Amounts are positive minor units; `object_id` is the object whose status the entry shows, if any."""

    type: str
    id: str
    object_id: str
    related_to: str
    reference: str
    currency: str
    amount: int
    fee_amount: int = 0


class Sums(Struct, frozen=True, kw_only=True):
    """All entries of a currency, added up; minor units."""

    paid: int
    fees: int
    refunds: int
    chargebacks: int
    reversals: int
    payouts: int
    returns: int
    settlements: int
    balance: int
    entries: int


class Balance(Struct, frozen=True, kw_only=True):
    """What the API says of a currency; minor units. `gross_balance` is before all fees there ever were."""

    gross_balance: int
    balance: int
    available_balance: int
    reserved: int
    pending_outgoing: int
    fee_sell: int


def record(book: Book, entry: Entry) -> None:
    """Write an entry and add it up."""
    assert entry.type in SIGN
    book.execute(_INSERT, (*entry, entry.amount - entry.fee_amount, book.now()))
    book.execute(_ADD_UP, (entry.currency, entry.type, entry.amount, entry.fee_amount))


def add_pending(book: Book, currency: str, kind: str, amount: int) -> None:
    """Money sets out (or, below 0, has arrived or comes back)."""
    book.execute(_ADD_PENDING, (currency, kind, amount))


def sums(book: Book) -> dict[str, Sums]:
    """By currency."""
    found: dict[str, dict[str, int]] = {}
    fees: dict[str, int] = {}
    counts: dict[str, int] = {}
    for row in book.rows("SELECT currency, type, amount, fee_amount, entries FROM sums ORDER BY currency"):
        currency = row["currency"]
        found.setdefault(currency, dict.fromkeys(SIGN, 0))[row["type"]] = row["amount"]
        fees[currency] = fees.get(currency, 0) + row["fee_amount"]
        counts[currency] = counts.get(currency, 0) + row["entries"]
    return {
        currency: Sums(
            paid=amounts["purchase"],
            fees=fees[currency],
            refunds=amounts["refund"],
            chargebacks=amounts["chargeback"],
            reversals=amounts["chargeback_reversal"],
            payouts=amounts["payout"],
            returns=amounts["payout_return"],
            settlements=amounts["settlement"],
            balance=sum(SIGN[kind] * amount for kind, amount in amounts.items()) - fees[currency],
            entries=counts[currency],
        )
        for currency, amounts in found.items()
    }


def balances(book: Book) -> dict[str, Balance]:
    """By currency; a currency in which nothing ever moved is absent."""
    pending = {(row["currency"], row["kind"]): row["amount"] for row in book.rows("SELECT currency, kind, amount FROM pending")}
    known = sums(book)
    made = {}
    for currency in sorted({*known, *(currency for currency, _ in pending)}):
        balance, fees = (known[currency].balance, known[currency].fees) if currency in known else (0, 0)
        reserved, outgoing = (pending.get((currency, kind), 0) for kind in (RESERVED, OUTGOING))
        made[currency] = Balance(
            gross_balance=balance + fees,
            balance=balance,
            available_balance=balance - reserved - outgoing,
            reserved=reserved,
            pending_outgoing=outgoing,
            fee_sell=fees,
        )
    return made
