"""Every number of the design document is in the table, beside its quote, or has a reason not to be."""

import itertools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from piggybank import cache
from piggybank.api import openapi
from piggybank.appliance import pooler, store_files, topology
from piggybank.capacity import phases
from piggybank.db import replicas

SEED = [line.replace("*", "") for line in Path(__file__).with_name("seed.md").read_text(encoding="utf-8").splitlines()]
TOML = Path(phases.__file__).with_name("phases.toml").read_text(encoding="utf-8").splitlines()

NUMBER = re.compile(r"(?<![\d.,])(\d[\d,]*(?:\.\d+)?)([KM](?!\w)|GB|MB|%|-min\b| minutes?\b| days\b)?")
TIMES = {"": 1, "K": 1_000, "M": 1_000_000, "MB": 1, "%": 0.01, "-min": 60, "minute": 60, "minutes": 60, "days": 86_400}

# What is no limit of ours: a pattern, and why.
EXCEPTIONS = {
    r"^#+ \d\. ": "a heading's number",
    r"^\d\. ": "a list's number",
    r"Phase \d(-\d)?": "a phase's number: the order of the table",
    r"3-Phase Approach": "how many phases there are above the baseline, without what is beyond",
    r"\(page 1\)": "which page",
    r"p95": "the name of a percentile",
    r"1 PostgreSQL instance|1 primary": "there is one that takes writes, in every phase that is built",
    r"~7 TPS average": "10,000 a day are 7 a minute: the document takes them for a second's, and nothing is built on it",
    r"\d+x additional": "the ratio of two scales: test_what_follows_from_other_numbers",
    r"\$0\.11 → \$0\.025": "cost by users: test_what_follows_from_other_numbers",
    r"4-5x": "the ratio of these two: test_what_follows_from_other_numbers",
}


class Token(NamedTuple):
    """A number in a line, where it stands and what it may mean."""

    line: int
    start: int
    end: int
    values: frozenset[float]


class Quoted(NamedTuple):
    """A number of the table and one of its quotes."""

    name: str
    value: float
    quote: str


def tokens(line: int, text: str) -> list[Token]:
    found = []
    for match in NUMBER.finditer(text):
        number, unit = float(match[1].rstrip(",").replace(",", "")), (match[2] or "").strip()
        meant = {number, number * 1_024} if unit == "GB" else {number * TIMES[unit]}
        found.append(Token(line, match.start(), match.end(), frozenset(round(value, 6) for value in meant)))
    return found


def quotes() -> Iterator[Quoted]:
    for text in TOML:
        stated, found, said = text.partition("  # seed: ")
        if found:
            name, _, value = stated.partition(" = ")
            yield from (Quoted(name, float(tomllib.loads(f"it = {value}")["it"]), quote) for quote in said.split("; "))


def covered() -> set[Token]:
    """Numbers of the document that a quote, beside the same number in the table, or an exception accounts for."""
    found = set()
    for number, text in enumerate(SEED):
        here = tokens(number, text)
        for quoted in quotes():
            for at in re.finditer(rf"(?<![\d.,]){re.escape(quoted.quote)}", text):
                found |= {one for one in here if at.start() <= one.start < at.end() and round(quoted.value, 6) in one.values}
        for pattern in EXCEPTIONS:
            for at in re.finditer(pattern, text):
                found |= {one for one in here if at.start() <= one.start < at.end()}
    return found


def test_every_number_of_the_document_is_in_the_table() -> None:
    known = covered()
    missing = [
        f"line {number + 1}: {text[token.start : token.end]!r} in {text!r}"
        for number, text in enumerate(SEED)
        for token in tokens(number, text)
        if token not in known
    ]
    assert missing == []
    assert len(known) > 150  # the parser still finds them


@pytest.mark.parametrize("quoted", list(quotes()), ids=lambda quoted: f"{quoted.name}: {quoted.quote}")
def test_every_quote_is_in_the_document_and_says_the_number(quoted: Quoted) -> None:
    there = [(number, at.start()) for number, text in enumerate(SEED) for at in re.finditer(rf"(?<![\d.,]){re.escape(quoted.quote)}", text)]
    assert there, "not in the document"
    said = {
        value
        for number, start in there
        for one in tokens(number, SEED[number])
        if start <= one.start < start + len(quoted.quote)
        for value in one.values
    }
    assert round(quoted.value, 6) in said


@pytest.mark.parametrize("pattern", EXCEPTIONS)
def test_no_exception_is_left_over(pattern: str) -> None:
    assert any(re.search(pattern, text) for text in SEED)


def test_another_number_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = [line.replace("1,000 connections", "1,200 connections") for line in SEED]
    monkeypatch.setattr("tests.capacity.test_seed.SEED", changed)
    with pytest.raises(AssertionError, match="1,200"):
        test_every_number_of_the_document_is_in_the_table()


def test_what_follows_from_other_numbers() -> None:
    table = phases.table()
    assert [table[number].scale // table[number - 1].scale for number in (1, 2, 3)] == [10, 5, 2]
    a_user = [phase.cost_usd_a_month / phase.users for phase in table]
    assert (a_user[0], a_user[3]) == (0.11, 0.025)
    assert 4 <= a_user[0] / a_user[3] <= 5


def test_phases_grow() -> None:
    table = phases.table()
    assert [phase.number for phase in table] == list(range(phases.LAST_PHASE + 1))
    for smaller, larger in itertools.pairwise(table):
        for name in (
            "users",
            "transactions_a_day",
            "tps_peak",
            "web_max",
            "worker_max",
            "database_gib",
            "cache_memory_mib",
            "cost_usd_a_month",
        ):
            assert getattr(smaller, name) <= getattr(larger, name), name
        assert larger.transactions_a_day == table[0].transactions_a_day * larger.scale


def test_the_code_keeps_to_the_table() -> None:
    limits = phases.limits()
    assert (
        limits.cache.balance_ttl_s,
        limits.cache.page_ttl_s,
        limits.cache.session_ttl_s,
    ) == (cache.BALANCE_TTL_S, cache.PAGE_TTL_S, cache.SESSION_TTL_S)
    assert limits.cache.count_ttl_s == limits.cache.balance_ttl_s  # the count is kept with the balance
    assert phases.of(0).max_connections == topology.of(0).max_connections
    assert limits.goal.lag_ms == replicas.MAX_LAG_MS
    assert (phases.of(2).pooler_clients, phases.of(2).pooler_connections) == (pooler.CLIENTS_MAX, pooler.SERVERS_MAX)
    assert store_files.CACHE_MIB[1] == phases.of(0).cache_memory_mib
    assert f"lasts {limits.cache.session_ttl_s // 86_400} days" in openapi.DESCRIPTION


def test_the_table_is_in_the_package() -> None:
    """The wheel takes the whole folder: what is beside a module is shipped with it."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["piggybank"]
