"""One image and one project at a time: the engine is prepared by `engine.sh`, which tells what stands for an image that cannot be had."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require

from .project import ROOT, Project

PREPARE_TIMEOUT_S = 900
BUILD_TIMEOUT_S = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.images)


@pytest.fixture(scope="session")
def substituted() -> list[str]:
    """What `engine.sh` said of images that are not the real ones; the run ends here where there is no engine."""
    require("docker")
    done = subprocess.run(
        ["sh", str(ROOT / "tests/images/engine.sh")], capture_output=True, text=True, check=False, timeout=PREPARE_TIMEOUT_S
    )
    if done.returncode != 0:
        require(f"docker ({done.stderr.strip().splitlines()[-1]})", available=False)
    return done.stdout.splitlines()


@pytest.fixture(scope="session")
def image(substituted: list[str]) -> str:
    name = "piggybank:under-test"
    subprocess.run(["docker", "build", "--quiet", "--tag", name, str(ROOT)], check=True, capture_output=True, timeout=BUILD_TIMEOUT_S)
    return name


@pytest.fixture
def project(image: str, substituted: list[str], tmp_path: Path) -> Iterator[Project]:
    missing = {line.split()[1].rstrip(":") for line in substituted if line.startswith("MISSING")}
    made = Project(tmp_path, image, missing)
    try:
        yield made
    finally:
        made.destroy()


def inspect(*words: str) -> Any:
    return json.loads(subprocess.run(["docker", *words], check=True, capture_output=True, text=True, timeout=60).stdout)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Listed at the end of every run."""
    done = subprocess.run(["docker", "images", "--format", "{{.Repository}}:{{.Tag}}"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return
    for name in done.stdout.split():
        label = subprocess.run(
            ["docker", "image", "inspect", "--format", '{{index .Config.Labels "substituted"}}', name],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
        if label and not name.startswith("piggybank:"):
            terminalreporter.write_line(f"SUBSTITUTED {name} by {label}")
