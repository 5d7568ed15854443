"""ECS task definitions are what AWS's API takes, and what they start does start."""

import json
import re
import string
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from piggybank import settings as settings_file
from piggybank import worker
from piggybank.appliance import store_files
from piggybank.capacity import phases
from piggybank.cli import COMMANDS, serving
from piggybank.settings import PREFIX, Settings
from tests import forks
from tests.conftest import COMMAND_TIMEOUT_S, ROOT, environment, require

FOLDER = ROOT / "deploy" / "ecs"
LOCK = Path(__file__).with_name("botocore.lock")
README = (FOLDER / "README.md").read_text(encoding="utf-8")
INSTALL_TIMEOUT_S = 180
RUN_TIMEOUT_S = 30
FARGATE_MIB = {256: (512, 1_024, 2_048), 512: range(1_024, 4_097, 1_024), 1_024: range(2_048, 8_193, 1_024)}  # of so many CPU units
FARGATE_STOP_S = 120  # stopTimeout may be no longer
FILLED = {
    "AWS_REGION": "af-south-1",
    "AWS_ACCOUNT": "123456789012",
    "IMAGE": "you/piggybank:0.1.0",
    "PHASE": "2",
    "POOL_CONNECTIONS": "5",
    "VPC_CIDR": "10.0.0.0/16",
    "PUBLIC_URL": "https://money.example.com",
}
ROLES = ("web", "worker", "migrate")
# a task's `command` comes after the image's entry point, where it names none of its own
ENTRYPOINT = json.loads(re.findall(r"^ENTRYPOINT (.*)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)[-1])


def filled(role: str, values: Mapping[str, str] = FILLED) -> dict[str, Any]:
    """As `envsubst` makes it; a name without a value is an error here."""
    text = (FOLDER / f"{role}.json").read_text(encoding="utf-8")
    return dict(json.loads(string.Template(text).substitute(values)))


def container(role: str) -> dict[str, Any]:
    (only,) = filled(role)["containerDefinitions"]
    return dict(only)


@pytest.fixture(scope="session")
def botocore(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with botocore, checked by hash, kept between runs."""
    kept = request.config.cache
    folder = Path(kept.mkdir("botocore")) if kept is not None else tmp_path_factory.mktemp("botocore")
    ready = folder / LOCK.read_text(encoding="utf-8").split()[0]
    if not ready.exists():
        words = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-compile", "--require-hashes", "--only-binary", ":all:"]
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", *words, "--upgrade", "--target", folder / "site", "-r", LOCK],
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_TIMEOUT_S,
        )
        require("botocore from PyPI", available=done.returncode == 0)
        ready.touch()
    return folder / "site"


def complaints(botocore: Path, *files: Path) -> str:
    words = [sys.executable, "-I", str(Path(__file__).with_name("ecs.py")), str(botocore), *map(str, files)]
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=RUN_TIMEOUT_S).stdout


@pytest.mark.deep
def test_aws_takes_them(botocore: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{role}.json" for role in ROLES]
    for role, file in zip(ROLES, files, strict=True):
        file.write_text(json.dumps(filled(role)))
    assert complaints(botocore, *files) == ""
    seeded = filled("web")
    seeded["containerDefinitions"][0]["portMapping"] = []
    seeded["cpu"] = 1_024
    files[0].write_text(json.dumps(seeded))
    said = complaints(botocore, *files)
    assert 'Unknown parameter in containerDefinitions[0]: "portMapping"' in said
    assert "Invalid type for parameter cpu" in said


@pytest.mark.parametrize("role", ROLES)
def test_their_parts_are_ours(role: str, tmp_path: Path) -> None:
    task, made = filled(role), container(role)
    assert int(task["memory"]) in FARGATE_MIB[int(task["cpu"])]
    program, command = words(made)
    assert program == "piggybank"
    assert command in COMMANDS
    literal = {each["name"]: each["value"] for each in made["environment"]}
    secret = {each["name"]: each["valueFrom"] for each in made["secrets"]}
    names = {PREFIX + field.name.upper() for field in msgspec.structs.fields(Settings)}
    assert {*literal, *secret} <= names
    needed = set(settings_file.STORE_FIELDS if role != "web" else serving.NEEDED)
    assert {PREFIX + name.upper() for name in settings_file.STORE_FIELDS} & set(secret) == {PREFIX + name.upper() for name in needed}
    # a public address is the one literal whose name sounds like a secret
    assert {name for name in literal if any(word in name.lower() for word in settings_file.SECRET_NAMES)} <= {"PIGGYBANK_PUBLIC_URL"}
    assert all(arn == f"arn:aws:secretsmanager:af-south-1:123456789012:secret:piggybank/{setting(name)}" for name, arn in secret.items())
    assert settings_file.load(tmp_path, literal).phase == 2
    assert made["readonlyRootFilesystem"] is True


def words(made: Mapping[str, Any]) -> list[str]:
    """What is started, as the container's first process."""
    return [*made.get("entryPoint", ENTRYPOINT), *made["command"]]


def setting(name: str) -> str:
    return name.removeprefix(PREFIX).lower()


def test_they_may_drain() -> None:
    assert FARGATE_STOP_S >= container("web")["stopTimeout"] > serving.DRAIN_S
    assert FARGATE_STOP_S >= container("worker")["stopTimeout"] > worker.DRAIN_S


def test_the_readme_has_the_counts_of_the_table() -> None:
    for number in phases.BUILT_PHASES:
        phase = phases.of(number)
        row = f"| {number} | {phase.web} | {phase.web_max} | {phase.worker} | {phase.worker_max} | {phase.pool} |"
        assert row in README, row
    assert f"maximumPercent={100 + 100 * phases.limits().rollout.surge:.0f}" in README
    assert f"{100 * phases.limits().rollout.cpu_used:.0f} % CPU" in README
    for name in FILLED:
        assert f"`{name}`" in README


def test_a_task_says_how_its_phase_is_changed(fresh_settings: Settings) -> None:
    there = environment(fresh_settings) | {"ECS_CONTAINER_METADATA_URI_V4": "http://169.254.170.2/v4/task", "PIGGYBANK_PHASE": "1"}
    done = forks.run(("phase", "apply", "3"), there, "", COMMAND_TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    phase = phases.of(3)
    assert "nothing was changed" in done.stdout
    assert f"PHASE=3 POOL_CONNECTIONS={phase.pool}" in done.stdout
    for role, count in (("web", phase.web), ("worker", phase.worker)):
        assert f"--service piggybank-{role} --desired-count {count} " in done.stdout


@pytest.mark.deep
def test_they_start_without_a_disk(fresh_settings: Settings, open_path: Path) -> None:
    """`migrate`, then `serve` with its own health check, each as it stands there; only the port is moved."""
    (port,) = store_files.free_ports(1)
    nowhere = open_path / "not-there"

    def variables(role: str) -> dict[str, str]:
        kept = {name: value for name, value in environment(fresh_settings).items() if not name.startswith(PREFIX)}
        literal = {each["name"]: each["value"] for each in container(role)["environment"]}
        secret = {each["name"]: getattr(fresh_settings, setting(each["name"])) for each in container(role)["secrets"]}
        here = {"PIGGYBANK_DATA_DIR": str(nowhere), "PIGGYBANK_PORT": str(port), "PIGGYBANK_DURABILITY": "local"}
        return kept | literal | {name: value for name, value in secret.items() if value} | here

    def run(role: str) -> list[str]:
        program, *rest = words(container(role))
        return [sys.executable, "-m", program, *rest]

    subprocess.run(run("migrate"), env=variables("migrate"), cwd=ROOT, check=True, timeout=RUN_TIMEOUT_S, capture_output=True)
    with (open_path / "web.log").open("wb") as log:
        web = subprocess.Popen(run("web"), env=variables("web"), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    try:
        kind, program, *rest = container("web")["healthCheck"]["command"]
        assert (kind, program) == ("CMD", "python")
        check = [sys.executable, *(word.replace(":8080/", f":{port}/") for word in rest)]
        assert str(port) in check[-1]
        until = time.monotonic() + RUN_TIMEOUT_S
        while subprocess.run(check, check=False, timeout=RUN_TIMEOUT_S, capture_output=True).returncode != 0:
            assert web.poll() is None
            assert time.monotonic() < until, (open_path / "web.log").read_text(encoding="utf-8")
            time.sleep(0.1)
    finally:
        web.terminate()
        assert web.wait(RUN_TIMEOUT_S) == 0
    assert not nowhere.exists()
