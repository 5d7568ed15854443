"""A real installation of phase 2 under load, a real Prometheus that scrapes it, and faults: exactly the alerts that they should raise."""

import asyncio
import http.client
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from piggybank.appliance import store_files
from piggybank.capacity import alerts, panels
from tests.appliance.bank import Bank
from tests.conftest import ALL_SCOPES, require

pytestmark = pytest.mark.deep

REPLICAS = ("postgres-2", "postgres-3")
PACE = 60  # windows and waits of an hour are a minute
READS = 40  # of a round of the load
PATIENCE_S = 300.0
CALM_S = 0.02
FORGED = 6
SLOW_ROUNDS, SLOW_AT_ONCE = 8, 10
HELD_S = 0.4
AGAIN_S = 40.0  # within each minute
# In an installation that is well something is written down, and somebody answers.
NOT_THERE = {"absent(app_phase)", "absent(app_phase_info)"}


class Load:
    """Clients that pay and read until they are told to stop."""

    def __init__(self, bank: Bank, token: str) -> None:
        self.bank = bank
        self.token = token
        self.accounts: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        for _ in range(5):
            user = self.post("/v1/users", {"external_id": uuid4().hex})["id"]
            self.accounts.append(self.post("/v1/accounts", {"user_id": user, "currency": "ZAR"})["id"])
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = httpx.post(self.bank.url + path, json=body, headers={**self.headers, "Idempotency-Key": uuid4().hex}, timeout=30)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def get(self, path: str, **query: Any) -> Any:
        answer = httpx.get(self.bank.url + path, params=query, headers=self.headers, timeout=30)
        answer.raise_for_status()
        return answer.json()

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def _run(self) -> None:
        port = int(self.bank.url.rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while not self._stop.is_set():
            for account in self.accounts:
                body = json.dumps({"amount": 100, "method": "direct"})
                kind = {"Content-Type": "application/json", "Idempotency-Key": uuid4().hex}
                self._ask(connection, "POST", f"/v1/accounts/{account}/deposits", body, kind)
                for path in (f"/v1/accounts/{account}/balance", f"/v1/accounts/{account}/transactions"):
                    for _ in range(READS // len(self.accounts)):
                        self._ask(connection, "GET", path)
            time.sleep(CALM_S)
        connection.close()

    def _ask(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: str = "", more: dict[str, str] | None = None
    ) -> None:
        try:
            connection.request(method, path, body or None, {**self.headers, **(more or {})})
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            connection.close()


@pytest.fixture(scope="module")
def bank(open_folder: Path) -> Iterator[Bank]:
    """Phase 2 with everything that belongs to it."""
    require("pgbouncer")
    made = Bank(
        open_folder / "watched",
        PIGGYBANK_PORT=str(store_files.free_ports(1)[0]),
        PIGGYBANK_ALERT_PACE=str(PACE),
        PIGGYBANK_RATE_ANONYMOUS_PER_MINUTE="0",
    )
    made.do("up", "--detach", "--phase", "2")
    yield made
    made.run("down")


@pytest.fixture(scope="module")
def load(bank: Bank) -> Iterator[Load]:
    token = json.loads(bank.do("apikeys", "create", "--name", "load", "--scopes", ALL_SCOPES, "--json"))["token"]
    made = Load(bank, token)
    made.start()
    yield made
    made.stop()


def until(true: Callable[[], Any], patience_s: float = PATIENCE_S) -> None:
    end = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(1)


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """A real one that scrapes each second; where it is asked."""
    port = store_files.free_ports(1)[0]
    rules = folder / "rules.yml"
    rules.write_text(alerts.rules(PACE))
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "piggybank", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    words = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *words], stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def asked(url: str, expression: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{url}/api/v1/query", params={"query": expression}, timeout=30).json()
    assert answer["status"] == "success", (expression, answer)
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def expressions() -> set[str]:
    shown = {line[0] for board in panels.DASHBOARDS for panel in board.panels for line in panel.lines}
    return {each.replace(panels.RATE, "1m") for each in shown | {alerts.expression(alert) for alert in alerts.table()}}


def test_every_alert_and_every_panel_finds_its_series(bank: Bank, load: Load, tmp_path: Path) -> None:
    require("prometheus")
    load.post(f"/v1/accounts/{load.accounts[0]}/deposits", {"amount": 5_000, "method": "revio"})  # stays open
    be_refused(bank, load)
    with prometheus(tmp_path, bank.url.removeprefix("http://")) as url:
        missing: set[str] = set()

        def complete() -> bool:
            nonlocal missing
            pay_by_revio(load)  # Prometheus counts what comes after its first scrape, and the lag's alert asks for five events
            try:
                missing = {each for each in expressions() - NOT_THERE if not asked(url, each)}
            except (httpx.HTTPError, json.JSONDecodeError):
                missing = {"prometheus does not answer yet"}
            return not missing

        try:
            until(complete)
        finally:
            print(f"without a series: {sorted(missing)}")
        assert [each["value"][1] for each in asked(url, "max(app_phase)")] == ["2"]
        assert {each["metric"]["replica"] for each in asked(url, "replica_lag_seconds")} == set(REPLICAS)
        assert asked(url, 'figure_unknown{figure="db_cpu_ratio"}') == []
        count = "http_server_request_duration_seconds_count"
        assert all(
            "/v1/" in each["metric"]["http_route"] or each["metric"]["http_route"] in ("/metrics", "/health/ready", "none")
            for each in asked(url, count)
        )


def test_faults_raise_exactly_their_alerts_once_and_they_end(bank: Bank, load: Load) -> None:
    def firing() -> set[str]:
        return {each["name"] for each in load.get("/v1/ops/alerts")["items"]}

    until(lambda: len(load.get("/v1/ops/minutes")["items"]) >= 2)
    before = firing()  # of a machine that is busy with other things
    cache = bank.pids()["cache"]
    replica = bank.stores.database_url(store_files.ADMIN_ROLE, REPLICAS[0])
    os.kill(cache, signal.SIGSTOP)
    try:
        asyncio.run(execute(replica, "SELECT pg_wal_replay_pause()"))
        started = time.time()
        expected = {"CacheAway", "CacheMisses", "ReplicaLag", "SlowQueries", "WebhookSignatures"}
        while not expected <= firing():
            assert time.time() - started < PATIENCE_S, firing()
            forge(bank)
            be_slow(bank, load)
            time.sleep(AGAIN_S)
        # what waits for the cache is told of when it has waited for a minute, and reads that wait for a table are slow requests
        assert firing() - before - expected <= {"OutboxStuck", "ApiSlow"}, firing()
    finally:
        os.kill(cache, signal.SIGCONT)
        asyncio.run(execute(replica, "SELECT pg_wal_replay_resume()"))
    until(lambda: not firing() & expected)
    ended = [each for each in load.get("/v1/ops/alerts", state="all")["items"] if each["name"] in expected]
    assert all(each["resolved_at"] and each["told"] == ["log:firing", "log:resolved"] for each in ended)
    told = [line for path in (bank.data_dir / "logs").glob("w*.log") for line in path.read_text().splitlines() if '"alert_' in line]
    lines = [json.loads(line) for line in told]
    for each in ended:
        same = [line["event"] for line in lines if (line["alert"], line["severity"]) == (each["name"], each["severity"])]
        assert (
            same.count("alert_firing")
            == same.count("alert_resolved")
            == sum((other["name"], other["severity"]) == (each["name"], each["severity"]) for other in ended)
        )


def pay_by_revio(load: Load) -> None:
    paid = load.post(f"/v1/accounts/{load.accounts[0]}/deposits", {"amount": 5_000, "method": "revio"})["payment"]
    httpx.post(f"{paid['checkout_url']}pay", timeout=30, follow_redirects=False)


def be_refused(bank: Bank, load: Load) -> None:
    """A movement that is refused (4xx), one that is sent twice, and a write that waits for a table for too long (5xx)."""

    def send(path: str, body: dict[str, Any], key: str = "") -> int:
        headers = {**load.headers, "Idempotency-Key": key or uuid4().hex}
        return httpx.post(bank.url + path, json=body, headers=headers, timeout=30).status_code

    async def while_held() -> int:
        connection = await asyncpg.connect(bank.stores.addresses()["owner_database_url"])
        try:
            async with connection.transaction():
                await connection.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
                return await asyncio.to_thread(send, "/v1/users", {"external_id": uuid4().hex})
        finally:
            await connection.close()

    account, key = load.accounts[0], uuid4().hex
    assert send(f"/v1/accounts/{account}/withdrawals", {"amount": 10**12, "method": "direct"}) == 409
    assert {send(f"/v1/accounts/{account}/deposits", {"amount": 1, "method": "direct"}, key) for _ in range(2)} == {201}
    assert asyncio.run(while_held()) == 503


def forge(bank: Bank) -> None:
    for _ in range(FORGED):
        answer = httpx.post(f"{bank.url}/v1/revio/events", content=b'{"id":"1"}', headers={"X-Signature": "bm90IHNpZ25lZA=="}, timeout=30)
        assert answer.status_code == 401


def be_slow(bank: Bank, load: Load) -> None:
    """Reads that wait for a table that somebody else has."""

    def read(held: threading.Event) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", int(bank.url.rpartition(":")[2]), timeout=30)
        connection.connect()
        held.wait(30)
        connection.request("GET", "/v1/users?external_id=nobody", headers=load.headers)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        assert answer.status == 200

    async def hold(held: threading.Event) -> None:
        connection = await asyncpg.connect(bank.stores.addresses()["owner_database_url"])
        async with connection.transaction():
            await connection.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
            held.set()
            await connection.execute(f"SELECT pg_sleep({HELD_S})")
        await connection.close()

    with ThreadPoolExecutor(SLOW_AT_ONCE) as pool:
        for _ in range(SLOW_ROUNDS):
            held = threading.Event()
            reading = [pool.submit(read, held) for _ in range(SLOW_AT_ONCE)]
            asyncio.run(hold(held))
            for each in reading:
                each.result()


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
