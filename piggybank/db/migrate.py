"""Bring the schema to this version's head, and the application role to its rights and timeouts.

Runs with the owner's role on a direct connection under an advisory lock, so any number of processes may try at once. The
application role can do what the grants below say, no more: posted rows can be read and inserted, never updated or deleted.
"""

from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import asyncpg
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from alembic import command
from piggybank import ids, money
from piggybank.db.engines import DRIVER
from piggybank.db.locks import Alone

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

_LOCAL = {"synchronous_commit": "local"}

_GRANTS = {
    "SELECT": "currencies, installation, reports, archived_months, account_checkpoints, backups, archived_wal, drills, restores",
    "SELECT, INSERT": "transactions, effects, audit_log, system_entries, reconciliation_items, booked_transactions",
    "SELECT, INSERT, UPDATE": "users, sessions, api_keys, links, accounts, payments, provider_keys, provider_events, "
    "resolutions, reconciliations, lost_payments",
    "SELECT, INSERT, DELETE": "idempotency_keys, usage_minutes, minute_shares",
    "SELECT, UPDATE": "heartbeat",
    "SELECT, INSERT, UPDATE, DELETE": "outbox, failed_sign_ins, alerts",
    "INSERT, UPDATE": "reports",
    "DELETE": "sessions, links, provider_keys",
    "UPDATE (reports_through)": "installation",
}


async def upgrade(owner_url: str, application_role: str, provider_mode: str = "simulator") -> list[str]:
    """Apply what is missing; returns the revisions that were applied (empty: nothing to do). `provider_mode`: of a new database.

    A schema that a newer version brought is left as it is, with its rights: it has all that this version needs (expand and contract).
    """
    # waits for no standby: what a failover may lose of it is applied again by the next start
    engine = create_async_engine(DRIVER, connect_args={"dsn": owner_url, "server_settings": _LOCAL})
    try:
        async with engine.connect() as connection:
            await connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": Alone.MIGRATION})
            await connection.commit()
            applied = await connection.run_sync(_run)
            if applied is not None:
                await _seed(connection, provider_mode)
                await _grant(connection, application_role)
            await connection.commit()
            await connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": Alone.MIGRATION})
            await connection.commit()
        return applied or []
    finally:
        await engine.dispose()


async def limit_role(admin_url: str, application_role: str) -> None:
    """Put the timeouts on the application role, and let it see the standbys. Needs the right to alter it; raises
    asyncpg.InsufficientPrivilegeError. Who may alter a role need not have the right to let it see standbys: then doctor asks for it.
    """
    connection = await asyncpg.connect(admin_url, server_settings=_LOCAL)
    try:
        for name, value in ROLE_SETTINGS.items():
            await connection.execute(f"ALTER ROLE {quoted(application_role)} SET {name} = '{value}'")
        if not await connection.fetchval("SELECT pg_has_role($1, 'pg_read_all_stats', 'USAGE')", application_role):
            with suppress(asyncpg.InsufficientPrivilegeError):
                await connection.execute(f"GRANT {SEES_STANDBYS} TO {quoted(application_role)}")
    finally:
        await connection.close()


async def current(url: str) -> str | None:
    """The revision that the database is at; None before the first migration. Works with either role."""
    connection = await asyncpg.connect(url)
    try:
        if await connection.fetchval("SELECT to_regclass('public.alembic_version')") is None:
            return None
        revision: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
        return revision
    finally:
        await connection.close()


async def last_version(url: str) -> str | None:
    """Of piggybank, as it was noted here; None before it was: a new database, or one of before migration 0010. Works with either role."""
    connection = await asyncpg.connect(url)
    try:
        if await connection.fetchval("SELECT to_regclass('public.installation')") is None:
            return None
        # as JSON, since the column may not be there yet
        version: str | None = await connection.fetchval("SELECT to_jsonb(installation) ->> 'version' FROM installation")
        return version
    finally:
        await connection.close()


async def note_version(owner_url: str, version: str) -> None:
    """This one is here now; one that goes back to an older version notes that one."""
    connection = await asyncpg.connect(owner_url, server_settings=_LOCAL)
    try:
        await connection.execute("UPDATE installation SET version = $1 WHERE version IS DISTINCT FROM $1", version)
    finally:
        await connection.close()


def head() -> str:
    """The newest revision that this version knows."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None
    return revision


def role_of(url: str) -> str:
    """The role that a URL signs in as."""
    return unquote(urlsplit(url).username or "")


def _config() -> Config:
    config = Config()
    # beside the package in a checkout, inside it in a wheel
    inside = Path(str(files("piggybank"))) / "_alembic"
    config.set_main_option("script_location", str(inside if inside.is_dir() else inside.parent.parent / "alembic").replace("%", "%%"))
    return config


def is_known(revision: str) -> bool:
    """False of one that a newer version brought."""
    return any(script.revision == revision for script in ScriptDirectory.from_config(_config()).walk_revisions())


def missing(revision: str | None) -> list[Script]:
    """The migrations from that revision to this version's head, in order."""
    scripts = ScriptDirectory.from_config(_config()).walk_revisions(base=revision or "base", head="heads")
    return [script for script in scripts if script.revision != revision][::-1]


def _run(connection: Connection) -> list[str] | None:
    """What was applied; None: the schema is a newer version's."""
    config = _config()
    context = MigrationContext.configure(connection)
    before = context.get_current_revision()
    connection.rollback()
    if before is not None and not is_known(before):
        return None
    lacking = [script.revision for script in missing(before)]
    if lacking:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
    return lacking


async def _seed(connection: AsyncConnection, provider_mode: str) -> None:
    """Rows that every installation has; what an operator changed stays."""
    for code, minor_unit in money.MINOR_UNITS.items():
        await connection.execute(
            text("INSERT INTO currencies (code, minor_unit, enabled) VALUES (:code, :minor_unit, :enabled) ON CONFLICT DO NOTHING"),
            {"code": code, "minor_unit": minor_unit, "enabled": code in money.ENABLED_AT_FIRST},
        )
    await connection.execute(
        text(
            "INSERT INTO installation (id, epoch, provider_mode) SELECT :id, :epoch, :provider_mode"
            " WHERE NOT EXISTS (SELECT FROM installation)"
        ),
        {"id": ids.new_id(0), "epoch": uuid4().hex[:8], "provider_mode": provider_mode},
    )


async def _grant(connection: AsyncConnection, role: str) -> None:
    name = quoted(role)
    await connection.execute(text(f"GRANT USAGE ON SCHEMA public TO {name}"))
    await connection.execute(text(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {name}"))
    await connection.execute(text(f"GRANT SELECT ON alembic_version TO {name}"))
    for rights, tables in _GRANTS.items():
        await connection.execute(text(f"GRANT {rights} ON {tables} TO {name}"))


def quoted(role: str) -> str:
    """A name as SQL takes it."""
    return '"' + role.replace('"', '""') + '"'
