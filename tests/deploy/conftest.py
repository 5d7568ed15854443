"""npm packages and evaluated files, once a run."""

from pathlib import Path

import pytest

from tests.conftest import require
from tests.deploy import npm

TYPESCRIPT = ("5.9.3", "sha512-jl1vZzPDinLr9eUt3J/t7V6FgNEw9QjvBPdysz9KfQDD41fQrC2Y4vKQdiaUpFT4bXlb1RHhLpp8wtm6M5TgSw==")


@pytest.fixture(scope="session")
def npm_cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where packages are kept between runs."""
    cache = request.config.cache
    return Path(cache.mkdir("npm")) if cache is not None else tmp_path_factory.mktemp("npm")


def typescript(cache: Path) -> Path:
    """The compiler, for Node."""
    return fetched(cache, "typescript", *TYPESCRIPT) / "lib" / "tsc.js"


def fetched(cache: Path, name: str, version: str, integrity: str) -> Path:
    """The package's folder; the test is not run where npm does not answer."""
    try:
        return npm.package(cache, name, version, integrity)
    except npm.Unreachable:
        require(f"npm's {name} {version}", available=False)
        raise
