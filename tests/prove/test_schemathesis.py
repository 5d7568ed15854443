"""The API against its own description: no 500, no status, content type or body that is not described.

Its command line is run, as a user of it would: a process of its own, whose report says how to repeat what it found.
"""

import subprocess
import sysconfig
from pathlib import Path
from typing import Literal

import pytest

from piggybank.settings import Settings
from tests.conftest import Server
from tests.prove.conftest import Person, findings, sign_in

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "unsupported_method",
    "allow_header_conformance",
)
PHASES = "examples,coverage,fuzzing,stateful"
EXAMPLES = 2  # an operation, beside those of the coverage phase
DEEP_EXAMPLES = 100
TIMEOUT_S = 1_800
SIGN_OUT = "/v1/sessions/current"  # signed out, an operator would see no more than a stranger
ALL = "^/"
FOR_STRANGERS = "^/(health|v1/(users|sessions|currencies|transfers))"

Who = Literal["service", "operator", "user", "stranger"]


@pytest.fixture(scope="module")
def people(own_settings: Settings) -> dict[str, Person]:
    return {role: sign_in(own_settings, role) for role in ("operator", "user")}


@pytest.mark.parametrize(("who", "paths"), [pytest.param("service", ALL, marks=pytest.mark.deep), ("stranger", FOR_STRANGERS)])
def test_nothing_happens_that_is_not_described(
    who: Who, paths: str, pair: tuple[Server, Server], people: dict[str, Person], tmp_path: Path
) -> None:
    """A service key reaches nearly everything; strangers come where it does not."""
    _run(who, pair[0], people, tmp_path, paths=paths, examples=EXAMPLES)


@pytest.mark.deep
@pytest.mark.parametrize("who", ["service", "operator", "user", "stranger"])
def test_nothing_happens_that_is_not_described_for_longer(
    who: Who, pair: tuple[Server, Server], people: dict[str, Person], own_settings: Settings, tmp_path: Path
) -> None:
    _run(who, pair[0], people, tmp_path, paths=ALL, examples=DEEP_EXAMPLES)
    assert findings(own_settings) == []


def _run(who: Who, server: Server, people: dict[str, Person], folder: Path, *, paths: str, examples: int) -> None:
    tool = Path(sysconfig.get_path("scripts")) / "schemathesis"
    words = [str(tool), "run", f"{server.url}/schema/openapi.json", "--phases", PHASES, "--max-examples", str(examples)]
    words += ["--checks", ",".join(CHECKS), "--generation-database", "none", "--no-color", "--continue-on-failure"]
    words += ["--include-path-regex", paths]
    if who == "service":
        words += ["--header", f"Authorization: {server.headers['Authorization']}"]
    elif who != "stranger":
        words += ["--header", f"Authorization: {people[who].headers['Authorization']}", "--exclude-path", SIGN_OUT]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
