"""Moments in a query: RFC 3339 with an offset, and nothing else.

They arrive as text and are read here, not by the framework: its errors would name the handler's argument instead of the parameter,
and it takes `0.5` for half a second after 1970.
"""

from datetime import UTC, datetime
from typing import Annotated

import msgspec
from litestar.params import QueryParameter

from piggybank.api import problems

MOMENT_MAX_CHARACTERS = 64
DATE_CHARACTERS = len("2026-01-31T")
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(9000, 1, 1, tzinfo=UTC)

From = Annotated[
    str | None,
    QueryParameter(
        name="from",
        max_length=MOMENT_MAX_CHARACTERS,
        format="date-time",
        description="Only what was made at or after this moment (RFC 3339, with its offset).",
    ),
]
To = Annotated[
    str | None,
    QueryParameter(
        name="to",
        max_length=MOMENT_MAX_CHARACTERS,
        format="date-time",
        description="Only what was made before this moment (RFC 3339, with its offset).",
    ),
]
At = Annotated[
    str | None,
    QueryParameter(
        max_length=MOMENT_MAX_CHARACTERS,
        format="date-time",
        description="The posted balance just before this moment (RFC 3339, with its offset).",
    ),
]


def moment(name: str, sent: str | None) -> datetime | None:
    """A moment in UTC, when it says where on Earth it is meant; what is before all ids or after them comes to the same."""
    if sent is None:
        return None
    # a `+` that was not escaped arrives as a space
    text = sent[:DATE_CHARACTERS] + sent[DATE_CHARACTERS:].replace(" ", "+")
    try:
        found = msgspec.convert(text, datetime)
    except msgspec.ValidationError:
        found = None
    if found is None or found.tzinfo is None:
        raise problems.invalid(name, "is not a time with its offset, like 2026-01-31T12:00:00Z", "malformed")
    return min(max(found, EARLIEST), LATEST).astimezone(UTC)
