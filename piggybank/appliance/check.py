"""One line of what `piggybank doctor` answers."""

from typing import Literal, NamedTuple

Result = Literal["ok", "warning", "broken"]


class Check(NamedTuple):
    """What was looked at, what was found, and what to do about it."""

    name: str
    result: Result
    found: str
    do: str = ""
