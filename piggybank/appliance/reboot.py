"""What starts a data folder after a reboot, as `installer/units.py` made it (a test keeps the two together), and how it is taken away."""

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from piggybank import settings

SYSTEM_UNITS = Path("/etc/systemd/system")
SYSTEMCTL_TIMEOUT_S = 60


def unit_name(data_dir: Path) -> str:
    """`piggybank.service` for the default folder, else with a mark of the folder."""
    if data_dir == settings.default_data_dir():
        return "piggybank.service"
    slug = re.sub(r"[^A-Za-z0-9]+", "-", data_dir.name).strip("-").lower()[:32]
    return f"piggybank-{slug}-{hashlib.sha256(str(data_dir).encode()).hexdigest()[:6]}.service"


def unit_path(data_dir: Path) -> Path:
    """The system's for root, else one's own."""
    folder = SYSTEM_UNITS if os.geteuid() == 0 else settings.configuration_dir() / "systemd" / "user"
    return folder / unit_name(data_dir)


def crontab_line(data_dir: Path) -> str:
    """What the installer printed where there is no systemd."""
    return f"@reboot '{data_dir}/bin/piggybank' up --detach".replace("%", "\\%")


def supervises(data_dir: Path, pid: int) -> bool:
    """Whether systemd keeps that process as the folder's own: it starts it again when it is killed."""
    tool = shutil.which("systemctl")
    if tool is None or not unit_path(data_dir).is_file():
        return False
    scope = [] if os.geteuid() == 0 else ["--user"]
    command = [tool, *scope, "show", "--property=MainPID", "--value", unit_name(data_dir)]
    said = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SYSTEMCTL_TIMEOUT_S)  # noqa: S603 - ours
    return said.stdout.strip() == str(pid)


def remove_unit(data_dir: Path) -> Path | None:
    """Disable and delete the folder's unit; None where there is none. Works without a running systemd, too."""
    path = unit_path(data_dir)
    if not path.is_file():
        return None
    _systemctl("disable", "--now", path.name)
    for wants in path.parent.glob("*.wants"):
        (wants / path.name).unlink(missing_ok=True)
    path.unlink()
    _systemctl("daemon-reload")
    return path


def _systemctl(*arguments: str) -> None:
    tool = shutil.which("systemctl")
    if tool is not None:
        scope = [] if os.geteuid() == 0 else ["--user"]
        subprocess.run([tool, *scope, *arguments], capture_output=True, check=False, timeout=SYSTEMCTL_TIMEOUT_S)  # noqa: S603 - ours
