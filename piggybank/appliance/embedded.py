"""PostgreSQL 18 and two Valkeys in the data folder, on loopback, with no other software on the machine.

<data>/stores/secrets.toml    passwords and ports, made once
<data>/stores/postgres        the cluster          <data>/stores/cache, queue   the Valkeys: these three are the system user's
<data>/stores.toml            the four addresses, as settings
<data>/run/<name>.json        who runs             <data>/logs/<name>.log
"""

import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil
from redis import Redis
from redis.exceptions import RedisError

from piggybank import errors
from piggybank.appliance import binaries, processes, store_files, system_user
from piggybank.appliance.data_folder import prepare_folder
from piggybank.appliance.processes import Program, Running
from piggybank.appliance.system_user import SystemUser, ours, shared

START_TIMEOUT_S = 120  # crash recovery replays at most max_wal_size
POSTGRES_STOP_TIMEOUT_S = 60
VALKEY_STOP_TIMEOUT_S = 30
POLL_S = 0.05
LOG_TAIL_LINES = 5


class Embedded:
    """The stores of one data folder."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.dir = data_dir / "stores"
        self.logs = data_dir / "logs"
        self.run_dir = data_dir / "run"
        self.user: SystemUser | None = None
        self.programs: dict[str, Program] = {}
        self.running: dict[str, Running] = {}

    def start(self) -> None:
        """Prepare, adopt what lives, start what does not, wait until all answer; raises `errors.StoreFailed`."""
        self.prepare()
        for name in self.programs:
            self.ensure(name)
        for name in self.programs:
            self.wait_ready(name)
        self._make_roles()
        store_files.write_addresses(self.data_dir, self.secrets, self.user)

    def prepare(self) -> None:
        """Folders, user, secrets, binaries, cluster and configuration; starts nothing."""
        self.user = prepare_folder(self.data_dir)
        system_user.make_folder(self.dir, ours(self.user), shared(self.user, 0o750))
        system_user.keep_file(self.dir / "secrets.toml", self.user, 0o600)
        for folder in (self.dir / "cache", self.dir / "queue"):
            system_user.make_folder(folder, self.user)
        self.secrets = store_files.load_secrets(self.dir, self.user)
        self._bin = binaries.postgres(self.dir, self.user)
        self._make_cluster()
        self._list_programs(self._bin / "postgres", binaries.valkey(self.dir, self.user))
        if not any(processes.find(program) for program in self.programs.values()):
            self._leave_taken_ports()
        self._write_configuration()

    def ensure(self, name: str) -> Running:
        """The live process of that store: known, adopted or started."""
        known = self.running.get(name)
        if known is not None and known.alive():
            return known
        program = self.programs[name]
        found = processes.find(program)
        if found is None:
            if name == "postgres":
                self._clear_postmaster_pid()
            found = processes.start(program)
        self.running[name] = found
        return found

    def is_ready(self, name: str) -> bool:
        """True when it takes connections."""
        if name == "postgres":
            return self._postgres_ready()
        password, port = self._valkey_door(name)
        try:
            with Redis(host="127.0.0.1", port=port, password=password, socket_timeout=2, socket_connect_timeout=2) as client:
                return bool(client.ping())
        except RedisError:  # nobody there, or still loading its file
            return False

    def wait_ready(self, name: str) -> None:
        """Raises `errors.StoreFailed` with the log's last lines when it ends or takes too long."""
        until = time.monotonic() + START_TIMEOUT_S
        while not self.is_ready(name):
            if not self.running[name].alive() or time.monotonic() > until:
                raise errors.StoreFailed(store=name, log=str(self.programs[name].log), says=_tail(self.programs[name].log))
            time.sleep(POLL_S)

    def find_all(self, user: SystemUser | None) -> None:
        """Know what runs without preparing anything: to stop it, to tell about it."""
        self.user = user
        self._list_programs(Path("postgres"), Path("valkey-server"))

    def stop(self) -> dict[str, bool]:
        """Stop what runs, Valkeys first; for each, whether asking was enough."""
        stopped = {}
        for name in reversed(self.programs):
            found = self.running.pop(name, None) or processes.find(self.programs[name])
            if found is not None:
                stopped[name] = found.stop()
        return stopped

    def _list_programs(self, postgres: Path, valkey: Path) -> None:
        def program(name: str, *argv: str, stop_signal: int, kill_signal: int, stop_timeout_s: float) -> Program:
            return Program(
                name=name,
                argv=argv,
                run_dir=self.run_dir,
                log=self.logs / f"{name}.log",
                user=self.user,
                stop_signal=stop_signal,
                kill_signal=kill_signal,
                stop_timeout_s=stop_timeout_s,
            )

        # SIGINT is PostgreSQL's fast shutdown, SIGQUIT its immediate one
        self.programs["postgres"] = program(
            "postgres",
            str(postgres),
            "-D",
            str(self.dir / "postgres"),
            stop_signal=signal.SIGINT,
            kill_signal=signal.SIGQUIT,
            stop_timeout_s=POSTGRES_STOP_TIMEOUT_S,
        )
        for name in ("cache", "queue"):
            self.programs[name] = program(
                name,
                str(valkey),
                str(self.dir / name / "valkey.conf"),
                stop_signal=signal.SIGTERM,
                kill_signal=signal.SIGKILL,
                stop_timeout_s=VALKEY_STOP_TIMEOUT_S,
            )

    def _make_cluster(self) -> None:
        """initdb beside its place, then renamed: a crash in between leaves no half cluster."""
        place = self.dir / "postgres"
        if place.exists():
            return
        making = self.dir / "postgres.new"
        shutil.rmtree(making, ignore_errors=True)
        system_user.make_folder(making, self.user)
        password_file = self.dir / "initdb.password"
        processes.write_file(password_file, self.secrets.admin_password + "\n", 0o600, self.user)
        try:
            system_user.run(
                self.user,
                str(self._bin / "initdb"),
                f"--pgdata={making}",
                f"--username={store_files.ADMIN_ROLE}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--data-checksums",
            )
        finally:
            password_file.unlink(missing_ok=True)
        making.rename(place)

    def _leave_taken_ports(self) -> None:
        """A port that another program took while we were stopped is changed; otherwise ports stay as they are."""
        names = ("postgres_port", "cache_port", "queue_port", "simulator_port")
        taken = [name for name in names if not store_files.is_free(getattr(self.secrets, name))]
        if taken:
            fresh = dict(zip(taken, store_files.free_ports(len(taken)), strict=True))
            self.secrets = msgspec.structs.replace(self.secrets, **fresh)
            store_files.save_secrets(self.dir, self.secrets, self.user)

    def _write_configuration(self) -> None:
        for path, text in (
            (self.dir / "postgres" / "postgresql.conf", store_files.postgres_conf(self.secrets.postgres_port)),
            (self.dir / "postgres" / "pg_hba.conf", store_files.pg_hba()),
            (self.dir / "cache" / "valkey.conf", store_files.cache_conf(self.secrets, self.dir / "cache")),
            (self.dir / "queue" / "valkey.conf", store_files.queue_conf(self.secrets, self.dir / "queue")),
        ):
            processes.write_file(path, text, 0o600, self.user)

    def _clear_postmaster_pid(self) -> None:
        """Clear PostgreSQL's own pid file when that pid is now another program, which PostgreSQL takes for itself.

        Only then: the file also lets PostgreSQL see backends that outlived their postmaster, so while any process works in the
        cluster's folder, or the pid is simply dead, it stays.
        """
        cluster = self.dir / "postgres"
        with suppress(FileNotFoundError, ValueError):
            handle = system_user.open_file(cluster / "postmaster.pid", os.O_RDONLY)
            with os.fdopen(handle, encoding="utf-8") as file:
                pid = int(file.readline())
            if psutil.pid_exists(pid) and not processes.anybody_in(cluster):
                (cluster / "postmaster.pid").unlink()

    def _make_roles(self) -> None:
        """Roles and database, when they are missing. The owner may alter the application's role: it puts the timeouts on it."""
        owner, application = store_files.OWNER_ROLE, store_files.APPLICATION_ROLE
        roles = "".join(
            f"SELECT 'CREATE ROLE {role}' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') \\gexec\n"
            f"ALTER ROLE {role} LOGIN {rights} PASSWORD '{password}';\n"
            for role, rights, password in (
                (owner, "CREATEDB CREATEROLE", self.secrets.owner_password),
                (application, "", self.secrets.application_password),
            )
        )
        self.psql(
            # passwords stay out of the log
            "SET log_statement = 'none';\nSET log_min_error_statement = 'panic';\nSET log_min_duration_statement = -1;\n"
            + roles
            + f"GRANT {application} TO {owner} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE;\n"
            + f"SELECT 'CREATE DATABASE {store_files.DATABASE} OWNER {owner}'"
            + f" WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{store_files.DATABASE}') \\gexec\n"
        )

    def psql(self, script: str) -> str:
        """Run a script as the cluster's superuser on the database `postgres`; returns what it printed."""
        options = ("--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1", "--file=-")
        done = system_user.run(
            self.user,
            str(self._bin / "psql"),
            *options,
            "--host=127.0.0.1",
            f"--port={self.secrets.postgres_port}",
            f"--username={store_files.ADMIN_ROLE}",
            "postgres",
            text=script,
            environment={"PGPASSWORD": self.secrets.admin_password},
        )
        return done.stdout

    def _postgres_ready(self) -> bool:
        program = str(self._bin / "pg_isready")
        return system_user.can(self.user, program, "--quiet", "--host=127.0.0.1", f"--port={self.secrets.postgres_port}")

    def _valkey_door(self, name: str) -> tuple[str, int]:
        if name == "cache":
            return self.secrets.cache_password, self.secrets.cache_port
        return self.secrets.queue_password, self.secrets.queue_port


def _tail(log: Path) -> str:
    try:
        with os.fdopen(system_user.open_file(log, os.O_RDONLY), encoding="utf-8", errors="replace") as file:
            return " / ".join(file.read().splitlines()[-LOG_TAIL_LINES:])
    except (OSError, errors.CannotProceed):
        return ""
