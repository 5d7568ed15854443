"""Render to run: what stands in the manifests is started, asked and stopped, on real stores."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from piggybank.db import roles
from tests.conftest import run_apart
from tests.helm.pods import JOB_TIMEOUT_S, NAME, PASSWORDS, Pods, release, template
from tests.helm.rendering import Values, documents, of_kind
from tests.standbys import until

OWNER = "piggybank_owner"


def owner_url(pods: Pods) -> str:
    return f"postgresql://{OWNER}:{PASSWORDS['owner']}@127.0.0.1:{pods.services[f'{NAME}-postgres-rw:5432']}/piggybank"


async def value(pods: Pods, query: str) -> Any:
    connection = await asyncpg.connect(owner_url(pods))
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def jobs(pods: Pods, name: str) -> list[Any]:
    return [job["spec"]["template"]["spec"] for job in of_kind(pods.found, "Job") if f"-{name}-" in job["metadata"]["name"]]


@pytest.mark.deep
@pytest.mark.parametrize("phase", range(4))
def test_what_is_rendered_runs(phase: int, open_path: Path) -> None:
    found = documents({"phase": phase, "metrics": {"serviceMonitor": True}})
    with release(found, open_path) as pods:
        web, worker = template(found, "Deployment", "-web"), template(found, "Deployment", "-worker")
        simulator = template(found, "StatefulSet", "-simulator")

        # pods wait for the schema, and do not make it
        waiting = web["initContainers"][0]
        first = pods.start("web", waiting)
        pods.said("web", waiting, "waiting")
        assert run_apart(lambda: value(pods, "SELECT to_regclass('public.alembic_version')")) is None
        [migration] = jobs(pods, "migrate")
        said = pods.run("migrate", migration["containers"][0])
        assert "applied: 0001" in said
        assert "role_not_limited" not in said
        assert first.wait(JOB_TIMEOUT_S) == 0
        limits = run_apart(lambda: value(pods, "SELECT array_to_string(rolconfig, ' ') FROM pg_roles WHERE rolname = 'piggybank_app'"))
        assert all(f"{name}={limit}" in limits for name, limit in list(roles.ROLE_SETTINGS.items())[:3])
        assert run_apart(lambda: value(pods, "SELECT pg_has_role('piggybank_app', 'pg_read_all_stats', 'USAGE')"))
        for months in jobs(pods, "months"):
            pods.run("months", months["initContainers"][0])
            assert "months are on" in pods.run("months", months["containers"][0])
        for keeper in [each for each in of_kind(found, "Deployment") if each["metadata"]["name"].endswith("cache-keeper")]:
            container = keeper["spec"]["template"]["spec"]["containers"][0]
            pods.start("cache-keeper", container)
            pods.said("cache-keeper", container, "ok: 3 masters and 3 replicas hold all slots")

        serving = {"web": web, "worker": worker, "simulator": simulator}
        for part, spec in serving.items():
            pods.run(part, spec["initContainers"][0])
            pods.start(part, spec["containers"][0])
        for part in ("web", "simulator"):
            pods.wait_started(part, serving[part]["containers"][0])
            assert pods.probe(part, serving[part]["containers"][0], "livenessProbe")
        pods.wait_ready("web", web["containers"][0])
        pods.said("worker", worker["containers"][0], "worker_started")

        at = pods.listening[f"worker:{worker['containers'][0]['ports'][0]['containerPort']}"]
        metrics = httpx.get(f"http://127.0.0.1:{at}/metrics", trust_env=False)
        assert "saq_jobs_total" in metrics.text

        [test] = template(found, "Pod", "-test-deposit")["containers"]
        assert "accounts balance" in pods.run("test", test)
        run_apart(lambda: pay_by_card(pods))
        if phase >= 2:
            run_apart(lambda: reads_go_to_replicas(pods))
        for part, spec in serving.items():
            assert pods.terminate(part, spec["containers"][0]) == 0, part
        assert pods.not_executed() == []


def test_who_is_not_executed_is_named(tmp_path: Path) -> None:
    pods = Pods(documents({"phase": 3}), tmp_path)
    first = pods.not_executed()
    assert {each.partition(": ")[2] for each in first} >= {
        *("wait-for-schema", "web", "worker", "simulator", "migrate", "months", "deposit", "valkey", "cache-keeper")
    }
    [test] = template(pods.found, "Pod", "-test-deposit")["containers"]
    pods.executed.append({**test})
    assert pods.not_executed() == first, "one that is like it is another one"
    pods.executed.append(test)
    assert pods.not_executed() == [each for each in first if not each.endswith(": deposit")]


@pytest.mark.deep
def test_what_is_restored_waits_for_its_recovery(open_path: Path) -> None:
    """The database is the one that another tool brought back: nobody may write to it before `restore begin`, which the Job runs."""
    before = documents({})
    with release(before, open_path) as pods:
        pods.run("migrate", jobs(pods, "migrate")[0]["containers"][0])
        token = key(pods)
        asked = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        until_restored: Values = {"postgres": {"recovery": {"objectStore": "bank-backups", "targetTime": asked}}}
        found = pods.found = documents(until_restored)
        web, worker = template(found, "Deployment", "-web"), template(found, "Deployment", "-worker")
        simulator = template(found, "StatefulSet", "-simulator")
        parts = {"web": web, "worker": worker, "simulator": simulator}
        first = {part: pods.start(part, spec["initContainers"][0]) for part, spec in parts.items()}
        for part, spec in parts.items():
            pods.said(part, spec["initContainers"][0], "it was restored, and is not in recovery yet")
        [job] = jobs(pods, "migrate")
        [migration], [begin] = job["initContainers"], job["containers"]
        assert "nothing to do" in pods.run("migrate", migration)
        assert all(process.poll() is None for process in first.values()), "they wait, though the schema is there"
        assert "It is in recovery" in pods.run("migrate", begin)
        assert [process.wait(JOB_TIMEOUT_S) for process in first.values()] == [0, 0, 0]
        assert run_apart(lambda: value(pods, "SELECT point FROM restores")) == datetime.fromisoformat(asked)

        for part, spec in parts.items():
            pods.start(part, spec["containers"][0])
        pods.wait_started("simulator", simulator["containers"][0])
        pods.wait_ready("web", web["containers"][0])
        assert run_apart(lambda: make_user(pods, token)) == (503, "in_recovery")
        finish = {**worker["containers"][0], "args": ["restore", "finish"], "name": "finish"}
        assert "writes and payouts go on" in pods.run("worker", finish)
        assert run_apart(lambda: make_user(pods, token)) == (201, "")
        assert "begun already" in pods.run("migrate", begin), "it may run again, as of a release that still has the value"
        assert run_apart(lambda: make_user(pods, token)) == (201, "")
        pods.found = before
        pods.run("web", template(before, "Deployment", "-web")["initContainers"][0])


async def make_user(pods: Pods, token: str) -> tuple[int, str]:
    async with client(pods, token) as http:
        answer = await http.post("/users", json={"external_id": uuid4().hex})
        return answer.status_code, answer.json().get("code", "")


def client(pods: Pods, token: str = "") -> httpx.AsyncClient:
    url = f"http://127.0.0.1:{pods.services[f'{NAME}-web:80']}/v1"
    return httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30, trust_env=False)


def key(pods: Pods) -> str:
    worker = template(pods.found, "Deployment", "-worker")["containers"][0]
    scopes = "users:write,accounts:write,accounts:read,ledger:write,payments:write,ops:read"
    words = {"args": ["apikeys", "create", "--name", "test", "--scopes", scopes, "--token-only"], "name": "apikeys"}
    return pods.run("worker", {**worker, **words}).splitlines()[-1]


async def pay_by_card(pods: Pods) -> None:
    """Over every edge of the simulator: the web asks it, people pay there, its event comes to the web, the worker posts it."""
    async with client(pods, key(pods)) as http:
        user = (await http.post("/users", json={"external_id": "a person"})).json()["id"]
        account = (await http.post("/accounts", json={"user_id": user, "currency": "ZAR"})).json()["id"]
        registered = (await http.get("/ops/status")).status_code
        assert registered == 200
        answer = await http.post(
            f"/accounts/{account}/deposits", json={"amount": 15_000, "method": "revio"}, headers={"Idempotency-Key": "card"}
        )
        assert answer.status_code == 202, answer.text
        payment = answer.json()["payment"]
        page = payment["checkout_url"].replace("localhost:8081", f"127.0.0.1:{pods.services[f'{NAME}-simulator:8081']}")
        assert (await http.post(f"{page}pay")).status_code < 400

        async def completed() -> bool:
            status: str = (await http.get(f"/payments/{payment['id']}")).json()["status"]
            return status == "completed"

        await until(completed)
        balance = (await http.get(f"/accounts/{account}/balance")).json()
        assert balance["balance"] == 15_000


async def reads_go_to_replicas(pods: Pods) -> None:
    """All three servers are named, the primary is known for one, and both standbys answer."""
    async with client(pods, key(pods)) as http:
        accounts = (await http.get("/accounts")).json()["items"]

        async def both() -> bool:
            for account in accounts:
                await http.get(f"/accounts/{account['id']}/transactions", params={"limit": 7})
            replicas = (await http.get("/ops/status")).json()["reads"]["replicas"]
            assert len(replicas) == 3
            return sorted(replica["reads"] > 0 for replica in replicas) == [False, True, True]

        await until(both)
