"""Railway's file says what phases.toml says, is what its SDK takes, and what it starts does start."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from piggybank import settings as settings_file
from piggybank import worker
from piggybank.appliance import binaries, store_files, valkeys
from piggybank.capacity import connections, phases, plan, railway
from piggybank.capacity.phases import Phase
from piggybank.capacity.standing import Facts
from piggybank.cli import COMMANDS, serving
from piggybank.settings import Settings
from tests.conftest import ROOT, command, environment, run_apart
from tests.deploy import npm, railway_files
from tests.deploy.conftest import fetched, typescript

START_TIMEOUT_S = 30
BUILT = [phases.of(number) for number in phases.BUILT_PHASES]
README = (railway_files.FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(npm_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`deploy/railway` with its npm packages, as after `npm install`."""
    wanted = json.loads((railway_files.FOLDER / "package.json").read_text(encoding="utf-8"))
    assert set(wanted["dependencies"]) == set(wanted["integrity"])
    packages = [(name, fetched(npm_cache, name, version, wanted["integrity"][name])) for name, version in wanted["dependencies"].items()]
    return railway_files.copy_with(tmp_path_factory.mktemp("railway") / "deploy", *packages)


@pytest.fixture(scope="module")
def projects(folder: Path) -> dict[int, dict[str, Any]]:
    """What the file says for each phase."""
    return {
        phase.number: railway_files.evaluated(folder, npm.NODE, PIGGYBANK_PHASE=str(phase.number), IMAGE=railway_files.IMAGE)
        for phase in BUILT
    }


def service(said: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in said["project"]["resources"] if each["address"] == f"service.{name}")


def replicas(made: dict[str, Any]) -> int:
    return sum(region["numReplicas"] for region in made["deploy"]["multiRegionConfig"].values())


def values(made: dict[str, Any]) -> dict[str, str]:
    """The variables that the file sets; the others keep what Railway has."""
    return {name: each["value"] for name, each in made["variables"].items() if each["type"] == "literal"}


def test_what_is_made_from_the_table_is_up_to_date() -> None:
    assert railway_files.MADE.read_text(encoding="utf-8") == railway_files.made(), "run: python -m tests.deploy.railway_files"


@pytest.mark.parametrize("phase", BUILT, ids=lambda phase: phase.number)
def test_counts_are_those_of_the_table(projects: dict[int, dict[str, Any]], phase: Phase) -> None:
    said = projects[phase.number]
    assert said["wrong"] == []
    web, workers = service(said, "web"), service(said, "worker")
    assert (replicas(web), replicas(workers)) == (phase.web, phase.worker)
    assert (replicas(service(said, "cache")), replicas(service(said, "queue"))) == (1, 1)
    assert f"--maxmemory {phase.cache_memory_mib}mb --maxmemory-policy allkeys-lru" in service(said, "cache")["deploy"]["startCommand"]
    for each in (web, workers):
        assert values(each)["PIGGYBANK_PHASE"] == str(phase.number)
        assert int(values(each)["PIGGYBANK_POOL_CONNECTIONS"]) <= phase.pool


@pytest.mark.parametrize("phase", BUILT, ids=lambda phase: phase.number)
def test_connections_fit_while_two_sets_run(phase: Phase) -> None:
    there = railway.runs(phase)
    assert connections.shortages(there, surge=railway.SURGE) == []
    if there.pool < phase.pool:
        larger = connections.most(there)._replace(pool=there.pool + 1)
        assert connections.shortages(there, larger, surge=railway.SURGE) != []


def test_only_phase_and_sizes_differ_between_phases(projects: dict[int, dict[str, Any]]) -> None:
    """So that no flip sets or deletes a secret, and none deletes a resource."""
    first = projects[0]["project"]["resources"]
    for said in projects.values():
        resources = said["project"]["resources"]
        assert [each["address"] for each in resources] == [each["address"] for each in first]
        for each, other in zip(resources, first, strict=True):
            assert each.get("variables", {}).keys() == other.get("variables", {}).keys()
            assert each.get("volumeAttachments") == other.get("volumeAttachments")


def test_roles_start_migrate_and_drain(projects: dict[int, dict[str, Any]]) -> None:
    web, workers = service(projects[2], "web"), service(projects[2], "worker")
    for made, drain_s in ((web, serving.DRAIN_S), (workers, worker.DRAIN_S)):
        assert made["deploy"]["drainingSeconds"] > drain_s
        assert made["deploy"]["preDeployCommand"] == ["piggybank migrate"]
        for words in (made["deploy"]["startCommand"], *made["deploy"]["preDeployCommand"]):
            program, command = words.split()
            assert (program, command in COMMANDS) == ("piggybank", True)
    assert web["deploy"]["healthcheckPath"] == "/health/ready"
    assert values(web)["PORT"] == values(web)["PIGGYBANK_PORT"]
    assert service(projects[2], "queue")["volumeAttachments"]["queue-data"]["mountPath"] == "/data"
    assert "volumeAttachments" not in service(projects[2], "cache")


def test_every_setting_is_named_and_every_name_is_a_setting(projects: dict[int, dict[str, Any]], tmp_path: Path) -> None:
    addresses = {
        "PIGGYBANK_DATABASE_URL": "postgresql://app:x@db/bank",
        "PIGGYBANK_OWNER_DATABASE_URL": "postgresql://owner:x@db/bank",
    }
    for said in projects.values():
        for name in ("web", "worker"):
            made = service(said, name)
            assert set(made["variables"]) == {*railway_files.setting_names(), "PORT"}
            loaded = settings_file.load(tmp_path, addresses | with_addresses(values(made), {}))
            assert (loaded.listen, loaded.port, loaded.provider_mode) == ("::", int(values(made)["PORT"]), "live")


def test_secrets_are_kept_and_never_made(projects: dict[int, dict[str, Any]]) -> None:
    """Railway's own `randomString` is the hash of a public label: the same on every machine of the world."""
    for path in railway_files.FOLDER.rglob("*"):
        assert path.is_dir() or "randomString" not in path.read_text(encoding="utf-8")
    for said in projects.values():
        for name in ("cache", "queue"):
            assert service(said, name)["variables"] == {"VALKEY_PASSWORD": {"type": "preserve"}}
        for name in ("web", "worker"):
            literal = values(service(said, name))
            secret = {each for each in literal if any(word in each.lower() for word in settings_file.SECRET_NAMES)}
            assert secret == {"PIGGYBANK_CACHE_URL", "PIGGYBANK_QUEUE_URL"}
            assert all("VALKEY_PASSWORD}}@" in literal[each] for each in secret)


def test_nothing_here_deletes() -> None:
    """What Railway calls destructive asks a person, always; and a partial deletes only its own."""
    flag = "--confirm" + "-destructive"
    folders = ("deploy", "installer", "piggybank", ".ci")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()] + [
        path for path in ROOT.glob("*.*") if path.is_file()
    ]
    assert railway_files.MADE in files
    assert [path for path in files if flag.encode() in path.read_bytes()] == []
    for one, other in ((0, 2), (2, 0), (1, 3), (3, 1)):
        assert flag not in "\n".join(railway.commands(phases.of(one), phases.of(other)))


def test_images_are_pinned_and_the_file_is_a_partial(projects: dict[int, dict[str, Any]]) -> None:
    for said in projects.values():
        assert said["partial"] == "piggybank"
        assert {each["type"] for each in said["project"]["resources"]} == {"service", "volume", "group"}  # no database
        images = {each["source"]["image"] for each in said["project"]["resources"] if each["type"] == "service"}
        assert images == {railway_files.IMAGE, "valkey/valkey:9.1.2"}
        assert all("autoUpdates" not in each.get("source", {}) for each in said["project"]["resources"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"IMAGE": railway_files.IMAGE}, "PIGGYBANK_PHASE is not set"),
        ({"IMAGE": railway_files.IMAGE, "PIGGYBANK_PHASE": ""}, "0 to 3"),
        ({"IMAGE": railway_files.IMAGE, "PIGGYBANK_PHASE": "4"}, "PIGGYBANK_PHASE is 4"),
        ({"PIGGYBANK_PHASE": "1"}, "set IMAGE"),
        ({"PIGGYBANK_PHASE": "1", "IMAGE": "you/piggybank"}, "set IMAGE"),
        ({"PIGGYBANK_PHASE": "1", "IMAGE": "you/piggybank:latest"}, "set IMAGE"),
        ({"PIGGYBANK_PHASE": "1", "IMAGE": "registry:5000/piggybank"}, "set IMAGE"),
    ],
)
def test_it_refuses_to_guess(folder: Path, given: dict[str, str], said: str) -> None:
    assert said in railway_files.complaint(folder, npm.NODE, **given)


def test_a_digest_is_a_version(folder: Path) -> None:
    digest = "you/piggybank@sha256:" + "0" * 64
    said = railway_files.evaluated(folder, npm.NODE, PIGGYBANK_PHASE="1", IMAGE=digest)
    assert service(said, "web")["source"]["image"] == digest


@pytest.mark.deep
def test_the_types_are_those_of_the_sdk(folder: Path, npm_cache: Path, tmp_path: Path) -> None:
    """The SDK drops a field that it does not know; its types do not."""
    compiler = typescript(npm_cache)
    options = ["--strict", "--noEmit", "--allowImportingTsExtensions", "--module", "nodenext", "--target", "es2022", "--skipLibCheck"]
    copied = shutil.copytree(folder, tmp_path / "copy", symlinks=True)

    def check() -> subprocess.CompletedProcess[str]:
        words = [str(npm.NODE), str(compiler), *options, str(copied / ".railway" / "railway.ts")]
        return subprocess.run(words, cwd=copied, capture_output=True, text=True, check=False, timeout=railway_files.TIMEOUT_S)

    done = check()
    assert done.returncode == 0, done.stdout
    file = copied / ".railway" / "railway.ts"
    file.write_text(file.read_text(encoding="utf-8").replace("healthcheck:", "healtcheck:"), encoding="utf-8")
    assert "healtcheck" in check().stdout


# What the plan and the README say ------------------------------------------------------------------------------------


def test_the_plan_says_what_railway_cannot_do() -> None:
    made = plan.plan(2, 3, {}, Facts(target="railway"))
    text = "\n".join(plan.lines(made))
    for words in (
        "does not scale by itself",
        "RPO above 0",
        "durability = local (the phase: synchronous)",
        "no Valkey or Redis cluster",
        "3,000 reads and 3,000 writes a second",
        "more than a Pro volume's 1,000 GB",
        "no region in Africa",
        "10 web containers are more than Hobby's 6",
    ):
        assert words in text, words
    changed = {each.what: each.after for each in plan.plan(1, 2, {}, Facts(target="railway")).changes}
    assert "commit" not in changed  # no standby confirms
    assert changed["cache"] == "2,048 MiB, one instance"
    assert "drops every connection" in "\n".join(plan.plan(1, 2, {}, Facts(target="railway")).notes)


def test_the_commands_are_in_the_right_order() -> None:
    up = railway.commands(phases.of(1), phases.of(2))
    assert f"```sh\n{chr(10).join(up)}\n```" in README
    assert up[0] == f"railway postgres ha convert --service Postgres --replicas {phases.of(2).replicas}"
    assert f"--default-pool-size {phases.of(2).pooler_connections}" in up[2]
    down = railway.commands(phases.of(3), phases.of(0))
    assert down.index("PIGGYBANK_PHASE=0 railway config apply") < down.index("railway postgres pgbouncer remove --service Postgres")
    assert railway.commands(phases.of(2), phases.of(3))[-1] == "railway ssh --service worker piggybank partitions enable"


def test_plan_and_apply_print_them_and_change_nothing(settings: Settings) -> None:
    wanted = indent("\n".join(railway.commands(phases.of(settings.phase), phases.of(2))), "  ")
    for verb in ("plan", "apply"):
        said = command(settings, "phase", verb, "2", "--target", "railway")
        assert said.rstrip().endswith(wanted)
    assert command(settings, "phase", "show", "--json").startswith('{"phase": 0')


# What it starts ------------------------------------------------------------------------------------------------------


def with_addresses(variables: dict[str, str], known: dict[str, str]) -> dict[str, str]:
    """Railway puts other services' variables into `${{name.VARIABLE}}`; those that are not known become `unknown`."""
    return {name: re.sub(r"\$\{\{([^}]+)\}\}", lambda found: known.get(found[1], "unknown"), value) for name, value in variables.items()}


@pytest.fixture
def started(open_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    running: list[subprocess.Popen[bytes]] = []
    yield running
    for each in running:
        each.terminate()
    for each in running:
        each.wait(START_TIMEOUT_S)


@pytest.mark.deep
def test_its_commands_run_with_its_variables(
    projects: dict[int, dict[str, Any]], fresh_settings: Settings, started: list[subprocess.Popen[bytes]], open_path: Path
) -> None:
    """Each start command as it stands there, its ports moved, since all run on one machine here."""
    said = projects[2]
    cache_port, queue_port, port = store_files.free_ports(3)
    known: dict[str, str] = {}
    search = os.environ | {"PATH": f"{binaries.valkey(open_path, None).parent}{os.pathsep}{os.environ['PATH']}"}

    def start(name: str, words: list[str], variables: dict[str, str]) -> None:
        (open_path / name).mkdir()
        with (open_path / f"{name}.log").open("wb") as log:
            started.append(subprocess.Popen(words, env=variables, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT))

    for name, at in (("cache", cache_port), ("queue", queue_port)):
        line = service(said, name)["deploy"]["startCommand"]
        moved = line.replace("--port 6379", f"--port {at}").replace("--dir /data", f"--dir {open_path / name}")
        start(name, shlex.split(moved), search | {"VALKEY_PASSWORD": f"secret-of-{name}"})
        known |= {f"{name}.VALKEY_PASSWORD": f"secret-of-{name}", f"{name}.RAILWAY_PRIVATE_DOMAIN": "127.0.0.1"}

    def variables(role: str) -> dict[str, str]:
        made = with_addresses(values(service(said, role)), known)
        made["PIGGYBANK_CACHE_URL"] = made["PIGGYBANK_CACHE_URL"].replace(":6379", f":{cache_port}")
        made["PIGGYBANK_QUEUE_URL"] = made["PIGGYBANK_QUEUE_URL"].replace(":6379", f":{queue_port}")
        by_hand = {
            "PIGGYBANK_DATA_DIR": str(open_path / role),
            "PIGGYBANK_DATABASE_URL": fresh_settings.database_url,
            "PIGGYBANK_OWNER_DATABASE_URL": fresh_settings.owner_database_url,
        }
        kept = {name: value for name, value in environment(fresh_settings).items() if not name.startswith("PIGGYBANK_")}
        return kept | made | by_hand | {"PORT": str(port), "PIGGYBANK_PORT": str(port)}

    for role in ("web", "worker"):
        deploy = service(said, role)["deploy"]
        for line in deploy["preDeployCommand"]:
            subprocess.run(here(line), env=variables(role), cwd=ROOT, check=True, timeout=START_TIMEOUT_S, capture_output=True)
        start(role, here(deploy["startCommand"]), variables(role))
    url = f"http://[::1]:{port}{service(said, 'web')['deploy']['healthcheckPath']}"
    until = time.monotonic() + START_TIMEOUT_S
    while (answer := asked(url)) != 200:
        assert time.monotonic() < until, (answer, (open_path / "web.log").read_text(encoding="utf-8"))
        time.sleep(0.1)
    assert asked(f"http://127.0.0.1:{port}/health/ready") == 200  # and over IPv4
    for_web = settings_file.load(open_path, variables("web"))
    assert urlsplit(for_web.cache_url).password == "secret-of-cache"
    looked = run_apart(lambda: valkeys.examine(for_web))
    assert [each for each in looked if each.result != "ok"] == []
    assert [each.poll() for each in started] == [None] * 4


def here(line: str) -> list[str]:
    """`piggybank ..`, of this checkout."""
    program, *words = line.split()
    return [sys.executable, "-m", program, *words]


def asked(url: str) -> int | None:
    try:
        return httpx.get(url, timeout=2, headers={"Host": "healthcheck.railway.app"}).status_code
    except httpx.HTTPError:
        return None
