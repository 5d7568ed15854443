"""The systemd unit that the installer writes."""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from installer import units
from installer.options import SETTINGS_FILE, Options, default_data_dir, parse
from piggybank.appliance.backups import health
from piggybank.appliance.embedded import Embedded
from tests.appliance.bank import Bank, wait_until
from tests.conftest import ROOT, require

# the unit's mounts, as systemd makes them: all is read-only but what it names
STRICT = """\
set -eu
mount --make-rprivate /
for path in {writable}; do mount --bind "$path" "$path"; done
findmnt --raw --noheadings --output TARGET | while read -r place; do
  case $place in /proc*|/sys*|/dev*) continue ;; esac
  for path in {writable}; do [ "$place" != "$path" ] || continue 2; done
  mount -o remount,bind,ro "$place"
done
"""
# the program and the tests may well be in /tmp: these parts of it are put back
PRIVATE_TMP = """\
mkdir {data_dir}/tmp
mount --bind /tmp {data_dir}/tmp
mount -t tmpfs -o mode=1777 none /tmp
for path in {program}; do
  case $path in /tmp/*) mkdir -p "$path"; mount --bind "{data_dir}$path" "$path"; mount -o remount,bind,ro "$path" ;; esac
done
umount {data_dir}/tmp
rmdir {data_dir}/tmp
mount -t tmpfs -o mode=1777 none /var/tmp
"""


def options(data_dir: Path, *flags: str) -> Options:
    return parse(["--data-dir", str(data_dir), *flags], {}, "python3")


@pytest.mark.parametrize("as_root", [True, False], ids=["system", "user"])
@pytest.mark.parametrize("folder", ["plain", "two words", "100%"])
def test_systemd_takes_the_unit(tmp_path: Path, folder: str, as_root: bool) -> None:
    require("systemd-analyze")
    chosen = options(tmp_path / folder)
    chosen.cli.parent.mkdir(parents=True)
    chosen.cli.write_text("#!/bin/sh\n")
    chosen.cli.chmod(0o755)
    unit = tmp_path / units.name(chosen)
    unit.write_text(units.text(chosen, as_root=as_root))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    about_it = [line for line in done.stderr.splitlines() if unit.name in line]
    assert (done.returncode, about_it) == (0, [])


def test_two_folders_have_two_units(tmp_path: Path) -> None:
    names = {units.name(options(folder)) for folder in (default_data_dir(), tmp_path / "a" / "data", tmp_path / "b" / "data")}
    assert len(names) == 3
    assert "piggybank.service" in names


def test_the_unit_keeps_the_service_small(tmp_path: Path) -> None:
    """Root, to drop all that listens to the system user, with the rights that this takes."""
    text = units.text(options(tmp_path / "data"), as_root=True)
    assert "User=" not in text
    assert "CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_KILL CAP_SETGID CAP_SETUID CAP_SYS_PTRACE\n" in text
    assert "ProtectSystem=strict" in text
    assert f'ReadWritePaths="{tmp_path}/data"' in text
    assert "CAP_NET_BIND_SERVICE" not in text
    assert "CAP_NET_BIND_SERVICE" in units.text(options(tmp_path / "data", "--port", "443"), as_root=True)


def test_crontab_line_escapes_what_cron_would_eat(tmp_path: Path) -> None:
    assert units.crontab_line(options(tmp_path / "100%")).endswith("/100\\%/bin/piggybank' up --detach")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that is not in /tmp, which the service has for itself."""
    require("root", os.geteuid() == 0)
    tried = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], check=False, capture_output=True)
    require("mount namespaces", tried.returncode == 0)
    with tempfile.TemporaryDirectory(prefix="piggybank-unit-", dir="/var/lib") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.mark.deep
def test_the_service_makes_backups_and_drills_in_what_its_unit_lets_it_write(place: Path) -> None:
    data_dir, target = place / "data", place / "backups"
    target.mkdir()
    stores = Embedded(data_dir)
    stores.start()
    try:
        (data_dir / SETTINGS_FILE).write_text(f"backup_target = {json.dumps(str(target))}\n")
        bank = Bank(data_dir, PIGGYBANK_PORT="1")
        bank.do("migrate")
        lines = units.text(options(data_dir), as_root=True).splitlines()
        assert "ProtectSystem=strict" in lines
        named = [line.partition("=")[2].strip('"').removeprefix("-") for line in lines if line.startswith("ReadWritePaths=")]
        writable = shlex.join(named)
        mounts = STRICT.format(writable=writable)
        if "PrivateTmp=yes" in lines:
            mounts += PRIVATE_TMP.format(data_dir=data_dir, program=shlex.join([str(ROOT), sys.prefix]))
        for words in (["create"], ["drill"]):
            command = [sys.executable, "-m", "piggybank", "--data-dir", str(data_dir), "backup", *words, "--json"]
            script = f'{mounts}cd {shlex.quote(str(ROOT))}\nexec "$@"\n'
            done = subprocess.run(
                ["unshare", "--mount", "sh", "-c", script, "sh", *command],
                env=bank.environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["passed"]
    finally:
        stores.stop()


def test_doctor_sees_that_the_service_may_not_write_where_backups_go(place: Path) -> None:
    """The target was set later, and the unit does not name it; from a shell all is well."""
    script = 'mount --make-rprivate / && mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec sleep 60'
    with subprocess.Popen(["unshare", "--mount", "sh", "-c", script, str(place)]) as service:
        try:
            wait_until(lambda: health.is_read_only_for(service.pid, str(place)))
            assert not health.is_read_only_for(os.getpid(), str(place))
        finally:
            service.kill()
