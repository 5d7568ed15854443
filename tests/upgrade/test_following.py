"""A version that may not follow the one that was here does not migrate, whoever asks; one that may, backs up what does not run first.

The other versions are copies of the present tree, with another number and migrations of their own.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from piggybank import __version__
from piggybank.appliance import binaries, dumps, migrating, store_files
from piggybank.appliance.embedded import Embedded
from piggybank.db import revisions
from piggybank.settings import Settings
from tests.appliance.bank import Bank
from tests.conftest import ROOT, run_apart

STOP = '[[stop]]\nversion = "0.4.0"\nwhy = "it writes answers anew"\n'
ADDS = 'op.execute("CREATE TABLE later (id integer)")'
TAKES_AWAY = 'op.execute("ALTER TABLE links DROP COLUMN used_at")'
COMMAND_TIMEOUT_S = 120


class Version:
    """A tree of its own, run by this Python."""

    def __init__(self, tree: Path, number: str, *, stop: str = "stop = []", migration: str = "", contract: str = "") -> None:
        self.tree, self.number = tree / number, number
        for name in ("piggybank", "alembic"):
            shutil.copytree(ROOT / name, self.tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        (self.tree / "piggybank" / "__init__.py").write_text(f'"""piggybank"""\n\n__version__ = "{number}"\n', encoding="utf-8")
        (self.tree / "piggybank" / "upgrades.toml").write_text(stop, encoding="utf-8")
        if migration:
            head = f'from alembic import op\n\nrevision = "9000"\ndown_revision = "{revisions.head()}"\n'
            mark = f'CONTRACT = "{contract}"\n' if contract else ""
            text = f"{head}{mark}\n\ndef upgrade() -> None:\n    {migration}\n"
            (self.tree / "alembic" / "versions" / "9000_later.py").write_text(text, encoding="utf-8")

    def run(self, data_dir: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("PIGGYBANK_")}
        return subprocess.run(
            [sys.executable, "-P", "-m", "piggybank", "--data-dir", str(data_dir), *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_TIMEOUT_S,
            cwd="/",
            env={**plain, "PYTHONPATH": str(self.tree), **environment},
        )

    def migrate(self, settings: Settings) -> subprocess.CompletedProcess[str]:
        """As containers, Helm's Job and Railway's pre-deploy command do."""
        owner, application = settings.owner_database_url, settings.database_url
        return self.run(settings.data_dir, "migrate", PIGGYBANK_DATABASE_URL=application, PIGGYBANK_OWNER_DATABASE_URL=owner)


def noted(settings: Settings) -> str | None:
    return run_apart(lambda: revisions.last_version(settings.database_url))  # the application's role may see it


def revision(settings: Settings) -> str | None:
    return run_apart(lambda: revisions.current(settings.database_url))


async def forget_version(settings: Settings) -> None:
    """As a database is whose versions did not note themselves."""
    owner = await asyncpg.connect(settings.owner_database_url)
    await owner.execute("ALTER TABLE installation DROP COLUMN version")
    await owner.execute("UPDATE alembic_version SET version_num = '0009'")
    await owner.close()


def test_a_version_that_migrates_notes_itself(fresh_settings: Settings, tmp_path: Path) -> None:
    run_apart(lambda: forget_version(fresh_settings))
    assert noted(fresh_settings) is None
    assert [script.revision for script in run_apart(lambda: migrating.migrations_due(fresh_settings.owner_database_url))] == ["0010"]
    assert run_apart(lambda: migrating.bring_schema(fresh_settings)) == ["0010"]
    assert noted(fresh_settings) == __version__
    later = Version(tmp_path, "0.2.0", migration=ADDS)
    assert later.migrate(fresh_settings).returncode == 0
    assert (noted(fresh_settings), revision(fresh_settings)) == ("0.2.0", "9000")
    assert run_apart(lambda: migrating.bring_schema(fresh_settings)) == []  # back to this one, on the newer schema
    assert (noted(fresh_settings), revision(fresh_settings)) == (__version__, "9000")


@pytest.mark.parametrize("is_noted", [True, pytest.param(False, marks=pytest.mark.deep)])
def test_nobody_migrates_past_a_stop(fresh_settings: Settings, tmp_path: Path, is_noted: bool) -> None:
    run_apart(lambda: migrating.bring_schema(fresh_settings) if is_noted else forget_version(fresh_settings))
    before = revision(fresh_settings)
    far = Version(tmp_path, "0.5.0", stop=STOP, migration=ADDS).migrate(fresh_settings)
    assert far.returncode == 1
    assert f"0.5.0 cannot be installed over {__version__}: 0.4.0 may not be skipped (it writes answers anew)" in far.stderr
    assert "install 0.4.0 first, then 0.5.0" in far.stderr
    assert revision(fresh_settings) == before
    through = Version(tmp_path, "0.4.0", stop=STOP).migrate(fresh_settings)
    assert through.returncode == 0, through.stderr
    assert Version(tmp_path / "again", "0.5.0", stop=STOP, migration=ADDS).migrate(fresh_settings).returncode == 0
    assert (noted(fresh_settings), revision(fresh_settings)) == ("0.5.0", "9000")


def test_nothing_is_taken_away_from_a_version_that_uses_it(fresh_settings: Settings, tmp_path: Path) -> None:
    run_apart(lambda: migrating.bring_schema(fresh_settings))
    takes = Version(tmp_path, "0.3.0", migration=TAKES_AWAY, contract="0.2.0")
    refused = takes.migrate(fresh_settings)
    assert (refused.returncode, "install 0.2.0 first, then 0.3.0" in refused.stderr) == (1, True), refused.stderr
    assert revision(fresh_settings) == revisions.head()
    assert Version(tmp_path, "0.2.0").migrate(fresh_settings).returncode == 0
    assert takes.migrate(fresh_settings).returncode == 0
    assert revision(fresh_settings) == "9000"


@pytest.fixture
def down(open_path: Path) -> Iterator[Path]:
    """An installation of this version that ran, was backed up into `target` beside it, and was stopped."""
    bank = Bank(open_path / "bank", PIGGYBANK_PORT=str(store_files.free_ports(1)[0]))
    bank.do("up", "--detach")
    (open_path / "target").mkdir()
    bank.do("backup", "create", "--logical", "--to", str(open_path / "target"))
    bank.do("down")
    yield bank.data_dir
    bank.run("down")


@pytest.mark.deep
def test_what_does_not_run_is_backed_up_before_a_newer_version_migrates(down: Path, tmp_path: Path) -> None:
    folder = down / dumps.FOLDER
    newer = Version(tmp_path, "0.5.0", stop=STOP, migration=ADDS)
    backup = ("latest", "--from", str(down.with_name("target")), "--to", str(down.with_name("restored")), "--without-key")
    for words in (("upgrade", "--stopped"), ("up",), ("restore", *backup)):
        far = newer.run(down, *words)
        assert (far.returncode, "install 0.4.0 first, then 0.5.0" in far.stderr) == (1, True), far.stderr
    same = Version(tmp_path, "0.1.1").run(down, "upgrade", "--stopped")
    assert (same.returncode, same.stderr, folder.exists()) == (0, "", False)  # nothing is migrated
    done = Version(tmp_path, "0.2.0", migration=ADDS).run(down, "upgrade", "--stopped")
    assert done.returncode == 0, done.stderr
    made = next(folder.glob("before-0.2.0-*.dump"))
    assert f"backed up: {made}" in done.stderr
    listed = subprocess.run([binaries.client("pg_restore"), "--list", made], capture_output=True, text=True, check=True)
    assert "TABLE DATA public transactions" in listed.stdout
    status = json.loads(Version(tmp_path, "0.1.2").run(down, "status", "--json").stdout)
    assert not any(status["stores"].values()), status["stores"]  # they were started for that, and stopped again


def test_a_first_start_that_was_cut_short_is_in_no_version_s_way(open_path: Path, tmp_path: Path) -> None:
    stores = Embedded(open_path / "bank")
    try:
        stores.start()
    finally:
        stores.stop()
    done = Version(tmp_path, "0.5.0", stop=STOP, migration=ADDS).run(stores.data_dir, "upgrade", "--stopped")
    assert (done.returncode, done.stderr) == (0, "")
