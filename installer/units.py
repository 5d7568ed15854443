"""How it comes back after a reboot: a systemd unit where systemd runs, else a line for cron."""

import hashlib
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

from installer.options import SETTINGS_FILE, Options, default_data_dir

PRIVILEGED_PORTS = 1_024
SYSTEM_USER = "piggybank"
CAPABILITIES = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SYS_PTRACE")

UNIT = """\
# Written by installer/install.sh, which writes it again: put changes into a drop-in (systemctl edit {name}).
[Unit]
Description=piggybank wallet in {shown_dir}
Wants=network-online.target
After=network-online.target

[Service]
Type=exec
ExecStart="{cli}" up
# a stop that was asked for (piggybank down) ends with 0 and stays; everything else is started again
Restart=on-failure
RestartSec=2
# the supervisor stops its children itself; those of a killed one are adopted by the next
KillMode=process
OOMPolicy=continue
TimeoutStopSec=200
UMask=0077
LimitNOFILE=65536
NoNewPrivileges=yes
{hardening}
[Install]
WantedBy={wanted_by}
"""

# What a system service can be kept from: it writes into its folder, into a backup target that is one, and into a /tmp of its own. A
# user's own systemd may not set these up. The supervisor is root, to drop the stores, the web and the workers to the system user; of
# root's rights it keeps what that takes (SYS_PTRACE: to see who still works in a database's folder), and for a port below 1024 the one
# that the web is given.
HARDENING = """\
ProtectSystem=strict
ReadWritePaths="{data_dir}"
{backups}PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
CapabilityBoundingSet={capabilities}
"""


def name(options: Options) -> str:
    """`piggybank.service` for the default folder, else with a mark of the folder, so that two live side by side."""
    if options.data_dir == default_data_dir():
        return "piggybank.service"
    slug = re.sub(r"[^A-Za-z0-9]+", "-", options.data_dir.name).strip("-").lower()[:32]
    return f"piggybank-{slug}-{hashlib.sha256(str(options.data_dir).encode()).hexdigest()[:6]}.service"


def text(options: Options, *, as_root: bool) -> str:
    """The unit file."""
    data_dir = _escaped(str(options.data_dir))
    target = _backup_folder(options)
    backups = f'ReadWritePaths="-{_escaped(target)}"\n' if target else ""  # with `-` it may be away when the service starts
    capabilities = (*CAPABILITIES, "CAP_NET_BIND_SERVICE") if options.port < PRIVILEGED_PORTS else CAPABILITIES
    return UNIT.format(
        name=name(options),
        shown_dir=data_dir,
        cli=f"{data_dir}/bin/piggybank",
        hardening=HARDENING.format(data_dir=data_dir, backups=backups, capabilities=" ".join(capabilities)) if as_root else "",
        wanted_by="multi-user.target" if as_root else "default.target",
    )


def _escaped(path: str) -> str:
    return path.replace("\\", "\\\\").replace("%", "%%").replace('"', '\\"')


def _backup_folder(options: Options) -> str:
    """Where backups go, if that is a folder of this machine."""
    try:
        target = str(tomllib.loads((options.data_dir / SETTINGS_FILE).read_text(encoding="utf-8")).get("backup_target", ""))
    except (OSError, tomllib.TOMLDecodeError):
        return ""  # there is none yet; or `up` says what is wrong with it
    return target if target.startswith("/") and target.isprintable() else ""


def path(options: Options) -> Path:
    """Where the unit belongs."""
    if os.geteuid() == 0:
        return Path("/etc/systemd/system") / name(options)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user" / name(options)


def systemctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The system's systemctl for root, the user's own for everybody else."""
    scope = [] if os.geteuid() == 0 else ["--user"]
    return subprocess.run(["systemctl", *scope, *arguments], capture_output=True, text=True, check=False)


def systemd_runs() -> bool:
    """True where systemd is the first process here and takes our orders."""
    if not Path("/run/systemd/system").is_dir() or shutil.which("systemctl") is None:
        return False
    return systemctl("show", "--property=Version").returncode == 0


def crontab_line(options: Options) -> str:
    """For machines without systemd."""
    return f"@reboot '{options.cli}' up --detach".replace("%", "\\%")
