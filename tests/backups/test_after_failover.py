"""The log goes on through a failover: what was answered before and after it comes back from a base backup of before it."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import psutil
import pytest

from piggybank.appliance import store_files, topology
from tests.appliance.bank import wait_until
from tests.backups.conftest import Branch, Writer
from tests.conftest import require, run_apart

pytestmark = pytest.mark.deep

FIRST = 1_000_000
PAYS = 10  # deposits, at least, in each part of the story


def primary_of(branch: Branch) -> str:
    return topology.primary_of(branch.data_dir / "stores")


def ask(branch: Branch, query: str) -> str:
    """As the superuser, on the present primary."""

    async def value() -> object:
        connection = await asyncpg.connect(branch.stores.database_url(store_files.ADMIN_ROLE, primary_of(branch)))
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return str(run_apart(value))


def ship(branch: Branch, target: Path) -> str:
    """What was answered by now is at the target, and the database knows it; the segment that it is in."""
    name = ask(branch, "SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
    ask(branch, "SELECT pg_switch_wal()")
    wait_until(lambda: list((target / "wal").rglob(f"{name}.gz")))
    wait_until(lambda: ask(branch, "SELECT name FROM archived_wal") >= name)
    return name


def archivers(branch: Branch, name: str) -> list[psutil.Process]:
    return [child for child in psutil.Process(branch.pids()[name]).children() if "archiver" in " ".join(child.cmdline())]


def with_key(branch: Branch, open_path: Path) -> tuple[str, str]:
    key = json.loads(branch.do("backup", "key", "--json"))["recovery_key"]
    (open_path / "key.txt").write_text(key + "\n")
    return "--recovery-key", str(open_path / "key.txt")


def test_what_was_answered_after_a_failover_comes_back_from_a_backup_of_before_it(branch: Branch, target: Path, open_path: Path) -> None:
    require("pgbouncer")
    branch.do("up", "--detach", "--phase", "2")
    key = with_key(branch, open_path)
    account = branch.open_account()
    assert branch.deposit(account, FIRST, "first").status_code == 201
    made = json.loads(branch.do("backup", "create", "--json"))
    writer = Writer(branch, account)
    writer.start()
    wait_until(lambda: len(writer.answered) >= PAYS)
    ship(branch, target)
    by_then = branch.get(f"/v1/accounts/{account}/balance")["balance"]
    moment = datetime.now(UTC)
    later = branch.get(f"/v1/accounts/{account}/balance")["balance"] + 1  # one may be on its way
    wait_until(lambda: datetime.now(UTC) > moment + timedelta(seconds=1))

    old = primary_of(branch)
    branch.do("failover")
    assert primary_of(branch) != old
    before = len(writer.answered)
    wait_until(lambda: len(writer.answered) >= before + PAYS)
    assert ship(branch, target).startswith("00000002")
    assert not archivers(branch, old), "it follows, and puts nothing beside what the new one archives"
    branch.do("failover", "--to", old)  # it has segments of the timeline that it left, and archives none of them now
    before = len(writer.answered)
    wait_until(lambda: len(writer.answered) >= before + PAYS)
    writer.stop()
    assert writer.wrong == []
    assert ship(branch, target).startswith("00000003")
    assert {path.name for path in (target / "wal").rglob("*.history.gz")} == {"00000002.history.gz", "00000003.history.gz"}
    assert json.loads(branch.do("backup", "verify", *key, "--json"))["log_hole"] == ""
    assert json.loads(branch.do("backup", "drill", "--json"))["passed"]
    answered = FIRST + len(writer.answered)
    assert branch.get(f"/v1/accounts/{account}/balance")["balance"] == answered

    branch.destroy()
    then, again = open_path / "then", open_path / "again"
    branch.do("restore", "latest", "--to", str(then), "--at", moment.isoformat(), *key)
    restored = json.loads(branch.do("restore", "latest", "--to", str(again), *key, "--json"))
    assert restored["backup_id"] == made["id"]

    past = branch.at(then)
    past.do("up", "--detach")
    assert by_then <= past.get(f"/v1/accounts/{account}/balance")["balance"] <= later
    past.do("down")

    bank = branch.rebuilt_as(again)
    bank.do("up", "--detach")
    assert bank.get(f"/v1/accounts/{account}/balance")["balance"] == answered
    bank.do("restore", "finish")
    wait_until(lambda: bank.deposit(account, FIRST, "first").status_code == 201)
    for sent in writer.answered:  # each of them is known by its key, so none is missing and none counts again
        answer = bank.deposit(account, 1, sent)
        assert (answer.status_code, answer.headers.get("idempotency-replayed")) == (201, "true")
    assert bank.get(f"/v1/accounts/{account}/balance")["balance"] == answered
    bank.do("verify")
    bank.do("phase", "show", "--observed")
    bank.do("down")


def test_new_passwords_do_not_stop_the_log(branch: Branch, target: Path) -> None:
    branch.do("up", "--detach")
    account = branch.open_account()
    branch.do("backup", "create")
    branch.do("secrets", "rotate", "database")
    assert branch.deposit(account, 1, "one").status_code == 201
    ship(branch, target)
