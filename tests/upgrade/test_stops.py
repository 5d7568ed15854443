"""Which version may follow which: stops, contract migrations, and that every migration of ours only adds."""

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory

from installer import program
from piggybank import errors
from piggybank.appliance import stops, upgrade, versions
from piggybank.appliance.stops import Stop
from piggybank.db import migrate

STOPS = [Stop("0.4.0", "it writes answers anew"), Stop("0.7.0", "it moves the books")]

# What code of the version before would trip over. A column that must be given needs a default.
TAKES_AWAY = (
    r"\bDROP\s+(TABLE|COLUMN|VIEW|TYPE|FUNCTION|SCHEMA|SEQUENCE)\b",
    r"\bRENAME\b",
    r"\bTRUNCATE\b",
    r"\bALTER\s+COLUMN\s+\w+\s+(SET\s+DATA\s+)?TYPE\b",
    r"\bALTER\s+COLUMN\s+\w+\s+(SET\s+NOT\s+NULL|DROP\s+DEFAULT)\b",
    r"\bADD\s+COLUMN\s+(?!(?:[^,;]*\bDEFAULT\b))[^,;]*\bNOT\s+NULL\b",
    r"\bDELETE\s+FROM\b",
)


def taken_away(sql: str) -> list[str]:
    """The parts of a script that are more than adding."""
    plain = re.sub(r"--[^\n]*", "", sql)
    return [found[0] for pattern in TAKES_AWAY for found in re.finditer(pattern, plain, re.IGNORECASE)]


def sql_of(script: Script) -> str:
    """What a migration would say to the server."""
    said = io.StringIO()
    context = MigrationContext.configure(dialect_name="postgresql", opts={"as_sql": True, "output_buffer": said})
    with Operations.context(context):
        script.module.upgrade()
    return said.getvalue()


def scripts() -> Iterator[Script]:
    yield from ScriptDirectory.from_config(migrate._config()).walk_revisions()


@pytest.mark.parametrize("script", list(scripts()), ids=lambda script: script.revision)
def test_a_migration_only_adds_or_says_that_it_takes_away(script: Script) -> None:
    sql = sql_of(script)
    assert sql.strip()
    if not hasattr(script.module, stops.MARK):
        assert taken_away(sql) == [], f"name the first version that does without: {stops.MARK} = '0.x.0', in a release of its own"
    else:
        stops.numbers(getattr(script.module, stops.MARK))


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE users",
        "ALTER TABLE users DROP COLUMN email",
        "ALTER TABLE users RENAME COLUMN email TO mail",
        "ALTER TABLE users ALTER COLUMN email TYPE varchar(10)",
        "ALTER TABLE users ALTER COLUMN email SET NOT NULL",
        "ALTER TABLE users ADD COLUMN a integer DEFAULT 1, ADD COLUMN phone text NOT NULL",
        "TRUNCATE users",
    ],
)
def test_what_takes_away_is_found(sql: str) -> None:
    assert taken_away(sql)


def test_what_adds_is_let_through() -> None:
    assert not taken_away("ALTER TABLE users ADD COLUMN phone text, ADD COLUMN paid bigint NOT NULL DEFAULT 0; -- never DROP TABLE")


@pytest.mark.parametrize(
    ("present", "wanted", "first"),
    [
        ("0.3.0", "0.5.0", "0.4.0"),
        ("0.3.9", "0.8.0", "0.4.0"),
        ("0.4.0", "0.8.0", "0.7.0"),
        ("0.3.0", "0.4.0", ""),
        ("0.7.0", "0.10.0", ""),
    ],
)
def test_a_stop_is_not_skipped(present: str, wanted: str, first: str) -> None:
    if not first:
        stops.check(present, wanted, STOPS)
        return
    with pytest.raises(errors.CannotProceed) as refused:
        stops.check(present, wanted, STOPS)
    assert refused.value.details["do"] == f"install {first} first, then {wanted}"


def test_a_migration_that_takes_away_waits_for_the_version_that_does_without() -> None:
    contracts = [Stop("0.6.0", "migration 0042 takes away what older versions still use")]
    stops.check("0.6.0", "0.6.1", [], contracts=contracts)
    with pytest.raises(errors.CannotProceed, match=r"0\.6\.0 may not be skipped"):
        stops.check("0.5.0", "0.6.1", [], contracts=contracts)


def test_the_table_is_one() -> None:
    for stop in stops.table():
        assert stops.numbers(stop.version)
        assert stop.why


def test_the_installer_and_the_program_lay_versions_out_alike() -> None:

    assert versions.FINISHED == program.FINISHED
    assert versions.PIP_ENVIRONMENT == program.PIP_ENVIRONMENT


def test_elsewhere_it_says_how(tmp_path: Path) -> None:
    """A checkout has no versions of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "piggybank", "upgrade", "--plan", "--data-dir", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "was not installed by installer/install.sh" in done.stderr) == (1, True), done.stderr


def test_containers_are_upgraded_by_what_made_their_image() -> None:
    """It is built here, so a pull finds nothing, and compose needs the files that `bin/compose` names."""
    assert upgrade.ELSEWHERE["compose"].startswith("installer/install.sh --docker")
