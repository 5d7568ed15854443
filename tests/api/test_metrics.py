"""`/metrics`: right with several processes, by route and never by path, closed to strangers, and what is slow is told without values."""

import io
import json
import os
import re
import resource
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, cast

import asyncpg
import httpx
import msgspec
import pytest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from piggybank import metrics as counters
from piggybank import telemetry
from piggybank.app import create_app
from piggybank.appliance import store_files
from piggybank.db import slow
from piggybank.db.engines import Database
from piggybank.identity import apikeys
from piggybank.settings import COUNTING_FOLDER, Settings
from tests.api.conftest import People, bearer
from tests.appliance.bank import wait_until
from tests.conftest import Server, start_server

PROCESSES = 3
ROUNDS = 20


def sample(body: str, name: str, **labels: str) -> float:
    """The sum of a series over all labels that are not given."""
    return sum(
        found.value
        for family in text_string_to_metric_families(body)
        for found in family.samples
        if found.name == name and labels.items() <= found.labels.items()
    )


def scrape(server: Server) -> str:
    answer = httpx.get(f"{server.url}/metrics", timeout=20)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    return answer.text


def counts(server: Server, folder: Path) -> bool:
    return (folder / f"histogram_{server.process.pid}.db").exists()


@pytest.fixture
def three(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Server]]:
    """Web processes that share a port, and a folder to count in."""
    monkeypatch.setenv(COUNTING_FOLDER, str(tmp_path))
    shared = msgspec.structs.replace(settings, web_processes=PROCESSES)
    port = store_files.free_ports(1)[0]
    running = [start_server(shared, port) for _ in range(PROCESSES)]  # each is ready as soon as one of them is
    wait_until(lambda: all(counts(server, tmp_path) for server in running))
    yield running
    for server in running:
        server.stop()


def test_three_processes_on_one_port_count_what_was_sent(three: list[Server], tmp_path: Path) -> None:
    one = three[0]
    headers = one.headers
    account = "01a20640-e9a8-7095-8809-cc426b48fcc9"

    def send(rounds: int) -> None:
        for _ in range(rounds):
            connection = HTTPConnection("127.0.0.1", one.settings.port, timeout=20)  # one each: the kernel spreads them
            for method, path, status in (
                ("GET", "/v1/currencies", 200),
                ("GET", f"/v1/accounts/{account}/balance", 404),
                ("GET", f"/{account}", 404),
                ("BREW", "/v1/currencies", 405),
            ):
                connection.request(method, path, headers=headers)
                answer = connection.getresponse()
                answer.read()
                assert answer.status == status
            connection.close()

    def check(rounds: int) -> None:
        body = scrape(one)
        count = "http_server_request_duration_seconds_count"
        assert sample(body, count, http_route="/v1/currencies", http_request_method="GET", http_response_status_code="200") == rounds
        assert sample(body, count, http_route="/v1/accounts/{account_id}/balance", http_response_status_code="404") == rounds
        assert sample(body, count, http_route=counters.NO_ROUTE) == 2 * rounds
        assert sample(body, count, http_request_method=counters.OTHER_METHOD) == rounds
        assert sample(body, "http_server_request_duration_seconds_bucket", http_route="/v1/currencies", le="+Inf") == rounds
        assert account not in body
        assert "BREW" not in body

    send(ROUNDS)
    check(ROUNDS)
    counted = {int(path.stem.rpartition("_")[2]) for path in tmp_path.glob("histogram_*.db")}
    assert counted - {0} == {server.process.pid for server in three}
    three[2].kill()  # what it counted stays counted
    three[2] = start_server(three[0].settings, three[0].settings.port)
    wait_until(lambda: counts(three[2], tmp_path))
    check(ROUNDS)
    send(ROUNDS)
    check(2 * ROUNDS)
    pids = {int(path.stem.rpartition("_")[2]) for path in tmp_path.glob("histogram_*.db")}
    assert pids == {server.process.pid for server in three} | {0}  # the dead are one


async def test_strangers_do_not_read_it(people: People, settings: Settings, db: Database) -> None:
    near = msgspec.structs.replace(settings, metrics_networks=["127.0.0.1", "10.0.0.0/8"])
    app = create_app(near)
    async with db.write() as write:
        _, moving = await apikeys.create(write, name="till", scopes=[*apikeys.SCOPES.keys() - {"ops:read", "metrics:read"}], actor="test")
    async with app.lifespan():
        for address, sent, status in (
            ("127.0.0.1", {}, 200),
            ("10.20.30.40", {}, 200),
            ("192.0.2.1", {}, 401),
            ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}, 401),  # by a proxy: it may be anybody
            ("192.0.2.1", people.user, 403),
            ("192.0.2.1", people.operator, 200),
            ("192.0.2.1", people.narrow, 200),
            ("192.0.2.1", people.watching, 200),
            ("192.0.2.1", bearer(moving), 403),
        ):
            transport = httpx.ASGITransport(app=cast(Any, app), client=(address, 1234))
            async with httpx.AsyncClient(transport=transport, base_url="http://bank") as asking:
                answer = await asking.get("/metrics", headers=sent)
            assert answer.status_code == status, (address, sent, answer.text)


async def test_where_no_network_is_near_everybody_needs_a_token(people: People, settings: Settings) -> None:
    """Behind a proxy on this machine that does not say for whom it asks."""
    app = create_app(msgspec.structs.replace(settings, metrics_networks=[]))
    async with app.lifespan():
        transport = httpx.ASGITransport(app=cast(Any, app), client=("127.0.0.1", 1234))
        async with httpx.AsyncClient(transport=transport, base_url="http://bank") as asking:
            assert (await asking.get("/metrics")).status_code == 401
            assert (await asking.get("/metrics", headers=people.narrow)).status_code == 200


async def test_it_answers_while_the_database_is_away(settings: Settings) -> None:
    nowhere = msgspec.structs.replace(settings, database_url="postgresql://nobody:nothing@127.0.0.1:1/none")
    app = create_app(nowhere)
    async with (
        app.lifespan(),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=cast(Any, app), client=("127.0.0.1", 1)), base_url="http://bank") as asking,
    ):
        body = (await asking.get("/metrics")).text
    assert "http_server_request_duration_seconds" in body
    assert sample(body, "app_phase_info", phase="0") == 1
    assert "ledger_trial_balance_difference_minor" not in body  # not known: never 0


async def test_a_slow_statement_is_counted_and_told_with_its_plan_and_without_values(
    settings: Settings, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    telemetry.configure("info", "json", log)
    monkeypatch.setattr(slow, "EXPLAIN_EVERY_S", 0.0)
    db = Database(settings.database_url)
    before = counters.SLOW_QUERIES._value.get()
    secret = "nobody's business"
    async with db.read() as read:
        asked = text("SELECT name, pg_sleep(0.12) FROM (SELECT 1) AS one LEFT JOIN users ON name = :name")
        await read.execute(asked, {"name": secret})
        await read.execute(text("SELECT 1"))
    await slow.all_told()
    lane = await db.connect()
    slow.listen_to(lane, db.connect)
    await lane.fetch("SELECT pg_sleep(0.12) WHERE $1 <> ''", secret)
    await lane.fetch("SELECT 1")  # by now it is known
    await slow.all_told()
    await lane.close()
    await db.close()
    assert counters.SLOW_QUERIES._value.get() == before + 2
    said = [json.loads(line) for line in log.getvalue().splitlines() if "slow_query" in line]
    assert [re.sub(r"\s+", " ", each["statement"])[:12] for each in said] == ["SELECT name,", "SELECT pg_sl"]
    assert all(each["ms"] >= 120 for each in said)
    assert any("Join" in line for line in said[0]["plan"]), said
    assert "Result" in said[1]["plan"][0]
    assert all(secret not in json.dumps(each) for each in said)


async def test_plans_are_asked_for_seldom_and_seldom_for_the_same_statement(
    settings: Settings, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    telemetry.configure("info", "json", log)
    monkeypatch.setattr(slow, "_explained", OrderedDict())
    connection = await asyncpg.connect(settings.database_url)

    async def explain(statement: str) -> list[str]:
        return [row[0] for row in await connection.fetch(f"EXPLAIN (GENERIC_PLAN) {statement}")]

    async def told(*statements: str, every_s: float, same_again_s: float) -> list[str]:
        monkeypatch.setattr(slow, "EXPLAIN_EVERY_S", every_s)
        monkeypatch.setattr(slow, "SAME_AGAIN_S", same_again_s)
        before = len(log.getvalue())
        counted = counters.SLOW_QUERIES._value.get()
        for statement in statements:
            slow.took(statement, slow.SLOW_S, explain)  # that is not slow
            slow.took(statement, 2 * slow.SLOW_S, explain)
            await slow.all_told()
        assert counters.SLOW_QUERIES._value.get() == counted + len(statements)  # told or not
        lines = [json.loads(line) for line in log.getvalue()[before:].splitlines() if "slow_query" in line]
        assert all("Result" in line["plan"][0] for line in lines)
        return [line["statement"] for line in lines]

    hour = 3_600.0
    assert await told("SELECT 1", "SELECT 2", "SELECT 1", every_s=hour, same_again_s=0.0) == ["SELECT 1"]
    assert await told("SELECT 3", "SELECT 4", "SELECT 3", every_s=0.0, same_again_s=hour) == ["SELECT 3", "SELECT 4"]
    assert await told("SELECT  1", "SELECT 5", every_s=0.0, same_again_s=hour) == ["SELECT 5"]  # the same in other spaces
    assert await told("SELECT 3", "SELECT 3", every_s=0.0, same_again_s=0.0) == ["SELECT 3", "SELECT 3"]
    await connection.close()


async def test_a_pool_that_is_closed_leaves_no_question_for_a_plan_behind(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow, "EXPLAIN_EVERY_S", 0.0)
    db = Database(settings.database_url)
    async with db.read() as read:
        await read.execute(text("SELECT pg_sleep(0.12) AS the_last"))
    await db.close()
    await slow.all_told()
    assert db.engine.pool.checkedin() == 0  # type: ignore[attr-defined]  # a QueuePool


def _counted(folder: Path, times: int) -> int:
    """A process that counts so many jobs and ends; its pid."""
    code = f"import os\nfrom piggybank import metrics\nmetrics.JOBS.labels('archive', 'complete').inc({times})\nprint(os.getpid())"
    environment = {**os.environ, COUNTING_FOLDER: str(folder)}
    return int(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, timeout=60).stdout)


def test_the_dead_are_one_though_nobody_looks(tmp_path: Path) -> None:
    last = [_counted(tmp_path, times) for times in (1, 2, 4)][-1]
    assert {int(path.stem.rpartition("_")[2]) for path in tmp_path.glob("*.db")} == {0, last}
    for path in tmp_path.glob("*.db"):  # a hole would be a page that a full disk does not give
        assert path.stat().st_blocks * 512 >= path.stat().st_size
    counters.fold(tmp_path)
    folded = MmapedDict.read_all_values_from_file(str(tmp_path / "counter_0.db"))  # type: ignore[no-untyped-call]
    assert sum(value for _, value, _, _ in folded) == 7


def test_a_disk_without_room_keeps_what_was_counted_and_nothing_half_done(tmp_path: Path) -> None:
    dead = _counted(tmp_path, 2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (counters.FILES["counter"] // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            counters.fold(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name for path in tmp_path.iterdir()} == {f"counter_{dead}.db", f"histogram_{dead}.db", "lock"}


@pytest.mark.parametrize("gone", [False, True])
def test_who_is_killed_while_adding_up_has_counted_once(tmp_path: Path, *, gone: bool) -> None:
    _counted(tmp_path, 2)
    counters.fold(tmp_path)
    dead = _counted(tmp_path, 5)
    for kind, _, path in list(counters._files(tmp_path)):
        counters._added(path, tmp_path / f"{kind}_0.db", counters.FILES[kind])
        if gone:
            path.unlink()
    assert (tmp_path / f"counter_{dead}.folded").exists()
    counters.fold(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"counter_0.db", "histogram_0.db", "lock"}
    folded = MmapedDict.read_all_values_from_file(str(tmp_path / "counter_0.db"))  # type: ignore[no-untyped-call]
    assert sum(value for _, value, _, _ in folded) == 7


def test_where_nobody_can_count_together_each_counts_for_itself(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COUNTING_FOLDER, str(tmp_path / "not there"))
    server = start_server(settings, store_files.free_ports(1)[0])
    try:
        assert "ledger_batch_size_count" in scrape(server)
    finally:
        server.stop()
