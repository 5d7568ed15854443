"""Bring the schema to this version's head, and the application role to its rights.

Runs with the owner's role on a direct connection under an advisory lock, so any number of processes may try at once. The
application role can do what the grants below say, no more: posted rows can be read and inserted, never updated or deleted.
"""

from uuid import uuid4

from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from alembic import command
from piggybank import ids, money
from piggybank.db.engines import DRIVER
from piggybank.db.locks import Alone
from piggybank.db.revisions import folder, is_known
from piggybank.db.roles import LOCAL, quoted

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
    engine = create_async_engine(DRIVER, connect_args={"dsn": owner_url, "server_settings": LOCAL})
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


def missing(revision: str | None) -> list[Script]:
    """The migrations from that revision to this version's head, in order."""
    scripts = ScriptDirectory(str(folder())).walk_revisions(base=revision or "base", head="heads")
    return [script for script in scripts if script.revision != revision][::-1]


def _run(connection: Connection) -> list[str] | None:
    """What was applied; None: the schema is a newer version's."""
    context = MigrationContext.configure(connection)
    before = context.get_current_revision()
    connection.rollback()
    if before is not None and not is_known(before):
        return None
    lacking = [script.revision for script in missing(before)]
    if lacking:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(folder()).replace("%", "%%"))
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
