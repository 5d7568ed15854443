"""The PostgreSQL servers of a data folder: one primary, and the standbys that stream from it.

Which one is the primary stands in `stores/primary`, written before anything is promoted: from then on the old one is never started but
as a standby, through pg_rewind, whatever it had written by itself. A standby has a replication slot of its name, and its name in
`pg_stat_replication`. The superuser's scripts wait for no standby (`synchronous_commit = local`): they must work when all are gone.
"""

import os
import shutil
import signal
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import psutil

from piggybank import errors
from piggybank.appliance import binaries, processes, standings, store_files, system_user, topology
from piggybank.appliance.data_folder import MARK
from piggybank.appliance.processes import Running
from piggybank.appliance.server_folders import ServerFolders, major_of
from piggybank.appliance.standings import Ended, Standing
from piggybank.appliance.store_files import Secrets, Server
from piggybank.appliance.system_user import SystemUser
from piggybank.appliance.topology import Topology
from piggybank.db import storage
from piggybank.db.installation import CLOSED
from piggybank.db.roles import SEES_STANDBYS
from piggybank.db.standbys import FOLLOWS

COPY_TIMEOUT_S = 12 * 3_600  # of a whole database to a standby
REWIND_TIMEOUT_S = 3_600
PROMOTE_TIMEOUT_S = 60
GONE_TIMEOUT_S = 15  # until the last process of a server that was killed is gone
CONNECT_TIMEOUT_S = "5"  # of a server that hangs
POLL_S = 0.05

# passwords stay out of the log
QUIETLY = "SET log_statement = 'none';\nSET log_min_error_statement = 'panic';\nSET log_min_duration_statement = -1;\n"
_STREAMING = f"SELECT application_name FROM pg_stat_replication WHERE {FOLLOWS}"
# The last file to name a setting counts: an operator's ALTER SYSTEM comes after ours.
_OTHERWISE = """
WITH said AS (
    SELECT DISTINCT ON (name) name, setting FROM pg_file_settings
    WHERE name IN ({names}) ORDER BY name, seqno DESC
)
SELECT bool_or(CASE name WHEN 'shared_buffers' THEN pg_size_bytes(said.setting) <> pg_size_bytes(current_setting(name))
                    ELSE said.setting <> current_setting(name) END)
FROM said
"""


class Postgres:
    """The servers below `stores/`, each in a folder of its name."""

    def __init__(self, folder: Path, binaries: Path, secrets: Secrets, user: SystemUser | None) -> None:
        self.dir = folder
        self.bin = binaries
        self.secrets = secrets
        self.user = user
        self.folders = ServerFolders(folder, user)

    @property
    def primary(self) -> str:
        """The name of the server that takes writes."""
        return topology.primary_of(self.dir)

    def name_primary(self, name: str) -> None:
        """From now on this one is it."""
        processes.write_file(self.dir / "primary", name + "\n", 0o600, system_user.ours(self.user))

    def is_made(self, name: str) -> bool:
        """True when the server has its folder."""
        return self.folders.is_made(name)

    def check_majors(self) -> None:
        """Raises `errors.CannotProceed` where another major made what is here, or nobody: a server is never started on that."""
        for name in topology.NODES:
            if self.is_made(name) and not (self.dir / name / "PG_VERSION").exists():
                raise errors.CannotProceed(
                    what=f"there is no database in {self.dir / name}", do=f"mount its disk; or, if that is gone for good, remove {name}"
                )
            if self.is_made(name) and (major := major_of(self.dir / name)) != binaries.POSTGRES_MAJOR:
                raise errors.CannotProceed(
                    what=f"PostgreSQL {major} made the database in {self.dir / name}, this version brings {binaries.POSTGRES_MAJOR}",
                    do="piggybank upgrade postgres (it runs pg_upgrade after a backup that it checks, and keeps the old one)",
                )

    def make_primary(self, *, first: bool = True) -> None:
        """initdb beside its place, then renamed: a crash in between leaves no half cluster.

        Raises `errors.CannotProceed` while another server has a folder: the book is in there, and an empty one is no primary for it; and
        where it is not the first one here.
        """
        place = self.dir / self.primary
        if place.exists():
            return
        if (upgraded := self.folders.upgraded(self.primary)).exists():  # `piggybank upgrade postgres` was killed between two renames
            upgraded.rename(place)
            return
        if left := [name for name in topology.NODES if self.is_made(name)]:
            raise errors.CannotProceed(
                what=f"the primary's folder {place} is missing, and its copies are there: {', '.join(left)}",
                do="mount its disk; if that is gone for good: piggybank failover (a copy takes its place), or piggybank restore --in-place",
            )
        if not first:
            raise errors.CannotProceed(
                what=f"the database's folder {place} is missing",
                do=f"mount its disk; if that is gone for good: piggybank restore --in-place; only if a new, empty bank is meant:"
                f" : > {self.dir.parent / MARK}",
            )
        making = self.folders.make(self.primary)
        self.initialize(making)
        making.rename(place)

    def initialize(self, folder: Path, *, checksums: bool = True) -> None:
        """A new cluster in an empty folder of the user's."""
        password_file = self.dir / "initdb.password"
        processes.write_file(password_file, self.secrets.admin_password + "\n", 0o600, self.user)
        try:
            self._run(
                "initdb",
                f"--pgdata={folder}",
                f"--username={store_files.ADMIN_ROLE}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--data-checksums" if checksums else "--no-data-checksums",
            )
        finally:
            password_file.unlink(missing_ok=True)

    def make_standby(self, name: str) -> None:
        """Copy the running primary, with a slot that keeps the WAL for it from now on.

        Raises `errors.CannotProceed` where the disk has no room beside what is there (a full one stops the primary), and where what the
        copy would replace is of another database.
        """
        self.check_is_copy(name)
        making = self.folders.make(name)
        try:
            storage.check_room(self.dir, storage.needed_mib(storage.size_mib(self.dir / self.primary), 1), f"{name}, copied, needs")
            self.drop_slot(name)
            self._run(
                "pg_basebackup",
                f"--pgdata={making}",
                "--host=127.0.0.1",
                f"--port={self.secrets.port_of(self.primary)}",
                f"--username={store_files.REPLICATION_ROLE}",
                "--checkpoint=fast",
                "--wal-method=stream",
                "--create-slot",
                f"--slot={store_files.slot_of(name)}",
                "--no-password",
                password=self.secrets.replication_password,
                timeout_s=COPY_TIMEOUT_S,
            )
            processes.write_file(making / "standby.signal", "", 0o600, self.user)
        except BaseException:  # half a copy takes room, and its slot keeps the log for nobody
            with suppress(errors.StoreFailed):
                self.drop_slot(name)
            shutil.rmtree(making, ignore_errors=True)
            raise
        self.folders.put_away(name, making)

    def clear_copies(self, wanted: Collection[str]) -> None:
        """What was being made or taken away when a supervisor was killed; of a server that is not wanted its slot, too."""
        for name in topology.NODES:
            if self.folders.is_being_made(name):
                self.folders.end_orphans(name)
                if name not in wanted:
                    self.drop_slot(name)
            self.folders.clear(name)
            if not (self.is_made(name) and self.must_be_rewound(name)):
                self.folders.end_rewind(name)

    def check_is_copy(self, name: str) -> None:
        """Of the primary, so that nothing is lost with it. Raises `errors.CannotProceed` where it is of another database."""
        if not self.is_made(name):
            return
        said = "Database system identifier"
        if self._control_data(name)[said] != self._control_data(self.primary)[said]:
            raise errors.CannotProceed(
                what=f"{self.dir / name} is no copy of the primary {self.primary}, but another database: it stays as it is",
                do="piggybank down, look which of the two holds the book, and move the other folder away",
            )

    def make_follow(self, name: str, values: Topology) -> str:
        """Make a server that was a primary a standby of the present one; returns how. What it alone had written is given up."""
        folder = self.dir / name
        self.folders.end_orphans(name)
        try:
            self.folders.begin_rewind(name)
            self._run(
                "pg_rewind",
                f"--target-pgdata={folder}",
                f"--source-server=host=127.0.0.1 port={self.secrets.port_of(self.primary)} user={store_files.ADMIN_ROLE} dbname=postgres",
                password=self.secrets.admin_password,
                timeout_s=REWIND_TIMEOUT_S,
            )
        except errors.StoreFailed:  # its WAL does not reach back to where the two parted, say
            self.make_standby(name)
            how = "copied anew"
        else:
            for slot in (folder / "pg_replslot").iterdir():  # from when it was the primary: on a standby they would only keep WAL
                shutil.rmtree(slot)
            self.make_slot(name)
            processes.write_file(folder / "standby.signal", "", 0o600, self.user)
            self.folders.end_rewind(name)
            how = "rewound"
        self.write_configuration(name, values)
        return how

    def must_be_rewound(self, name: str) -> bool:
        """True of a server that would start as a primary and is not the primary."""
        return name != self.primary and not (self.dir / name / "standby.signal").exists()

    def write_configuration(self, name: str, values: Topology, synchronous: tuple[str, ...] = ()) -> None:
        """`postgresql.conf` and `pg_hba.conf`; `synchronous` counts on the primary only."""
        is_primary = name == self.primary
        server = Server(
            name=name,
            port=self.secrets.port_of(name),
            shared_buffers_mib=values.shared_buffers_mib,
            effective_cache_mib=values.effective_cache_mib,
            max_connections=values.max_connections,
            synchronous=synchronous if is_primary else (),
            keeps_wal=store_files.FOLLOWED_KEEPS if values.replicas else "0",
            primary_port=0 if is_primary else self.secrets.port_of(self.primary),
            replication_password=self.secrets.replication_password,
            archives_to=self._spool() if values.archived else "",
        )
        processes.write_file(self.dir / name / "postgresql.conf", store_files.postgres_conf(server), 0o600, self.user)
        processes.write_file(self.dir / name / "pg_hba.conf", store_files.pg_hba(), 0o600, self.user)

    def _spool(self) -> str:
        """Where segments wait for the backup target: PostgreSQL puts them there, the supervisor takes them away."""
        folder = self.dir / store_files.WAL_SPOOL
        system_user.make_folder(folder, self.user)
        return str(folder)

    def reload(self, name: str) -> None:
        """Read the configuration again."""
        self.psql("SELECT pg_reload_conf();", name)

    def must_restart(self, *, archived: bool) -> bool:
        """True when the primary runs with other values than its files say, of what only a start changes and somebody needs now."""
        names = ["shared_buffers", "max_connections", *(["archive_mode"] if archived else [])]
        return self.psql(_OTHERWISE.format(names=", ".join(f"'{name}'" for name in names))).strip() == "t"

    def make_roles(self) -> None:
        """Roles and database, when they are missing. The owner may alter the application's role: it puts the timeouts on it."""
        owner, application, replication = store_files.OWNER_ROLE, store_files.APPLICATION_ROLE, store_files.REPLICATION_ROLE
        roles = "".join(
            f"SELECT 'CREATE ROLE {role}' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') \\gexec\n"
            f"ALTER ROLE {role} LOGIN {rights} PASSWORD '{password}';\n"
            for role, rights, password in (
                (owner, "CREATEDB CREATEROLE", self.secrets.owner_password),
                (application, "", self.secrets.application_password),
                (replication, "REPLICATION", self.secrets.replication_password),
            )
        )
        self.psql(
            QUIETLY
            + roles
            + f"GRANT {application} TO {owner} WITH ADMIN TRUE, INHERIT FALSE, SET FALSE;\n"
            + f"GRANT {SEES_STANDBYS} TO {application};\n"
            + f"SELECT 'CREATE DATABASE {store_files.DATABASE} OWNER {owner}'"
            + f" WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{store_files.DATABASE}') \\gexec\n"
        )

    def set_passwords(self, fresh: Secrets) -> None:
        """Of every role of ours, all or none; from then on the present administrator's password is good no longer."""
        passwords = {
            store_files.ADMIN_ROLE: fresh.admin_password,
            store_files.OWNER_ROLE: fresh.owner_password,
            store_files.APPLICATION_ROLE: fresh.application_password,
            store_files.REPLICATION_ROLE: fresh.replication_password,
        }
        changes = "".join(f"ALTER ROLE {role} PASSWORD '{password}';\n" for role, password in passwords.items())
        self.psql(f"{QUIETLY}BEGIN;\n{changes}COMMIT;\n")

    def takes(self, admin_password: str) -> bool:
        """Whether the primary lets the administrator in with that."""
        port = self.secrets.port_of(self.primary)
        words = (
            "--no-psqlrc",
            "--host=127.0.0.1",
            f"--port={port}",
            f"--username={store_files.ADMIN_ROLE}",
            "--command=SELECT 1",
            "postgres",
        )
        try:
            self._run("psql", *words, password=admin_password)
        except errors.StoreFailed:
            return False
        return True

    def make_slot(self, name: str) -> None:
        """The slot of a standby on the present primary."""
        slot = store_files.slot_of(name)
        self.psql(
            f"SELECT pg_create_physical_replication_slot('{slot}', true)"
            f" WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{slot}');\n"
        )

    def drop_slot(self, name: str) -> None:
        """Keep no more WAL for that standby, which has ended."""
        slot = store_files.slot_of(name)
        until = time.monotonic() + GONE_TIMEOUT_S
        while self.psql(f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}';").strip() != "0":
            if time.monotonic() > until:
                raise errors.StoreFailed(store=name, says=f"its replication slot {slot} stays in use")
            self.psql(f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{slot}' AND NOT active;")
            time.sleep(POLL_S)

    def streaming(self) -> set[str]:
        """Names of the standbys that stream from the primary now."""
        return set(self.psql(_STREAMING).split())

    def follows(self, name: str) -> bool:
        """Whether a standby streams, and from this history: one that has parted from it shows `streaming` for a moment at each try."""
        if name not in self.streaming():
            return False
        try:
            return self.look(name).timeline == self.look(self.primary).timeline
        except errors.StoreFailed:
            return False

    def look(self, name: str) -> Standing:
        """What a server says; raises `errors.StoreFailed` where it does not answer."""
        where = f"host=127.0.0.1 port={self.secrets.port_of(name)} user={store_files.ADMIN_ROLE} dbname=postgres replication=true"
        words = ("--no-psqlrc", "--quiet", "--no-align", "--tuples-only", f"--command={standings.IDENTIFY}", where)
        recovering = self.psql(standings.RECOVERING, name)
        return standings.standing(name, recovering, self._run("psql", *words, password=self.secrets.admin_password))

    def ended(self, name: str) -> Ended:
        """Of a server that does not answer."""
        try:
            return standings.ended(self._run("pg_controldata", str(self.dir / name)))
        except errors.StoreFailed:
            return Ended(0, None)

    def _control_data(self, name: str) -> dict[str, str]:
        lines = self._run("pg_controldata", str(self.dir / name)).splitlines()
        return {what: value.strip() for what, _, value in (line.partition(":") for line in lines)}

    def promote(self, name: str) -> None:
        """Make a standby take writes; raises `errors.StoreFailed`."""
        if not self.look(name).in_recovery:
            return
        if self.psql(f"SELECT pg_promote(true, {PROMOTE_TIMEOUT_S});", name).strip() != "t":
            raise errors.StoreFailed(store=name, says=f"it did not become the primary within {PROMOTE_TIMEOUT_S} s")

    def close_cache(self) -> None:
        """What the caches know may be of a past that is gone (`db/installation.py`); before the first migration there is none."""
        self.psql(
            f"SELECT $$UPDATE installation SET epoch = '{CLOSED}' || epoch WHERE left(epoch, 1) <> '{CLOSED}'$$"
            " WHERE to_regclass('installation') IS NOT NULL \\gexec\n",
            database=store_files.DATABASE,
        )

    def psql(self, script: str, name: str = "", database: str = "postgres") -> str:
        """Run a script as the superuser on that server (else the primary); returns what it printed."""
        options = ("--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1", "--file=-")
        return self._run(
            "psql",
            *options,
            "--host=127.0.0.1",
            f"--port={self.secrets.port_of(name or self.primary)}",
            f"--username={store_files.ADMIN_ROLE}",
            database,
            text=f"SET synchronous_commit = local;\n{script}",
            password=self.secrets.admin_password,
        )

    def is_ready(self, name: str) -> bool:
        """True when it takes connections."""
        program = str(self.bin / "pg_isready")
        return system_user.can(self.user, program, "--quiet", "--host=127.0.0.1", f"--port={self.secrets.port_of(name)}")

    def clear_pid_file(self, name: str) -> None:
        """Clear PostgreSQL's own pid file when that pid is now another program, which PostgreSQL takes for itself.

        Only then: the file also lets PostgreSQL see backends that outlived their postmaster, so while any process works in the
        cluster's folder, or the pid is simply dead, it stays.
        """
        cluster = self.dir / name
        with suppress(FileNotFoundError, ValueError):
            handle = system_user.open_file(cluster / "postmaster.pid", os.O_RDONLY)
            with os.fdopen(handle, encoding="utf-8") as file:
                pid = int(file.readline())
            if psutil.pid_exists(pid) and not processes.anybody_in(cluster):
                (cluster / "postmaster.pid").unlink()

    def fence(self, name: str, running: Running | None) -> None:
        """Make sure that nobody writes on that server any more: it is stopped if it still listens, and killed to the last process if not.

        Raises `errors.StoreFailed` where a process of it stays.
        """
        if running is not None and running.alive():
            if self.is_ready(name):
                running.stop()
            running.signal(signal.SIGKILL)  # it hangs: its backends end when they see that
        if left := processes.end(lambda: processes.in_folder(self.dir / name), GONE_TIMEOUT_S):
            raise errors.StoreFailed(store=name, says=f"processes of it do not end: {', '.join(str(process.pid) for process in left)}")

    def _run(self, program: str, *words: str, text: str = "", password: str = "", timeout_s: float = system_user.COMMAND_TIMEOUT_S) -> str:
        environment = {"PGPASSWORD": password, "PGCONNECT_TIMEOUT": CONNECT_TIMEOUT_S, "LC_ALL": "C"}
        done = system_user.run(self.user, str(self.bin / program), *words, text=text, environment=environment, timeout_s=timeout_s)
        return done.stdout
