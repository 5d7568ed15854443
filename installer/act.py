"""The second half: what is done, step by step. Every step may be repeated."""

import fcntl
import grp
import http.client
import json
import os
import pwd
import re
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from installer import program, units
from installer.look import runs_here
from installer.options import SETTINGS_FILE, Options
from installer.program import Failed, Source

READY_TIMEOUT_S = 120
COMMAND_TIMEOUT_S = 240
POLL_S = 0.2
USERS_LISTED_MAX = 1_000
STEPS = 7
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - how to reach oneself, by what is listened on

SETTINGS_HEAD = """\
# The settings of this installation; README.md lists all of them. `installer/install.sh` with a flag changes that line only.
# After changing something: piggybank down, then start it again.
"""


def act(options: Options, source: Source) -> dict[str, str | None]:
    """Bring the installation to what the options say; returns what `--json` prints. Raises `Failed`."""
    with _alone(options):
        place = program.wanted(options, source)
        if program.is_installed(place):
            step(2, f"Libraries and program are there: {place}")
        else:
            step(2, f"Installing the libraries into {place} (about a minute)")
            program.install_libraries(place, source)
            step(3, "Installing piggybank")
            program.install_piggybank(place, source)
        replaces = program.replaces(options, place)
        upgrades = replaces and runs_here(options)
        if replaces and not upgrades:
            _prepare_stopped(options, place)
        new_program = not upgrades and program.switch(options, place)
        step(4, "Folder, user and settings")
        _prepare_folder(options, place)
        new_settings = _write_settings(options)
        if upgrades:
            step(5, f"Upgrading to {place.name} while it runs")
            _upgrade(options, place)
        else:
            step(5, "Starting")
            _start(options, restart=new_program or new_settings)
        step(6, "Waiting until it answers")
        _wait_ready(options)
        mode = _choose_provider(options)
        step(7, "Making the operator's one-time link")
        link = operator_link(options)
        key = recovery_key(options)
        if not upgrades:  # an upgrade knows what still runs from where
            program.remove_old(place)
    return {
        "url": url(options),
        "data_dir": str(options.data_dir),
        "cli": str(options.cli),
        "operator_link": link,
        "recovery_key": key,
        "provider_mode": mode,
    }


def step(number: int, text: str) -> None:
    """One line of progress."""
    print(f"{number}/{STEPS} {text}", file=sys.stderr, flush=True)


@contextmanager
def _alone(options: Options) -> Iterator[None]:
    os.umask(0o022)  # the program must be readable by the system user
    options.data_dir.mkdir(parents=True, exist_ok=True)
    _take_back(options)
    with locked(options.data_dir):
        yield


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """One installer a folder at a time."""
    with os.fdopen(os.open(data_dir / ".install.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            raise Failed(f"another installer works on {data_dir}; wait until it ends") from cause
        yield


def _take_back(options: Options) -> None:
    """Earlier versions gave the folder to the system user, who could put other programs in the place of ours: root runs none of those."""
    if os.geteuid() != 0 or options.data_dir.stat().st_uid != _system_uid():
        return
    os.chown(options.data_dir, 0, -1)
    options.data_dir.chmod(0o750)
    versions = options.data_dir / "versions"
    inside = [] if versions.is_symlink() or not versions.is_dir() else list(versions.iterdir())
    for path in (options.data_dir / "current", options.cli.parent, options.cli, versions, *inside):
        if path.is_symlink() or path.exists():
            program.remove_unless_ours(path)


def _system_uid() -> int | None:
    try:
        return pwd.getpwnam(units.SYSTEM_USER).pw_uid
    except KeyError:
        return None


def _prepare_folder(options: Options, place: Path) -> None:
    """The installed program makes the system user and the folder's rights: it knows both."""
    code = "import pathlib, sys; from piggybank.appliance.data_folder import prepare_folder; prepare_folder(pathlib.Path(sys.argv[1]))"
    run(str(place / "venv" / "bin" / "python"), "-c", code, str(options.data_dir))
    for name in ("tls_cert", "tls_key"):
        path = options.settings.get(name)
        if path and os.geteuid() == 0 and not _readable_by_system_user(str(path)):
            raise Failed(f"the system user {units.SYSTEM_USER} cannot read {path}\n  setfacl -m u:{units.SYSTEM_USER}:r {path}")


def _readable_by_system_user(path: str) -> bool:
    user = pwd.getpwnam(units.SYSTEM_USER)
    command = ["/bin/sh", "-c", 'test -r "$0"', path]
    return subprocess.run(command, user=user.pw_uid, group=user.pw_gid, extra_groups=[], check=False, cwd="/").returncode == 0


def _write_settings(options: Options) -> bool:
    """Write the chosen settings into piggybank.toml line by line, so that what people wrote there stays; True when it changed."""
    path = options.data_dir / SETTINGS_FILE
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = (before or SETTINGS_HEAD).splitlines()
    for name, value in options.chosen.items():
        if name == "provider_mode" and (options.data_dir / "stores" / "postgres").exists():
            continue  # what a new database starts with; this one keeps its own
        line = f"{name} = {json.dumps(value, ensure_ascii=False)}"
        places = [number for number, old in enumerate(lines) if re.match(rf"\s*{name}\s*=", old)]
        if places:
            lines[places[0]] = line
        else:
            lines.append(line)
    after = "\n".join(lines) + "\n"
    if after == before:
        return False
    making = path.with_name(path.name + ".new")
    making.write_text(after, encoding="utf-8")
    making.chmod(0o640)  # it may hold the password of a mail server
    if os.geteuid() == 0:
        os.chown(making, 0, grp.getgrnam(units.SYSTEM_USER).gr_gid)
    making.replace(path)
    return True


def _upgrade(options: Options, place: Path) -> None:
    """The new version's own command: a backup, the schema, a trial, then the change while people pay; its lines are shown as they come."""
    if units.systemd_runs() and _write_unit(options):
        _systemctl("daemon-reload")  # what runs is not started again for that
    command = _command(options, place, "upgrade")
    upgrading = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, cwd="/", env=_environment())
    while True:
        try:
            ended = upgrading.wait()
            break
        except KeyboardInterrupt:
            pass  # it heard that, too, and knows where it may stop
    if ended != 0:
        raise Failed("the upgrade did not come to its end; what it said stands above")
    program.switch(options, place)  # the command in bin/ may be an older one's


def _prepare_stopped(options: Options, place: Path) -> None:
    """Before the change: whether the new version may follow the one that was here, and a backup where it will migrate."""
    if units.systemd_runs():
        units.systemctl("stop", units.path(options).name)  # one that systemd starts again and again would be in the way
    done = subprocess.run(
        _command(options, place, "upgrade", "--stopped"),
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        check=False,
        cwd="/",
        env=_environment(),
    )
    if done.returncode != 0:
        raise Failed("the version that was here stays; what stands in the way of the new one was said above")


def _command(options: Options, place: Path, *words: str) -> list[str]:
    """Of the version in that place, whichever `current` leads to."""
    return [str(place / "venv" / "bin" / "python"), "-P", "-m", "piggybank", "--data-dir", str(options.data_dir), *words]


def _start(options: Options, *, restart: bool) -> None:
    if units.systemd_runs():
        _start_unit(options, restart=restart)
        return
    if restart:
        run(str(options.cli), "down")
    run(str(options.cli), "up", "--detach")  # says so where it runs already


def _start_unit(options: Options, *, restart: bool) -> None:
    path, new_unit = units.path(options), _write_unit(options)
    if new_unit:
        _systemctl("daemon-reload")
    if units.systemctl("is-active", "--quiet", path.name).returncode != 0 and runs_here(options):
        run(str(options.cli), "down")  # started by hand: from now on the unit keeps it
    _systemctl("enable", path.name)
    _systemctl("restart" if restart or new_unit else "start", path.name)
    if os.geteuid() != 0:
        subprocess.run(["loginctl", "enable-linger"], check=False, capture_output=True)  # so that it runs while nobody is signed in


def _write_unit(options: Options) -> bool:
    """True where it was another, or there was none."""
    path, text = units.path(options), units.text(options, as_root=os.geteuid() == 0)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return True


def _systemctl(*arguments: str) -> None:
    done = units.systemctl(*arguments)
    if done.returncode != 0:
        raise Failed(f"systemctl {' '.join(arguments)}: {done.stderr.strip()}")


def _wait_ready(options: Options) -> None:
    until = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < until:
        if answers(options):
            return
        time.sleep(POLL_S)
    raise Failed(f"it does not answer on {options.listen}:{options.port}; look into {options.data_dir}/logs, or run: {options.cli} doctor")


def answers(options: Options) -> bool:
    """Asks its own port directly: a proxy of the environment has nothing to do with this machine."""
    host = EVERYWHERE.get(options.listen, options.listen)
    connection: http.client.HTTPConnection
    if options.settings.get("tls_cert"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # the certificate has the public name, not the loopback's
        context.verify_mode = ssl.CERT_NONE  # only whether it answers is asked, and nothing is told
        connection = http.client.HTTPSConnection(host, options.port, timeout=5, context=context)
    else:
        connection = http.client.HTTPConnection(host, options.port, timeout=5)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _choose_provider(options: Options) -> str:
    """The provider's mode. It is the database's: an older one is asked to change, and says so where it must not."""
    mode = run(str(options.cli), "provider", "mode").strip()
    wanted = str(options.chosen.get("provider_mode", mode))
    if wanted != mode:
        run(str(options.cli), "provider", "mode", wanted)
        _start(options, restart=True)
        _wait_ready(options)
    return wanted


def operator_link(options: Options) -> str | None:
    """None once there is an operator (with very many users one is taken to be there)."""
    users = json.loads(run(str(options.cli), "users", "list", "--json"))["items"]
    if len(users) >= USERS_LISTED_MAX or any(user["role"] == "operator" for user in users):
        return None
    made: dict[str, Any] = json.loads(run(str(options.cli), "users", "operator-link", "--json"))
    return str(made["link"])


def recovery_key(options: Options) -> str | None:
    """None where there is one: it is shown once, and kept nowhere."""
    made: dict[str, str | None] = json.loads(run(str(options.cli), "backup", "key", "--if-none", "--json"))
    return made["recovery_key"]


def url(options: Options) -> str:
    """As `Settings.url` has it."""
    if options.settings.get("public_url"):
        return str(options.settings["public_url"]).rstrip("/")
    host = EVERYWHERE.get(options.listen, options.listen)
    host = f"[{host}]" if ":" in host else host
    return f"{'https' if options.settings.get('tls_cert') else 'http'}://{host}:{options.port}"


def run(*command: str) -> str:
    """A command of the installed program; its own words when it fails."""
    # files, not pipes: what `up --detach` leaves behind must not keep us waiting for the end of a pipe
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
                cwd="/",
                env=_environment(),
            )
        except subprocess.TimeoutExpired as cause:
            raise Failed(f"{' '.join(command)} did not end within {COMMAND_TIMEOUT_S} s") from cause
        out.seek(0)
        err.seek(0)
        said = out.read()
        if done.returncode != 0:
            raise Failed(f"{' '.join(command)}\n  {err.read().strip() or said.strip()}")
    return said


def _environment() -> dict[str, str]:
    """What the service will see after a reboot: no setting of this shell."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PIGGYBANK_")}
