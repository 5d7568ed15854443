"""Bring a base backup to life: unpack it, replay the log to its end or to a moment, on a server that nobody but us can reach.

It listens on a socket in a folder of its own that only its user may enter, and nowhere else; so it needs no password of the past.
"""

import gzip
import os
import shutil
import signal
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, cast

from piggybank import errors
from piggybank.appliance import processes, store_files, system_user
from piggybank.appliance.backups import courses, manifests, timelines, wal
from piggybank.appliance.backups.courses import Course
from piggybank.appliance.backups.making import BASE
from piggybank.appliance.backups.manifests import Hashing, Manifest
from piggybank.appliance.backups.targets import CHUNK_BYTES, Target
from piggybank.appliance.processes import Program
from piggybank.appliance.system_user import SystemUser
from piggybank.db.roles import quoted

REPLAY_TIMEOUT_S = 12 * 3_600
STOP_TIMEOUT_S = 300
POLL_S = 0.1
LOG_TAIL_LINES = 8
NEVER_REACHED = "recovery ended before configured recovery target was reached"
SOCKET_PORT = 5432  # part of the socket's name

Tell = Callable[[str], None]


class Alive:
    """A restored server while it runs for us alone."""

    def __init__(self, folder: Path, binaries: Path, socket: Path, user: SystemUser | None) -> None:
        self.folder = folder
        self.bin = binaries
        self.socket = socket
        self.user = user

    def psql(self, script: str, database: str = "postgres") -> str:
        """Run a script as the superuser."""
        words = ("--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1", "--file=-", f"--host={self.socket}")
        program = str(self.bin / "psql")
        return system_user.run(self.user, program, *words, f"--username={store_files.ADMIN_ROLE}", database, text=script).stdout

    def url(self, role: str) -> str:
        """The address of the database for that role."""
        return f"postgresql://{role}@/{store_files.DATABASE}?host={self.socket}&port={SOCKET_PORT}"

    @property
    def replayed_to(self) -> datetime | None:
        """When the last commit was made that was replayed; None: there was none after the backup."""
        said = self.psql("SELECT extract(epoch FROM pg_last_xact_replay_timestamp());").strip()
        return datetime.fromtimestamp(float(said), UTC) if said else None

    @property
    def replayed_bytes(self) -> int:
        """How far the log was replayed, as a position in it."""
        return int(self.psql("SELECT coalesce(pg_last_wal_replay_lsn() - '0/0'::pg_lsn, 0);").strip())

    def set_password(self, role: str, password: str) -> None:
        """Those of the past are not known here any more."""
        self.psql(f"SET log_statement = 'none';\nALTER ROLE {quoted(role)} PASSWORD '{password}';\n")


def unpack(target: Target, manifest: Manifest, folder: Path, user: SystemUser | None, tell: Tell) -> None:
    """The files of a base backup in `folder`, which is the user's and empty. Raises `errors.CannotProceed` where they are damaged."""
    file = manifest.file(BASE)
    hashing: Hashing | None = None
    try:
        with target.open(file.name) as source:
            hashing = Hashing(source, lambda size: tell(f"unpacking: {size / 1024**2:,.0f} of {file.size_bytes / 1024**2:,.0f} MiB"))
            with gzip.open(cast("IO[bytes]", hashing)) as plain, tarfile.open(fileobj=plain, mode="r|") as archive:
                for member in archive:
                    _write(archive, member, folder, user)
            while hashing.read(CHUNK_BYTES):
                pass
    except FileNotFoundError as cause:
        raise manifests.damaged(file, "it is missing") from cause
    except (tarfile.TarError, gzip.BadGzipFile, EOFError) as cause:
        raise manifests.damaged(file, str(cause)) from cause
    manifests.compare(file, hashing)


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, user: SystemUser | None) -> None:
    """Files and folders below `folder`, nothing else: our databases have no tablespaces, so no links."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or not (member.isfile() or member.isdir()):
        raise tarfile.TarError(f"{member.name} does not belong into a backup")
    path = folder / name
    if member.isdir():
        path.mkdir(exist_ok=True)
        system_user.give(path, user, 0o700)
        return
    content = archive.extractfile(member)
    assert content is not None
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        shutil.copyfileobj(content, file, CHUNK_BYTES)
        system_user.give(file.fileno(), user, 0o600)


def fetch_log(target: Target, manifest: Manifest, folder: Path, user: SystemUser | None, tell: Tell, *, until_hole: bool) -> Course:
    """The log since that backup, compressed as it is: a segment is unpacked when it is replayed. Nothing of a timeline that was given up.

    Raises `errors.CannotProceed` where no log leads on from it, or a segment is damaged, which with `until_hole` is left out.
    """
    system_user.make_folder(folder, user)
    found = courses.course(target, manifest, wal.names_of(target, manifest.system))
    if found.is_given_up:  # PostgreSQL would refuse the log
        raise errors.CannotProceed(
            what=f"{manifest.id} is of a history that was given up before it was made: the log does not lead on from it",
            do="take another backup: piggybank backup list",
        )
    for number, name in enumerate(found.files, start=1):
        tell(f"fetching the log: {number} of {len(found.files)} files")
        path = folder / PurePosixPath(name).name
        with target.open(name) as source, path.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK_BYTES)
            system_user.give(file.fileno(), user, 0o600)
        try:
            wal.check_whole(path)
        except errors.CannotProceed:
            if not until_hole:
                raise
            path.unlink()
    return found


def check_replayed(server: "Alive", log: Course) -> None:
    """Raises `errors.CannotProceed` where the replay ended before the newest of it: PostgreSQL takes a missing file for the end."""
    came_to_it = not log.newest or server.replayed_bytes > timelines.begins_at(log.newest)
    if came_to_it and not timelines.HISTORY.fullmatch(log.missing):  # without a history the newest is of a timeline that does not follow
        return
    missing, beyond = log.missing or "the one that comes next", log.newest or "a later one"
    when = f"{server.replayed_to:%Y-%m-%dT%H:%M:%SZ}" if server.replayed_to else "the moment of the backup"
    raise errors.CannotProceed(
        what=f"the log at the target has a hole ({missing}): it can be replayed to {when}, and files up to {beyond} come after that",
        do="take a backup that was made after the hole (piggybank backup list); or --until-hole, which loses what came after it",
    )


@contextmanager
def alive(folder: Path, log: Path, binaries: Path, user: SystemUser | None, at: datetime | None, tell: Tell) -> Iterator[Alive]:
    """Replay and promote; the server ends with the block. Raises `errors.CannotProceed` where that moment is not in the log."""
    socket = Path(tempfile.mkdtemp(prefix="piggybank-", dir="/tmp"))
    system_user.give(socket, user, 0o700)
    program = Program(
        name=folder.name,
        argv=(str(binaries / "postgres"), "-D", str(folder)),
        run_dir=log.parent,
        log=log.parent / "replay.log",
        user=user,
        stop_signal=signal.SIGINT,
        kill_signal=signal.SIGQUIT,
        stop_timeout_s=STOP_TIMEOUT_S,
    )
    try:
        _configure(folder, log, socket, at, user)
        running = processes.start(program)
        found = Alive(folder, binaries, socket, user)
        try:
            _wait(found, running, program.log, at, tell)
            yield found
        finally:
            running.stop()
    finally:
        shutil.rmtree(socket, ignore_errors=True)
    for name in ("recovery.signal", "backup_manifest"):
        (folder / name).unlink(missing_ok=True)


def _configure(folder: Path, log: Path, socket: Path, at: datetime | None, user: SystemUser | None) -> None:
    segment = f"{_shell(log)}/%f{wal.SUFFIX}"
    values = {
        "listen_addresses": "",
        "unix_socket_directories": str(socket),
        "port": str(SOCKET_PORT),
        "archive_mode": "off",
        "hot_standby": "off",  # nobody is let in before all is replayed
        "restore_command": f"test -f {segment} && gzip -dc {segment} > %p",
        "recovery_target_action": "promote",
        "shared_buffers": "128MB",
        "max_connections": "20",
        "timezone": "UTC",
        "logging_collector": "off",
        "log_destination": "stderr",
        "synchronous_standby_names": "",
    }
    if at is not None:
        values["recovery_target_time"] = at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f+00")
    lines = [f"{name} = '{value.replace(chr(39), 2 * chr(39))}'" for name, value in values.items()]
    processes.write_file(folder / "postgresql.conf", "\n".join(lines) + "\n", 0o600, user)
    processes.write_file(folder / "postgresql.auto.conf", "", 0o600, user)  # what an operator set is for the server that was
    processes.write_file(folder / "pg_hba.conf", "local all all trust\n", 0o600, user)
    processes.write_file(folder / "recovery.signal", "", 0o600, user)


def _shell(path: Path) -> str:
    return "'" + str(path).replace("'", "'\\''").replace("%", "%%") + "'"


def _wait(found: Alive, running: processes.Running, log: Path, at: datetime | None, tell: Tell) -> None:
    tell("replaying the log")
    until = time.monotonic() + REPLAY_TIMEOUT_S
    ready = (str(found.bin / "pg_isready"), "--quiet", f"--host={found.socket}")
    while not system_user.can(found.user, *ready):
        if not running.alive() or time.monotonic() > until:
            said = log.read_text(encoding="utf-8", errors="replace")
            if NEVER_REACHED in said and at is not None:
                raise errors.CannotProceed(
                    what=f"the log ends before {at:%Y-%m-%dT%H:%M:%SZ}", do="take an earlier moment, or leave --at away for the newest"
                )
            raise errors.CannotProceed(
                what=f"the backup does not start: {' / '.join(said.splitlines()[-LOG_TAIL_LINES:])}",
                do="use another backup (piggybank backup list), and make a new one",
            )
        time.sleep(POLL_S)
    if found.psql("SELECT pg_is_in_recovery();").strip() != "f":
        raise errors.CannotProceed(what="the restored server did not become a primary", do=f"look into {log}")
