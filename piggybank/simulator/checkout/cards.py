"""The test cards and what becomes of them."""

import re
from datetime import UTC, datetime
from typing import NamedTuple

from msgspec import Struct

from piggybank.simulator.objects import AttemptError


class Card(NamedTuple):
    """As it was typed."""

    number: str
    expiry: str
    cvc: str


class Kind(NamedTuple):
    """A card of the list."""

    method: str
    is_3ds: bool


class Outcome(Struct, frozen=True, kw_only=True):
    """Declined when there is an error; an empty method is the purchase's usual one."""

    method: str = ""
    is_3ds: bool = False
    error: AttemptError | None = None


CVC = "123"
CARDS = {
    "4444333322221111": Kind("visa", is_3ds=False),
    "5555555555554444": Kind("mastercard", is_3ds=True),
    "4000000000000077": Kind("visa", is_3ds=False),
}
USUAL = Outcome()
CONFIRMED = Outcome(method="mastercard", is_3ds=True)
REFUSED = Outcome(
    method="mastercard", is_3ds=True, error=AttemptError("3ds_authentication_failed", "The payer did not confirm the payment.")
)

_EXPIRY = re.compile(r"\s*(?P<month>0?[1-9]|1[0-2])\s*/\s*(?:20)?(?P<year>[0-9]{2})\s*")


def outcome(card: Card, now: int) -> Outcome:
    """A card of the list with CVC 123 and an expiry in the future is good; anything else is declined."""
    number = re.sub(r"[\s-]", "", card.number)
    kind = CARDS.get(number)
    if kind is None:
        return _declined(number, "invalid_card_number", "This is not a test card.")
    if not _is_in_future(card.expiry, now):
        return _declined(number, "expired_card", "The card has expired.")
    if card.cvc.strip() != CVC:
        return _declined(number, "invalid_cvc", "The security code is wrong.")
    return Outcome(method=kind.method, is_3ds=kind.is_3ds)


def expiry_to_offer(now: int) -> str:
    """One that is good: December of the next year."""
    return f"12/{(datetime.fromtimestamp(now, UTC).year + 1) % 100:02}"


def _is_in_future(expiry: str, now: int) -> bool:
    """A card is good to the end of its month."""
    found = _EXPIRY.fullmatch(expiry)
    today = datetime.fromtimestamp(now, UTC)
    return found is not None and (2000 + int(found["year"]), int(found["month"])) >= (today.year, today.month)


def _declined(number: str, code: str, message: str) -> Outcome:
    method = "mastercard" if number.startswith("5") else "visa"
    return Outcome(method=method, error=AttemptError(code, message))
