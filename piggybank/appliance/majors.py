"""PostgreSQL's majors: a server is never started on another major's data, and `piggybank upgrade postgres` takes the data along.

The old cluster is only read. It is recovered where it crashed, its checksums are verified, its rows are counted and the database is
backed up while it runs alone on loopback; `pg_upgrade` then copies it into a new one, whose rows must be the same, and only after that
the two change places. The old one stays as `postgres-<major>`, until somebody deletes it.
"""

import asyncio
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from piggybank import errors
from piggybank import settings as settings_file
from piggybank.appliance import binaries, folder, processes, store_files, system_user, topology, upgrade
from piggybank.appliance.data_folder import prepare_folder
from piggybank.appliance.embedded import START_TIMEOUT_S, Tell
from piggybank.appliance.postgres import Postgres
from piggybank.appliance.processes import Program
from piggybank.appliance.server_folders import UPGRADED, major_of
from piggybank.appliance.store_programs import POSTGRES_STOP_TIMEOUT_S
from piggybank.db import acts, storage, writes
from piggybank.db.storage import RESERVE_MIB
from piggybank.settings import Settings

UPGRADE_TIMEOUT_S = 12 * 3_600
POLL_S = 0.1
WORK = "upgrading"  # below `stores`: configuration and pg_upgrade's own files

_COUNTS = """
SELECT format('SELECT %L AS relation, count(*) AS rows FROM %I.%I', c.oid::regclass::text, n.nspname, c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema') ORDER BY c.oid::regclass::text \\gexec
"""


def upgrade_postgres(settings: Settings, tell: Tell) -> bool:
    """Bring the data to the wheel's major; False where it is of that already. Raises `errors.CannotProceed`, `errors.StoreFailed`."""
    data_dir = settings.data_dir
    if topology.DATABASE not in settings_file.embedded_stores(data_dir):
        raise errors.CannotProceed(what="the database is yours, elsewhere", do="upgrade it with its own tools")
    stores = data_dir / "stores"
    primary = topology.primary_of(stores)
    if not (stores / primary).exists() or (old := major_of(stores / primary)) == binaries.POSTGRES_MAJOR:
        return False
    user = prepare_folder(data_dir)
    with folder.Lock(data_dir):
        if processes.anybody_in(stores / primary):
            raise errors.CannotProceed(what="the old server runs", do="piggybank down")
        work = _Work(settings, primary, old)
        work.check_room()
        system_user.make_folder(work.folder, user, 0o700)
        try:
            work.carry_out(tell)
        finally:
            shutil.rmtree(work.folder, ignore_errors=True)
    return True


class _Work:
    def __init__(self, settings: Settings, primary: str, old: int) -> None:
        self.settings = settings
        self.stores = settings.data_dir / "stores"
        self.user = system_user.chosen()
        self.primary = primary
        self.old_major, self.new_major = old, binaries.POSTGRES_MAJOR
        self.secrets = store_files.load_secrets(self.stores, self.user)
        self.old_bin = binaries.postgres(self.stores, self.user, old)
        self.new_bin = binaries.postgres(self.stores, self.user)
        self.postgres = Postgres(self.stores, self.new_bin, self.secrets, self.user)
        self.old, self.new = self.stores / primary, self.stores / f"{primary}{UPGRADED}"
        self.kept = self.stores / f"{primary}-{old}"
        self.folder = self.stores / WORK

    def check_room(self) -> None:
        """A copy of the data, and a backup of it."""
        storage.check_room(self.stores, 2 * storage.size_mib(self.old) + RESERVE_MIB, "the copy and its backup need")
        if self.kept.exists():
            raise errors.CannotProceed(what=f"{self.kept} is there already", do="it is of an earlier upgrade: move it away")

    def carry_out(self, tell: Tell) -> None:
        with self._running(self.old_bin, self.old):  # where it crashed it recovers
            before = self.postgres.psql(_COUNTS, database=store_files.DATABASE)
            owner_url = self.secrets.database_url(store_files.OWNER_ROLE, self.primary)  # `up` may not have come so far as to write it down
            upgrade.back_up(msgspec.structs.replace(self.settings, owner_database_url=owner_url), f"postgres-{self.new_major}", tell)
        checksums = self._has_checksums()
        if checksums:
            self._run(self.old_bin / "pg_checksums", "--check", f"--pgdata={self.old}")
            tell("the checksums of the old cluster are right")
        else:
            tell("the old cluster has no checksums to verify")
        shutil.rmtree(self.new, ignore_errors=True)
        system_user.make_folder(self.new, self.user)
        self.postgres.initialize(self.new, checksums=checksums)
        tell(f"pg_upgrade: {self.old_major} to {self.new_major}")
        self._pg_upgrade()
        with self._running(self.new_bin, self.new):
            after = self.postgres.psql(_COUNTS, database=store_files.DATABASE)
            if before and before == after:
                done = {"before": self.old_major}
                url = writes.mover_url(owner_url)  # a database in recovery takes no other writes
                asyncio.run(acts.record_done(url, "upgrade.postgres", f"postgresql:{self.new_major}", done))
        if before != after or not before:
            raise errors.CannotProceed(
                what=f"the rows are not the same afterwards; {self.old} is as it was",
                do=f"keep {self.new} for whoever looks into it, and restore nothing: the old version runs on the old data",
            )
        tell(f"the same rows in {len(after.splitlines())} tables")
        for (
            name
        ) in topology.NODES:  # first: one of the old major that stays would keep everything from starting, and nobody would look here again
            if name != self.primary and (self.stores / name).exists():
                shutil.rmtree(self.stores / name)  # a copy of the old one; it is made again
        self.old.rename(self.kept)
        self.new.rename(self.old)  # where this is interrupted, the next start does it
        tell(f"the old cluster is kept in {self.kept}; delete it when all is well")

    def _pg_upgrade(self) -> None:
        sockets = Path(tempfile.mkdtemp(prefix="pgu-"))  # a socket's path is short
        system_user.give(sockets, self.user, 0o700)
        hba = self.folder / "pg_hba.conf"
        processes.write_file(hba, "local all all scram-sha-256\n", 0o600, self.user)
        words = (
            f"--old-bindir={self.old_bin}",
            f"--new-bindir={self.new_bin}",
            f"--old-datadir={self.old}",
            f"--new-datadir={self.new}",
            f"--old-options=-c hba_file='{hba}'",
            f"--new-options=-c hba_file='{hba}'",
            f"--username={store_files.ADMIN_ROLE}",
            f"--socketdir={sockets}",
        )
        try:
            self._run(self.new_bin / "pg_upgrade", "--check", *words)
            self._run(self.new_bin / "pg_upgrade", *words)
        finally:
            shutil.rmtree(sockets, ignore_errors=True)

    @contextmanager
    def _running(self, programs: Path, cluster: Path) -> Iterator[None]:
        """That server, alone on loopback, with a configuration that every major reads."""
        configuration, hba = self.folder / "postgresql.conf", self.folder / "pg_hba.conf"
        port = self.secrets.port_of(self.primary)
        text = f"listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = ''\nhba_file = '{hba}'\nmax_wal_senders = 0\n"
        processes.write_file(configuration, text + "synchronous_standby_names = ''\n", 0o600, self.user)
        processes.write_file(hba, store_files.pg_hba(), 0o600, self.user)
        self.postgres.clear_pid_file(cluster.name)
        server = processes.start(
            Program(
                name=WORK,
                argv=(str(programs / "postgres"), "-D", str(cluster), "-c", f"config_file={configuration}"),
                run_dir=self.settings.data_dir / "run",
                log=self.settings.data_dir / "logs" / f"{WORK}.log",
                user=self.user,
                stop_signal=signal.SIGINT,
                kill_signal=signal.SIGQUIT,
                stop_timeout_s=POSTGRES_STOP_TIMEOUT_S,
            )
        )
        try:
            until = time.monotonic() + START_TIMEOUT_S
            while not self.postgres.is_ready(self.primary):
                if not server.alive() or time.monotonic() > until:
                    raise errors.CannotProceed(what=f"the server of {cluster} does not start", do=f"look into {server.program.log}")
                time.sleep(POLL_S)
            yield
        finally:
            server.stop()

    def _has_checksums(self) -> bool:
        said = self._run(self.old_bin / "pg_controldata", str(self.old))
        return any(line.startswith("Data page checksum version") and not line.endswith(" 0") for line in said.splitlines())

    def _run(self, program: Path, *words: str) -> str:
        environment = {"PGPASSWORD": self.secrets.admin_password, "LC_ALL": "C", "HOME": str(self.folder)}
        command = ("/bin/sh", "-c", 'cd "$0" && exec "$@"', str(self.folder), str(program), *words)  # pg_upgrade writes where it stands
        return system_user.run(self.user, *command, environment=environment, timeout_s=UPGRADE_TIMEOUT_S).stdout
