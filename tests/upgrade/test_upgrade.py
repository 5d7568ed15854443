"""From the version that landed the wallet to the present one, and on, with people paying all the time; and back when a version is broken.

The first is installed by its own installer, from its commit; so is what its users had. The next ones are wheels of the present tree,
one of them with a supervisor that does not start, one with a web process that does not.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from installer import bundle
from piggybank.appliance import store_files, versions
from tests.conftest import ALL_SCOPES, ROOT, require, run_apart
from tests.installer.test_look import a_free_port
from tests.phases.load import Load

pytestmark = pytest.mark.deep

WALLET = "d68af4a083e5f716a95db92164a88d11236698bf"  # the commit that landed the wallet
INSTALL_TIMEOUT_S = 900
CLIENTS = 6
PAUSE_S = 0.02
STEADY_S = 3.0
BROKEN_SUPERVISOR = (
    "piggybank/appliance/supervisor.py",
    "    def run(self) -> None:",
    "    def run(self) -> None:\n        raise OSError('broken')",
)
BROKEN_WEB = ("piggybank/app.py", "    parts = open_parts(settings)", "    raise OSError('broken')")


class Place:
    """An installation that the installer made."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.url = ""

    def install(self, checkout: Path, *flags: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PIGGYBANK_")}
        command = [str(checkout / "installer" / "install.sh"), "--json", "--data-dir", str(self.data_dir), *flags]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env=environment,
            timeout=INSTALL_TIMEOUT_S,
            cwd="/",  # the old installer took what it found in the current folder
        )
        assert done.returncode == 0, done.stderr
        self.url = json.loads(done.stdout.splitlines()[-1])["url"]
        return done

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIGGYBANK_", "PYTHONPATH"))}
        return subprocess.run(
            [self.data_dir / "bin" / "piggybank", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_TIMEOUT_S,
            cwd="/",
            env=environment,
        )

    def do(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, f"piggybank {' '.join(words)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def pid(self, name: str) -> int:
        return int(json.loads((self.data_dir / "run" / f"{name}.json").read_text())["pid"])


@pytest.fixture(scope="module")
def wallet(open_folder: Path) -> Path:
    """A checkout of that commit."""
    known = subprocess.run(["git", "-C", ROOT, "cat-file", "-e", WALLET], capture_output=True, check=False).returncode == 0
    require("git history (the commit that landed the wallet)", known)
    made = open_folder / "wallet"
    made.mkdir(mode=0o755)
    archive = subprocess.run(["git", "-C", ROOT, "archive", WALLET], capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", made], input=archive.stdout, check=True)
    return made


@pytest.fixture(scope="module")
def place(open_folder: Path, wallet: Path) -> Iterator[Place]:
    made = Place(open_folder / "installed")
    made.install(wallet, "--port", str(a_free_port()))
    yield made
    made.run("down")


class Workshop:
    """Makes bundles of the present tree as another version, with a part of it changed; the libraries are collected once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tools, self.wheels = folder / "tools", folder / "wheels"
        locked = ["--quiet", "--require-hashes", "--only-binary", ":all:"]
        self._pip("install", *locked, "--target", str(self.tools), "-r", str(ROOT / "requirements-build.lock"))
        wanted = folder / "wanted.txt"
        wanted.write_text(bundle.for_any_patch((ROOT / "requirements.lock").read_text(encoding="utf-8")), encoding="utf-8")
        self._pip("download", *locked, "--dest", str(self.wheels), "-r", str(wanted))

    def make(self, version: str, change: tuple[str, str, str] | None = None) -> Path:
        work = self.folder / version
        tree = work / "tree"
        for name in ("piggybank", "alembic"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.lock"):
            shutil.copy2(ROOT / name, tree)
        (tree / "piggybank" / "__init__.py").write_text(f'"""piggybank"""\n\n__version__ = "{version}"\n', encoding="utf-8")
        if change is not None:
            path, old, new = change
            text = (tree / path).read_text(encoding="utf-8")
            assert old in text
            (tree / path).write_text(text.replace(old, new, 1), encoding="utf-8")
        self._pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(work), str(tree))
        with tarfile.open(work / "bundle.tar.gz", "w:gz", compresslevel=1) as archive:
            for wheel in (*work.glob("*.whl"), *self.wheels.glob("*.whl")):
                archive.add(wheel, f"piggybank/wheels/{wheel.name}")
        return work / "bundle.tar.gz"

    def _pip(self, *words: str) -> None:
        command = [sys.executable, "-m", "pip", *words]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(self.tools)},
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
        require("a package index", done.returncode == 0)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


@asynccontextmanager
async def paying(place: Place) -> AsyncIterator[Load]:
    """Clients that try each write at most four times within ten seconds; afterwards every account is what was counted."""
    token = json.loads(await asyncio.to_thread(place.do, "apikeys", "create", "--name", "load", "--scopes", ALL_SCOPES, "--json"))["token"]
    load = Load(place.url, token, CLIENTS, PAUSE_S)
    try:
        await load.open_accounts()
        running = load.start()
        try:
            await asyncio.sleep(STEADY_S)
            yield load
            await asyncio.sleep(STEADY_S)
        finally:
            load.stop()
            await running  # raises where a write was not answered
        await load.compare()
        print(f"{len(load.done)} answers, tried again: {dict(load.retries)}", file=sys.__stdout__)
    finally:
        await load.close()


async def _upgraded(place: Place, *words: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(place.run, "upgrade", *words)


def test_from_the_wallet_to_the_present_without_a_failure(place: Place) -> None:
    async def run() -> subprocess.CompletedProcess[str]:
        async with paying(place):
            return await asyncio.to_thread(place.install, ROOT)

    before, postgres = versions.present(place.data_dir), place.pid("postgres")
    done = run_apart(run)
    after = versions.present(place.data_dir)
    assert after != before
    assert "migrated: 0002" in done.stderr
    assert set(versions.here(place.data_dir)) == {before, after}
    assert place.pid("postgres") == postgres  # the stores were adopted
    assert json.loads(place.do("status", "--json"))["ok"]
    dump = next((place.data_dir / "upgrades").glob("before-*.dump"))
    assert dump.stat().st_size > 10_000
    place.do("verify")


def test_what_is_down_is_backed_up_before_the_installer_changes_it(open_folder: Path, wallet: Path) -> None:
    place = Place(open_folder / "stopped")
    place.install(wallet, "--port", str(a_free_port()))
    try:
        place.do("down")
        done = place.install(ROOT)
        assert done.stderr.index("backed up: ") < done.stderr.index("5/7 Starting")
        assert next((place.data_dir / "upgrades").glob("before-*.dump")).stat().st_size > 10_000
        assert json.loads(place.do("status", "--json"))["ok"]
    finally:
        place.run("down")


async def _written_down(place: Place) -> list[tuple[str, dict[str, str]]]:
    """The upgrades in the audit log."""
    stores = store_files.load_secrets(place.data_dir / "stores", None)
    connection = await asyncpg.connect(stores.addresses()["owner_database_url"])
    try:
        rows = await connection.fetch("SELECT target, details FROM audit_log WHERE action = 'upgrade' ORDER BY id")
    finally:
        await connection.close()
    return [(row["target"], json.loads(row["details"])) for row in rows]


def test_on_to_the_next_version_by_its_bundle(place: Place, workshop: Workshop) -> None:
    made = workshop.make("0.2.0")

    async def run() -> subprocess.CompletedProcess[str]:
        async with paying(place):
            return await _upgraded(place, "--to", str(made))

    planned = json.loads(place.do("upgrade", "--plan", "--json", "--to", str(made)))
    assert (versions.number(planned["from"]), versions.number(planned["to"]), planned["migrations"]) == ("0.1.0", "0.2.0", [])
    done = run_apart(run)
    assert done.returncode == 0, done.stderr
    assert versions.number(versions.present(place.data_dir)) == "0.2.0"
    assert json.loads(place.do("status", "--json"))["version"] == "0.2.0"
    (from_the_wallet, _), last = asyncio.run(_written_down(place))
    assert from_the_wallet == f"version:{planned['from']}"
    assert last == (f"version:{planned['to']}", {"before": planned["from"]})
    again = place.run("upgrade")
    assert (again.returncode, "runs already" in again.stderr) == (1, True), again.stderr
    place.do("verify")


@pytest.mark.parametrize(
    ("version", "change", "says"), [("0.3.0", BROKEN_WEB, "does not become ready"), ("0.3.1", BROKEN_SUPERVISOR, "runs again")]
)
def test_a_broken_version_is_taken_back(place: Place, workshop: Workshop, version: str, change: tuple[str, str, str], says: str) -> None:
    made, before = workshop.make(version, change), versions.present(place.data_dir)

    async def run() -> subprocess.CompletedProcess[str]:
        async with paying(place):
            return await _upgraded(place, "--to", str(made), "--no-backup")

    done = run_apart(run)
    assert done.returncode == 1, done.stderr
    assert says in done.stderr
    assert versions.present(place.data_dir) == before
    assert json.loads(place.do("status", "--json"))["ok"]
    place.do("verify")


def test_back_to_an_earlier_one_on_the_same_schema(place: Place) -> None:
    async def run() -> subprocess.CompletedProcess[str]:
        async with paying(place):
            return await _upgraded(place, "--to", "0.1.0", "--no-backup")

    assert versions.number(versions.present(place.data_dir)) == "0.2.0"
    done = run_apart(run)
    assert done.returncode == 0, done.stderr
    assert versions.number(versions.present(place.data_dir)) == "0.1.0"
    assert json.loads(place.do("status", "--json"))["ok"]
