"""The stores of one data folder, on loopback, with no other software on the machine: PostgreSQL 18, Valkey 9, from phase 2 PgBouncer.

<data>/stores/secrets.toml    passwords and ports, made once
<data>/stores/<name>          a store's own folder, the system user's: `postgres`, `postgres-2`, `pooler`, `cache`, `queue`, `cache-1`, ..
<data>/stores/primary         which PostgreSQL server takes writes
<data>/stores.toml            the addresses, as settings
<data>/run/<name>.json        who runs             <data>/logs/<name>.log

Which stores there are is the phase's (`topology`). `grow` makes what is missing and changes what differs, `shrink` takes away what is
not wanted any more; between the two the web processes are moved over, so at no moment somebody needs what is not there.
"""

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from piggybank import errors
from piggybank.appliance import archiving, binaries, cache_cluster, pooler, processes, store_files, store_programs, system_user, topology
from piggybank.appliance.data_folder import had_database, prepare_folder
from piggybank.appliance.postgres import Postgres
from piggybank.appliance.processes import Program, Running
from piggybank.appliance.store_files import Secrets
from piggybank.appliance.system_user import SystemUser, ours, shared
from piggybank.appliance.topology import CACHE, CACHE_NODES, POOLER, QUEUE, Topology
from piggybank.settings import OPERATOR_FILE, STORES

START_TIMEOUT_S = 120  # crash recovery replays at most max_wal_size
FOLLOW_TIMEOUT_S = 15  # a standby that is well has asked its primary for the log by then
POLL_S = 0.05
LOG_TAIL_LINES = 5

CONFIRMING = "confirming"  # in `stores/` while every answered commit is on a standby, too
UNFINISHED_RESTORE = "restore.unfinished"  # in the data folder while a restore writes into it

Tell = Callable[[str], None]  # a line of progress


def unfinished_restore(data_dir: Path) -> str:
    """What a restore says of itself that has not come to its end; empty: there is none."""
    path = data_dir / UNFINISHED_RESTORE
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def quietly(_: str) -> None:
    """Nobody listens."""


class Embedded:
    """The stores of one data folder, in the phase that `topology` says."""

    def __init__(self, data_dir: Path, wanted: Topology | None = None) -> None:
        self.data_dir = data_dir
        self.topology = wanted or topology.of(0)
        self.dir = data_dir / "stores"
        self.logs = data_dir / "logs"
        self.run_dir = data_dir / "run"
        self.user: SystemUser | None = None
        self.programs: dict[str, Program] = {}
        self.running: dict[str, Running] = {}
        self.busy: set[str] = set()  # stores that a change stops and starts: nobody else starts them meanwhile
        self._confirmed = self.topology.synchronous  # commits wait for a standby
        self.stand_in: tuple[str, str] | None = None  # a role and its password, while the application's is changed
        self._starting = threading.RLock()  # a change and whoever looks after the dead start one after the other

    @property
    def _has_database(self) -> bool:
        return topology.DATABASE in self.topology.embedded

    @property
    def confirmed(self) -> bool:
        """Whether every answered commit is on a standby, too: not yet while the first copies are made.

        It is kept, as of when the primary was told: what is set today says nothing of what was answered yesterday.
        """
        return self._confirms and (self.dir / CONFIRMING).exists()

    @property
    def _confirms(self) -> bool:
        return self._confirmed and self.topology.synchronous

    @property
    def names(self) -> tuple[str, ...]:
        """The stores of the topology, in the order in which they start."""
        return topology.names(self.dir, self.topology)

    # Starting and stopping -------------------------------------------------------------------------------------------

    def start(self, tell: Tell = quietly) -> None:
        """All of it, standbys too; raises `errors.StoreFailed`, `errors.CannotProceed`."""
        self.open(tell)
        self.add_standbys(tell, patient=True)

    def open(self, tell: Tell = quietly) -> None:
        """What people are served with: prepare, adopt what lives, start what does not, wait until it answers. Standbys that follow by
        themselves are started; others take their time (`add_standbys`). Raises `errors.StoreFailed`, `errors.CannotProceed`.
        """
        self.check_restored()
        self.prepare()
        self._open(self.topology, tell)

    def check_restored(self) -> None:
        """What lies here may be half a database, or none, in whose place an empty one would be made."""
        if unfinished_restore(self.data_dir):
            raise errors.CannotProceed(
                what=f"a restore into {self.data_dir} was cut short",
                do="piggybank restore .., again as it was; the database that was here before it is in stores/replaced-..",
            )

    def prepare(self, *, orphaned: bool = False) -> None:
        """Folders, user, secrets, binaries, cluster and configuration; starts nothing. Raises `errors.CannotProceed` where it moved.

        `orphaned`: no primary is made where there is none, since one of its copies is to take its place.
        """
        self.user = prepare_folder(self.data_dir)
        if self._has_database and (to := store_files.moved_to(self.dir)):
            raise errors.CannotProceed(
                what=f"the database of this folder moved to {to}, and what is left here is old",
                do=f"put database_url and owner_database_url of {to} back into {OPERATOR_FILE}",
            )
        system_user.make_folder(self.dir, ours(self.user), shared(self.user, 0o750))
        system_user.keep_file(self.dir / "secrets.toml", self.user, 0o600)
        self.secrets = store_files.load_secrets(self.dir, self.user)
        self._postgres_bin = binaries.postgres(self.dir, self.user) if self._has_database else Path()
        self._valkey_program = binaries.valkey(self.dir, self.user) if CACHE in self.topology.embedded else Path()
        self.postgres = Postgres(self.dir, self._postgres_bin, self.secrets, self.user)
        self._list_programs(self.names)
        self._leave_taken_ports()
        if self._has_database:
            self.postgres.check_majors()
            if not orphaned:
                # a restore has put the one that was there aside
                self.postgres.make_primary(first=not had_database(self.data_dir) or bool(unfinished_restore(self.data_dir)))
        for name in self.names:
            self.write_configuration(name)

    def ensure(self, name: str) -> Running:
        """The live process of that store: known, adopted or started; a primary of the past is rewound first."""
        with self._starting:
            known = self.running.get(name)
            if known is not None and known.alive():
                return known
            program = self.programs[name]
            found = processes.find(program)
            if found is not None and name in topology.NODES and self.postgres.must_be_rewound(name):  # it takes writes, and must not
                self.postgres.fence(name, found)
                found = None
            if found is None:
                if name in topology.NODES:
                    if self.postgres.must_be_rewound(name):
                        self.postgres.make_follow(name, self.topology)
                    self.postgres.clear_pid_file(name)
                found = processes.start(program)
            self.running[name] = found
            return found

    def is_ready(self, name: str) -> bool:
        """True when it takes connections."""
        if name in topology.NODES:
            return self.postgres.is_ready(name)
        if name == POOLER:
            return _listens(self.secrets.port_of(name))
        password = self.secrets.queue_password if name == QUEUE else self.secrets.cache_password
        try:
            with Redis(
                host="127.0.0.1", port=self.secrets.port_of(name), password=password, socket_timeout=2, socket_connect_timeout=2
            ) as client:
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
        self._postgres_bin, self._valkey_program = Path(), Path("valkey-server")
        self._list_programs(topology.ALL_STORES)

    def stop(self) -> dict[str, bool]:
        """Stop what runs, also of a phase that was being applied, the primary last; for each, whether asking was enough."""
        if self.programs:  # else nothing was looked at
            self._list_programs({*self.programs, *self._made()})
        stopped = {}
        for name in self._in_stopping_order(self.programs):
            found = self.running.pop(name, None) or processes.find(self.programs[name])
            if found is not None:
                stopped[name] = found.stop()
        return stopped

    def psql(self, script: str) -> str:
        """Run a script as the superuser on the database `postgres` of the primary; returns what it printed."""
        return self.postgres.psql(script)

    def addresses(self) -> dict[str, Any]:
        """What `stores.toml` says, by the names of the settings: only of the stores that are here."""
        elsewhere = {address for name, address in STORES.items() if name not in self.topology.embedded}
        here = self.secrets.addresses(self.postgres.primary).items()
        found: dict[str, Any] = {name: url for name, url in here if name.removeprefix("owner_") not in elsewhere}
        found |= {"simulator_key": self.secrets.simulator_key, "simulator_port": self.secrets.simulator_port}
        standbys = topology.standbys_of(self.dir, self.topology.replicas)
        if standbys:
            found["replica_urls"] = [self.secrets.database_url(store_files.APPLICATION_ROLE, name) for name in standbys]
        if self.topology.pooled:
            found["pooler_url"] = self.secrets.database_url(store_files.APPLICATION_ROLE, POOLER)
        if self.topology.clustered:
            nodes = ",".join(f"127.0.0.1:{self.secrets.port_of(name)}" for name in CACHE_NODES)
            found["cache_url"] = f"redis+cluster://:{self.secrets.cache_password}@{nodes}"
        return found

    # Changing --------------------------------------------------------------------------------------------------------

    def grow(self, wanted: Topology, tell: Tell = quietly) -> None:
        """Make what `wanted` has and we do not; safe to repeat. Raises `errors.StoreFailed`, `errors.CannotProceed`."""
        self._open(wanted, tell)
        self.add_standbys(tell)

    def _open(self, wanted: Topology, tell: Tell) -> None:
        if wanted.pooled:
            self._check_pooler(wanted)
        self.topology = wanted
        self._list_programs({*self.programs, *self.names})
        self._leave_taken_ports()
        standbys = topology.standbys_of(self.dir, wanted.replicas)
        for name in self.names:
            self.write_configuration(name)
            if name not in standbys:
                self.ensure(name)
        if self._has_database:
            self._open_database(standbys, tell)
        for name in self.names:
            if name not in standbys:
                self.wait_ready(name)
        if wanted.pooled:
            self.running[POOLER].signal(signal.SIGHUP)  # it reads where the primary is, and how many may come
        if wanted.clustered:
            tell("forming the cache's cluster")
            cache_cluster.form([self._cache_node(name) for name in CACHE_NODES], self.secrets.cache_password)
        store_files.write_addresses(self.data_dir, self.addresses(), self.user)

    def _check_pooler(self, wanted: Topology) -> None:
        """Before anything is changed."""
        if pooler.found() is None:
            raise errors.CannotProceed(what="PgBouncer is not installed", do=f"as root: {pooler.APT_LINE}")
        if not pooler.allow_files(wanted.pooler_clients, wanted.pooler_connections):
            raise errors.CannotProceed(
                what=f"PgBouncer may not open {wanted.pooler_clients} connections", do="raise the hard limit of open files: ulimit -Hn"
            )

    def _open_database(self, standbys: tuple[str, ...], tell: Tell) -> None:
        primary = self.postgres.primary
        for name in filter(self.postgres.is_made, standbys):
            with suppress(errors.StoreFailed):  # one that cannot say it is not started, or is copied anew, below
                self.postgres.check_is_copy(name)
        try:
            self.wait_ready(primary)
        except errors.StoreFailed as cause:
            if not any(map(self.postgres.is_made, standbys)):
                raise
            what = f"{primary} does not start ({cause.details['log']}): {cause.details['says']}"
            raise errors.CannotProceed(
                what=what, do="see what its log says; where it is lost: piggybank failover (a service is stopped first), then piggybank up"
            ) from cause
        self.settle_passwords()
        self.take_over(primary)  # no news, unless a failover was interrupted
        self.reload_primary()
        if self.postgres.must_restart(archived=self.topology.archived):
            self._restart_primary(tell)
        self.postgres.make_roles()
        for name in filter(self.postgres.is_made, standbys):
            if self.postgres.must_be_rewound(name):  # that takes its time, and may fail: `add_standby`
                continue
            self.postgres.make_slot(name)  # a primary of yesterday has none for it
            self.ensure(name)
            if self.is_ready(name):
                self.postgres.reload(name)  # it may have been started under another primary

    def add_standbys(self, tell: Tell = quietly, *, patient: bool = False) -> None:
        """Those of the topology; from then on commits wait for one, where the phase says so, and not before: it may take hours.

        `patient`: go on without one that cannot be had; the others confirm, and `phase apply` makes it again.
        """
        if not self._has_database:
            return
        for name in topology.standbys_of(self.dir, self.topology.replicas):
            try:
                self.add_standby(name, tell)
            except (errors.Error, OSError, subprocess.SubprocessError) as cause:
                if not patient:
                    raise
                tell(f"{name} is missing: {cause}")
        self._confirmed |= self.topology.synchronous
        self.write_configuration(self.postgres.primary)
        self.reload_primary()

    def end_copies(self) -> None:
        """Cut short what copies or rewinds a server: `add_standby` fails."""
        for name in topology.NODES if self._has_database else ():
            with suppress(errors.StoreFailed):
                self.postgres.folders.end_orphans(name)

    def shrink(self, tell: Tell = quietly) -> None:
        """Take away what the present topology does not have. Copies are deleted; the primary never is."""
        self._confirmed = self.topology.synchronous
        if self._has_database:
            self.write_configuration(self.postgres.primary)
            self.reload_primary()  # commits stop waiting before those are gone that they wait for
        self._list_programs({*self.programs, *self._made()})
        beyond = [name for name in self.programs if name not in self.names]
        self.busy.update(beyond)
        try:
            for name in self._in_stopping_order(beyond):
                found = self.running.pop(name, None) or processes.find(self.programs[name])
                if found is not None:
                    tell(f"stopping {name}")
                    found.stop()
                if name in topology.NODES and self._has_database and name != self.postgres.primary:
                    self.postgres.drop_slot(name)
                    self.postgres.folders.put_away(name)
                elif name in CACHE_NODES:
                    shutil.rmtree(self.dir / name, ignore_errors=True)
                del self.programs[name]
        finally:
            self.busy.difference_update(beyond)
        if self._has_database:
            self.postgres.clear_copies(self.names)

    def _restart_primary(self, tell: Tell) -> None:
        name = self.postgres.primary
        tell(f"restarting {name} for its new memory: writes wait")
        self.busy.add(name)
        try:
            self.running.pop(name).stop()
            self.ensure(name)
            self.wait_ready(name)
        finally:
            self.busy.discard(name)

    def add_standby(self, name: str, tell: Tell) -> None:
        """Started, a primary of the past after it was rewound; copied where it is missing, or where it cannot follow any more."""
        if self.postgres.is_made(name):
            if self.postgres.must_be_rewound(name):  # here, not in `ensure`, under whose lock nobody else is started
                self.postgres.fence(name, self.running.pop(name, None) or processes.find(self.programs[name]))
                tell(f"{name}: {self.postgres.make_follow(name, self.topology)}")
            self.ensure(name)
            if self._streams(name):
                return
            tell(f"{name} cannot follow any more")
        tell(f"copying the primary to {name}")
        self.busy.add(name)
        try:
            if (old := self.running.pop(name, None)) is not None:
                old.stop()
            self.postgres.make_standby(name)
            self.write_configuration(name)
            self.ensure(name)
            self.wait_ready(name)
        finally:
            self.busy.discard(name)
        if not self._streams(name):
            raise errors.StoreFailed(store=name, log=str(self.programs[name].log), says=_tail(self.programs[name].log))
        tell(f"{name} follows")

    def _streams(self, name: str) -> bool:
        """Wait until it does; False when it ends, or stands still and the primary does not see it."""
        moved, position = time.monotonic(), -1
        while not self.postgres.follows(name):
            with suppress(errors.StoreFailed):
                if (received := self.postgres.look(name).received) != position:
                    moved, position = time.monotonic(), received
            if not self.running[name].alive() or time.monotonic() - moved > FOLLOW_TIMEOUT_S:
                return False
            time.sleep(POLL_S)
        return True

    def reload_primary(self) -> None:
        """Its commits wait for whom its configuration names, from now on."""
        self.postgres.reload(self.postgres.primary)
        if self._confirms:
            processes.write_file(self.dir / CONFIRMING, "", 0o600, ours(self.user))

    def take_over(self, name: str) -> None:
        """Promote the primary that is named, unless it is one: what the caches hold may be of a past that is gone."""
        if self.postgres.look(name).in_recovery:
            for other in topology.NODES:
                if self.postgres.is_made(other) and self.postgres.must_be_rewound(other):
                    self.postgres.fence(other, self.running.pop(other, None) or processes.find(self._program(other)))
            self._forget_cache()  # before: whoever is killed in between leaves nothing of the past
            archiving.prepare(self.postgres, name)
            self.postgres.promote(name)
            self.postgres.close_cache()

    def _forget_cache(self) -> None:
        for name in {CACHE, *CACHE_NODES} & set(self.names):
            try:
                with Redis(host="127.0.0.1", port=self.secrets.port_of(name), password=self.secrets.cache_password) as client:
                    client.flushall()
            except RedisError:  # a node that is away has nothing when it comes back, and a replica is told by its master
                continue

    def keep_secrets(self, made: Secrets) -> None:
        """These are the secrets from now on."""
        store_files.save_secrets(self.dir, made, self.user)
        self.secrets = self.postgres.secrets = made

    def settle_passwords(self) -> None:
        """An exchange that was killed: those that the server takes are the ones. Raises `errors.StoreFailed` where it takes neither just
        now: then both stay written down."""
        if (fresh := store_files.take_next(self.dir)) is None:
            return
        if not self.postgres.takes(self.secrets.admin_password):
            if not self.postgres.takes(fresh.admin_password):
                raise errors.StoreFailed(store=self.postgres.primary, says="it takes neither the old passwords nor the next ones")
            self.keep_secrets(fresh)
        store_files.forget_next(self.dir)

    # What to run -----------------------------------------------------------------------------------------------------

    def _made(self) -> list[str]:
        """What has a folder, be it of another phase."""
        return [name for name in topology.ALL_STORES if (self.dir / name).exists()]

    def _list_programs(self, names: Iterable[str]) -> None:
        self.programs = {name: self._program(name) for name in topology.ALL_STORES if name in set(names)}

    def _program(self, name: str) -> Program:
        return store_programs.of(name, self.dir / name, self._postgres_bin, self._valkey_program, self.run_dir, self.logs, self.user)

    def _in_stopping_order(self, names: Iterable[str]) -> list[str]:
        """Clients before servers, standbys before their primary: its last bytes need nobody then."""
        primary = topology.primary_of(self.dir)
        backwards = [name for name in reversed(topology.ALL_STORES) if name in set(names)]
        return sorted(backwards, key=lambda name: name == primary)

    def _leave_taken_ports(self) -> None:
        """A port that another program took while its store was stopped is changed; otherwise ports stay as they are."""
        stopped = [name for name in self.names if processes.find(self.programs[name]) is None]
        stopped += [f"{name}-bus" for name in stopped if name in CACHE_NODES]
        self.secrets = store_files.with_free_ports(self.dir, self.secrets, stopped, self.user)
        self.postgres.secrets = self.secrets

    def write_configuration(self, name: str) -> None:
        """The files that the store is started with, as of now."""
        if name in topology.NODES:
            if self.postgres.is_made(name):
                if name == self.postgres.primary and not self._confirms:  # before it is told
                    (self.dir / CONFIRMING).unlink(missing_ok=True)
                others = [other for other in topology.NODES if other != self.postgres.primary and self.postgres.is_made(other)]
                self.postgres.write_configuration(name, self.topology, tuple(others) if self._confirmed else ())
            return
        folder = self.dir / name
        system_user.make_folder(folder, self.user)
        for file, text in self._files_of(name, folder).items():
            processes.write_file(folder / file, text, 0o600, self.user)

    def _files_of(self, name: str, folder: Path) -> dict[str, str]:
        if name == POOLER:
            direct = self.secrets.database_url(store_files.APPLICATION_ROLE, self.postgres.primary)
            clients, servers = self.topology.pooler_clients, self.topology.pooler_connections
            return pooler.files(
                pooler.Target.of(direct, self.secrets.port_of(name), clients=clients, servers=servers),
                folder,
                prepared=self.topology.prepared,
                stand_in=self.stand_in,
            )
        if name == QUEUE:
            return {"valkey.conf": store_files.queue_conf(self.secrets, folder)}
        if name == CACHE:
            return {"valkey.conf": store_files.cache_conf(self.secrets, folder, self.topology.cache_mib)}
        node, size = self._cache_node(name), self.topology.cache_mib
        return {"valkey.conf": cache_cluster.cluster_conf(node, self.secrets.cache_password, folder, size)}

    def _cache_node(self, name: str) -> cache_cluster.Node:
        return cache_cluster.Node("127.0.0.1", self.secrets.port_of(name), self.secrets.port_of(f"{name}-bus"))


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            return True
    except OSError:
        return False


def _tail(log: Path) -> str:
    try:
        with os.fdopen(system_user.open_file(log, os.O_RDONLY), encoding="utf-8", errors="replace") as file:
            return " / ".join(file.read().splitlines()[-LOG_TAIL_LINES:])
    except (OSError, errors.CannotProceed):
        return ""
