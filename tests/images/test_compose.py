"""compose.yaml for real: each profile comes up, takes money, and loses none while containers restart."""

import json
import subprocess
import time
from collections import Counter

import httpx
import pytest

from installer.options import BUILT_PHASES

from .project import Payer, Project

PAID_BEFORE = 20
PAID_WITHIN_S = 300
RESTARTED = ("web", "postgres-1", "queue")
WHOLE_WITHIN_S = 120
SCRAPED_WITHIN_S = 120
BACKED_UP_WITHIN_S = 120


def paid_at_least(payer: Payer, count: int) -> None:
    until = time.monotonic() + PAID_WITHIN_S
    while payer.paid < count and payer.failure is None and time.monotonic() < until:
        time.sleep(0.2)
    assert payer.paid >= count, f"{payer.paid} of {count} were answered: {payer.failure}"


def restart_under_load(project: Project) -> str:
    """Every server once, the database too: what was answered is there, once. The account that was paid into."""
    account = project.account()
    payer = Payer(project, account)
    payer.start()
    paid_at_least(payer, PAID_BEFORE)
    for service in RESTARTED:
        before = payer.paid
        project.compose("restart", service)
        paid_at_least(payer, before + PAID_BEFORE)
    paid = payer.stop()
    print(f"{paid} deposits answered over {len(RESTARTED)} restarts; {project.unanswered} were not, most tries: {project.most_tries}")
    assert project.balance(account) == paid
    project.cli("verify")
    return account


@pytest.mark.parametrize("number", BUILT_PHASES)
def test_compose_reads_the_file_in_every_phase(project: Project, number: int) -> None:
    project.phase = number
    read = json.loads(project.compose("config", "--format", "json"))
    assert read["services"]["web"]["scale"] == 2  # what .env says
    assert read["services"]["web"]["environment"]["PIGGYBANK_PHASE"] == str(number)


def test_single_pays_and_restarts_under_load(project: Project) -> None:
    project.up(0)
    account = restart_under_load(project)
    # at the limits of compose.yaml nobody was killed for memory, and nobody has more rights than it says
    for service in ("web", "worker", "backup", "postgres-1", "cache", "queue", "door", "simulator", "prometheus"):
        [seen] = json.loads(
            subprocess.run(["docker", "inspect", project.container(service)], capture_output=True, check=True, text=True).stdout
        )
        assert not seen["State"]["OOMKilled"], service
        host = seen["HostConfig"]
        assert host["Memory"] > 0, service
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert seen["Config"]["User"] not in ("", "root", "0"), service
    assert "SIMULATOR" in project.cli("status")
    if "prometheus" in project.running:
        everybody_is_scraped(project)
    backed_up_and_restored_in_place(project, account)


def everybody_is_scraped(project: Project) -> None:
    wanted, until = {"piggybank-web": 2, "piggybank-worker": 1}, time.monotonic() + SCRAPED_WITHIN_S
    while True:
        found = httpx.get(f"http://127.0.0.1:{project.ports['PROMETHEUS_PORT']}/api/v1/targets", trust_env=False).json()["data"][
            "activeTargets"
        ]
        if Counter(one["labels"]["job"] for one in found if one["health"] == "up") == wanted:
            return
        assert time.monotonic() < until, [(one["scrapeUrl"], one["health"], one["lastError"]) for one in found]
        time.sleep(1)


def backed_up_and_restored_in_place(project: Project, account: str) -> None:
    """The container makes a backup by itself; it is verified with its key, restored by a drill, and put in the place of the database."""
    until = time.monotonic() + BACKED_UP_WITHIN_S
    while not json.loads(project.cli("backup", "list", "--json"))["items"]:
        assert time.monotonic() < until, project.compose("logs", "backup")
        time.sleep(1)
    key = json.loads(project.cli("backup", "key", "--if-none", "--json"))["recovery_key"]
    assert json.loads(project.cli("backup", "key", "--if-none", "--json"))["recovery_key"] is None
    paid = project.balance(account)
    deposit = f"/v1/accounts/{account}/deposits"
    project.post(deposit, "before", {"amount": 5, "method": "direct"})
    assert [word for word in json.loads(project.cli("backup", "create", "--json"))["warnings"] if "same disk" in word]
    verified = json.loads(project.cli("backup", "verify", "--recovery-key", "-", "--json", said=key))
    assert "settings.json" in verified["secrets"]
    assert "passed" in project.cli("backup", "drill")
    project.post(deposit, "lost", {"amount": 7, "method": "direct"})

    project.compose("stop", "web", "worker", "backup", "simulator")
    said = project.cli("restore", "latest", "--in-place", "--name", "piggybank")
    assert "kept as piggybank_replaced_" in said
    project.up(project.phase)
    assert project.balance(account) == paid + 5
    refused = project.http.post(deposit, json={"amount": 7, "method": "direct"}, headers={"Idempotency-Key": "lost"})
    assert (refused.status_code, refused.json()["code"]) == (503, "in_recovery")
    project.cli("restore", "finish")
    project.post(deposit, "after", {"amount": 7, "method": "direct"})
    assert project.balance(account) == paid + 12


def test_replicas_stream_and_confirm(project: Project) -> None:
    project.up(2)
    account = project.account()
    for number in range(PAID_BEFORE):
        project.post(f"/v1/accounts/{account}/deposits", f"pay-{number}", {"amount": 1, "method": "direct"})
    seen = json.loads(project.cli("phase", "show", "--observed", "--json"))
    assert seen["differences"] == []
    assert (seen["observed"]["replicas"], seen["observed"]["confirming"]) == (2, True)
    project.compose("stop", "postgres-2")  # one of two is enough
    project.post(f"/v1/accounts/{account}/deposits", "without-one", {"amount": 1, "method": "direct"})
    assert project.balance(account) == PAID_BEFORE + 1


def test_the_cluster_is_whole_after_three_nodes_came_back_with_other_addresses(project: Project) -> None:
    project.up(3)
    account = project.account()
    assert cluster_of(project, "cache-1")["cluster_state"] == "ok"
    before = {name: address(project, name) for name in ("cache-1", "cache-2", "cache-5")}
    project.compose("stop", "--timeout", "5", *before)
    # others take the addresses that were given up, so that the nodes come back with new ones
    takers = ["docker", "run", "--rm", "--detach", "--label", project.name, "--network", f"{project.name}_stores", "--entrypoint", "sleep"]
    for _ in before:
        subprocess.run([*takers, "valkey/valkey:9.1", "600"], check=True, capture_output=True)
    try:
        project.compose("start", *before)
        moved = {name: address(project, name) for name in before}
        assert not set(before.values()) & set(moved.values()), (before, moved)
        until = time.monotonic() + WHOLE_WITHIN_S
        while not all(is_whole(project, f"cache-{number}") for number in range(1, 7)):
            assert time.monotonic() < until, [cluster_of(project, f"cache-{number}") for number in range(1, 7)]
            time.sleep(1)
        project.post(f"/v1/accounts/{account}/deposits", "after", {"amount": 7, "method": "direct"})
        assert project.balance(account) == 7
        assert json.loads(project.cli("phase", "show", "--observed", "--json"))["observed"]["cache"] == "3+3"
    finally:
        taken = subprocess.run(["docker", "ps", "--quiet", "--filter", f"label={project.name}"], check=True, capture_output=True, text=True)
        subprocess.run(["docker", "rm", "--force", *taken.stdout.split()], check=True, capture_output=True)


def is_whole(project: Project, node: str) -> bool:
    seen = cluster_of(project, node)
    return seen.get("cluster_state") == "ok" and seen.get("cluster_known_nodes") == "6" and seen.get("cluster_slots_ok") == "16384"


def cluster_of(project: Project, node: str) -> dict[str, str]:
    """What that very node says."""
    words = ["docker", "exec", project.container(node), "sh", "-c", 'REDISCLI_AUTH="$PASSWORD" valkey-cli cluster info']
    said = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    return dict(line.strip().split(":", 1) for line in said.splitlines() if ":" in line)


def address(project: Project, node: str) -> str:
    words = ["docker", "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", project.container(node)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
