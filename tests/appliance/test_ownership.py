"""Started by root: the system user must not get at anything that root executes, trusts or writes to."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from installer import act, units
from installer.options import Options, parse
from piggybank import errors
from piggybank.appliance import processes, store_files, system_user
from piggybank.appliance.data_folder import prepare_folder
from piggybank.appliance.embedded import Embedded
from piggybank.appliance.processes import Program
from piggybank.appliance.system_user import SystemUser
from tests.conftest import require


@pytest.fixture
def user() -> SystemUser:
    require("root", os.geteuid() == 0)
    found = system_user.chosen()
    assert found is not None
    return found


@pytest.fixture
def old(open_path: Path, user: SystemUser) -> Path:
    """A folder as the first installers left it: all of it the system user's."""
    folder = open_path / "bank"
    for made in (folder, folder / "stores", folder / "logs", folder / "run", folder / "stores" / "cache", folder / "stores" / "queue"):
        made.mkdir()
    (folder / "stores.toml").write_text("")
    (folder / "piggybank.toml").write_text("port = 8080\n")
    secrets = store_files.load_secrets(folder / "stores", None)
    assert secrets.admin_password
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user.uid, user.gid)
        path.chmod(0o700 if path.is_dir() else 0o600)
    return folder


def may(user: SystemUser, script: str, *arguments: Path) -> bool:
    return system_user.can(user, "/bin/sh", "-c", script, *(str(argument) for argument in arguments))


def test_a_folder_of_the_old_layout_is_taken_back(old: Path, user: SystemUser) -> None:
    stores = Embedded(old)
    stores.prepare()
    owners = {name: (old / name).stat().st_uid for name in (".", "logs", "run", "stores", "piggybank.toml", "stores/secrets.toml")}
    assert set(owners.values()) == {0}, owners
    for name in ("stores/postgres", "stores/cache", "stores/queue", "stores/cache/valkey.conf"):
        assert (old / name).stat().st_uid == user.uid, name
    assert may(user, 'cat "$0"', old / "piggybank.toml"), "the web reads its settings"
    assert may(user, 'cat "$0"', old / "stores.toml"), "and the addresses"
    assert not may(user, 'cat "$0"', old / "stores" / "secrets.toml")
    for name in ("stores", "logs", "run", "piggybank.toml", "stores/postgres", "stores/cache"):
        assert not may(user, 'mv "$0" "$0.mine"', old / name), name
    assert not may(user, 'ln -s /etc "$0/x"', old / "run")
    assert not may(user, 'ln -s /etc "$0/x"', old / "logs")


@pytest.mark.parametrize("planted", ["logs", "run", "stores", "stores/cache", "piggybank.toml", "stores/secrets.toml", ".piggybank"])
def test_a_planted_link_gives_nothing_away(old: Path, user: SystemUser, open_path: Path, planted: str) -> None:
    victim = open_path / "victim"
    victim.mkdir(mode=0o700)
    path = old / planted
    target = victim
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
        target = victim / "file"
        target.touch(0o600)
    path.symlink_to(target)
    os.chown(path, user.uid, user.gid, follow_symlinks=False)
    with pytest.raises(errors.CannotProceed, match="leads to somewhere else"):
        Embedded(old).prepare()
    assert (target.stat().st_uid, target.stat().st_mode & 0o077) == (0, 0)


@pytest.mark.parametrize("how", ["link", "second name", "pipe"])
def test_a_log_that_is_not_a_plain_file_is_not_opened(open_path: Path, user: SystemUser, how: str) -> None:
    victim = open_path / "victim"
    victim.write_text("as it was\n")
    log = open_path / "web-1.log"
    match how:
        case "link":
            log.symlink_to(victim)
        case "second name":
            log.hardlink_to(victim)
        case _:
            os.mkfifo(log)
    with pytest.raises(errors.CannotProceed, match="leads to somewhere else"):
        processes.start(Program(name="web-1", argv=("/bin/echo", "more"), run_dir=open_path, log=log, user=user))
    assert (victim.read_text(), victim.stat().st_uid) == ("as it was\n", 0)


def test_an_operators_own_link_is_followed(open_path: Path, user: SystemUser) -> None:
    """The stores on a faster disk."""
    fast = open_path / "fast"
    prepare_folder(open_path / "bank")
    fast.mkdir()
    (open_path / "bank" / "stores").symlink_to(fast)
    Embedded(open_path / "bank").prepare()
    assert (fast / "postgres").stat().st_uid == user.uid


def test_what_somebody_runs_as_oneself_is_not_taken_over(old: Path, user: SystemUser) -> None:
    os.chown(old, 65_534, -1)
    with pytest.raises(errors.CannotProceed, match="belongs to nobody"):
        prepare_folder(old)
    assert old.stat().st_uid == 65_534


def test_a_low_port_is_the_one_right_that_is_passed_on(open_path: Path, user: SystemUser) -> None:
    log = open_path / "web-1.log"
    argv = ("/bin/grep", "-E", "^(Uid|Gid|Groups|CapEff|CapPrm|CapAmb)", "/proc/self/status")
    running = processes.start(Program(name="web-1", argv=argv, run_dir=open_path, log=log, user=user, low_ports=True))
    assert running.wait(20)
    said = {line.split(":")[0]: line.split(":")[1].split() for line in log.read_text().splitlines()}
    assert set(said["Uid"]) == {str(user.uid)}
    assert {*said["Gid"], *said["Groups"]} == {str(user.gid)}
    assert {int(said[name][0], 16) for name in ("CapEff", "CapPrm", "CapAmb")} == {1 << 10}


def options(data_dir: Path) -> Options:
    return parse(["--data-dir", str(data_dir)], {}, sys.executable)


def test_the_installer_takes_back_an_old_folder_and_runs_no_program_that_root_did_not_make(old: Path, user: SystemUser) -> None:
    ours, theirs = old / "versions" / "1-ours", old / "versions" / "1-theirs"
    for made in (ours, theirs):
        made.mkdir(parents=True)
    (old / "bin").mkdir()
    wrapper = old / "bin" / "piggybank"
    wrapper.write_text("#!/bin/sh\n")
    (old / "current").symlink_to("versions/1-theirs")
    os.chown(old / "current", user.uid, user.gid, follow_symlinks=False)
    os.chown(theirs, user.uid, user.gid)
    os.chown(old / "bin", user.uid, user.gid)
    with act._alone(options(old)):
        assert old.stat().st_uid == 0
        assert sorted(path.name for path in (old / "versions").iterdir()) == ["1-ours"]
        assert not (old / "bin").exists()
        assert not (old / "current").is_symlink()


def test_the_installers_lock_follows_no_link(open_path: Path) -> None:
    victim = open_path / "victim"
    victim.write_text("as it was\n")
    (open_path / "bank").mkdir()
    (open_path / "bank" / ".install.lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"), act._alone(options(open_path / "bank")):
        pass
    assert victim.read_text() == "as it was\n"


def test_the_units_rights_are_enough_for_the_stores(open_path: Path, user: SystemUser) -> None:
    """What the unit leaves root is enough to make, start, look into and stop them."""
    require("setpriv")
    kept = ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in units.CAPABILITIES)])
    code = """
import sys
from pathlib import Path
from piggybank.appliance import processes
from piggybank.appliance.embedded import Embedded
stores = Embedded(Path(sys.argv[1]))
stores.start()
print(processes.anybody_in(stores.dir / "postgres"), stores.stop())
"""
    command = [
        "setpriv",
        "--no-new-privs",
        "--inh-caps=-all",
        f"--bounding-set={kept}",
        sys.executable,
        "-c",
        code,
        str(open_path / "bank"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=Path(__file__).parents[2])
    assert done.stdout.split(maxsplit=1) == ["True", "{'queue': True, 'cache': True, 'postgres': True}\n"], done.stderr
