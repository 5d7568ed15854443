"""`piggybank bench`: figures of real loads, and a database that is gone afterwards."""

import json
import subprocess
import sys

import asyncpg
import msgspec
import pytest

from piggybank import errors
from piggybank.bench import database
from piggybank.bench.scenarios import ROWS, SCENARIOS, requests
from piggybank.db import migrate
from piggybank.settings import Settings
from tests.conftest import ROOT, command, environment

FIELDS = {"per_second", "p50_ms", "p99_ms", "to_no_database", "to_row_locking", "refused", "cpu_ms"}
SHORT = ("--seconds", "0.5", "--rounds", "1", "--accounts", "60", "--connections", "8")


async def databases(settings: Settings) -> set[str]:
    owner = await asyncpg.connect(settings.owner_database_url)
    try:
        return {name for (name,) in await owner.fetch("SELECT datname FROM pg_database") if name.startswith(database.PREFIX)}
    finally:
        await owner.close()


@pytest.mark.xdist_group("bench")
async def test_every_scenario_is_measured_and_nothing_is_left(settings: Settings) -> None:
    rows, before = await database.rows(settings), await databases(settings)
    report = json.loads(command(settings, "bench", "--json", *SHORT))
    assert report["scenarios"].keys() == SCENARIOS.keys()
    for name, figures in report["scenarios"].items():
        assert figures.keys() == FIELDS
        assert figures["per_second"] > 0, name
        assert 0 < figures["p50_ms"] <= figures["p99_ms"], name
        assert (figures["to_no_database"] is not None) == (SCENARIOS[name].no_database is not None)
        assert (figures["to_row_locking"] is not None) == (SCENARIOS[name].row_locking is not None)
    assert report["verified"] is True
    assert f"phase {report['phase']}" in report["says"]
    assert report["machine"]["cores"] >= 1
    assert (await database.rows(settings), await databases(settings)) == (rows, before)


@pytest.mark.xdist_group("bench")
async def test_one_scenario_as_a_table(settings: Settings) -> None:
    shown = command(settings, "bench", "--scenario", "constant", *SHORT)
    assert "constant" in shown
    assert "measure mixed or deposits to see which phase" in shown


@pytest.mark.xdist_group("bench")
def test_without_the_right_to_make_a_database_it_says_what_to_do(settings: Settings) -> None:
    """The application's role stands in for an owner that may not."""
    poor = msgspec.structs.replace(settings, owner_database_url=settings.database_url)
    argv = [sys.executable, "-m", "piggybank", "bench", "--quick"]
    done = subprocess.run(argv, cwd=ROOT, env=environment(poor), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "nothing was measured" in done.stderr
    assert f'ALTER ROLE "{migrate.role_of(settings.database_url)}" CREATEDB' in done.stderr


@pytest.mark.xdist_group("bench")
async def test_what_a_killed_bench_left_is_dropped_after_a_day(settings: Settings) -> None:
    old, new = f"{database.PREFIX}1000000000_feed", f"{database.PREFIX}99999999999_feed"
    owner = await asyncpg.connect(settings.owner_database_url)
    try:
        for name in (old, new):
            await owner.execute(f"CREATE DATABASE {name}")
        async with database.throw_away(settings, 2) as filled:
            assert len(filled.accounts) == 2
            assert await database.rows(filled.settings) == 2
            there = await databases(settings)
        assert old not in there
        assert new in there
    finally:
        await owner.execute(f"DROP DATABASE IF EXISTS {new}")
        await owner.close()


async def test_a_failure_inside_drops_the_database_too(settings: Settings) -> None:
    before = await databases(settings)
    with pytest.raises(errors.CannotProceed):
        async with database.throw_away(settings, 2):
            raise errors.CannotProceed(what="something happened", do="nothing")
    assert await databases(settings) == before


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_key_is_sent_twice_and_the_mix_is_what_it_says(name: str) -> None:
    made = requests(SCENARIOS[name], [str(number) for number in range(20)], "pbk_token", "mark-", seed=1)
    sent = [next(made) for _ in range(1_000)]
    keys = [line for one in sent for line in one.data.split(b"\r\n") if line.startswith(b"Idempotency-Key")]
    assert len(keys) == len(set(keys))
    assert {kind: sum(one.kind == kind for one in sent) // 10 for kind in SCENARIOS[name].mix} == SCENARIOS[name].mix
    assert all(one.rank == 0 for one in sent) or SCENARIOS[name].pick != "hot"
    assert len(keys) == sum(one.kind in ROWS or one.kind == "constant" for one in sent)
