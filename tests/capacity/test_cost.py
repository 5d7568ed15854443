"""What a phase costs: prices and measured work are where they are said to be from, sums are sums, and both entrances say the same."""

import asyncio
import calendar
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import asyncpg
import httpx
import msgspec
import pytest
from click.testing import CliRunner, Result
from litestar.testing import AsyncTestClient

from piggybank.api import cost as api
from piggybank.app import create_app
from piggybank.capacity import cost, phases, prices, projection, usage
from piggybank.capacity.projection import Load, Projection
from piggybank.cli import main
from piggybank.identity import apikeys
from piggybank.jobs.work import Work
from piggybank.settings import Settings
from tests.capacity.test_outlook import history
from tests.conftest import ROOT, command

README = (ROOT / "README.md").read_text(encoding="utf-8")
MEASURED = prices.table().measured
BUILT = [phases.of(number) for number in phases.BUILT_PHASES]


def of(provider: str, number: int, load: Load | None = None) -> Projection:
    phase = phases.of(number)
    return projection.project(prices.of(provider), phase, load or projection.full(phase), MEASURED)


def part(made: Projection, what: str) -> float:
    return next(each.usd_a_month for each in made.parts if each.what == what)


def test_the_measured_work_is_what_the_bench_recorded() -> None:
    found = json.loads((ROOT / "tests" / "bench" / "results.json").read_text(encoding="utf-8"))["found"]["standard"]
    assert date.fromisoformat(found["at"]) == MEASURED.at
    figures = {row["what"]: row["figure"] for row in found["rows"]}
    for what, spent in (
        ("40 % deposits, 20 % withdrawals, 20 % transfers, 20 % reads", MEASURED.write_ms),
        ("balance reads, cached", MEASURED.read_ms),
    ):
        recorded = dict(re.findall(r"(server|postgres|valkey) ([\d.]+)", figures[what]))
        assert {name: float(value) for name, value in recorded.items()} == msgspec.to_builtins(spent)


def test_the_tasks_are_those_of_the_task_definitions() -> None:
    tasks = prices.of("aws").tasks
    assert tasks is not None
    for role, vcpus, gib in (("web", tasks.web_vcpus, tasks.web_gib), ("worker", tasks.worker_vcpus, tasks.worker_gib)):
        task = json.loads((ROOT / "deploy" / "ecs" / f"{role}.json").read_text(encoding="utf-8"))
        assert (int(task["cpu"]) / 1_024, int(task["memory"]) / 1_024) == (vcpus, gib)


def test_every_provider_says_when_and_from_what() -> None:
    for provider in prices.table().provider:
        assert provider.read_on <= date(2026, 11, 24)
        assert provider.read_from
        assert (provider.stores is None) == bool(provider.database) == bool(provider.cache) == (provider.pays_for == "size")
    assert prices.names() == list(get_args(get_args(api.Whose)[0]))


@pytest.mark.parametrize("provider", prices.names())
@pytest.mark.parametrize("phase", BUILT, ids=lambda phase: phase.number)
def test_a_bill_is_the_sum_of_its_parts(provider: str, phase: phases.Phase) -> None:
    made = of(provider, phase.number)
    assert made.usd_a_month == pytest.approx(sum(each.usd_a_month for each in made.parts), abs=0.01)
    assert made.usd_a_user == pytest.approx(made.usd_a_month / phase.users, abs=0.0001)
    assert (made.design_usd_a_month, made.design_usd_a_user) == (cost.of(phase.number).usd_a_month, cost.of(phase.number).usd_a_user)
    assert len({each.what for each in made.parts}) == len(made.parts)
    assert made.why


def test_by_hand() -> None:
    """Phase 1 on Railway, and phase 2's database on AWS, worked out on paper."""
    made = of("railway", 1)
    assert part(made, "disk") == 100 * 0.15
    assert part(made, "PostgreSQL") == pytest.approx(16 * 10 + 0.005 * 20, abs=0.02)
    per_second = 100_000 / 86_400
    web_vcpus = per_second * (0.201 + 4 * 0.085) / 1_000 + 6 * 0.002
    assert part(made, "web") == pytest.approx(web_vcpus * 20 + 6 * 0.13 * 10, abs=0.01)
    assert made.vcpus_at_the_peak == pytest.approx(300 * (0.299 + 4 * 0.088) / 1_000, abs=0.005)
    assert part(made, "egress") == pytest.approx(100_000 * 30 * 5 * 1_000 / 1024**3 * 0.05, abs=0.01)
    assert part(of("aws", 2), "PostgreSQL") == pytest.approx(3 * 0.318 * 730, abs=0.01)
    assert part(of("aws", 3), "cache") == pytest.approx(6 * 0.052 * 730, abs=0.01)  # 2 GiB a node


def test_what_is_metered_follows_the_load_and_what_is_reserved_does_not() -> None:
    few = projection.of_users(phases.of(2), 500)
    assert (few.transactions_a_day, few.database_gib) == (5_000, 5)
    for provider in prices.names():
        full, light = of(provider, 2), of(provider, 2, few)
        assert light.usd_a_month < full.usd_a_month
        assert light.usd_a_user > full.usd_a_user
        follows = part(light, "web") < part(full, "web")
        assert follows == (prices.of(provider).pays_for == "use")


def test_a_small_bill_is_the_plans() -> None:
    nothing = Load(users=1, transactions_a_day=0, database_gib=0)
    smallest = msgspec.structs.replace(phases.of(0), postgres_memory_mib=512, cache_memory_mib=64)
    assert projection.project(prices.of("railway"), smallest, nothing, MEASURED).usd_a_month == prices.of("railway").least_usd


def test_why_names_the_difference() -> None:
    assert of("railway", 2).why[0] == "about the design's $800"
    assert re.match(r"\d+% less than the design's \$2,500", of("railway", 3).why[0])
    assert any("2 to 3 times its figure here: $1,600 to $2,400" in line for line in of("aws", 2).why)
    assert any("Gunicorn needs 300 workers" in line for line in of("aws", 3).why)


@pytest.mark.parametrize(("users", "says"), [(1_000, False), (1_001, True)])
def test_it_says_where_a_phase_does_not_carry_what_it_is_asked_to(users: int, says: bool) -> None:
    said = of("railway", 0, projection.of_users(phases.of(0), users)).why
    assert ("phase 0 is for 1,000 users and 10,000 transactions a day: it does not carry this" in said) == says


@pytest.mark.parametrize(("users", "phase"), [(1, 0), (1_000, 0), (1_001, 1), (50_000, 2), (100_000, 3), (5_000_000, 3)])
def test_the_lowest_phase_that_carries(users: int, phase: int) -> None:
    assert projection.carries(users) == phase


def test_the_measured_load_needs_a_whole_day() -> None:
    known = history(10, users=lambda day: 100 + day, transactions=lambda day: 1_000 + day, database_bytes=lambda _: 2 * 1_024**3)
    load = projection.measured_load(known)
    assert load is not None
    assert (load.users, load.database_gib) == (109, 2)
    assert load.transactions_a_day == pytest.approx(sum(1_000 + day for day in range(3, 10)) / 7)
    assert projection.measured_load([]) is None
    assert projection.measured_load([msgspec.structs.replace(day, minutes=600) for day in known]) is None
    assert projection.measured_load([msgspec.structs.replace(day, users=None) for day in known]) is None


# The entrances -------------------------------------------------------------------------------------------------------


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["cost", *words])


def table() -> str:
    """The table in the README, as `piggybank cost` prints it."""
    return run().stdout.split("\n\n")[1]


def test_the_readme_shows_what_the_command_prints() -> None:
    assert f"\n{table()}\n" in README, f"put this into README.md:\n{table()}"
    rows = [line.split() for line in table().splitlines()[1:]]
    assert [row[-1] for row in rows if row[0] == "4"] == ["built"]
    for phase in phases.table():
        row = next(row for row in rows if row[0] == str(phase.number))
        assert cost.of(phase.number).text in row
        assert f"${cost.of(phase.number).usd_a_user:.3f}" in row


def test_what_the_readme_says_beside_it() -> None:
    text = " ".join(README.split())
    assert f"the work itself takes {of('railway', 3).vcpus_at_the_peak} vCPU at phase 3's peak" in text
    times = [of("aws", phase.number).usd_a_month / of("railway", phase.number).usd_a_month for phase in BUILT]
    assert f"{min(times):.1f} to {max(times):.1f} times as much" in text


def test_one_phase_has_its_parts() -> None:
    made = json.loads(run("--phase", "2", "--provider", "aws", "--json").stdout)
    assert msgspec.convert(made["projections"][0], Projection) == of("aws", 2)
    text = run("--users", "25000", "--provider", "aws").stdout
    assert "phase 2, 25,000 users, 250,000 transactions a day" in text
    assert "3 x db.m6g.xlarge" in text
    assert run("--now", "--users", "5").exit_code == 2


def test_a_bench_of_ones_own_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    spent = {"server": 2.0, "postgres": 1.0, "valkey": 0.5}
    scenarios = {"mixed": {"cpu_ms": spent}, "reads": {"cpu_ms": spent}}
    file.write_text(json.dumps({"scenarios": scenarios, "machine": {"cpu": "abacus", "cores": 1}}))
    slow = json.loads(run("--phase", "3", "--bench", str(file), "--json").stdout)
    assert slow["measured"]["on"] == "abacus, 1 cores (bench.json)"
    assert slow["projections"][0]["vcpus_at_the_peak"] == pytest.approx(3_000 * 5 * 3.5 / 1_000)
    assert slow["projections"][0]["usd_a_month"] > of("railway", 3).usd_a_month
    for wrong in ("{}", "[1", '{"scenarios": {"mixed": {"cpu_ms": {"server": 1}}}, "machine": {}}', '{"scenarios": {}, "machine": {}}'):
        file.write_text(wrong)
        done = run("--bench", str(file))
        assert done.exit_code == 1
        assert "has no CPU of server, postgres and valkey" in done.stderr


@pytest.fixture
async def asked(own_settings: Settings, sql: asyncpg.Connection, work: Work) -> AsyncIterator[httpx.AsyncClient]:
    async with work.db.write() as write:
        _, token = await apikeys.create(write, name="cost", scopes=["ops:read"], actor="test")
    async with AsyncTestClient(create_app(msgspec.structs.replace(own_settings, worker_processes=1))) as client:
        client.headers["Authorization"] = f"Bearer {token}"
        yield client


async def answered(client: httpx.AsyncClient, **params: Any) -> api.Costs:
    return msgspec.json.decode((await client.get("/v1/ops/cost", params=params)).content, type=api.Costs)


async def test_now_is_what_the_history_has(own_settings: Settings, sql: asyncpg.Connection, asked: httpx.AsyncClient) -> None:
    found = await answered(asked)
    assert found.now is None  # no data, and no 0
    assert found.phases == [of("railway", number) for number in phases.BUILT_PHASES]
    with pytest.raises(AssertionError, match="no whole day was recorded"):
        await asyncio.to_thread(command, own_settings, "cost", "--now")
    day = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
    for hour in range(24):
        await sql.execute(
            "INSERT INTO usage_minutes (at, rolled, minutes, phase, transactions, busiest_minute, database_bytes, users)"
            " VALUES ($1, true, 60, 0, 100, 10, $2, 400)",
            day + timedelta(hours=hour),
            1_024**3,
        )
    load = Load(users=400, transactions_a_day=2_400, database_gib=1)
    assert (await answered(asked, provider="aws")).now == of("aws", 0, load)
    printed = json.loads(await asyncio.to_thread(command, own_settings, "cost", "--now", "--json"))
    assert msgspec.convert(printed["projections"][0], Projection) == of("railway", 0, load)
    assert (await asked.get("/v1/ops/cost", params={"provider": "moon"})).status_code == 400
    asked.headers.pop("Authorization")
    assert (await asked.get("/v1/ops/cost")).status_code == 401
    assert usage.KEPT_DAYS >= api.DAYS_LOOKED_AT


def test_the_date_of_prices_is_that_of_the_oldest_that_they_were_read_from() -> None:
    """A person who sees one date takes none of them for newer."""
    months = {calendar.month_name[number]: number for number in range(1, 13)}
    aws = prices.of("aws")
    named = [date(int(year), int(month), int(day)) for year, month, day in re.findall(r"(\d{4})-(\d\d)-(\d\d)", aws.read_from)]
    named += [date(2026, months[word], 1) for word in re.findall(r"[A-Z][a-z]+", aws.read_from) if word in months]
    assert len(named) == 4
    assert aws.read_on == min(named)
