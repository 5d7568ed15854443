"""The company statement: CSV, one row for each movement of the provider's own book, minor units, whatever the order of its columns."""

import csv
import io

import msgspec
from msgspec import Struct

COLUMNS = ("type", "id", "related_to", "reference", "status", "currency", "amount", "fee_amount", "created_on", "updated_on")
ROWS_MAX = 2_000_000
EMPTY = dict.fromkeys(("amount", "fee_amount", "created_on", "updated_on"), 0)


class Line(Struct, frozen=True, kw_only=True):
    """`type`: purchase, refund, chargeback, chargeback_reversal, payout, payout_return or settlement. Amounts are positive."""

    type: str
    id: str
    related_to: str
    reference: str
    status: str
    currency: str
    amount: int
    fee_amount: int
    created_on: int
    updated_on: int


def read(body: bytes) -> list[Line]:
    """Raises ValueError, naming the line that cannot be read: a statement that is half understood is not used."""
    reader = csv.DictReader(io.StringIO(body.decode("utf-8-sig"), newline=""))
    missing = set(COLUMNS) - set(reader.fieldnames or ())
    if missing:
        raise ValueError(f"the statement has no column {', '.join(sorted(missing))}")
    lines = []
    for number, row in enumerate(reader, start=2):
        if number > ROWS_MAX:
            raise ValueError(f"the statement has more than {ROWS_MAX} rows")
        try:
            lines.append(msgspec.convert({name: row[name] or EMPTY.get(name, "") for name in COLUMNS}, Line, strict=False))
        except msgspec.ValidationError as cause:
            raise ValueError(f"line {number} of the statement cannot be read: {cause}") from cause
    return lines
