"""The systemd unit that the installer writes."""

import subprocess
from pathlib import Path

import pytest

from installer import units
from installer.options import Options, default_data_dir, parse
from tests.conftest import require


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
