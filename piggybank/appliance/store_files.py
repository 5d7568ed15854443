"""The files of the embedded stores: their secrets, their ports and their configuration.

Durable on purpose: a 2xx means that it is on this disk, so fsync, synchronous_commit and full_page_writes are on and pages carry
checksums. The queue keeps an append-only file and refuses writes when full; the cache forgets the least used and is never saved.
"""

import secrets
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec
import psutil

from piggybank import settings
from piggybank.appliance.processes import write_file
from piggybank.appliance.system_user import SystemUser, ours, shared

OWNER_ROLE = "piggybank_owner"
APPLICATION_ROLE = "piggybank_app"
ADMIN_ROLE = "postgres"
DATABASE = "piggybank"

FIRST_PORT, LAST_PORT = 20_000, 32_000  # below the ports that systems hand to outgoing connections
PASSWORD_BYTES = 24
MIB = 1024 * 1024
MAX_CONNECTIONS = 100
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
    simulator_key: str = ""  # files of older versions have neither
    simulator_port: int = 0

    @property
    def admin_url(self) -> str:
        return self._database_url(ADMIN_ROLE, self.admin_password)

    def addresses(self) -> dict[str, str]:
        """What `stores.toml` says, by the names of the settings."""
        return {
            "database_url": self._database_url(APPLICATION_ROLE, self.application_password),
            "owner_database_url": self._database_url(OWNER_ROLE, self.owner_password),
            "cache_url": f"redis://:{self.cache_password}@127.0.0.1:{self.cache_port}/0",
            "queue_url": f"redis://:{self.queue_password}@127.0.0.1:{self.queue_port}/0",
        }

    def _database_url(self, role: str, password: str) -> str:
        return f"postgresql://{role}:{password}@127.0.0.1:{self.postgres_port}/{DATABASE}"


def load_secrets(stores_dir: Path, user: SystemUser | None) -> Secrets:
    """The secrets of this folder, made when there are none and never overwritten."""
    path = stores_dir / "secrets.toml"
    if path.exists():
        kept = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Secrets)
        if kept.simulator_key and kept.simulator_port:
            return kept
        kept = msgspec.structs.replace(kept, simulator_key=secrets.token_hex(PASSWORD_BYTES), simulator_port=free_ports(1)[0])
        save_secrets(stores_dir, kept, user)
        return kept
    ports = free_ports(4)
    made = Secrets(
        admin_password=secrets.token_hex(PASSWORD_BYTES),
        owner_password=secrets.token_hex(PASSWORD_BYTES),
        application_password=secrets.token_hex(PASSWORD_BYTES),
        cache_password=secrets.token_hex(PASSWORD_BYTES),
        queue_password=secrets.token_hex(PASSWORD_BYTES),
        postgres_port=ports[0],
        cache_port=ports[1],
        queue_port=ports[2],
        simulator_key=secrets.token_hex(PASSWORD_BYTES),
        simulator_port=ports[3],
    )
    save_secrets(stores_dir, made, user)
    return made


def save_secrets(stores_dir: Path, made: Secrets, user: SystemUser | None) -> None:
    """Write them for the supervisor alone: nothing that runs as the system user needs the administrator's password."""
    write_file(stores_dir / "secrets.toml", _toml(msgspec.to_builtins(made)), 0o600, ours(user))


def write_addresses(data_dir: Path, made: Secrets, user: SystemUser | None) -> None:
    """`stores.toml`, which `settings.load` reads, in the web, too; with the simulator's key and port."""
    heading = "# Written by `piggybank up`: the embedded stores. Put other addresses into piggybank.toml, not here.\n"
    write_file(
        data_dir / settings.STORES_FILE,
        heading + _toml(made.addresses() | {"simulator_key": made.simulator_key, "simulator_port": made.simulator_port}),
        shared(user, 0o640),
        ours(user),
    )


def postgres_conf(port: int) -> str:
    """`postgresql.conf`; what an operator sets with ALTER SYSTEM wins."""
    memory = memory_mib()
    values = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": "",  # paths of sockets are short (107 bytes), data folders need not be
        "max_connections": MAX_CONNECTIONS,
        "password_encryption": "scram-sha-256",
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "wal_level": "replica",
        "wal_compression": "pglz",
        "min_wal_size": "128MB",
        "max_wal_size": "1GB",
        "checkpoint_timeout": "5min",
        "checkpoint_completion_target": 0.9,
        "shared_buffers": f"{_between(memory // 8, SHARED_BUFFERS_MIB)}MB",
        "effective_cache_size": f"{max(memory // 2, 128)}MB",
        "maintenance_work_mem": f"{_between(memory // 32, (16, 128))}MB",
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
    }
    lines = [f"{name} = '{value}'" for name, value in values.items()]
    return "# Written at every start; use ALTER SYSTEM for settings of your own.\n" + "\n".join(lines) + "\n"


def pg_hba() -> str:
    """Loopback with a password, nothing else."""
    return "".join(
        f"host {database} all {address} scram-sha-256\n" for database in ("all", "replication") for address in ("127.0.0.1/32", "::1/128")
    )


def cache_conf(made: Secrets, folder: Path) -> str:
    """Forgets the least used, never saved: losing it makes things slower, not wrong."""
    size = _between(memory_mib() // 16, CACHE_MIB)
    return _valkey_conf(made.cache_port, made.cache_password, folder) + f"maxmemory {size}mb\nmaxmemory-policy allkeys-lru\nappendonly no\n"


def queue_conf(made: Secrets, folder: Path) -> str:
    """Keeps its jobs over a crash, and refuses a write rather than dropping a job."""
    size = _between(memory_mib() // 32, QUEUE_MIB)
    kept = "appendonly yes\nappendfsync everysec\naof-load-truncated yes\n"
    return _valkey_conf(made.queue_port, made.queue_password, folder) + f"maxmemory {size}mb\nmaxmemory-policy noeviction\n" + kept


def _valkey_conf(port: int, password: str, folder: Path) -> str:
    lines = ("bind 127.0.0.1", f"port {port}", f"requirepass {password}", f'dir "{folder}"', 'save ""', "daemonize no", "set-proc-title no")
    return "# Written at every start.\n" + "\n".join((*lines, 'logfile ""', "loglevel notice")) + "\n"


def free_ports(count: int) -> list[int]:
    """Ports of loopback on which nobody listens, all different."""
    found: list[int] = []
    while len(found) < count:
        port = FIRST_PORT + secrets.randbelow(LAST_PORT - FIRST_PORT)
        if port not in found and is_free(port):
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


def _between(value: int, bounds: tuple[int, int]) -> int:
    return min(max(value, bounds[0]), bounds[1])


def _toml(values: Mapping[str, str | int]) -> str:
    return "".join(f'{name} = "{value}"\n' if isinstance(value, str) else f"{name} = {value}\n" for name, value in values.items())
