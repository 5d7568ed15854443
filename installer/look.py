"""The first half: what this machine is, without changing it. Each check gives one finding, with what to do about it."""

import errno
import importlib.util
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from installer.options import LOOPBACK, Options
from installer.program import Source

MIB = 1024 * 1024
DISK_FLOOR_MIB = 1_024
DISK_ADVISED_MIB = 5 * 1_024
MEMORY_FLOOR_MIB = 384
MEMORY_ADVISED_MIB = 1_024
FSYNC_PROBES = 25
FSYNC_BLOCK_BYTES = 8_192
FSYNC_ADVISED_MS = 10.0
GLIBC_FLOOR = (2, 28)
KERNEL_ADVISED = (5, 14)
ARCHITECTURES = ("x86_64", "aarch64", "arm64")
RELEASED_AT_S = 1_795_000_000  # a clock before November 2026 is wrong
STATUS_TIMEOUT_S = 30
APT = "apt-get install -y"
# each says that a folder is ours
MARKS = (".piggybank", ".install.lock", "piggybank.toml", "stores.toml", "stores/secrets.toml", "run/supervisor.lock")


@dataclass(frozen=True)
class Finding:
    """`stop` keeps the installer from acting; `warn` is said and lived with."""

    check: str
    level: Literal["ok", "warn", "stop"]
    found: str
    do: str = ""


def look(options: Options, source: Source) -> list[Finding]:
    """Everything worth knowing before anything is changed."""
    return [
        *_python(),
        _system(),
        _kernel(),
        clock(),
        _memory(),
        folder(options),
        _disk(options),
        fsync(nearest_folder(options.data_dir)),
        _installation(options),
        _port(options),
        reach(options),
        *environment(options),
        *_bundle(source),
    ]


def show(findings: list[Finding]) -> None:
    """One line a finding, on stderr."""
    signs = {"ok": "  ok  ", "warn": "  WARN", "stop": "  STOP"}
    for finding in findings:
        print(f"{signs[finding.level]}  {finding.check}: {finding.found}", file=sys.stderr)
        if finding.do:
            print(f"          -> {finding.do}", file=sys.stderr)


def as_json(findings: list[Finding]) -> list[dict[str, str]]:
    """For `--check --json`."""
    return [asdict(finding) for finding in findings]


def runs_here(options: Options) -> bool:
    """True where this data folder's own server is up."""
    if not os.access(options.cli, os.X_OK):
        return False
    try:
        answer = subprocess.run([options.cli, "status", "--json"], capture_output=True, timeout=STATUS_TIMEOUT_S, check=False)
        return bool(json.loads(answer.stdout)["running"])
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError):
        return False


def nearest_folder(path: Path) -> Path:
    """The folder itself, else the closest one above that exists."""
    while not path.is_dir():
        path = path.parent
    return path


def _python() -> list[Finding]:
    version = platform.python_version()
    missing = [] if shutil.which("make") else ["make"]
    findings = []
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        line = f"{APT} {' '.join(['python3-venv', *missing])}"
        findings.append(Finding("python", "stop", f"{version} ({sys.executable}) without venv and ensurepip", f"as root: {line}"))
    else:
        findings.append(Finding("python", "ok", f"{version} ({sys.executable})"))
    if missing:
        findings.append(
            Finding("make", "warn", "not installed; the installation does not need it, `make test` does", f"as root: {APT} make")
        )
    return findings


def _system() -> Finding:
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        return Finding(
            "system", "stop", f"architecture {machine}", f"use one of {', '.join(ARCHITECTURES)}: the database comes as a binary"
        )
    if sys.platform == "darwin":
        return Finding("system", "warn", f"macOS, {machine}", "good for development; run it on Linux where money is real")
    libc, version = platform.libc_ver()
    if libc != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < GLIBC_FLOOR:
        return Finding("system", "stop", f"{libc or 'no glibc'} {version}", "use a Linux with glibc 2.28 or newer (Debian 12 has 2.36)")
    return Finding("system", "ok", f"{sys.platform}, {machine}, glibc {version}")


def _kernel() -> Finding:
    release = platform.release()
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdecimal())
    if sys.platform == "linux" and numbers < KERNEL_ADVISED:
        return Finding("kernel", "warn", release, "5.14 or newer hands over connections when a web process is replaced")
    return Finding("kernel", "ok", release)


def clock() -> Finding:
    if time.time() < RELEASED_AT_S:
        return Finding("clock", "stop", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()), "set the clock: ids carry the time")
    try:
        answer = subprocess.run(
            ["timedatectl", "show", "--property=NTPSynchronized", "--value"], capture_output=True, text=True, timeout=5, check=True
        )
        if answer.stdout.strip() == "no":
            return Finding("clock", "warn", "not synchronised", "as root: timedatectl set-ntp true")
    except (OSError, subprocess.SubprocessError):
        pass  # no systemd-timesyncd here; the machine's owner keeps the time in another way
    return Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))


def _memory() -> Finding:
    mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()).isdecimal():
        mib = min(mib, int(text) // MIB)
    if mib < MEMORY_FLOOR_MIB:
        return Finding("memory", "stop", f"{mib} MiB", f"{MEMORY_FLOOR_MIB} MiB is the least, {MEMORY_ADVISED_MIB} MiB is advised")
    if mib < MEMORY_ADVISED_MIB:
        return Finding("memory", "warn", f"{mib} MiB", f"{MEMORY_ADVISED_MIB} MiB is advised")
    return Finding("memory", "ok", f"{mib} MiB")


def folder(options: Options) -> Finding:
    near = nearest_folder(options.data_dir)
    if options.data_dir.exists() and not options.data_dir.is_dir():
        return Finding("folder", "stop", f"{options.data_dir} is a file", "choose another --data-dir")
    if os.statvfs(near).f_flag & getattr(os, "ST_NOEXEC", 0):
        return Finding("folder", "stop", f"{near} is mounted noexec", "choose a --data-dir where programs may run")
    if os.geteuid() == 0:
        # the database refuses to run as root, so everything runs as a system user, who must get there
        closed = [str(part) for part in options.data_dir.parents if part.exists() and not part.stat().st_mode & 0o001]
        if closed:
            return Finding(
                "folder",
                "warn",
                f"{', '.join(closed)} is closed to other users",
                "the user piggybank alone is let through, by an access list",
            )
    elif not os.access(near, os.W_OK | os.X_OK):
        return Finding("folder", "stop", f"{near} cannot be written by this user", "choose another --data-dir, or run it as root")
    return Finding("folder", "ok", str(options.data_dir))


def _disk(options: Options) -> Finding:
    free = shutil.disk_usage(nearest_folder(options.data_dir)).free // MIB
    if free < DISK_FLOOR_MIB and not options.cli.exists():
        return Finding("disk", "stop", f"{free} MiB free", f"{DISK_FLOOR_MIB} MiB is the least, {DISK_ADVISED_MIB} MiB is advised")
    if free < DISK_ADVISED_MIB:
        return Finding("disk", "warn", f"{free} MiB free", f"{DISK_ADVISED_MIB} MiB is advised")
    return Finding("disk", "ok", f"{free} MiB free")


def fsync(near: Path) -> Finding:
    """A deposit is answered after one fsync, so this is the floor of every write."""
    took_ms = []
    try:
        with tempfile.TemporaryFile(dir=near) as probe:
            for _ in range(FSYNC_PROBES):
                probe.write(b"\0" * FSYNC_BLOCK_BYTES)
                probe.flush()
                started = time.perf_counter()
                os.fsync(probe.fileno())
                took_ms.append((time.perf_counter() - started) * 1_000)
    except OSError as cause:
        if cause.errno in (errno.EACCES, errno.EROFS):
            return Finding("fsync", "warn", f"not measured: {near} cannot be written by this user")
        return Finding("fsync", "stop", f"{cause.strerror} in {near}", "put the data on a healthy disk")
    median = statistics.median(took_ms)
    if median > FSYNC_ADVISED_MS:
        return Finding(
            "fsync", "warn", f"{median:.1f} ms", f"over {FSYNC_ADVISED_MS:.0f} ms: every deposit waits that long; use a local SSD"
        )
    return Finding("fsync", "ok", f"{median:.2f} ms")


def _installation(options: Options) -> Finding:
    if not options.data_dir.is_dir() or not os.access(options.data_dir, os.R_OK | os.X_OK):
        return Finding("existing", "ok", "none in this folder")
    names = {entry.name for entry in options.data_dir.iterdir()}
    if {"compose.yaml", ".install.lock"} <= names:
        what = f"{options.data_dir} is an installation with containers"
        return Finding("existing", "stop", what, "add --docker, or choose another folder: --data-dir")
    marked = any((options.data_dir / mark).is_file() for mark in MARKS)
    if options.cli.exists() and marked:
        return Finding("existing", "ok", "installed here before; it is brought up to this version, data and settings stay")
    if names and not marked:
        return Finding("existing", "stop", f"{options.data_dir} holds other things", "choose an empty folder or a new one")
    return Finding("existing", "ok", "none in this folder" if not names else "data without a program: it is kept, the program is added")


def _port(options: Options) -> Finding:
    where = f"{options.listen}:{options.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(options.listen, options.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror:
        return Finding("port", "stop", f"{options.listen} is no address", "give --listen 127.0.0.1, 0.0.0.0 or one of this machine's")
    except OSError as cause:
        if cause.errno == errno.EADDRINUSE:
            if runs_here(options):
                return Finding("port", "ok", f"{where}, in use by this installation")
            return Finding("port", "stop", f"{where} is in use by another program", "give another one with --port")
        if cause.errno == errno.EADDRNOTAVAIL:
            return Finding(
                "port", "stop", f"{options.listen} is not an address of this machine", "give --listen 127.0.0.1, 0.0.0.0 or one of its own"
            )
        return Finding("port", "stop", f"{where}: {cause.strerror}", "give a --port of 1024 or more")
    return Finding("port", "ok", f"{where} is free")


def reach(options: Options) -> Finding:
    settings = options.settings
    if bool(settings.get("tls_cert")) != bool(settings.get("tls_key")):
        return Finding("tls", "stop", "only one of --tls-cert and --tls-key", "give both, or neither")
    if options.listen in LOOPBACK:
        return Finding("reach", "ok", "this machine only")
    if any(settings.get(name) for name in ("tls_cert", "trusted_proxies", "insecure")):
        return Finding("reach", "ok", f"listens on {options.listen}")
    return Finding(
        "reach",
        "stop",
        f"{options.listen} without TLS: passwords and tokens would cross the network in the clear",
        "give --tls-cert and --tls-key, or --trusted-proxies with your proxy's address, or --insecure",
    )


def _bundle(source: Source) -> list[Finding]:
    """Its wheels are for one Python and one kind of machine."""
    if not (about := source.about):
        return []
    here = {"python": ".".join(platform.python_version_tuple()[:2]), "machine": platform.machine()}
    wrong = [f"{name} {about[name]}, this is {value}" for name, value in here.items() if about[name] != value]
    if wrong:
        return [Finding("bundle", "stop", f"{about['version']} is for {'; '.join(wrong)}", "make one for this machine: make bundle")]
    return [Finding("bundle", "ok", f"piggybank {about['version']}; no package index is asked")]


def environment(options: Options) -> list[Finding]:
    if not options.ignored:
        return []
    return [
        Finding(
            "environment",
            "warn",
            f"{', '.join(options.ignored)} is set in this shell only",
            f"put it into {options.data_dir}/piggybank.toml",
        )
    ]
