"""Which limit comes first, when, and which phase then; and "no data" where there is none."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
import pytest

from piggybank.capacity import outlook, phases
from piggybank.capacity.outlook import Limit, Outlook
from piggybank.capacity.usage import Day

NOW = datetime(2026, 6, 30, 12, tzinfo=UTC)
MIB = 1024 * 1024
QUIET: dict[str, Any] = {
    "minutes": 1_440,
    "transactions": 100,
    "tps_peak": 0.5,
    "connections": 10,
    "max_connections": 100,
    "replicas": 2,
    "lag_ms": 3.0,
    "cache_used_bytes": 10 * MIB,
    "cache_max_bytes": 512 * MIB,
    "cache_hit_rate": 0.95,
    "database_bytes": 20 * MIB,
    "transactions_bytes": 5 * MIB,
    "users": 20,
}


def history(days: int, **of: Callable[[int], Any]) -> list[Day]:
    """`days` days up to today; each figure of `of` by the number of the day, the rest quiet."""
    first = NOW.date() - timedelta(days=days - 1)
    return [Day(day=first + timedelta(days=number), **QUIET | {name: at(number) for name, at in of.items()}) for number in range(days)]


def limit(found: Outlook, name: str) -> Limit:
    return next(each for each in found.limits if each.name == name)


def test_without_data_it_says_so_and_never_0() -> None:
    found = outlook.outlook(0, [], NOW)
    assert found.says.startswith("no data")
    assert (found.first, found.next_phase, found.history_days, found.measured_until) == (None, None, 0, None)
    for each in found.limits:
        assert (each.measured, each.used, each.growth_a_day, each.reached_on, each.says) == (None, None, None, None, "no data")
    text = "\n".join(outlook.lines(found))
    assert text.count("no data") == len(found.limits) + 1


def test_what_one_store_did_not_say_is_no_data_beside_the_rest() -> None:
    nothing = {"cache_used_bytes": None, "cache_max_bytes": None, "cache_hit_rate": None, "lag_ms": None}
    found = outlook.outlook(2, history(30, **{name: lambda _, value=value: value for name, value in nothing.items()}), NOW)
    for name in ("cache memory", "cache hit rate", "replication lag"):
        assert (limit(found, name).measured, limit(found, name).says) == (None, "no data")
    assert limit(found, "users").measured == 20


def test_data_that_ended_long_ago_is_not_todays() -> None:
    found = outlook.outlook(0, history(30)[:-10], NOW)
    assert limit(found, "users").measured is None
    assert limit(found, "users").says == "no data of the last 7 days"


def test_a_quiet_installation_is_near_no_limit() -> None:
    found = outlook.outlook(0, history(30), NOW)
    assert (found.first, found.next_phase, found.says) == (None, None, "no limit comes near")
    assert limit(found, "users").says == "not at the present growth"
    assert [each.name for each in found.limits if each.name == "replication lag"] == []  # phase 0 has no replicas


def test_growth_says_which_limit_comes_first_and_when_and_which_phase_next() -> None:
    found = outlook.outlook(0, history(30, users=lambda day: 100 + 20 * day, tps_peak=lambda day: 0.1 * day), NOW)
    users = limit(found, "users")
    assert users.measured == 680
    assert users.growth_a_day == pytest.approx(20)
    assert users.reached_on == NOW.date() + timedelta(days=16)  # 320 more at 20 a day
    assert limit(found, "transactions a second").reached_on == NOW.date() + timedelta(days=271)
    assert (found.first, found.next_phase) == ("users", 1)
    assert found.says == (
        "users comes first: 680 of 1,000; it is reached about 2026-07-16, in 16 days. Next: phase 1 (optimize), piggybank phase plan 1"
    )


def test_what_comes_late_asks_for_no_phase_yet() -> None:
    found = outlook.outlook(0, history(30, users=lambda day: 100 + day), NOW)
    assert (found.first, found.next_phase) == ("users", None)
    assert found.says.endswith("Phase 0 carries it until then")


def test_a_phase_that_would_soon_be_too_small_is_skipped() -> None:
    found = outlook.outlook(0, history(30, users=lambda day: 100 + 300 * day), NOW)
    assert limit(found, "users").says == "reached"
    assert found.next_phase == 2  # in 90 days there are 35,800


@pytest.mark.parametrize("days", [1, 3, 6])
def test_under_a_week_tells_no_growth(days: int) -> None:
    found = outlook.outlook(0, history(days, users=lambda day: 100 + 50 * day), NOW)
    assert limit(found, "users").says == "under 7 days of data: no growth is told yet"
    assert limit(found, "users").growth_a_day is None
    assert limit(found, "users").measured == 100 + 50 * (days - 1)
    assert (found.first, found.history_days) == (None, days)


def test_under_a_week_a_limit_that_is_reached_is_said() -> None:
    found = outlook.outlook(0, history(2, tps_peak=lambda _: 45.0), NOW)
    assert (found.first, found.next_phase) == ("transactions a second", 1)
    assert "is reached" in found.says


def test_the_peak_of_a_week_is_measured_and_a_day_that_is_not_over_has_no_sum() -> None:
    days = history(20, tps_peak=lambda day: 20.0 if day == 15 else 1.0, transactions=lambda day: 500 + day)
    days[-1] = msgspec.structs.replace(days[-1], minutes=700, transactions=9_999)
    found = outlook.outlook(0, days, NOW)
    assert limit(found, "transactions a second").measured == 20
    assert limit(found, "transactions a day").measured == 518


def test_connections_lead_to_the_pooler() -> None:
    found = outlook.outlook(1, history(10, connections=lambda _: 85), NOW)
    assert limit(found, "connections").limit == 80  # 80 % of what PostgreSQL says
    assert (found.first, found.next_phase) == ("connections", 2)


def test_bounds_are_the_servers_own() -> None:
    found = outlook.outlook(0, history(10, max_connections=lambda _: 200, cache_max_bytes=lambda _: 100 * MIB), NOW)
    assert (limit(found, "connections").limit, limit(found, "cache memory").limit) == (160, 80)
    assert limit(outlook.outlook(0, history(10, cache_max_bytes=lambda _: None), NOW), "cache memory").limit == pytest.approx(0.8 * 512)


def test_a_full_cache_leads_to_a_larger_one() -> None:
    found = outlook.outlook(1, history(10, cache_used_bytes=lambda _: 500 * MIB), NOW)
    assert (found.first, found.next_phase) == ("cache memory", 2)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("replication lag", {"lag_ms": lambda _: 250.0}, "look at the replicas' disks"),
        ("cache hit rate", {"cache_hit_rate": lambda _: 0.4}, "More memory for the cache"),
    ],
)
def test_what_no_phase_mends_says_what_does(name: str, changes: dict[str, Callable[[int], Any]], says: str) -> None:
    found = outlook.outlook(2, history(10, **changes), NOW)
    assert (found.first, found.next_phase) == (name, None)
    assert says in found.says


def test_phase_3_leads_to_what_is_beyond() -> None:
    found = outlook.outlook(3, history(10, users=lambda _: 150_000), NOW)
    assert (found.first, found.next_phase) == ("users", 4)
    assert outlook.outlook(4, history(10, users=lambda _: 300_000), NOW).next_phase is None


def test_least_squares() -> None:
    assert outlook.fitted([(1, 5.0), (2, 7.0), (3, 9.0)]).slope == pytest.approx(2)
    assert outlook.fitted([(0, 0.0), (1, 3.0), (2, 0.0), (3, 3.0)]).slope == pytest.approx(0.6)


def test_limits_are_the_tables() -> None:
    for phase in phases.table():
        found = outlook.outlook(phase.number, history(1), NOW)
        assert limit(found, "transactions a second").limit == phase.tps_peak
        assert limit(found, "transactions a day").limit == phase.transactions_a_day
        assert limit(found, "users").limit == phase.users
        assert limit(found, "database size").limit == phase.database_gib
    assert isinstance(found.measured_until, date)
