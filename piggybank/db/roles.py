"""Database roles: whom a URL signs in as, and what is put on the role that serves."""

from contextlib import suppress
from urllib.parse import unquote, urlsplit

import asyncpg

# A pooler passes no SET, so the timeouts live on the role.
ROLE_SETTINGS = {
    "lock_timeout": "2s",
    "statement_timeout": "5s",
    "idle_in_transaction_session_timeout": "5s",
    "client_connection_check_interval": "2s",
    "tcp_user_timeout": "10s",
    "timezone": "UTC",
}

SEES_STANDBYS = "pg_read_all_stats"  # whether they stream and confirm: asked from phase 2 on (`db/commits.py`)

# waits for no standby: what a failover may lose of it is applied again by the next start
LOCAL = {"synchronous_commit": "local"}


def role_of(url: str) -> str:
    """The role that a URL signs in as."""
    return unquote(urlsplit(url).username or "")


def quoted(role: str) -> str:
    """A name as SQL takes it."""
    return '"' + role.replace('"', '""') + '"'


async def limit_role(admin_url: str, application_role: str) -> None:
    """Put the timeouts on the application role, and let it see the standbys. Needs the right to alter it; raises
    asyncpg.InsufficientPrivilegeError. Who may alter a role need not have the right to let it see standbys: then doctor asks for it.
    """
    connection = await asyncpg.connect(admin_url, server_settings=LOCAL)
    try:
        for name, value in ROLE_SETTINGS.items():
            await connection.execute(f"ALTER ROLE {quoted(application_role)} SET {name} = '{value}'")
        if not await connection.fetchval("SELECT pg_has_role($1, 'pg_read_all_stats', 'USAGE')", application_role):
            with suppress(asyncpg.InsufficientPrivilegeError):
                await connection.execute(f"GRANT {SEES_STANDBYS} TO {quoted(application_role)}")
    finally:
        await connection.close()
