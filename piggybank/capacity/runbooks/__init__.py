"""The page of each alert: what it means, what to look at, what to do. People read the same files on the web.

A page is `# Name`, sentences, `## What to look at` and `## What to do` with a list each. Code is between backticks; nothing else is
markup.
"""

import re
from functools import cache
from pathlib import Path

from msgspec import Struct

FOLDER = "piggybank/capacity/runbooks"  # from the top of the repository
_PAGE = re.compile(r"# (?P<name>\w+)\n\n(?P<means>.+)\n\n## What to look at\n\n(?P<look>.+)\n\n## What to do\n\n(?P<do>.+)\n", re.DOTALL)


class Runbook(Struct, frozen=True, kw_only=True):
    """One page; each line of `look` and `do` is a step."""

    name: str
    means: str
    look: list[str]
    do: list[str]


@cache
def table() -> dict[str, Runbook]:
    """All of them, by the names of their alerts."""
    pages = [_read(path) for path in sorted(Path(__file__).parent.glob("*.md"))]
    return {page.name: page for page in pages}


def address(url: str, name: str) -> str:
    """Where an operator reads the page, in the console of the installation at `url`."""
    return f"{url.rstrip('/')}/console#/runbooks/{name}"


def steps(name: str) -> list[str]:
    """What to do about an alert; empty for one that this version has no more."""
    page = table().get(name)
    return [] if page is None else page.do


def _read(path: Path) -> Runbook:
    found = _PAGE.fullmatch(path.read_text(encoding="utf-8"))
    assert found is not None, f"{path.name} is no page"
    return Runbook(name=found["name"], means=found["means"], look=_steps(found["look"]), do=_steps(found["do"]))


def _steps(text: str) -> list[str]:
    return [" ".join(step.split()) for step in text.removeprefix("- ").split("\n- ")]
