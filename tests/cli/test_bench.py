"""`piggybank bench` as an operator runs it: what it prints, and that it leaves nothing behind. How fast it is, nobody asserts here."""

import asyncio
import json
import secrets
import signal
import subprocess
import sys
import time

import asyncpg
import msgspec
import pytest

from piggybank.bench import database, report, scenarios
from piggybank.bench.report import Shown
from piggybank.settings import Settings
from tests.conftest import ROOT, Stores, command, environment, run_apart, run_command

# one at a time: each looks at the throw-away databases of the whole cluster
OWN_TABLES = ("users", "accounts", "transactions", "idempotency_keys", "outbox", "api_keys", "audit_log")
SCENARIOS = ("deposits", "hot", "constant", "row_locking")
START_TIMEOUT_S = 30


def started(settings: Settings, *words: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "piggybank", "bench", *words]
    return subprocess.Popen(argv, env=environment(settings), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def select(url: str, statement: str) -> list[str]:
    async def ask() -> list[str]:
        connection = await asyncpg.connect(url)
        try:
            return [str(row[0]) for row in await connection.fetch(statement)]
        finally:
            await connection.close()

    return run_apart(ask)


def throw_aways(settings: Settings) -> list[str]:
    return select(settings.owner_database_url, f"SELECT datname FROM pg_database WHERE starts_with(datname, '{database.PREFIX}')")


def assert_nothing_stays(settings: Settings) -> None:
    """What is there now is another test's, and goes with it."""
    seen, until = set(throw_aways(settings)), time.monotonic() + START_TIMEOUT_S
    while seen & set(throw_aways(settings)):
        assert time.monotonic() < until, f"still there: {seen}"
        time.sleep(0.1)


def own_rows(settings: Settings) -> list[str]:
    counts = " UNION ALL ".join(f"SELECT '{table} ' || count(*) FROM {table}" for table in OWN_TABLES)
    return sorted(select(settings.owner_database_url, counts))


def test_a_run_is_one_document_and_leaves_nothing_behind(fresh_settings: Settings) -> None:
    before = own_rows(fresh_settings)
    abandoned = f"{database.PREFIX}{int(time.time()) - database.FORGOTTEN_AFTER_S - 1}_{secrets.token_hex(4)}"
    run_apart(lambda: _execute(fresh_settings.owner_database_url, f"CREATE DATABASE {abandoned}"))
    sizes = ["--seconds", "0.5", "--rounds", "1", "--accounts", "50", "--connections", "8", "--json"]
    found = json.loads(command(fresh_settings, "bench", *sizes, *(word for name in SCENARIOS for word in ("--scenario", name))))
    assert set(found["scenarios"]) == set(SCENARIOS)
    assert found["verified"] is True
    assert found["machine"]["web_processes"] == 1
    assert found["says"].startswith("this machine carries ")
    for name in ("deposits", "hot"):
        figure = found["scenarios"][name]
        assert {"per_second", "p50_ms", "p99_ms", "to_no_database", "to_row_locking"} <= set(figure)
        assert figure["per_second"] > 0
        assert figure["refused"] == 0
        assert figure["to_no_database"] > 0
    assert found["scenarios"]["deposits"]["to_row_locking"] > 0
    assert found["scenarios"]["hot"]["to_row_locking"] is None  # its counterpart was not measured
    assert found["scenarios"]["constant"]["to_no_database"] is None
    assert abandoned not in throw_aways(fresh_settings)
    assert_nothing_stays(fresh_settings)
    assert own_rows(fresh_settings) == before


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.deep), signal.SIGTERM])
def test_a_run_that_is_stopped_drops_its_database(fresh_settings: Settings, number: signal.Signals) -> None:
    accounts = 50 + number  # by so many its database is known: other tests make some, too
    process = started(fresh_settings, "--seconds", "60", "--accounts", str(accounts), "--scenario", "deposits", "--json")
    made = _until_loaded(fresh_settings, accounts)
    process.send_signal(number)
    output, said = process.communicate(timeout=START_TIMEOUT_S)
    assert (process.returncode, output) == (1, "")
    assert made not in throw_aways(fresh_settings), said


def test_a_role_that_may_make_no_database_is_told_what_to_do(fresh_settings: Settings, stores: Stores) -> None:
    role, password = f"bench_{secrets.token_hex(4)}", secrets.token_hex(8)
    run_apart(lambda: _execute(stores.admin_url, f"CREATE ROLE {role} LOGIN NOCREATEDB PASSWORD '{password}'"))
    try:
        place = fresh_settings.owner_database_url.rpartition("@")[2]
        poor = msgspec.structs.replace(fresh_settings, owner_database_url=f"postgresql://{role}:{password}@{place}")
        done = run_command(poor, "bench", "--quick", "--json")
        assert (done.returncode, done.stdout) == (1, "")
        assert f'ALTER ROLE "{role}" CREATEDB' in done.stderr
        assert_nothing_stays(fresh_settings)
    finally:
        run_apart(lambda: _execute(stores.admin_url, f"DROP ROLE {role}"))


@pytest.mark.parametrize("name", ["owner_database_url", "cache_url"])
def test_stores_that_are_down_are_named(fresh_settings: Settings, name: str) -> None:
    scheme, _, place = getattr(fresh_settings, name).partition("://")
    nobody = f"{scheme}://{place.rpartition('@')[0]}@127.0.0.1:1/{place.rpartition('/')[2]}"
    done = run_command(msgspec.structs.replace(fresh_settings, **{name: nobody}), "bench", "--quick")
    assert done.returncode == 1
    assert "piggybank up" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("per_second", "phase", "says"),
    [
        (20.0, None, "carries no phase: it did 20 a second (mixed), and the peak of phase 0 is 30"),
        (300.0, 1, "carries phase 1: it did 300 a second (mixed), and the peak of phase 1 is 300; phase 2 needs 1,500"),
        (9_000.0, 4, "carries phase 4: it did 9,000 a second (mixed), and the peak of phase 4 is 6,000"),
    ],
)
def test_the_phase_is_the_highest_whose_peak_was_reached(per_second: float, phase: int | None, says: str) -> None:
    figure = Shown(per_second=per_second, p50_ms=1, p99_ms=2, to_no_database=None, to_row_locking=None, refused=0, cpu_ms={})
    assert report.phase({"deposits": msgspec.structs.replace(figure, per_second=1.0), "mixed": figure}) == (phase, f"this machine {says}")


@pytest.mark.parametrize("name", scenarios.SCENARIOS)
def test_no_key_is_sent_twice_and_the_mix_is_what_it_says(name: str) -> None:
    made = scenarios.requests(scenarios.SCENARIOS[name], [str(number) for number in range(20)], "pbk_token", "mark-", seed=1)
    sent = [next(made) for _ in range(1_000)]
    keys = [line for one in sent for line in one.data.split(b"\r\n") if line.startswith(b"Idempotency-Key")]
    assert len(keys) == len(set(keys))
    assert {kind: sum(one.kind == kind for one in sent) // 10 for kind in scenarios.SCENARIOS[name].mix} == scenarios.SCENARIOS[name].mix
    assert all(one.rank == 0 for one in sent) or scenarios.SCENARIOS[name].pick != "hot"
    assert len(keys) == sum(one.kind in scenarios.ROWS or one.kind == "constant" for one in sent)


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _until_loaded(settings: Settings, accounts: int) -> str:
    """The name of the throw-away database with so many accounts, once deposits arrive there."""
    ours = f"SELECT 1 FROM accounts HAVING count(*) = {accounts} AND (SELECT count(*) FROM transactions) > {accounts}"

    async def wait() -> str:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            for name in await asyncio.to_thread(throw_aways, settings):
                url = settings.owner_database_url.rpartition("/")[0] + f"/{name}"
                try:
                    if await asyncio.to_thread(select, url, ours):
                        return name
                except asyncpg.PostgresError:
                    continue  # it is being made
            await asyncio.sleep(0.1)
        raise AssertionError("no load arrived")

    return run_apart(wait)
