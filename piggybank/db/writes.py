"""Stopping the writes of a whole database, while reads go on.

`default_transaction_read_only` is set on the database, so every session that begins is told no (25006), whoever runs it and
through whatever pooler; those of the application that are under way are ended, since they began before. The batcher tries again for
a while and then answers 503, everything else answers 503 at once. It outlives whoever set it: a mover that is killed leaves a
database that is only read, never two that are written to.

It is a stop for those who play by the rules, and no proof: a copy is made under table locks (db/copies.py).
"""

import asyncpg

from piggybank.db.roles import quoted

CONNECT_TIMEOUT_S = 10
ENDING_MS = 5_000  # a session that is told to end may need so long
MOVER = "piggybank move"  # its own sessions are not ended
_SETTING = "default_transaction_read_only"

_STOPPED = """
SELECT EXISTS (
    SELECT FROM pg_db_role_setting
    WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()) AND setrole = 0
      AND 'default_transaction_read_only=on' = ANY (setconfig)
)
"""

_END_SESSIONS = """
SELECT count(*) FILTER (WHERE pg_terminate_backend(pid, $3)) FROM pg_stat_activity
WHERE datname = current_database() AND usename = $1 AND application_name <> $2
"""

_RIGHTS = """
SELECT (SELECT pg_has_role(datdba, 'USAGE') FROM pg_database WHERE datname = current_database()) AS owns,
       pg_has_role($1, 'USAGE') OR pg_has_role('pg_signal_backend', 'USAGE') AS ends,
       pg_has_role($1, 'MEMBER WITH ADMIN OPTION') AS may_grant
"""


async def open_mover(owner_url: str) -> asyncpg.Connection:
    """A session that may write although the writes are stopped."""
    settings = {_SETTING: "off", "application_name": MOVER}
    return await asyncpg.connect(owner_url, timeout=CONNECT_TIMEOUT_S, server_settings=settings)


def mover_url(owner_url: str) -> str:
    """The same for what connects by itself (migrations): asyncpg takes further parameters of a URL for settings of the server."""
    return f"{owner_url}{'&' if '?' in owner_url else '?'}{_SETTING}=off"


async def are_stopped(connection: asyncpg.Connection) -> bool:
    """Whether this database takes no writes."""
    return bool(await connection.fetchval(_STOPPED))


async def missing_right(connection: asyncpg.Connection, application_role: str) -> str:
    """What this session's role lacks to stop writes and to end sessions, as SQL for an administrator; empty: nothing."""
    rights = await connection.fetchrow(_RIGHTS, application_role)
    database, role = await connection.fetchrow("SELECT current_database(), current_user")
    if not rights["owns"]:
        return f"ALTER DATABASE {quoted(database)} OWNER TO {quoted(role)}"
    if not (rights["ends"] or rights["may_grant"]):
        return f"GRANT {quoted(application_role)} TO {quoted(role)}"
    return ""


async def stop(connection: asyncpg.Connection) -> None:
    """What begins from now on writes nothing; `end_sessions` ends what has begun. For the database's owner."""
    await connection.execute(f"ALTER DATABASE {await _name(connection)} SET {_SETTING} = on")


async def allow(connection: asyncpg.Connection) -> None:
    """What begins from now on may write; what began meanwhile would go on being told no: `end_sessions`."""
    await connection.execute(f"ALTER DATABASE {await _name(connection)} RESET {_SETTING}")


async def end_sessions(connection: asyncpg.Connection, application_role: str) -> None:
    """End what the application's role has open here, and wait until it has ended."""
    if not (await connection.fetchrow(_RIGHTS, application_role))["ends"]:
        role = await connection.fetchval("SELECT current_user")
        await connection.execute(f"GRANT {quoted(application_role)} TO {quoted(role)}")
    await connection.fetchval(_END_SESSIONS, application_role, MOVER, ENDING_MS)


async def _name(connection: asyncpg.Connection) -> str:
    return quoted(await connection.fetchval("SELECT current_database()"))
