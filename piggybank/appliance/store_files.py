"""The files of the embedded stores: their secrets, their ports and their configuration.

Durable on purpose: a 2xx means that it is on this disk, so fsync, synchronous_commit and full_page_writes are on and pages carry
checksums. The queue keeps an append-only file and refuses writes when full; the cache forgets the least used and is never saved.
"""

import json
import secrets
import shlex
import socket
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from piggybank import errors, settings
from piggybank.appliance.processes import write_file
from piggybank.appliance.system_user import SystemUser, ours, shared

OWNER_ROLE = "piggybank_owner"
APPLICATION_ROLE = "piggybank_app"
ADMIN_ROLE = "postgres"
REPLICATION_ROLE = "piggybank_replication"
DATABASE = "piggybank"
SECRETS_FILE = "secrets.toml"
NEXT_FILE = "secrets.next.toml"  # while passwords are exchanged
MOVED_FILE = "moved"  # beside the servers' folders, once their database moved elsewhere

FIRST_POSTGRES = "postgres"  # the server that a new installation has
NODES = (FIRST_POSTGRES, "postgres-2", "postgres-3")  # PostgreSQL servers, one of them the primary
LATER_STORES = (*NODES[1:], "pooler", *(f"cache-{number}{bus}" for number in range(1, 7) for bus in ("", "-bus")))
WAL_SPOOL = "wal-spool"  # segments on their way to the backup target
WAL_EVERY_S = 30  # a segment is closed so often, at least: with the way to the target, at most a minute is not yet there
SLOT_KEEPS = "4GB"
FOLLOWED_KEEPS = "512MB"

FIRST_PORT, LAST_PORT = 20_000, 32_000  # below the ports that systems hand to outgoing connections
PASSWORD_BYTES = 24
MIB = 1024 * 1024
SHARED_BUFFERS_MIB = (64, 512)  # least and most; an eighth of the memory between them
CACHE_MIB = (64, 512)  # a sixteenth of the memory
QUEUE_MIB = (64, 256)


class Secrets(msgspec.Struct, frozen=True, kw_only=True):
    """Made once for a data folder, with the ports that go with them."""

    admin_password: str
    owner_password: str
    application_password: str
    cache_password: str
    queue_password: str
    postgres_port: int
    cache_port: int
    queue_port: int
    simulator_key: str = ""  # files of older versions have none of these
    simulator_port: int = 0
    replication_password: str = ""
    ports: dict[str, int] = {}  # of the stores that only some phases have, by name

    @property
    def admin_url(self) -> str:
        return self.database_url(ADMIN_ROLE, FIRST_POSTGRES)

    def port_of(self, name: str) -> int:
        """Where the store of that name listens."""
        first = {FIRST_POSTGRES: self.postgres_port, "cache": self.cache_port, "queue": self.queue_port}
        return first.get(name) or self.ports[name]

    def addresses(self, primary: str = FIRST_POSTGRES) -> dict[str, str]:
        """Where the stores of phase 0 are, by the names of the settings."""
        return {
            "database_url": self.database_url(APPLICATION_ROLE, primary),
            "owner_database_url": self.database_url(OWNER_ROLE, primary),
            "cache_url": f"redis://:{self.cache_password}@127.0.0.1:{self.cache_port}/0",
            "queue_url": f"redis://:{self.queue_password}@127.0.0.1:{self.queue_port}/0",
        }

    def database_url(self, role: str, name: str) -> str:
        """The address of the store `name` (a PostgreSQL server, the pooler) for that role."""
        passwords = {ADMIN_ROLE: self.admin_password, OWNER_ROLE: self.owner_password, APPLICATION_ROLE: self.application_password}
        return f"postgresql://{role}:{passwords[role]}@127.0.0.1:{self.port_of(name)}/{DATABASE}"


def load_secrets(stores_dir: Path, user: SystemUser | None) -> Secrets:
    """The secrets of this folder, made when there are none and never overwritten; what an older version did not have is added."""
    path = stores_dir / SECRETS_FILE
    if not path.exists() and (made_with_it := [folder.name for folder in stores_dir.glob("postgres*") if (folder / "PG_VERSION").exists()]):
        raise errors.CannotProceed(
            what=f"{path} is missing, and new passwords would not open the database that is here ({', '.join(made_with_it)})",
            do="put that file back from a backup of the data folder",
        )
    if path.exists():
        kept = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Secrets)
        whole = _completed(kept)
        if whole != kept:
            save_secrets(stores_dir, whole, user)
        return whole
    ports = free_ports(3)
    made = Secrets(
        admin_password=secrets.token_hex(PASSWORD_BYTES),
        owner_password=secrets.token_hex(PASSWORD_BYTES),
        application_password=secrets.token_hex(PASSWORD_BYTES),
        cache_password=secrets.token_hex(PASSWORD_BYTES),
        queue_password=secrets.token_hex(PASSWORD_BYTES),
        postgres_port=ports[0],
        cache_port=ports[1],
        queue_port=ports[2],
    )
    made = _completed(made)
    save_secrets(stores_dir, made, user)
    return made


def _completed(kept: Secrets) -> Secrets:
    missing = [name for name in LATER_STORES if name not in kept.ports]
    taken = [kept.postgres_port, kept.cache_port, kept.queue_port, kept.simulator_port, *kept.ports.values()]
    fresh = free_ports(len(missing) + 1, taken)
    return msgspec.structs.replace(
        kept,
        simulator_key=kept.simulator_key or secrets.token_hex(PASSWORD_BYTES),
        simulator_port=kept.simulator_port or fresh[-1],
        replication_password=kept.replication_password or secrets.token_hex(PASSWORD_BYTES),
        ports=kept.ports | dict(zip(missing, fresh, strict=False)),
    )


def with_free_ports(stores_dir: Path, kept: Secrets, stopped: Sequence[str], user: SystemUser | None) -> Secrets:
    """Other ports for those of the `stopped` stores whose port somebody else took; the simulator's, too, when none runs."""
    taken = [name for name in stopped if not is_free(kept.port_of(name))]
    move_simulator = {FIRST_POSTGRES, "cache", "queue"} <= set(stopped) and not is_free(kept.simulator_port)
    if not taken and not move_simulator:
        return kept
    used = [kept.postgres_port, kept.cache_port, kept.queue_port, kept.simulator_port, *kept.ports.values()]
    fresh = free_ports(len(taken) + 1, used)
    changed = dict(zip(taken, fresh, strict=False))
    made = msgspec.structs.replace(
        kept,
        postgres_port=changed.pop(FIRST_POSTGRES, kept.postgres_port),
        cache_port=changed.pop("cache", kept.cache_port),
        queue_port=changed.pop("queue", kept.queue_port),
        simulator_port=fresh[-1] if move_simulator else kept.simulator_port,
        ports=kept.ports | changed,
    )
    save_secrets(stores_dir, made, user)
    return made


def save_secrets(stores_dir: Path, made: Secrets, user: SystemUser | None) -> None:
    """Write them for the supervisor alone: nothing that runs as the system user needs the administrator's password."""
    write_file(stores_dir / SECRETS_FILE, toml(msgspec.to_builtins(made)), 0o600, ours(user))


def save_next(stores_dir: Path, made: Secrets, user: SystemUser | None) -> None:
    """Beside the present ones, before the servers are told."""
    write_file(stores_dir / NEXT_FILE, toml(msgspec.to_builtins(made)), 0o600, ours(user))


def take_next(stores_dir: Path) -> Secrets | None:
    """Those that were to be the next when a rotation was killed."""
    path = stores_dir / NEXT_FILE
    return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Secrets) if path.exists() else None


def forget_next(stores_dir: Path) -> None:
    """It is known which ones count."""
    (stores_dir / NEXT_FILE).unlink(missing_ok=True)


def write_addresses(data_dir: Path, addresses: Mapping[str, Any], user: SystemUser | None) -> None:
    """`stores.toml`, which `settings.load` reads, in the web, too."""
    heading = "# Written by `piggybank up`: the embedded stores. Put other addresses into piggybank.toml, not here.\n"
    write_file(data_dir / settings.STORES_FILE, heading + toml(addresses), shared(user, 0o640), ours(user))


def mark_moved(stores_dir: Path, to: str, user: SystemUser | None) -> None:
    """Say that the database of this folder lives elsewhere: it is never started again. Where there was none, nothing."""
    if any((stores_dir / name).is_dir() for name in NODES):  # after a failover the first may be gone
        write_file(stores_dir / MOVED_FILE, to + "\n", 0o600, ours(user))


def moved_to(stores_dir: Path) -> str:
    """Where the database of this folder moved to, as host:port/name; empty: it did not."""
    path = stores_dir / MOVED_FILE
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """What the configuration of one PostgreSQL server says beside what all of them say."""

    name: str
    port: int
    shared_buffers_mib: int
    effective_cache_mib: int
    max_connections: int
    synchronous: tuple[str, ...] = ()  # a commit waits for any one of these
    keeps_wal: str = "0"
    primary_port: int = 0  # 0: it is the primary
    replication_password: str = ""
    archives_to: str = ""  # a folder; empty: nobody asks for the log


def postgres_conf(server: Server) -> str:
    """`postgresql.conf`; what an operator sets with ALTER SYSTEM wins."""
    memory = memory_mib()
    values = {
        "listen_addresses": "127.0.0.1",
        "port": server.port,
        "unix_socket_directories": "",  # paths of sockets are short (107 bytes), data folders need not be
        "cluster_name": server.name,  # the name that a standby has in the primary's pg_stat_replication
        "max_connections": server.max_connections,
        "password_encryption": "scram-sha-256",
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "wal_level": "replica",
        "wal_compression": "pglz",
        "min_wal_size": "128MB",
        "max_wal_size": "1GB",
        "wal_keep_size": server.keeps_wal,  # so that who follows another primary finds what came before its slot
        "max_slot_wal_keep_size": SLOT_KEEPS,  # a standby that stays away longer is copied anew, before it fills the disk
        "archive_mode": "on",  # only a start changes it, so it is always on; the command decides
        "archive_command": _archive_command(server.archives_to) if server.archives_to else "true",
        "archive_timeout": f"{WAL_EVERY_S}s" if server.archives_to else "0",
        "checkpoint_timeout": "5min",
        "checkpoint_completion_target": 0.9,
        "shared_buffers": f"{server.shared_buffers_mib}MB",
        "effective_cache_size": f"{server.effective_cache_mib}MB",
        "maintenance_work_mem": f"{between(memory // 32, (16, 128))}MB",
        "work_mem": "4MB",
        "random_page_cost": 1.1,
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_destination": "stderr",
        "logging_collector": "off",  # the supervisor rotates the log
        "log_line_prefix": "%m [%p] %q%u@%d ",
        "log_lock_waits": "on",
        "log_min_duration_statement": "1s",
        "log_parameter_max_length": 0,  # parameters are people's data
        "log_parameter_max_length_on_error": 0,
        "hot_standby": "on",
        "hot_standby_feedback": "on",  # a page that is being read on a standby is not vacuumed away under it
        "max_standby_streaming_delay": "1s",  # a long read ends rather than holding up what others read
        "wal_receiver_status_interval": "1s",
        "wal_retrieve_retry_interval": "500ms",
        "wal_receiver_timeout": "5s",
        "wal_sender_timeout": "5s",
        "synchronous_standby_names": f"ANY 1 ({', '.join(map(_quoted, server.synchronous))})" if server.synchronous else "",
    }
    if server.primary_port:
        values["primary_slot_name"] = slot_of(server.name)
        values["primary_conninfo"] = (
            f"host=127.0.0.1 port={server.primary_port} user={REPLICATION_ROLE} password={server.replication_password}"
            f" application_name={server.name} connect_timeout=5"
        )
    lines = [f"{name} = '{str(value).replace(chr(39), 2 * chr(39))}'" for name, value in values.items()]
    return "# Written at every start; use ALTER SYSTEM for settings of your own.\n" + "\n".join(lines) + "\n"


def _archive_command(folder: str) -> str:
    """Compressed, whole and on the disk under its name, or not at all; doing it again is the same."""
    place = shlex.quote(folder).replace("%", "%%")
    return f"gzip -nc1 < %p > {place}/.%f && sync {place}/.%f && mv -f {place}/.%f {place}/%f.gz && sync {place}"


def slot_of(name: str) -> str:
    """The replication slot of the standby of that name."""
    return name.replace("-", "_")


def _quoted(name: str) -> str:
    return f'"{name}"'


def pg_hba() -> str:
    """Loopback with a password, nothing else."""
    return "".join(
        f"host {database} all {address} scram-sha-256\n" for database in ("all", "replication") for address in ("127.0.0.1/32", "::1/128")
    )


def cache_conf(made: Secrets, folder: Path, size: int) -> str:
    """Forgets the least used, never saved: losing it makes things slower, not wrong. `size` in MiB."""
    return valkey_conf(made.cache_port, made.cache_password, folder) + f"maxmemory {size}mb\nmaxmemory-policy allkeys-lru\nappendonly no\n"


def queue_conf(made: Secrets, folder: Path) -> str:
    """Keeps its jobs over a crash, and refuses a write rather than dropping a job."""
    size = between(memory_mib() // 32, QUEUE_MIB)
    kept = "appendonly yes\nappendfsync everysec\naof-load-truncated yes\n"
    return valkey_conf(made.queue_port, made.queue_password, folder) + f"maxmemory {size}mb\nmaxmemory-policy noeviction\n" + kept


def valkey_conf(port: int, password: str, folder: Path) -> str:
    """What every Valkey of ours has in common: loopback with a password, nothing saved, in the foreground."""
    lines = ("bind 127.0.0.1", f"port {port}", f"requirepass {password}", f'dir "{folder}"', 'save ""', "daemonize no", "set-proc-title no")
    return "# Written at every start.\n" + "\n".join((*lines, 'logfile ""', "loglevel notice")) + "\n"


def free_ports(count: int, taken: Sequence[int] = ()) -> list[int]:
    """Ports of loopback on which nobody listens, all different, and none of `taken`."""
    found: list[int] = []
    while len(found) < count:
        port = FIRST_PORT + secrets.randbelow(LAST_PORT - FIRST_PORT)
        if port not in found and port not in taken and is_free(port):
            found.append(port)
    return found


def is_free(port: int) -> bool:
    """True when nobody listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def memory_mib() -> int:
    """The machine's memory, or this control group's if that is less."""
    total = int(psutil.virtual_memory().total)
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists():
        text = limit.read_text(encoding="ascii").strip()
        total = min(total, int(text)) if text.isdigit() else total
    return total // MIB


def between(value: int, bounds: tuple[int, int]) -> int:
    """`value`, or the bound that it passes."""
    return min(max(value, bounds[0]), bounds[1])


def toml(values: Mapping[str, Any]) -> str:
    """Texts, whole numbers, lists of texts, and a table of numbers at the end."""
    plain = {name: value for name, value in values.items() if not isinstance(value, dict)}
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in plain.items()]
    for name, table in values.items():
        if isinstance(table, dict):
            lines += [f"\n[{name}]\n", *(f"{key} = {json.dumps(value)}\n" for key, value in table.items())]
    return "".join(lines)
