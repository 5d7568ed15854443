"""When limits are reached: the fit, its uncertainty against histories of known growth, and "no data" where there is none."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest
from litestar.testing import AsyncTestClient

from piggybank.app import create_app
from piggybank.capacity import forecast, outlook, phases
from piggybank.capacity.forecast import Expectation, Forecast
from piggybank.capacity.usage import Day
from piggybank.identity import apikeys
from piggybank.jobs.work import Work
from piggybank.settings import Settings
from tests.capacity.test_outlook import NOW, history
from tests.conftest import command

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
DRAWN = 60  # histories of a kind
BEYOND_DAYS = 3_000


def expectation(found: Forecast, name: str) -> Expectation:
    return next(each for each in found.limits if each.name == name)


def even(days: int = 30, a_day: int = 10) -> list[Day]:
    """Users grow by the same number each day; from 300."""
    return history(days, users=lambda day: 300 + a_day * day)


def test_a_straight_line_has_its_day_and_no_doubt() -> None:
    found = forecast.forecast(0, even(), NOW)
    users = expectation(found, "users")
    assert (users.growth, users.growth_a_day, users.measured, users.days) == ("linear", 10, 590, 30)
    assert users.reached is not None
    assert users.reached.expected == users.reached.earliest == users.reached.latest == NOW.date() + timedelta(days=41)


def test_it_agrees_with_the_outlook_where_growth_is_a_line() -> None:
    days = even()
    shown = next(each for each in outlook.outlook(0, days, NOW).limits if each.name == "users")
    users = expectation(forecast.forecast(0, days, NOW), "users")
    assert (users.measured, users.limit) == (shown.measured, shown.limit)
    assert users.reached is not None
    assert users.reached.expected == shown.reached_on


def test_compound_growth_is_seen() -> None:
    users = expectation(forecast.forecast(1, history(60, users=lambda day: round(1_000 * 1.02**day)), NOW), "users")
    assert users.growth == "compound"
    assert users.growth_a_day == pytest.approx(0.02, abs=0.001)
    assert users.reached is not None
    assert users.reached.expected is not None
    wait = math.log(10_000 / (1_000 * 1.02**59)) / math.log(1.02)
    assert abs((users.reached.expected - NOW.date()).days - wait) <= 1


@pytest.mark.parametrize("days", range(7))
def test_under_a_week_it_says_so(days: int) -> None:
    found = forecast.forecast(0, even(days), NOW)
    assert found.says == "under 7 days of data: no growth is told yet"
    assert {each.says for each in found.limits} == {"under 7 days of data: no growth is told yet" if days else "no data"}
    assert {(each.growth_a_day, each.reached) for each in found.limits} == {(None, None)}
    assert found.phases == []  # nobody can tell how long
    said = "\n".join(forecast.lines(found))
    assert found.says in said
    assert "ten years" not in said


def test_seven_days_of_which_few_are_known_are_not_enough() -> None:
    days = history(30, users=lambda day: 100 if day % 5 == 4 else None)
    assert expectation(forecast.forecast(0, days, NOW), "users").says == "under 7 days of data: no growth is told yet"
    stale = history(30, users=lambda day: 100 + day if day < 20 else None)
    assert expectation(forecast.forecast(0, stale, NOW), "users").says == "no data of the last 7 days"


def test_no_growth_reaches_nothing() -> None:
    found = forecast.forecast(0, history(30), NOW)
    assert {each.says for each in found.limits} == {"not in ten years"}
    assert found.says == "no limit comes near at this growth"
    shrinking = forecast.forecast(0, even(30, -5), NOW)
    assert expectation(shrinking, "users").reached == forecast.Reach(expected=None, earliest=None, latest=None)


def test_what_is_reached_is_reached_today() -> None:
    found = forecast.forecast(0, history(30, users=lambda day: 1_000 + day), NOW)
    assert expectation(found, "users").says == "reached"
    assert found.phases[0].reached == forecast.Reach(expected=NOW.date(), earliest=NOW.date(), latest=NOW.date())
    assert "phase 1 (optimize) carries more, piggybank phase plan 1" in found.says


def test_each_phase_carries_it_longer() -> None:
    found = forecast.forecast(0, even(30, 20), NOW)
    assert [each.phase for each in found.phases] == list(phases.BUILT_PHASES)
    expected = [each.reached.expected if each.reached else None for each in found.phases]
    assert expected[0] == NOW.date() + timedelta(days=6)  # 880 of 1,000
    assert expected[1] == NOW.date() + timedelta(days=456)
    assert expected == sorted(expected, key=lambda each: each or date.max)
    assert {each.first for each in found.phases if each.reached} == {"users"}


def test_more_noise_is_more_doubt() -> None:
    def width(noise: float) -> int:
        rng = Random(1)
        days = history(30, tps_peak=lambda day: 5 + day / 10 + rng.gauss(0, noise))
        reached = expectation(forecast.forecast(0, days, NOW), "transactions a second").reached
        assert reached is not None
        assert reached.earliest is not None
        assert reached.latest is not None
        return (reached.latest - reached.earliest).days

    assert width(0.05) < width(0.2) < width(0.5)


def noise(rng: Random) -> Callable[[int], float]:
    return lambda day: 5 + day / 12 + rng.gauss(0, 0.6)


def alike(rng: Random) -> Callable[[int], float]:
    """A day is as its neighbour."""
    now = 0.0

    def at(day: int) -> float:
        nonlocal now
        now = 0.7 * now + rng.gauss(0, 0.5)
        return 5 + day / 12 + now

    return at


def weekly(rng: Random) -> Callable[[int], float]:
    return lambda day: 5 + day / 12 + 0.8 * math.sin(2 * math.pi * day / 7) + rng.gauss(0, 0.3)


def wandering(rng: Random) -> Callable[[int], float]:
    """Each day adds a step."""
    now = 300.0

    def at(_: int) -> float:
        nonlocal now
        now += 4 + rng.gauss(0, 6)
        return now

    return at


def compound(rng: Random) -> Callable[[int], float]:
    now = math.log(300)

    def at(_: int) -> float:
        nonlocal now
        now += math.log(1.01) + rng.gauss(0, 0.012)
        return math.exp(now)

    return at


@pytest.mark.parametrize("days", [30, pytest.param(14, marks=pytest.mark.deep), pytest.param(90, marks=pytest.mark.deep)])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (noise, "transactions a second"),
        (alike, "transactions a second"),
        (weekly, "transactions a second"),
        (wandering, "users"),
        (compound, "users"),
    ],
)
def test_the_interval_holds_the_true_day(kind: Callable[[Random], Callable[[int], float]], name: str, days: int) -> None:
    """Histories go on as they began until the limit is reached; four times out of five that day must be inside."""
    held, drawn, rng = 0, 0, Random(7)
    field: str = {"users": "users", "transactions a second": "tps_peak"}[name]
    for _ in range(DRAWN):
        at = kind(rng)
        values = [max(0.01, at(day)) for day in range(days + BEYOND_DAYS)]
        known: dict[str, Any] = {field: lambda day, values=values: int(values[day]) if name == "users" else values[day]}
        found = expectation(forecast.forecast(0, history(days, **known), NOW), name)
        assert found.measured is not None
        if found.measured >= found.limit:
            continue
        drawn += 1
        until = next(day for day in range(days - 1, len(values)) if values[day] >= found.limit) - (days - 1)
        true_day = NOW.date() + timedelta(days=until)
        assert found.reached is not None
        held += (found.reached.earliest or date.max) <= true_day <= (found.reached.latest or date.max)
    assert drawn > DRAWN // 2
    assert held / drawn >= 0.75  # 0.8, less what so few draws may be off


def example() -> str:
    """What `piggybank capacity --forecast` prints for two months of a small bank."""
    rng = Random(3)
    days = history(
        60,
        users=lambda day: round(150 * 1.015**day + rng.uniform(0, 4)),
        tps_peak=lambda day: 3 + day / 20 + rng.uniform(0, 2),
        transactions=lambda day: 900 + 40 * day + rng.randrange(400),
        connections=lambda day: 11 + day % 4,
        cache_used_bytes=lambda day: (12 + day // 2) * outlook.MIB,
        database_bytes=lambda day: (60 + 11 * day) * outlook.MIB,
    )
    return "\n".join(forecast.lines(forecast.forecast(0, days, NOW)))


def test_the_readme_shows_an_example() -> None:
    assert f"$ piggybank capacity --forecast\n{example()}\n" in README, f"put this into README.md:\n{example()}"


# The entrances -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def asked(own_settings: Settings, sql: asyncpg.Connection, work: Work) -> AsyncIterator[httpx.AsyncClient]:
    async with work.db.write() as write:
        _, token = await apikeys.create(write, name="forecast", scopes=["ops:read"], actor="test")
    async with AsyncTestClient(create_app(msgspec.structs.replace(own_settings, worker_processes=1))) as client:
        client.headers["Authorization"] = f"Bearer {token}"
        yield client


async def test_both_entrances_say_the_same(own_settings: Settings, sql: asyncpg.Connection, asked: httpx.AsyncClient) -> None:
    assert "under 7 days of data" in (await asked.get("/v1/ops/capacity/forecast")).json()["says"]
    for number in range(20):
        at = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=20 - number, hours=1)
        await sql.execute(
            "INSERT INTO usage_minutes (at, rolled, minutes, phase, transactions, busiest_minute, users)"
            " VALUES ($1, true, 60, 0, 600, 600, $2)",
            at,
            500 + 10 * number,
        )
    over_http = msgspec.json.decode((await asked.get("/v1/ops/capacity/forecast")).content, type=Forecast)
    printed = json.loads(await asyncio.to_thread(command, own_settings, "capacity", "--forecast", "--json"))
    assert msgspec.convert(printed, Forecast) == over_http
    assert expectation(over_http, "users").growth_a_day == pytest.approx(10)
    assert expectation(over_http, "cache memory").says == "no data"
    text = await asyncio.to_thread(command, own_settings, "capacity", "--forecast", "--days", "5")
    assert "under 7 days of data" in text
    asked.headers.pop("Authorization")
    assert (await asked.get("/v1/ops/capacity/forecast")).status_code == 401
