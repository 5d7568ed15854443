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
from piggybank.db import migrate, revisions

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
    r"\bREVOKE\b",
)
# Old code may write what these refuse; on a table that the same script makes it writes nothing.
REFUSES = (
    r"\bALTER\s+TABLE\s+(?:ONLY\s+)?(?P<table>\w+)\b[^;]*?\bADD\s+(CONSTRAINT|CHECK|UNIQUE|PRIMARY|FOREIGN|EXCLUDE)\b",
    r"\bCREATE\s+UNIQUE\s+INDEX\b[^;]*?\bON\s+(?:ONLY\s+)?(?P<table>\w+)",
)
MADE = r"\bCREATE\s+TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?(\w+)"

# Looked at by people: the revision, and why no older version writes what it refuses.
NEVER_WRITTEN = {
    "0002": "it is about columns that come with it, and about payments through a provider, which 0001 never makes",
    "0008": "the list of kinds that a constraint allows has one more",
}

# What any version that may still run has a right to: whoever migrates grants anew what its own version needs, and no more. What is taken
# from `migrate._GRANTS` stays there until no version that uses it may run beside, and then goes from here, too.
USED = {
    "SELECT": "currencies, installation, reports, archived_months, account_checkpoints, backups, archived_wal, drills, restores",
    "SELECT, INSERT": "transactions, effects, audit_log, system_entries, reconciliation_items, booked_transactions",
    "SELECT, INSERT, UPDATE": "users, sessions, api_keys, links, accounts, payments, provider_keys, provider_events, "
    "resolutions, reconciliations, lost_payments",
    "SELECT, INSERT, DELETE": "idempotency_keys, usage_minutes, minute_shares",
    "SELECT, UPDATE": "heartbeat",
    "SELECT, INSERT, UPDATE, DELETE": "outbox, failed_sign_ins, alerts",
    "INSERT, UPDATE": "reports",
    "DELETE": "sessions, links, provider_keys",
    "UPDATE (reports_through)": "installation",
}


def taken_away(sql: str) -> list[str]:
    """The parts of a script that are more than adding."""
    return [found[0] for pattern in TAKES_AWAY for found in re.finditer(pattern, _plain(sql), re.IGNORECASE)]


def refused(sql: str) -> list[str]:
    """The parts that may refuse what an older version writes."""
    made = set(re.findall(MADE, _plain(sql), re.IGNORECASE))
    found = [one for pattern in REFUSES for one in re.finditer(pattern, _plain(sql), re.IGNORECASE)]
    return [one[0] for one in found if one["table"] not in made]


def _plain(sql: str) -> str:
    return re.sub(r"--[^\n]*", "", sql)


def rights(grants: dict[str, str]) -> set[tuple[str, str]]:
    """Each right on each table by itself."""
    return {
        (right, table) for given, tables in grants.items() for right in re.split(r",\s*(?![^(]*\))", given) for table in tables.split(", ")
    }


def sql_of(script: Script) -> str:
    """What a migration would say to the server."""
    said = io.StringIO()
    context = MigrationContext.configure(dialect_name="postgresql", opts={"as_sql": True, "output_buffer": said})
    with Operations.context(context):
        script.module.upgrade()
    return said.getvalue()


def scripts() -> Iterator[Script]:
    yield from ScriptDirectory(str(revisions.folder())).walk_revisions()


def test_names_of_files_say_what_alembic_knows() -> None:
    known = [script.revision for script in scripts()]
    assert revisions.head() == known[0]
    assert all(map(revisions.is_known, known))
    assert not revisions.is_known("9999")
    assert len(known) == len(list((revisions.folder() / "versions").glob("*.py")))


@pytest.mark.parametrize("script", list(scripts()), ids=lambda script: script.revision)
def test_a_migration_only_adds_or_says_that_it_takes_away(script: Script) -> None:
    sql = sql_of(script)
    assert sql.strip()
    if not hasattr(script.module, stops.MARK):
        found = taken_away(sql) + ([] if script.revision in NEVER_WRITTEN else refused(sql))
        assert found == [], f"name the first version that does without: {stops.MARK} = '0.x.0', in a release of its own"
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
        "ALTER TABLE users ADD CONSTRAINT users_name_check CHECK (name <> '') NOT VALID",
        "ALTER TABLE users ADD COLUMN phone text, ADD UNIQUE (phone)",
        "CREATE UNIQUE INDEX CONCURRENTLY users_phone ON users (phone)",
        "CREATE TABLE phones (id uuid); CREATE UNIQUE INDEX users_phone ON users (phone)",
        "REVOKE UPDATE ON accounts FROM piggybank_app",
    ],
)
def test_what_takes_away_is_found(sql: str) -> None:
    assert taken_away(sql) + refused(sql)


def test_what_adds_is_let_through() -> None:
    assert not taken_away("ALTER TABLE users ADD COLUMN phone text, ADD COLUMN paid bigint NOT NULL DEFAULT 0; -- never DROP TABLE")
    assert not refused(
        "CREATE TABLE phones (id uuid); CREATE UNIQUE INDEX phones_id ON phones (id); ALTER TABLE phones ADD CONSTRAINT c CHECK (true)"
    )


def test_no_right_is_taken_from_a_version_that_still_runs() -> None:
    assert rights(USED) - rights(migrate._GRANTS) == set(), "a newer version may only need more"


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
