"""Restoring: to a moment, out of a dump, into a database, in place; and what is refused, with nothing left behind."""

import asyncio
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import httpx
import msgspec
import pytest

from piggybank import errors, ids
from piggybank.appliance import embedded, folder, store_files
from piggybank.appliance.backups import databases, drills, finishing, health, making, manifests, restoring, targets, wal
from piggybank.appliance.backups.manifests import Manifest
from piggybank.appliance.backups.months import Month
from piggybank.appliance.backups.schedule import Schedule
from piggybank.appliance.embedded import Embedded
from piggybank.db import archived, backups, recovery
from piggybank.db.locks import Alone
from piggybank.settings import Settings
from tests.appliance.bank import wait_until
from tests.backups.conftest import Branch
from tests.conftest import ROOT, Stores, _on_database, command, environment, require, run_apart, run_command, start_server, start_simulator
from tests.ledger.conftest import new_account


async def _sql(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _value(url: str, query: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def _make_account(url: str) -> str:
    connection = await asyncpg.connect(url)
    try:
        return str(await new_account(connection, "ZAR"))
    finally:
        await connection.close()


def _said(settings: Settings, *words: str, given: str = "") -> str:
    """What a command of these settings says when it is refused."""
    command = [sys.executable, "-m", "piggybank", *words]
    done = subprocess.run(
        command, env=environment(settings), cwd=ROOT, capture_output=True, text=True, check=False, timeout=60, input=given
    )
    assert done.returncode == 1
    return done.stderr


@pytest.fixture
def bank(fresh_settings: Settings, tmp_path: Path) -> Settings:
    """A database that is elsewhere, with a folder for its backups."""
    (tmp_path / "backups").mkdir()
    return msgspec.structs.replace(fresh_settings, backup_target=str(tmp_path / "backups"))


@pytest.mark.deep
def test_a_dump_becomes_a_database_that_opens_in_recovery(bank: Settings, stores: Stores) -> None:
    """Logical: what a container does, with programs of the host or the wheel."""
    account = run_apart(lambda: _make_account(bank.owner_database_url))
    server = start_server(bank)
    try:
        headers = server.headers

        def deposit(url: str, key: str) -> httpx.Response:
            sent = headers | {"Idempotency-Key": key}
            return httpx.post(f"{url}/v1/accounts/{account}/deposits", json={"amount": 5, "method": "direct"}, headers=sent, timeout=30)

        assert deposit(server.url, "one").status_code == 201
        with targets.opened(bank) as target:
            made = making.create(bank, target, "logical", lambda _: None)
        assert made.manifest.facts.rows["transactions"] == 1
        assert [warning for warning in made.warnings if "same disk" in warning]
        assert deposit(server.url, "two").status_code == 201  # lost
    finally:
        server.stop()
    name = f"again_{uuid4().hex[:8]}"
    run_apart(lambda: _sql(stores.admin_url, f"CREATE DATABASE {name} OWNER {store_files.OWNER_ROLE}"))
    there = msgspec.structs.replace(
        bank, database_url=_on_database(bank.database_url, name), owner_database_url=_on_database(bank.owner_database_url, name)
    )
    try:
        with targets.opened(bank) as target:
            manifest = manifests.choose(target, "latest")
            restored = databases.into_database(target, manifest, there.owner_database_url, store_files.APPLICATION_ROLE, lambda _: None)
            with pytest.raises(errors.CannotProceed, match="not empty"):
                databases.into_database(target, manifest, there.owner_database_url, store_files.APPLICATION_ROLE, lambda _: None)
        assert (restored.transactions, restored.point) == (1, manifest.taken_at)
        epochs = [run_apart(partial(_value, url, "SELECT epoch FROM installation")) for url in (bank.database_url, there.database_url)]
        assert epochs[0] != epochs[1]
        assert "restore finish" in _said(there, "apikeys", "create", "--scopes", "all")
        server = start_server(there)
        refused = deposit(server.url, "two")
        assert (refused.status_code, refused.json()["code"], refused.json()["retryable"]) == (503, "in_recovery", True)
        assert httpx.get(f"{server.url}/v1/accounts/{account}/balance", headers=headers, timeout=30).json()["balance"] == 5
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):  # whichever version of the program comes along
            run_apart(lambda: _sql(there.database_url, "DELETE FROM outbox"))
        with pytest.raises(errors.CannotProceed, match="provider does not answer"):  # then nothing is decided
            finishing.run(there, lambda _: None, accept_unexplained=False)
        simulator = start_simulator(there)
        done = finishing.run(there, lambda _: None, accept_unexplained=False)
        simulator.stop()
        assert done is not None
        assert done.restore.backup_id == manifest.id
        assert finishing.run(there, lambda _: None, accept_unexplained=False) is None
        wait_until(lambda: deposit(server.url, "two").status_code == 201)
        assert httpx.get(f"{server.url}/v1/accounts/{account}/balance", headers=headers, timeout=30).json()["balance"] == 10
    finally:
        server.stop()
        run_apart(lambda: _sql(stores.admin_url, f"DROP DATABASE {name} WITH (FORCE)"))


def test_a_drill_in_a_container_clears_what_a_killed_one_left(bank: Settings) -> None:
    """Each is a whole copy of the database, and the next drill of a container that is started again would add another."""
    oid = run_apart(partial(_value, bank.owner_database_url, "SELECT oid FROM pg_database WHERE datname = current_database()"))
    left, old, strange = f"piggybank_drill_{oid}_deadbeef", f"piggybank_drill_{uuid4().hex[:8]}", "piggybank_drill_1_deadbeef"
    for name in (left, old, strange):
        run_apart(partial(_sql, bank.owner_database_url, f"CREATE DATABASE {name}"))

    def listed() -> set[str]:
        said = "SELECT string_agg(datname, ' ') FROM pg_database WHERE datname LIKE 'piggybank_drill_%'"
        return set(str(run_apart(partial(_value, bank.owner_database_url, said))).split())

    async def while_another_runs() -> None:
        other = await asyncpg.connect(bank.owner_database_url)
        await other.execute("SELECT pg_advisory_lock($1)", Alone.DRILL)
        try:
            with pytest.raises(errors.AlreadyRunning):
                await drills._beside(bank, target, manifest, lambda _: None)
        finally:
            await other.close()

    try:
        with targets.opened(bank) as target:
            manifest = making.create(bank, target, "logical", lambda _: None).manifest
            run_apart(while_another_runs)
            assert {left, old} <= listed(), "they may be what the other one works with"
            said: list[str] = []
            run_apart(lambda: drills._beside(bank, target, manifest, said.append))
        assert listed() == {strange}, "that of another installation on this server stays"
        assert [line for line in said if left in line]
    finally:
        for name in (left, old, strange):
            run_apart(partial(_sql, bank.owner_database_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))


def test_the_doctor_says_how_much_a_dump_a_day_can_lose(bank: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIGGYBANK_DATABASE_URL", bank.database_url)  # as a container has it

    async def said() -> str:
        connection = await asyncpg.connect(bank.database_url)
        try:
            return (await health.of_database(connection, bank)).found
        finally:
            await connection.close()

    assert "without a log" not in run_apart(said), "there is none at all, which is said"
    with targets.opened(bank) as target:
        made = making.create(bank, target, "logical", lambda _: None).manifest
    found = run_apart(said)
    assert re.search(rf"lacks what came after the last \({made.id} is \d+ min old\), at most 24 h", found), found


def test_what_cannot_be_restored_is_refused_before_anything_is_touched(bank: Settings, tmp_path: Path) -> None:
    with targets.opened(bank) as target:
        made = making.create(bank, target, "logical", lambda _: None).manifest
        later = datetime.now(UTC) + timedelta(hours=1)
        base = msgspec.structs.replace(made, kind="base", first_wal="000000010000000000000001")
        cases: list[tuple[Manifest, datetime | None, str]] = [
            (made, made.taken_at, "one moment"),
            (base, made.taken_at - timedelta(seconds=1), "begins at"),
            (base, later, "future"),
            (base, made.taken_at, "no log was archived"),
            (_with(made, schema_revision="9999"), None, "newer than ours"),
            (_with(base, postgres_major=17), None, "PostgreSQL 17"),
        ]
        for manifest, at, says in cases:
            folder = tmp_path / "restored"
            with pytest.raises(errors.CannotProceed, match=says):
                restoring.into_folder(target, manifest, folder, at, "", lambda _: None)
            assert not folder.exists()
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").touch()
        with pytest.raises(errors.CannotProceed, match="not empty"):
            restoring.into_folder(target, made, tmp_path / "full", None, "", lambda _: None)
        assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]
        with pytest.raises(errors.CannotProceed, match="becomes a data folder"):
            databases.into_database(target, base, bank.owner_database_url, "x", lambda _: None)


@pytest.mark.deep
def test_in_the_place_of_a_database_that_is_elsewhere(bank: Settings, stores: Stores) -> None:
    """As in containers: it is kept under another name, the new one opens in recovery, and nobody uses either meanwhile."""
    name = bank.database_url.rpartition("/")[2]
    account = run_apart(lambda: _make_account(bank.owner_database_url))
    file = run_apart(lambda: _archive_a_month(bank))
    backup = json.loads(command(bank, "backup", "create", "--json"))
    assert backup["kind"] == "logical"
    run_apart(lambda: _make_account(bank.owner_database_url))  # lost
    file.unlink()
    restore = ("restore", "latest", "--in-place", "--json")
    assert "the name was not typed" in _said(bank, *restore, "--name", "other")
    said = run_apart(lambda: _while_signed_in(bank.database_url, partial(_said, bank, *restore, "--name", name)))
    assert f"the database {name} is in use, sessions: {store_files.APPLICATION_ROLE} 1;" in said
    said = _said(
        msgspec.structs.replace(bank, database_url=bank.database_url.replace(store_files.APPLICATION_ROLE, "nobody")),
        *restore,
        "--name",
        name,
    )
    assert "there is no role nobody" in said
    databases = "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database WHERE datname LIKE $1 || '%'"
    assert run_apart(partial(_value, stores.admin_url, databases.replace("$1", f"'{name}'"))) == name, "what was begun is taken away"
    restored = json.loads(command(bank, *restore, "--name", name))
    try:
        assert restored["backup_id"] == backup["id"]
        assert restored["place"].endswith(f"/{name}")
        assert (file.read_bytes(), restored["missing_months"]) == (b"rows", [])
        accounts = "SELECT string_agg(id::text, ' ') FROM accounts WHERE user_id IS NOT NULL"
        assert run_apart(partial(_value, bank.database_url, accounts)) == account
        assert len(str(run_apart(partial(_value, _on_database(bank.owner_database_url, restored["kept"]), accounts))).split()) == 2
        assert "restore finish" in _said(bank, "apikeys", "create", "--scopes", "all")
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            run_apart(lambda: _sql(bank.database_url, "DELETE FROM outbox"))
    finally:
        run_apart(lambda: _sql(stores.admin_url, f"DROP DATABASE {restored['kept']} WITH (FORCE)"))


async def _archive_a_month(bank: Settings) -> Path:
    """One without rows, as `partitions archive` leaves it."""
    file = bank.data_dir / archived.FOLDER / "transactions-2020-01.parquet"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"rows")
    month = Month(file=file.name, sha256=hashlib.sha256(b"rows").hexdigest())
    file.with_suffix(".json").write_bytes(msgspec.json.encode(month))
    insert = (
        "INSERT INTO archived_months (month, partition, below, rows, amount, file, bytes, sha256, archived_at) VALUES"
        f" ('2020-01-01', 'transactions_2020_01', '{UUID(int=1)}', 0, 0, '{month.file}', 4, '{month.sha256}', now())"
    )
    await _sql(bank.owner_database_url, insert)
    return file


@pytest.mark.deep
def test_in_place_again_after_it_was_cut_short_keeps_what_was_there_first(bank: Settings, open_path: Path) -> None:
    """Killed after the renames, then a damaged backup, then a good one: at no moment `up` makes an empty bank."""
    data_dir = open_path / "bank"
    stores = Embedded(data_dir)
    stores.start()
    stores.psql("CREATE TABLE kept AS SELECT 42 AS answer")
    stores.stop()
    first = stores.dir / f"{restoring.REPLACED}20260101T000000"
    first.mkdir()
    (stores.dir / store_files.FIRST_POSTGRES).rename(first / store_files.FIRST_POSTGRES)
    (data_dir / embedded.UNFINISHED_RESTORE).write_text(restoring.IN_PLACE)
    with targets.opened(bank) as target:
        manifest = making.create(bank, target, "logical", lambda _: None).manifest
        dump = Path(bank.backup_target) / "backups" / manifest.id / making.DUMP
        content = dump.read_bytes()
        dump.write_bytes(content[: len(content) // 2])
        for _ in range(2):
            with pytest.raises(errors.CannotProceed):
                restoring.in_place(target, manifest, data_dir, None, "", lambda _: None)
            with pytest.raises(errors.CannotProceed, match="cut short"):
                Embedded(data_dir).start()
            assert (first / store_files.FIRST_POSTGRES / "PG_VERSION").is_file()
        dump.write_bytes(content)
        restored = restoring.in_place(target, manifest, data_dir, None, "", lambda _: None)
    assert restored.kept == str(first)
    assert [path.name for path in stores.dir.glob(f"{restoring.REPLACED}*")] == [first.name]
    assert not embedded.unfinished_restore(data_dir)
    (stores.dir / store_files.FIRST_POSTGRES).rename(stores.dir / "restored")
    (first / store_files.FIRST_POSTGRES).rename(stores.dir / store_files.FIRST_POSTGRES)
    stores = Embedded(data_dir)
    stores.start()
    try:
        assert stores.psql("SELECT answer FROM kept").strip() == "42"
    finally:
        stores.stop()


async def _while_signed_in(url: str, work: Callable[[], str]) -> str:
    connection = await asyncpg.connect(url)
    try:
        return await asyncio.to_thread(work)
    finally:
        await connection.close()


def test_a_backup_of_ones_own_postpones_none_of_the_schedule(bank: Settings, tmp_path: Path) -> None:
    """Into another folder, or of another kind than what the schedule makes."""

    async def is_due() -> bool:
        connection = await asyncpg.connect(bank.owner_database_url)
        try:
            standing = await backups.standing(connection)
        finally:
            await connection.close()
        return await asyncio.to_thread(Schedule(lambda: bank)._backup_due, standing, datetime.now(UTC))

    def make(kind: str, target: str) -> None:
        at = datetime.now(UTC)
        run_apart(lambda: backups.record(bank.owner_database_url, uuid4().hex, kind, target, at, at, 1))

    usb, usual = tmp_path / "usb", making.usual_kind(bank)
    usb.mkdir()
    command(bank, "backup", "create", "--logical", "--to", str(usb))
    make(usual, str(usb))
    make("logical" if usual == "base" else "base", bank.backup_target)
    assert run_apart(is_due)
    make(usual, bank.backup_target)
    assert not run_apart(is_due)


def test_the_recovery_key_is_shown_once(bank: Settings) -> None:
    first = json.loads(command(bank, "backup", "key", "--if-none", "--json"))
    assert first["recovery_key"].startswith("AGE-SECRET-KEY-1")
    again = json.loads(command(bank, "backup", "key", "--if-none", "--json"))
    assert again == {"recovery_key": None, "recipient": first["recipient"]}
    assert "not shown again" in _said(bank, "backup", "key")


def test_what_another_tool_restored_is_put_into_recovery(bank: Settings) -> None:
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert "in the future" in _said(bank, "restore", "begin", "--point", later)
    point = datetime.now(UTC) - timedelta(hours=1)
    command(bank, "restore", "begin", "--point", point.isoformat(), "--by", "a snapshot")
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        run_apart(lambda: _sql(bank.database_url, "DELETE FROM outbox"))
    assert run_apart(partial(_value, bank.database_url, "SELECT point FROM restores WHERE finished_at IS NULL")) == point
    noted = "SELECT actor || ' ' || action || ' ' || target FROM audit_log ORDER BY id DESC LIMIT 1"
    assert run_apart(partial(_value, bank.owner_database_url, noted)) == "cli restore.begin backup:a snapshot"


def test_a_job_begins_a_restore_once(bank: Settings) -> None:
    """As Kubernetes runs it, which may start it again at any time; of a restore before it there may be a row, too."""
    owner = bank.owner_database_url
    command(bank, "restore", "begin", "--point", (datetime.now(UTC) - timedelta(days=9)).isoformat())  # of the past that was restored
    run_apart(lambda: recovery.end(owner, store_files.APPLICATION_ROLE, b"{}"))
    run_apart(lambda: _sql(owner, "UPDATE restores SET restored_at = now() - interval '8 days'"))
    asked = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    wait = ["migrate", "--wait", "--within", "0", "--restored-since", asked]
    assert "it was restored, and is not in recovery yet" in _said(bank, *wait)

    made = run_apart(partial(_value, owner, "SELECT id FROM installation"))
    assert "It is in recovery" in command(bank, "restore", "begin", "--since", asked)
    point = partial(_value, owner, "SELECT point FROM restores ORDER BY id DESC LIMIT 1")
    assert run_apart(point) == ids.time_of(UUID(str(made))), "nobody's heart ever beat: it knows what was up to its making"
    assert "the schema is there" in command(bank, *wait)
    assert "begun already" in command(bank, "restore", "begin", "--since", asked)

    run_apart(lambda: recovery.end(owner, store_files.APPLICATION_ROLE, b"{}"))
    assert "begun already" in command(bank, "restore", "begin", "--since", asked)
    run_apart(lambda: _sql(bank.database_url, "UPDATE heartbeat SET beat = now() - interval '5 minutes'"))  # writes go on
    assert "the schema is there" in command(bank, *wait)
    beat = run_apart(partial(_value, owner, "SELECT beat FROM heartbeat"))
    command(bank, "restore", "begin", "--since", datetime.now(UTC).isoformat())  # another one
    assert run_apart(point) == beat
    assert "in the future" in _said(bank, "restore", "begin", "--since", (datetime.now(UTC) + timedelta(hours=1)).isoformat())
    assert "--restored-since goes with --wait" in _usage(bank, "migrate", "--restored-since", asked)


def test_a_restore_that_was_cut_off_at_its_beginning_ends_the_sessions(bank: Settings) -> None:
    async def cut_off() -> None:
        session = await asyncpg.connect(bank.database_url)
        try:
            await recovery.begin(bank.owner_database_url, "a snapshot", datetime.now(UTC))
            await session.execute("UPDATE heartbeat SET beat = now()")  # it began before
            since = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
            await asyncio.to_thread(command, bank, "restore", "begin", "--since", since)
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
                await session.execute("UPDATE heartbeat SET beat = now()")
        finally:
            session.terminate()

    run_apart(cut_off)


def _usage(settings: Settings, *words: str) -> str:
    done = run_command(settings, *words)
    assert done.returncode == 2
    return done.stderr


def test_the_address_comes_from_standard_input(bank: Settings) -> None:
    command(bank, "backup", "create")
    words = ("restore", "latest", "--to", "-")
    assert "that database is not empty" in _said(bank, *words, given=f"{bank.owner_database_url}\n")


def test_a_folder_that_is_a_mount_point_hides_no_cause(bank: Settings, tmp_path: Path) -> None:
    with targets.opened(bank) as target, _mounted(tmp_path / "disk") as disk:
        made = making.create(bank, target, "logical", lambda _: None).manifest
        with pytest.raises(errors.CannotProceed, match="the restore needs"):
            restoring.into_folder(target, _with(made, database_bytes=10**15), disk, None, "", lambda _: None)
        assert list(disk.iterdir()) == []


@contextmanager
def _mounted(place: Path) -> Iterator[Path]:
    """A file system of its own, which is there whatever is deleted in it."""
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "none", str(place)], capture_output=True, check=False).returncode == 0
    require("the right to mount", mounted)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def _with(manifest: Manifest, **facts: object) -> Manifest:
    return msgspec.structs.replace(manifest, facts=msgspec.structs.replace(manifest.facts, **facts))


@pytest.mark.deep
def test_any_moment_a_drill_a_tampered_file_and_in_place(branch: Branch, target: Path, open_path: Path) -> None:
    branch.do("up", "--detach")
    key = json.loads(branch.do("backup", "key", "--json"))["recovery_key"]
    (open_path / "key.txt").write_text(key + "\n")
    account = branch.open_account()
    assert branch.deposit(account, 100, "one").status_code == 201
    made = json.loads(branch.do("backup", "create", "--json"))
    assert branch.deposit(account, 20, "two").status_code == 201
    moment = datetime.now(UTC)
    wait_until(lambda: datetime.now(UTC) > moment + timedelta(milliseconds=50))
    assert branch.deposit(account, 3, "three").status_code == 201
    _archive(branch, target)

    drilled = json.loads(branch.do("backup", "drill", "--json"))
    assert (drilled["passed"], drilled["restored"]["accounts"]) == (True, 1)
    assert not (branch.data_dir / drills.FOLDER).exists()
    said = branch.do("backup", "verify", "--recovery-key", str(open_path / "key.txt"))
    assert "stores/secrets.toml" in said
    assert branch.run("backup", "verify").returncode == 1  # nobody there to be asked for the key
    status = json.loads(branch.run("status", "--json").stdout)
    assert (status["backups"]["backup_id"], status["backups"]["drill_passed"], status["recovering"]) == (made["id"], True, False)
    assert branch.deposit(account, 1_000, "at-the-end").status_code == 201
    branch.do("down")

    branch.do("restore", "latest", "--to", str(open_path / "then"), "--at", moment.isoformat(), "--without-key")
    then = Branch(open_path / "then", **{name: value for name, value in branch.environment.items() if name.startswith("PIGGYBANK_")})
    then.token = branch.token
    then.do("up", "--detach")
    assert then.get(f"/v1/accounts/{account}/balance")["balance"] == 120
    found = json.loads(then.run("status", "--json").stdout)
    assert found["recovering"] is True
    then.do("down")

    # in place: what the stopped server wrote last is still in its spool, and goes to the target first
    in_place = ("restore", "latest", "--in-place", "--name", branch.data_dir.name, "--without-key", "--json")
    assert wal.waiting(branch.data_dir)
    assert branch.run("restore", "latest", "--in-place", "--name", "another", "--without-key").returncode == 1
    with folder.Lock(branch.data_dir):  # an `up` that comes in between
        assert branch.run(*in_place).returncode == 1
    assert (branch.data_dir / "stores" / "postgres").is_dir()
    kept = Path(json.loads(branch.do(*in_place))["kept"])
    assert (kept / "postgres" / "PG_VERSION").is_file()
    (branch.data_dir / embedded.UNFINISHED_RESTORE).write_text(restoring.IN_PLACE)  # as one that was killed leaves it
    (branch.data_dir / "stores" / "postgres").rename(branch.data_dir / "stores" / "away")
    assert "cut short" in branch.run("up", "--detach").stderr  # not an empty bank
    assert not (branch.data_dir / "stores" / "postgres").exists()
    branch.do(*in_place)  # again
    branch.do("up", "--detach")
    assert branch.get(f"/v1/accounts/{account}/balance")["balance"] == 1_123
    assert json.loads(branch.do("restore", "finish", "--json"))["was_in_recovery"]
    wait_until(lambda: branch.deposit(account, 7, "four").status_code == 201)
    branch.do("verify")

    base = target / "backups" / made["id"] / making.BASE
    content = bytearray(base.read_bytes())
    content[len(content) // 2] ^= 0xFF
    base.write_bytes(content)
    assert branch.run("backup", "verify", "--without-key").returncode == 1
    failed = branch.run("backup", "drill", "--json")
    assert (failed.returncode, json.loads(failed.stdout)["passed"]) == (1, False)
    assert run_apart(lambda: _standing(branch)).drill_passed is False
    branch.do("down")
    assert branch.run("restore", made["id"], "--to", str(open_path / "no"), "--without-key").returncode == 1
    assert not (open_path / "no").exists()


@pytest.mark.deep
def test_a_hole_in_the_log_is_never_taken_for_its_end(branch: Branch, target: Path, open_path: Path) -> None:
    branch.do("up", "--detach")
    account = branch.open_account()
    made = json.loads(branch.do("backup", "create", "--json"))
    for number, amount in enumerate((100, 20, 0, 0), start=1):
        assert not amount or branch.deposit(account, amount, str(number)).status_code == 201
        _archive(branch, target)
    branch.do("down")
    log = _log(target)
    log[-2].rename(open_path / "hidden")
    verified = branch.run("backup", "verify", "--without-key", "--json")
    assert (verified.returncode, json.loads(verified.stdout)["log_hole"]) == (1, wal.segment(log[-2].name))
    refused = branch.run("restore", "latest", "--to", str(open_path / "no"), "--without-key")
    assert refused.returncode == 1
    assert f"the log at the target has a hole ({wal.segment(log[-2].name)})" in refused.stderr.replace("\n", " ")
    assert not (open_path / "no").exists()
    branch.do("restore", "latest", "--to", str(open_path / "until"), "--until-hole", "--without-key")

    # one that was cut off on its way is no end, either
    content = (open_path / "hidden").read_bytes()
    log[-2].write_bytes(content[: len(content) // 2])
    refused = branch.run("restore", "latest", "--to", str(open_path / "no"), "--without-key")
    assert (refused.returncode, "damaged" in refused.stderr) == (1, True)

    # while it runs, the hole is closed by a new base backup
    log[-2].unlink()
    branch.environment["PIGGYBANK_BACKUP_EVERY_H"] = "24"
    branch.do("up", "--detach")
    wait_until(lambda: _newest(branch) != made["id"] and not wal.noted_hole(branch.data_dir))
    assert branch.deposit(account, 3, "three").status_code == 201
    branch.do("down")
    branch.do("restore", "latest", "--in-place", "--name", branch.data_dir.name, "--without-key")
    branch.do("up", "--detach")
    assert branch.get(f"/v1/accounts/{account}/balance")["balance"] == 123


def _archive(branch: Branch, target: Path) -> None:
    """What was committed by now is at the target."""
    name = str(run_apart(lambda: _value(branch.stores.admin_url, "SELECT pg_walfile_name(pg_current_wal_lsn())")))
    run_apart(lambda: _sql(branch.stores.admin_url, "SELECT pg_switch_wal()"))
    wait_until(lambda: list((target / "wal").rglob(f"{name}.gz")))


def _log(target: Path) -> list[Path]:
    return sorted((target / "wal").rglob("0*.gz"))


def _newest(branch: Branch) -> str:
    return str(json.loads(branch.do("backup", "list", "--json"))["items"][0]["id"])


@pytest.mark.deep
def test_in_phase_2_the_standbys_are_made_anew_and_confirm(branch: Branch) -> None:
    require("pgbouncer")
    branch.do("up", "--detach", "--phase", "2")
    account = branch.open_account()
    assert branch.deposit(account, 100, "one").status_code == 201
    branch.do("backup", "create")
    assert branch.deposit(account, 20, "two").status_code == 201
    assert branch.get(f"/v1/accounts/{account}/balance")["balance"] == 120  # the cache is warm
    branch.do("down")
    branch.do("restore", "latest", "--in-place", "--name", branch.data_dir.name, "--without-key")
    servers = [path.name for path in (branch.data_dir / "stores").glob("postgres*") if (path / "PG_VERSION").exists()]
    assert servers == [store_files.FIRST_POSTGRES]  # copies of the past are not followed
    branch.do("up", "--detach")
    assert branch.get(f"/v1/accounts/{account}/balance")["balance"] == 120
    assert branch.deposit(account, 3, "three").status_code == 503
    branch.do("restore", "finish")
    wait_until(lambda: branch.deposit(account, 3, "three").status_code == 201)  # through the pooler, confirmed by a standby
    wait_until(lambda: branch.run("phase", "show", "--observed").returncode == 0)
    assert branch.get(f"/v1/accounts/{account}/balance")["balance"] == 123
    branch.do("verify")


@pytest.mark.deep
def test_an_old_copy_that_still_runs_stands_down_when_the_restored_one_is_finished(branch: Branch, open_path: Path) -> None:
    branch.do("up", "--detach")
    account = branch.open_account()
    assert branch.deposit(account, 10_000, "one").status_code == 201
    branch.do("backup", "create")
    branch.do("restore", "latest", "--to", str(open_path / "copy"), "--without-key")
    ports = store_files.free_ports(2)
    given = {name: value for name, value in branch.environment.items() if name.startswith("PIGGYBANK_")}
    given |= {"PIGGYBANK_PORT": str(ports[0]), "PIGGYBANK_QUEUE_URL": given["PIGGYBANK_QUEUE_URL"].rpartition("/")[0] + "/13"}
    given["PIGGYBANK_SIMULATOR_PORT"] = str(ports[1])
    copy = Branch(open_path / "copy", **given)
    copy.token = branch.token
    try:
        copy.do("up", "--detach")
        assert branch.deposit(account, 1, "two").status_code == 201  # only `finish` decides
        said = json.loads(copy.do("restore", "finish", "--json"))
        assert said["warnings"] == []

        def stood_down() -> bool:
            answer = branch.withdraw(account, 100, "from-the-old-one")
            return answer.status_code == 503 and answer.json()["code"] == "in_recovery"

        wait_until(stood_down)
        assert branch.run("backup", "create").returncode == 1
        assert "this is the old copy" in branch.run("restore", "finish").stderr
        assert "this is the old one" in branch.run("doctor").stdout.replace("\n", " ")
        paid = copy.withdraw(account, 100, "from-the-new-one").json()["payment"]["id"]
        wait_until(lambda: copy.status_of(paid) == "completed")
        copy.do("verify")
        branch.do("down")
        branch.do("up", "--detach")  # also when it comes back
        assert stood_down()
    finally:
        copy.run("down")


async def _standing(branch: Branch) -> backups.Standing:
    connection = await asyncpg.connect(branch.stores.addresses()["database_url"])
    try:
        return await backups.standing(connection)
    finally:
        await connection.close()
