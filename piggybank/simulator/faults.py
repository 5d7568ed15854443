"""Misbehaviour on demand: `timeout_after_commit:0.01,dup_event:0.05,slow_ms:800`.

Every fault is a number by its name: the fraction of cases in which it happens, or for `slow_ms` how long. All choices come from one
seeded generator. What is set at run time is kept and holds after a restart, until the configured text is another one.
"""

import random

import msgspec

from piggybank.simulator.book import Book

SLOW_MAX_MS = 600_000
_FACT_CONFIGURED = "faults_configured"
_FACT_NOW = "faults"

ABOUT = {
    "timeout_after_commit": "the work is done and the answer never comes",
    "5xx": "an error of the server; nothing was done",
    "5xx_after_commit": "an error of the server although the work was done",
    "slow_ms": "milliseconds that every answer takes longer",
    "dup_event": "an event is delivered twice",
    "late_event": "an event is held back for a while",
    "reorder": "an event is held back a moment, so that others overtake it",
    "bad_signature": "the first tries of an event are signed wrongly",
    "wrong_amount": "the payer pays another amount than was asked for",
    "wrong_currency": "the payer pays in another currency than was asked for",
    "chargeback": "a paid purchase is charged back a moment later",
    "chargeback_reversed": "such a chargeback is reversed a moment later",
    "refund_failure": "a refund fails",
    "sync_refund": "a refund is done at once and answered with its payment",
    "payout_pending": "a payout is pending first",
    "payout_error": "a payout ends in an error, an EFT credit is unpaid",
    "payout_return": "a payout that succeeded comes back",
    "statement_mismatch": "a row of a statement is altered, missing or invented",
}


def parse(text: str) -> dict[str, float]:
    """The numbers by name; ValueError says what is wrong."""
    rates: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, colon, number = part.partition(":")
        if not colon:
            raise ValueError(f"fault {part!r} has no number: write {name}:0.01")
        if name in rates:
            raise ValueError(f"fault {name!r} is named twice")
        try:
            rates[name] = float(number)
        except ValueError:
            raise ValueError(f"fault {name!r}: {number!r} is not a number") from None
    check(rates)
    return rates


def check(rates: dict[str, float]) -> None:
    """ValueError when a name is unknown or a number is out of its range."""
    for name, number in rates.items():
        if name not in ABOUT:
            raise ValueError(f"there is no fault {name!r}; known are {', '.join(ABOUT)}")
        most = SLOW_MAX_MS if name == "slow_ms" else 1
        if not 0 <= number <= most:  # NaN is not either
            raise ValueError(f"fault {name!r} must be from 0 to {most}, not {number}")


class Faults:
    """The numbers of now and the dice."""

    def __init__(self, configured: str, seed: int | None) -> None:
        self._configured = configured
        self._rates = parse(configured)
        self.dice = random.Random(seed)  # noqa: S311 - chooses what goes wrong, protects nothing

    def load(self, book: Book) -> None:
        """Go on with what was set at run time, if the configured text is still the one from then."""
        now = book.fact(_FACT_NOW)
        if now is not None and book.fact(_FACT_CONFIGURED) == self._configured:
            self._rates = msgspec.json.decode(now, type=dict[str, float])
        else:
            self._keep(book)

    def put(self, book: Book, rates: dict[str, float]) -> None:
        """Replace all numbers; those not named are 0."""
        check(rates)
        self._rates = dict(rates)
        self._keep(book)

    def all(self) -> dict[str, float]:
        """Every fault with its number."""
        return {name: self._rates.get(name, 0) for name in ABOUT}

    def happens(self, name: str) -> bool:
        """Throw the dice for one case."""
        rate = self._rates.get(name, 0)
        return rate > 0 and self.dice.random() < rate

    @property
    def slow_s(self) -> float:
        """How much longer every answer takes."""
        return self._rates.get("slow_ms", 0) / 1_000

    def _keep(self, book: Book) -> None:
        with book.writing():
            book.keep_fact(_FACT_CONFIGURED, self._configured)
            book.keep_fact(_FACT_NOW, msgspec.json.encode(self._rates).decode())
