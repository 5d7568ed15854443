"""PgBouncer in front of the primary, in transaction mode: many client connections over few server ones."""

import shutil
from pathlib import Path

from piggybank import errors
from piggybank.appliance import store_files
from piggybank.appliance.store_files import Secrets

APT_LINE = "apt-get install -y pgbouncer"


def found() -> str | None:
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin:/usr/local/bin")


def program() -> str:
    if (path := found()) is None:
        raise errors.CannotProceed(what="phase 2 needs PgBouncer, which is not installed", do=f"as root: {APT_LINE}")
    return path


def files(secrets: Secrets, primary: str, *, clients: int, connections: int, folder: Path) -> dict[str, str]:
    role = store_files.APPLICATION_ROLE
    return {
        "pgbouncer.ini": f"""[databases]
{store_files.DATABASE} = host=127.0.0.1 port={secrets.port_of(primary)} dbname={store_files.DATABASE}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {secrets.port_of("pooler")}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/userlist.txt
pool_mode = transaction
max_client_conn = {clients}
default_pool_size = {connections}
max_db_connections = {connections}
stats_users = {role}
ignore_startup_parameters = extra_float_digits
server_login_retry = 1
server_connect_timeout = 5
query_wait_timeout = 10
log_connections = 0
log_disconnections = 0
""",
        "userlist.txt": f'"{role}" "{secrets.application_password}"\n',
    }


async def observed(url):
    return {}
