"""One real appliance, as people start it: `piggybank up --detach`, then everything that can be killed is killed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import psutil
import pytest
from redis.asyncio import Redis

from piggybank import settings as settings_file
from piggybank.appliance import processes, reboot, store_files, web
from piggybank.appliance.processes import Program
from piggybank.settings import Settings
from tests.appliance.bank import Bank, wait_until
from tests.conftest import require

SMALL_DISK_MIB = 500
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def bank(open_folder: Path) -> Iterator[Bank]:
    """Running, shared by the tests of this file."""
    made = Bank(open_folder / "bank", PIGGYBANK_PORT=str(store_files.free_ports(1)[0]))
    started = made.run("up", "--detach")
    assert started.returncode == 0, started.stderr
    yield made
    made.run("down")


async def test_it_runs_durable_on_loopback_with_closed_files(bank: Bank) -> None:
    connection = await asyncpg.connect(bank.stores.addresses()["database_url"])
    shown = {
        name: await connection.fetchval(f"SHOW {name}") for name in ("fsync", "synchronous_commit", "full_page_writes", "data_checksums")
    }
    listens = await connection.fetchval("SHOW listen_addresses")
    await connection.close()
    assert set(shown.values()) == {"on"}, shown
    assert listens == "127.0.0.1"
    for name in ("stores.toml", "stores/secrets.toml", "stores/queue/valkey.conf"):
        assert (bank.data_dir / name).stat().st_mode & 0o037 == 0, name
    if os.geteuid() == 0:
        assert bank.data_dir.stat().st_uid == 0
        assert psutil.Process(bank.pids()["supervisor"]).username() == "root"
        assert psutil.Process(bank.pids()["postgres"]).username() == "piggybank"
        assert psutil.Process(bank.pids()["queue"]).username() == "piggybank"


def test_status_and_doctor_say_that_all_is_well(bank: Bank) -> None:
    said = bank.ask("status", "--json")
    status = json.loads(said.stdout)
    assert said.exit_code == 0, status
    assert status["url"] == bank.url
    assert {process["name"] for process in status["processes"]} == {"postgres", "cache", "queue", "web-1", "simulator"}
    examined = json.loads(bank.ask("doctor", "--json").stdout)
    assert [check for check in examined["checks"] if check["result"] == "broken"] == []


async def test_doctor_warns_of_a_cache_that_would_load_what_is_old(bank: Bank) -> None:
    """Balances from before the crash, and tokens that were revoked."""
    url = bank.stores.addresses()["cache_url"]

    def found() -> dict[str, str]:
        return next(check for check in json.loads(bank.ask("doctor", "--json").stdout)["checks"] if check["name"] == "cache")

    assert found()["result"] == "ok"
    async with Redis.from_url(url) as client:
        for name, wrong, right in (("save", "3600 1", ""), ("appendonly", "yes", "no")):
            await client.config_set(name, wrong)
            check = found()
            assert check["result"] == "warning"
            assert f"{name} = {wrong}" in check["found"]
            assert check["do"] == f"CONFIG SET {name} {right or chr(34) * 2}"
            await client.config_set(name, right)


def test_a_second_up_says_who_runs_there(bank: Bank) -> None:
    supervisor = bank.pids()["supervisor"]
    second = bank.run("up")
    assert second.returncode == 1
    assert f"pid: {supervisor}" in second.stderr
    assert bank.url in second.stderr
    again = bank.run("up", "--detach")
    assert again.returncode == 0
    assert f"already running: {bank.url} (pid {supervisor}," in again.stdout


@pytest.mark.parametrize("name", ["postgres", "cache", "queue", "web-1"])
def test_what_is_killed_is_started_again(bank: Bank, name: str) -> None:
    was = bank.kill(name)
    wait_until(lambda: bank.pids().get(name, was) != was)
    wait_until(bank.is_ready)
    wait_until(lambda: json.loads(bank.ask("status", "--json").stdout)["ok"])
    assert f'"name": "{name}"' in (bank.data_dir / "logs" / "crashes.log").read_text()


def test_what_cannot_be_written_down_ends_nothing(bank: Bank) -> None:
    """The crash log and the card cannot be written: still the dead are started again."""
    supervisor = bank.pids()["supervisor"]
    notes, card = bank.data_dir / "logs" / "crashes.log", bank.data_dir / "run" / "supervisor.json.new"
    notes.touch()  # it is there after the first crash only
    notes.rename(notes.with_suffix(".kept"))
    notes.mkdir()
    card.mkdir()
    try:
        was = bank.kill("cache")
        wait_until(lambda: bank.pids().get("cache", was) != was)
        assert bank.pids()["supervisor"] == supervisor
    finally:
        notes.rmdir()
        notes.with_suffix(".kept").rename(notes)
        card.rmdir()


def test_a_killed_supervisors_children_are_adopted(bank: Bank) -> None:
    before = bank.pids()
    os.kill(before["supervisor"], signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(before["supervisor"]) or psutil.Process(before["supervisor"]).status() == psutil.STATUS_ZOMBIE)
    assert bank.is_ready(), "the web goes on without a supervisor"
    started = bank.run("up", "--detach")
    assert started.returncode == 0, started.stderr
    after = bank.pids()
    assert after.pop("supervisor") != before.pop("supervisor")
    assert after == before


def test_down_stops_everything_and_up_finds_the_same_ports(bank: Bank) -> None:
    before, addresses = bank.pids(), bank.stores.addresses()
    # of an upgrade that was killed
    sleep = (sys.executable, "-c", "import time; time.sleep(600)")
    tried = processes.start(Program(name=web.TRIAL, argv=sleep, run_dir=bank.data_dir / "run", log=bank.data_dir / "logs" / "trial.log"))
    unwritable = bank.data_dir / "run" / "supervisor.json.new"
    unwritable.mkdir()  # it cannot say that it stops; it stops
    stopped = bank.run("down")
    unwritable.rmdir()
    assert stopped.returncode == 0, stopped.stderr
    assert "postgres" in stopped.stdout
    assert not tried.alive()
    assert [name for name, pid in before.items() if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE] == []
    status = bank.ask("status")
    assert status.exit_code == 1
    assert "not running; start it: piggybank up" in status.stdout
    assert "migrate" not in status.stdout + status.stderr
    assert "nothing runs" in bank.ask("down").stdout
    assert bank.run("up", "--detach").returncode == 0
    assert bank.stores.addresses() == addresses


def test_the_port_of_somebody_else_is_not_shared(bank: Bank, open_path: Path) -> None:
    other = Bank(open_path / "other", PIGGYBANK_PORT=bank.url.rpartition(":")[2])
    started = other.run("up", "--detach")
    other.run("down")
    assert started.returncode == 1
    assert "cannot listen on" in started.stderr
    assert [path.name for path in (other.data_dir / "run").glob("*.json")] == [], "nothing of it is left running"


@pytest.fixture
def small_disk(open_path: Path) -> Iterator[Path]:
    """A file system that can be filled."""
    place = open_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_MIB}m,mode=755", "none", place], check=False, capture_output=True
    )
    require("mount", mounted.returncode == 0)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: Path) -> Path:
    """To the last byte."""
    ballast = disk / "ballast"
    with suppress(OSError), ballast.open("ab", buffering=0) as file:
        for size in (MIB, 4096, 1):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)
    return ballast


@pytest.mark.deep
def test_a_full_disk_ends_no_supervisor_and_leaves_no_orphan(small_disk: Path) -> None:
    bank = Bank(small_disk / "bank", PIGGYBANK_PORT=str(store_files.free_ports(1)[0]))
    try:
        started = bank.run("up", "--detach")
        assert started.returncode == 0, started.stderr
        everything = bank.pids()
        ballast = fill(small_disk)
        bank.kill("web-1")
        wait_until(lambda: "web-1" not in bank.pids())  # it was tried, and could not be written down
        assert psutil.pid_exists(everything["supervisor"])
        ballast.unlink()
        wait_until(bank.is_ready)
        everything = bank.pids()
        assert {"supervisor", "web-1", "postgres"} <= everything.keys()
        fill(small_disk)
        bank.run("down")
        assert [
            name for name, pid in everything.items() if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        ] == []
    finally:
        (small_disk / "ballast").unlink(missing_ok=True)
        bank.run("down")


@pytest.fixture
def external(fresh_settings: Settings, open_path: Path) -> Iterator[Bank]:
    """On stores that are elsewhere, as `piggybank.toml` says it; two web processes."""
    made = Bank(open_path / "external", PIGGYBANK_PORT=str(store_files.free_ports(1)[0]), PIGGYBANK_WEB_PROCESSES="2")
    made.data_dir.mkdir()
    addresses = {name: getattr(fresh_settings, name) for name in settings_file.STORE_FIELDS}
    (made.data_dir / settings_file.OPERATOR_FILE).write_text(settings_file.with_values("", addresses))
    started = made.run("up", "--detach")
    try:
        assert started.returncode == 0, started.stderr
        yield made
    finally:
        assert made.run("down").returncode == 0


@pytest.mark.deep
def test_external_stores_are_not_started(external: Bank) -> None:
    """Only web and workers; two web processes share the port, and then there is a worker."""
    assert set(external.pids()) == {"supervisor", "web-1", "web-2", "worker-1"}
    assert not (external.data_dir / "stores").exists()


@pytest.mark.deep
def test_nobody_reads_a_cache_that_not_all_have(external: Bank, fresh_settings: Settings) -> None:
    """A process that died reads `cache_url` anew; the others have the old one, and would not see its writes there."""

    def caching() -> str:
        found = json.loads(external.ask("doctor", "--json").stdout)
        return str({check["name"]: check["result"] for check in found["checks"]}["caching"])

    assert caching() == "ok"
    file = external.data_dir / settings_file.OPERATOR_FILE
    file.write_text(settings_file.with_values(file.read_text(), {"cache_url": fresh_settings.queue_url}))
    was = external.kill("web-1")
    wait_until(lambda: external.pids().get("web-1", was) != was)
    assert caching() == "warning"
    external.do("phase", "apply", "0")
    assert caching() == "ok"


def test_uninstall_keeps_the_data_unless_told_twice(open_path: Path) -> None:
    bank = Bank(open_path / "old", PIGGYBANK_PORT=str(store_files.free_ports(1)[0]))
    for name in ("stores", "logs", "run", "bin"):
        (bank.data_dir / name).mkdir(parents=True)
    for name in ("stores/secrets.toml", "bin/piggybank", ".install.lock", ".piggybank"):
        (bank.data_dir / name).touch()
    assert bank.ask("uninstall").exit_code == 0
    assert bank.ask("uninstall", "--purge").exit_code == 1, "nobody typed the name"
    assert bank.ask("uninstall", "--purge", "--yes-really", "another").exit_code == 1
    assert bank.ask("uninstall", "--yes-really", bank.data_dir.name).exit_code == 2
    assert (bank.data_dir / "stores").is_dir()
    assert bank.ask("uninstall", "--purge", "--yes-really", bank.data_dir.name).exit_code == 0
    assert not bank.data_dir.exists()


def test_uninstall_removes_its_own_unit(open_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two folders with one unit each."""
    monkeypatch.setattr(reboot, "SYSTEM_UNITS", open_path / "units")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(open_path / "config"))
    banks = [Bank(open_path / name, PIGGYBANK_PORT="8080") for name in ("first", "second")]
    units = [reboot.unit_path(bank.data_dir) for bank in banks]
    for bank, unit in zip(banks, units, strict=True):
        for path in (bank.data_dir / ".piggybank", bank.data_dir / "bin" / "piggybank", unit):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        wants = unit.parent / "multi-user.target.wants"
        wants.mkdir(exist_ok=True)
        (wants / unit.name).symlink_to(unit)
    said = banks[1].ask("uninstall")
    assert said.exit_code == 0
    assert f"removed the systemd unit {units[1]}" in said.stdout
    assert sorted(path.name for path in units[0].parent.rglob("*.service")) == [units[0].name] * 2
    again = banks[1].ask("uninstall")
    assert f"@reboot '{banks[1].data_dir}/bin/piggybank' up --detach" in again.stdout


def test_purge_takes_only_what_is_ours(open_path: Path) -> None:
    bank = Bank(open_path / "mixed", PIGGYBANK_PORT=str(store_files.free_ports(1)[0]))
    kept = [bank.data_dir / "bin" / "backup.sh", bank.data_dir / "letters" / "1.txt"]
    for path in (*kept, bank.data_dir / "stores" / "secrets.toml", bank.data_dir / "logs" / "web-1.log"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    said = bank.ask("uninstall", "--purge", "--yes-really", bank.data_dir.name)
    assert said.exit_code == 0
    assert sorted(path for path in bank.data_dir.rglob("*") if path.is_file()) == kept
    assert all(str(bank.data_dir / name) in said.stdout for name in ("bin", "letters"))
    again = bank.ask("uninstall", "--purge", "--yes-really", bank.data_dir.name)
    assert again.exit_code == 1
    assert "does not look like an installation" in again.stderr


@pytest.mark.parametrize("held", ["letters.txt", "run", "logs", "current", "versions", "stores"])
def test_a_folder_with_something_else_in_it_is_left_alone(open_path: Path, held: str) -> None:
    """A name that we use, too, does not make it ours."""
    bank = Bank(open_path, PIGGYBANK_PORT=str(store_files.free_ports(1)[0]))
    (open_path / held).mkdir()
    (open_path / held / "dear.txt").touch()
    refused = bank.ask("up", "--detach")
    assert refused.exit_code == 1
    assert refused.stderr == f"piggybank: {open_path} holds something else; choose an empty or a new folder: --data-dir\n"
    assert [path.name for path in open_path.iterdir()] == [held]
