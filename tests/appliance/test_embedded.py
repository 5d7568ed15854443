"""The stores without a supervisor: pid files, ports, crashes, and who they run as."""

import json
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from piggybank import errors
from piggybank.appliance import binaries, data_folder, processes, store_files, system_user
from piggybank.appliance.embedded import Embedded
from piggybank.appliance.processes import Program
from piggybank.appliance.system_user import SystemUser
from tests.conftest import ROOT, require

AS_SOMEBODY = """
import os, sys
from importlib.metadata import version
from pathlib import Path
from piggybank.appliance.embedded import Embedded
version("redis"), "localhost".encode("idna")  # they import what they need while they still may
os.setgroups([]); os.setgid(int(sys.argv[3])); os.setuid(int(sys.argv[2]))
stores = Embedded(Path(sys.argv[1]))
stores.start()
print(stores.user, stores.psql("SHOW fsync").strip(), all(stores.is_ready(name) for name in stores.programs))
stores.stop()
"""


@pytest.fixture
def embedded(open_path: Path) -> Iterator[Callable[[str], Embedded]]:
    """Stores in folders below the test's own, stopped at its end."""
    made: dict[str, Embedded] = {}

    def make(name: str) -> Embedded:
        made[name] = Embedded(open_path / name)
        return made[name]

    yield make
    for stores in made.values():
        stores.stop()


def test_two_folders_live_side_by_side_and_a_crash_loses_nothing(embedded: Callable[[str], Embedded]) -> None:
    first, second = embedded("first"), embedded("second")
    first.start()
    second.start()
    assert set(first.secrets.addresses().values()).isdisjoint(second.secrets.addresses().values())
    first.psql("CREATE TABLE kept AS SELECT 42 AS answer")
    for running in first.running.values():
        running.signal(9)
        assert running.wait(10)
    again = embedded("first")
    again.start()
    assert again.psql("SELECT answer FROM kept").strip() == "42"
    assert again.secrets == first.secrets
    assert second.running["postgres"].alive()


def test_a_database_whose_disk_is_away_is_not_made_anew(embedded: Callable[[str], Embedded]) -> None:
    stores = embedded("bank")
    stores.start()
    data_folder.note_database(stores.data_dir)  # as `up` does when it has a schema
    stores.stop()
    (stores.dir / "postgres").rename(stores.dir / "away")
    with pytest.raises(errors.CannotProceed, match="postgres is missing"):
        embedded("bank").start()
    assert not (stores.dir / "postgres").exists()
    (stores.data_dir / data_folder.MARK).write_text("")  # a new, empty one is meant
    again = embedded("bank")
    again.start()
    assert again.is_ready("postgres")


def test_a_pid_that_is_now_another_program_is_neither_adopted_nor_stopped(embedded: Callable[[str], Embedded]) -> None:
    stores = embedded("bank")
    stores.start()
    stores.stop()
    with subprocess.Popen(["sleep", "60"], **system_user.as_user(stores.user)) as sleeper:
        try:
            for name in stores.programs:
                record = {
                    "pid": sleeper.pid,
                    "started": psutil.Process(sleeper.pid).create_time(),
                    "argv": list(stores.programs[name].argv),
                }
                (stores.run_dir / f"{name}.json").write_text(json.dumps(record))
            # PostgreSQL's own pid file, as a crash leaves it, with a pid that the same user's sleep has now
            cluster = stores.dir / "postgres"
            (cluster / "postmaster.pid").write_text(f"{sleeper.pid}\n{cluster}\n1\n{stores.secrets.postgres_port}\n\n127.0.0.1\n")
            again = embedded("bank")
            again.start()
            assert sleeper.pid not in {running.pid for running in again.running.values()}
            assert sleeper.poll() is None
            again.stop()
            assert sleeper.poll() is None
        finally:
            sleeper.kill()


def test_what_was_started_and_not_written_down_is_found(embedded: Callable[[str], Embedded]) -> None:
    """A supervisor was killed between the start of a program and its record."""
    stores = embedded("bank")
    stores.start()
    was = {name: running.pid for name, running in stores.running.items()}
    for name in was:
        (stores.run_dir / f"{name}.json").unlink()
    again = embedded("bank")
    again.start()
    assert {name: running.pid for name, running in again.running.items()} == was


def test_another_user_s_process_with_the_same_command_line_is_not_taken_for_ours(tmp_path: Path) -> None:
    """Anybody may start one, and it would stand where the database should."""
    argv = (sys.executable, "-c", "import time; time.sleep(60)", str(tmp_path))
    ours = Program(name="store", argv=argv, run_dir=tmp_path, log=tmp_path / "log", alone=True)
    theirs = msgspec.structs.replace(ours, user=SystemUser("somebody", os.geteuid() + 1, os.getegid()))
    with subprocess.Popen(argv) as process:
        try:
            assert processes.find(theirs) is None
            found = processes.find(ours)
            assert found is not None
            assert found.pid == process.pid
        finally:
            process.kill()


def test_a_port_that_somebody_took_meanwhile_is_changed(embedded: Callable[[str], Embedded]) -> None:
    stores = embedded("bank")
    stores.start()
    stores.stop()
    with socket.create_server(("127.0.0.1", stores.secrets.cache_port)):
        again = embedded("bank")
        again.start()
        assert again.secrets.cache_port != stores.secrets.cache_port
        assert again.secrets.postgres_port == stores.secrets.postgres_port
        assert f":{again.secrets.cache_port}/" in (again.data_dir / "stores.toml").read_text()


def test_an_ordinary_user_runs_them_as_oneself(open_path: Path) -> None:
    """As root a child gives up its rights for good after its imports; this Python may well be below root's home."""
    require("root", os.geteuid() == 0)
    nobody = pwd.getpwnam("nobody")
    somebody = system_user.SystemUser("nobody", nobody.pw_uid, nobody.pw_gid)
    folder = open_path / "theirs"
    for made in (folder, folder / "stores"):
        system_user.make_folder(made, somebody)
    (folder / data_folder.MARK).touch()
    os.chown(folder / data_folder.MARK, somebody.uid, somebody.gid)
    system_user.let_enter(folder / "stores", somebody)
    binaries.postgres(folder / "stores", somebody)  # copied only where nobody could not run them
    binaries.valkey(folder / "stores", somebody)
    command = [sys.executable, "-c", AS_SOMEBODY, str(folder), str(somebody.uid), str(somebody.gid)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["None", "on", "True"], done.stderr
    assert (folder / "stores.toml").stat().st_uid == somebody.uid


def test_binaries_that_the_user_cannot_run_are_copied(open_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require("root", os.geteuid() == 0)
    user = system_user.chosen()
    assert user is not None
    hidden = open_path / "home"
    hidden.mkdir()
    (hidden / binaries.POSTGRES_PACKAGE).symlink_to(binaries._package(binaries.POSTGRES_PACKAGE, binaries.POSTGRES_WHEEL))
    (hidden / f"{binaries.POSTGRES_PACKAGE}.libs").symlink_to(
        binaries._package(binaries.POSTGRES_PACKAGE, binaries.POSTGRES_WHEEL).parent / f"{binaries.POSTGRES_PACKAGE}.libs"
    )
    hidden.chmod(0o700)
    monkeypatch.setattr(binaries, "_package", lambda name, _wheel: hidden / name)
    copies = open_path / "copies"
    system_user.make_folder(copies, user, 0o755)
    system_user.let_enter(copies / "below", user)
    place = binaries.postgres(copies, user)
    assert place.is_relative_to(copies)
    assert system_user.can(user, str(place / "psql"), "--version"), "its libraries were copied to where it looks for them"


def test_the_system_user_is_let_through_to_a_folder_below_a_closed_one(open_path: Path) -> None:
    """It may enter, not read; what the folder allowed others stays as it was."""
    require("root", os.geteuid() == 0)
    user = system_user.chosen()
    closed = open_path / "home"
    system_user.make_folder(closed / "data", user)
    closed.chmod(0o700)
    assert system_user.let_enter(closed / "data" / "stores", user) == [closed]
    assert system_user.can(user, "/bin/sh", "-c", 'cd "$0"', str(closed / "data"))
    assert not system_user.can(user, "/bin/ls", str(closed))
    assert closed.stat().st_mode & 0o007 == 0
    assert system_user.let_enter(closed / "data" / "stores", user) == [], "once is enough"


def test_ports_are_free_and_differ() -> None:
    ports = store_files.free_ports(5)
    assert len(set(ports)) == 5
    assert all(store_files.is_free(port) for port in ports)
