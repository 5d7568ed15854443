"""The log goes on through a failover: what was answered before and after it comes back from a base backup of before it."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import psutil
import pytest

from piggybank.appliance import store_files, topology
from piggybank.appliance.backups import wal
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
    for sent in writer.answered[-2 * PAYS :]:  # each of them is known by its key, so none is missing and none counts again
        answer = bank.deposit(account, 1, sent)
        assert (answer.status_code, answer.headers.get("idempotency-replayed")) == (201, "true")
    assert bank.get(f"/v1/accounts/{account}/balance")["balance"] == answered
    bank.do("verify")
    bank.do("phase", "show", "--observed")
    bank.do("down")


def test_what_the_old_primary_had_not_archived_is_archived_by_the_new_one(branch: Branch, target: Path, open_path: Path) -> None:
    """Its disk breaks while its archiver is behind: the copies have what it closed, and no log of theirs has a hole there."""
    require("pgbouncer")
    branch.do("up", "--detach", "--phase", "2")
    key = with_key(branch, open_path)
    account = branch.open_account()
    assert branch.deposit(account, FIRST, "first").status_code == 201
    branch.do("backup", "create")
    old, stores = primary_of(branch), branch.data_dir / "stores"
    [archiver] = archivers(branch, old)
    archiver.suspend()
    behind = []
    for number in range(3):
        assert branch.deposit(account, 1, f"behind-{number}").status_code == 201
        behind.append(ask(branch, "SELECT pg_walfile_name(pg_current_wal_insert_lsn())"))
        ask(branch, "SELECT pg_switch_wal()")
    assert branch.deposit(account, 1, "open").status_code == 201
    (stores / old / "pg_wal").rename(open_path / "lost")
    (stores / f"{old}.new").touch()  # nor can it be copied anew: it never comes back
    branch.kill(old)
    assert branch.run("failover").returncode != 0
    new = primary_of(branch)
    assert new != old
    wait_until(lambda: branch.deposit(account, 1, "after").status_code == 201)
    ship(branch, target)
    for name in behind:
        wait_until(lambda name=name: list((target / "wal").rglob(f"{name}.gz")))  # type: ignore[misc]
    verified = json.loads(branch.do("backup", "verify", *key, "--json"))
    assert (verified["log_hole"], verified["log_leads_on"]) == ("", True)
    assert moment_of(verified["restorable_until"]) <= datetime.now(UTC)

    # the schedule goes on, on the new timeline
    next_one = json.loads(branch.do("backup", "create", "--json"))
    assert next_one["next_wal"].startswith("00000002")
    assert branch.deposit(account, 1, "last").status_code == 201
    ship(branch, target)
    answered = FIRST + len(behind) + 3

    branch.destroy()
    [first_one] = [name for name in sorted(path.name for path in (target / "backups").iterdir()) if name != next_one["id"]]
    for backup_id in (next_one["id"], first_one):
        restored = branch.at(open_path / backup_id)
        branch.do("restore", backup_id, "--to", str(restored.data_dir), *key)
        restored.do("up", "--detach")
        assert restored.get(f"/v1/accounts/{account}/balance")["balance"] == answered
        restored.do("verify")
        restored.do("down")

    # of the segment in which the two parted only the new one's counts
    [parted] = [path for path in sorted((target / "wal").rglob("00000002*.gz")) if "history" not in path.name][:1]
    parted.rename(open_path / "hidden")
    (parted.parent / parted.name.replace("00000002", "00000001", 1)).write_bytes((open_path / "hidden").read_bytes())
    there = branch.at(open_path / "none")
    said = there.run("backup", "verify", first_one, *key)
    assert said.returncode == 1
    assert f"NOT whole: {wal.segment(parted.name)} is missing" in said.stdout
    refused = there.run("restore", first_one, "--to", str(open_path / "no"), *key)
    assert f"has a hole ({wal.segment(parted.name)})" in refused.stderr.replace("\n", " ")


def moment_of(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.fixture
def whole(branch: Branch) -> Branch:
    """Its cache and its queue are on its disk, too."""
    require("pgbouncer")
    for name in ("PIGGYBANK_CACHE_URL", "PIGGYBANK_QUEUE_URL"):
        del branch.environment[name]
    return branch


def test_phase_3_comes_back_with_its_months_and_its_cluster(whole: Branch, target: Path, open_path: Path) -> None:
    """Also what was answered after a failover there; without the recovery key people are told which phase it was."""
    whole.do("up", "--detach", "--phase", "3")
    key = with_key(whole, open_path)
    account = whole.open_account()
    assert whole.deposit(account, FIRST, "first").status_code == 201
    whole.do("backup", "create")
    assert whole.deposit(account, 20, "before").status_code == 201
    whole.do("failover")
    assert whole.deposit(account, 3, "after").status_code == 201
    months = partitions_of(whole)
    ship(whole, target)
    whole.destroy()

    bare = open_path / "bare"
    said = whole.do("restore", "latest", "--to", str(bare), "--without-key")
    assert "It was in phase 3" in said
    assert f"piggybank up --detach --phase 3 --data-dir {bare}" in said
    again = whole.at(open_path / "again")
    whole.do("restore", "latest", "--to", str(again.data_dir), *key)
    comes_back(again, account, FIRST + 23, months, phase=3)
    again.do("verify")
    wait_until(lambda: again.run("phase", "show", "--observed").returncode == 0)
    again.do("down")


def test_a_flip_to_phase_3_after_the_backup_comes_back_with_the_log(whole: Branch, target: Path, open_path: Path) -> None:
    """The settings are older than the rows, which is said; the phase is applied again."""
    whole.do("up", "--detach", "--phase", "2")
    key = with_key(whole, open_path)
    account = whole.open_account()
    assert whole.deposit(account, FIRST, "first").status_code == 201
    whole.do("backup", "create")
    whole.do("phase", "apply", "3")
    assert whole.deposit(account, 20, "flipped").status_code == 201
    months = partitions_of(whole)
    ship(whole, target)
    whole.destroy()

    again = whole.at(open_path / "again")
    said = whole.do("restore", "latest", "--to", str(again.data_dir), *key)
    assert "settings are those of the backup: phase 2" in said
    comes_back(again, account, FIRST + 20, months, phase=2)
    again.do("phase", "apply", "3")
    assert again.deposit(account, 1, "applied").status_code == 201
    again.do("verify")
    wait_until(lambda: again.run("phase", "show", "--observed").returncode == 0)
    again.do("down")


def partitions_of(branch: Branch) -> list[str]:
    found = [str(one["name"]) for one in json.loads(branch.do("partitions", "list", "--json"))["items"]]
    assert len(found) > 1
    return found


def comes_back(bank: Branch, account: str, balance: int, months: list[str], *, phase: int) -> None:
    """In recovery, with every row, in the phase of its settings; then it is finished."""
    bank.do("up", "--detach")
    found = json.loads(bank.run("status", "--json").stdout)
    assert (found["phase"], found["recovering"]) == (phase, True)
    assert bank.get(f"/v1/accounts/{account}/balance")["balance"] == balance
    assert bank.deposit(account, 1, "refused").json()["code"] == "in_recovery"
    assert partitions_of(bank) == months
    bank.do("restore", "finish")
    wait_until(lambda: bank.deposit(account, 1, "again").status_code == 201)
    assert bank.get(f"/v1/accounts/{account}/balance")["balance"] == balance + 1


def test_new_passwords_do_not_stop_the_log(branch: Branch, target: Path) -> None:
    branch.do("up", "--detach")
    account = branch.open_account()
    branch.do("backup", "create")
    branch.do("secrets", "rotate", "database")
    assert branch.deposit(account, 1, "one").status_code == 201
    ship(branch, target)
