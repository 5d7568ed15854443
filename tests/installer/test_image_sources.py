"""The image without an engine: what its build needs of the checkout is copied, and nothing else gets in."""

import tomllib
from pathlib import PurePosixPath

import pytest

from installer.compose import image_sources
from tests.conftest import ROOT

IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()


def let_through(path: str) -> bool:
    """As an engine reads .dockerignore: the last line that fits decides, and a folder's line is its files'."""
    names = [PurePosixPath(path), *PurePosixPath(path).parents]
    allowed = True
    for line in IGNORED:
        pattern = line.removeprefix("!")
        if line and not line.startswith("#") and any(name.match(pattern) for name in names):
            allowed = line.startswith("!")
    return allowed


def wheel_needs() -> set[str]:
    """What pyproject.toml has the build read."""
    about = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = about["tool"]["hatch"]["build"]["targets"]["wheel"]
    project = about["project"]
    version = about["tool"]["hatch"]["version"]["path"]
    return {"pyproject.toml", project["readme"], *project["license-files"], version, *wheel["packages"], *wheel["force-include"]}


@pytest.mark.parametrize("name", sorted(wheel_needs()))
def test_what_the_wheel_is_built_of_is_in_the_image(name: str) -> None:
    assert (ROOT / name).exists()
    assert any(PurePosixPath(name).is_relative_to(source) for source in image_sources()), f"the Dockerfile does not copy {name}"


@pytest.mark.parametrize("name", image_sources())
def test_what_is_copied_is_let_through(name: str) -> None:
    path = ROOT / name
    inside = next(path.rglob("*.py")) if path.is_dir() else path
    assert let_through(str(inside.relative_to(ROOT))), f".dockerignore keeps {name} out"


def test_nothing_else_is_let_through() -> None:
    allowed = [line.removeprefix("!") for line in IGNORED if line.startswith("!")]
    unread = [each for each in allowed if not any(PurePosixPath(name).match(each) for name in image_sources())]
    assert unread == []
    assert not any(
        map(let_through, (".env", "settings.env", ".data/stores/secrets.toml", ".venv/bin/python", "tests/conftest.py", "compose.yaml"))
    )
