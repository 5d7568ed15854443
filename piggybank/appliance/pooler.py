"""PgBouncer in front of the primary: its files, and what it says of itself.

Transaction mode: a thousand clients share at most fifty server connections, each for the length of a transaction. Clients prove
themselves by SCRAM with the application role's password, and so does the pooler to PostgreSQL. It takes any database's name, so a
database of a bench or of a restored copy is reached, too.
"""

import csv
import io
import re
import resource
import shutil
import subprocess
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from piggybank import errors
from piggybank.appliance import system_user
from piggybank.appliance.system_user import SystemUser

APT_LINE = "apt-get install -y pgbouncer"
ADMIN_DATABASE = "pgbouncer"  # of its console
CLIENTS_MAX = 1_000
SERVERS_MAX = 50
QUERY_WAIT_S = 10  # a client that gets no server connection is told so: the ledger's own patience
SERVER_CONNECT_S = 5
VERSION_TIMEOUT_S = 5
SERVER_LIFETIME_S = 3_600
SERVER_IDLE_S = 600
FILES_SPARE = 100  # that PgBouncer opens beside its connections
PREPARED_MAX = 200  # statements that 1.21 and newer keep for each server connection


class Target(Struct, frozen=True, kw_only=True):
    """What a pooler stands before, and where it listens."""

    host: str
    port: int
    role: str
    password: str
    listen_port: int
    clients: int = CLIENTS_MAX
    servers: int = SERVERS_MAX

    @classmethod
    def of(cls, database_url: str, listen_port: int, *, clients: int = CLIENTS_MAX, servers: int = SERVERS_MAX) -> "Target":
        """Before the server of `database_url`, for the role in it."""
        parts = urlsplit(database_url)
        return cls(
            host=parts.hostname or "127.0.0.1",
            port=parts.port or 5432,
            role=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            listen_port=listen_port,
            clients=clients,
            servers=servers,
        )


class Observed(Struct, frozen=True, kw_only=True):
    """What a pooler says of itself; counts over all databases but its console."""

    version: str
    mode: str
    clients_max: int
    servers_max: int  # for each pair of a role and a database
    clients_active: int
    clients_waiting: int
    servers: int  # connections to PostgreSQL, whatever they do
    waited_s: int  # the longest that a client waits now


def found() -> str | None:
    """Where PgBouncer is; Debian puts it where only root's PATH looks."""
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin:/usr/local/bin")


@cache
def prepares() -> bool:
    """True where the program that is here keeps named statements."""
    if (path := found()) is None:
        return False
    said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False).stdout  # noqa: S603
    return (version := re.search(r"PgBouncer ([\d.]+)", said)) is not None and can_prepare(version[1])


def files(target: Target, folder: Path, *, prepared: bool, stand_in: tuple[str, str] | None = None) -> dict[str, str]:
    """What stands in its folder, by name. `stand_in`: a role that may come, too, and its password."""
    return {"pgbouncer.ini": ini(target, folder, prepared=prepared), "userlist.txt": userlist(target, stand_in)}


def ini(target: Target, folder: Path, *, prepared: bool = False) -> str:
    """`pgbouncer.ini`. Its log goes to stderr; `prepared`: this PgBouncer is 1.21 or newer, which keeps named statements."""
    values = {
        "listen_addr": "127.0.0.1",
        "listen_port": target.listen_port,
        "unix_socket_dir": "",
        "auth_type": "scram-sha-256",
        "auth_file": folder / "userlist.txt",
        "admin_users": target.role,  # may reload and pause
        "stats_users": target.role,
        "pool_mode": "transaction",
        "max_client_conn": target.clients,
        "default_pool_size": target.servers,
        "max_user_connections": target.servers,  # to all databases together
        "min_pool_size": 0,
        "reserve_pool_size": 0,
        "query_wait_timeout": QUERY_WAIT_S,
        "server_connect_timeout": SERVER_CONNECT_S,
        "server_login_retry": 1,  # a primary that restarts is found again at once
        "server_lifetime": SERVER_LIFETIME_S,
        "server_idle_timeout": SERVER_IDLE_S,
        "query_timeout": 0,  # the timeouts are the role's, and a COMMIT may wait for a standby
        "idle_transaction_timeout": 0,
        "client_idle_timeout": 0,
        "ignore_startup_parameters": "extra_float_digits",
        "tcp_keepalive": 1,
        "tcp_keepidle": 10,
        "tcp_keepintvl": 5,
        "tcp_keepcnt": 3,
        "log_connections": 0,
        "log_disconnections": 0,
        "log_stats": 0,
    }
    if prepared:
        values["max_prepared_statements"] = PREPARED_MAX
    lines = "".join(f"{name} = {value}\n" for name, value in values.items())
    return f"; Written at every start.\n[databases]\n* = host={target.host} port={target.port}\n\n[pgbouncer]\n{lines}"


def userlist(target: Target, stand_in: tuple[str, str] | None = None) -> str:
    """`userlist.txt`: the password itself, since with a SCRAM secret PgBouncer could not sign in to PostgreSQL for every client."""
    known = [(target.role, target.password), *([stand_in] if stand_in else ())]
    return "".join(f'"{_quoted(role)}" "{_quoted(password)}"\n' for role, password in known)


def allow_files(clients: int = CLIENTS_MAX, servers: int = SERVERS_MAX) -> bool:
    """Raise this process's limit of open files, which children inherit, to what the connections take; False where it may not."""
    wanted = clients + servers + FILES_SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            return False
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return True


def url(target: Target, database_url: str) -> str:
    """`database_url` by way of the pooler on this machine."""
    parts = urlsplit(database_url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[0] + f"@127.0.0.1:{target.listen_port}").geturl()


def observed(pooler_url: str, psql: Path, user: SystemUser | None = None) -> Observed:
    """Ask the console. It speaks the simple protocol only, which psql does and asyncpg does not; raises `errors.StoreFailed`."""
    config = {row["key"]: row["value"] for row in _show(pooler_url, psql, user, "SHOW CONFIG")}
    pools = [row for row in _show(pooler_url, psql, user, "SHOW POOLS") if row["database"] != ADMIN_DATABASE]
    servers = [row for row in _show(pooler_url, psql, user, "SHOW SERVERS") if row["database"] != ADMIN_DATABASE]
    [version] = _show(pooler_url, psql, user, "SHOW VERSION")
    return Observed(
        version=version["version"].removeprefix("PgBouncer "),
        mode=config["pool_mode"],
        clients_max=int(config["max_client_conn"]),
        servers_max=int(config["default_pool_size"]),
        clients_active=sum(int(row["cl_active"]) for row in pools),
        clients_waiting=sum(int(row["cl_waiting"]) for row in pools),
        servers=len(servers),
        waited_s=max((int(row["maxwait"]) for row in pools), default=0),
    )


def can_prepare(version: str) -> bool:
    """True when that PgBouncer keeps named statements in transaction mode, so `transaction+prepared` is right."""
    numbers = [int(part) for part in version.split(".")[:2]]
    return numbers >= [1, 21]


def _show(pooler_url: str, psql: Path, user: SystemUser | None, what: str) -> list[dict[str, str]]:
    parts = urlsplit(pooler_url)
    if not parts.hostname:
        raise errors.StoreFailed(store="pooler", says="its address has no host")
    done = system_user.run(
        user,
        str(psql),
        "--no-psqlrc",
        "--csv",
        f"--host={parts.hostname}",
        f"--port={parts.port or 6432}",
        f"--username={unquote(parts.username or '')}",
        f"--command={what}",
        ADMIN_DATABASE,
        environment={"PGPASSWORD": unquote(parts.password or ""), "PGCONNECT_TIMEOUT": str(SERVER_CONNECT_S)},
    )
    return list(csv.DictReader(io.StringIO(done.stdout)))


def _quoted(text: str) -> str:
    return text.replace('"', '""')
