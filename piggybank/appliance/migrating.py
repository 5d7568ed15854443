"""The schema is brought to this version, by `up`, `migrate` and upgrades: where this version may follow, and the database is the one.

What is refused has changed nothing.
"""

import asyncpg
from alembic.script import Script

from piggybank import __version__, errors, telemetry
from piggybank import settings as settings_file
from piggybank.appliance import stops
from piggybank.appliance.data_folder import MARK, had_database, note_database
from piggybank.db import migrate, recovery, revisions, roles, writes
from piggybank.settings import Settings

_log = telemetry.logger("supervisor")


async def bring_schema(settings: Settings) -> list[str]:
    """Migrate, and put the application role's timeouts on it; returns the revisions applied. Raises `errors.CannotProceed`, also where
    this version may not follow the one that was here last: then nothing is changed.
    """
    if not settings.owner_database_url:
        raise errors.CannotProceed(what="no owner_database_url is given, and only the owner migrates", do="give it with database_url")
    role = roles.role_of(settings.database_url)
    try:
        await _check_writes(settings.owner_database_url)
        await _check_there(settings)
        await migrations_due(settings.owner_database_url)
        applied = await migrate.upgrade(writes.mover_url(settings.owner_database_url), role, settings.provider_mode)
        await revisions.note_version(writes.mover_url(settings.owner_database_url), __version__)
        note_database(settings.data_dir)
    except (OSError, asyncpg.PostgresError) as cause:
        raise errors.CannotProceed(
            what=f"the schema could not be migrated: {cause}", do="look at owner_database_url and whether that server runs"
        ) from cause
    try:
        await roles.limit_role(writes.mover_url(settings.owner_database_url), role)
    except asyncpg.InsufficientPrivilegeError:
        _log.warning("role_not_limited", role=role, do="piggybank doctor prints the ALTER ROLE statements for a superuser")
    return applied


async def migrations_due(owner_url: str) -> list[Script]:
    """What would be applied to a database that somebody uses. Raises `errors.CannotProceed` where a version may not be skipped."""
    revision = await revisions.current(owner_url)
    if revision is None:
        return []
    lacking = migrate.missing(revision) if revisions.is_known(revision) else []
    last = await revisions.last_version(owner_url) or stops.UNNOTED
    stops.check(last, __version__, stops.table(), contracts=stops.of_migrations(lacking))
    return lacking


async def _check_writes(owner_url: str) -> None:
    connection = await writes.open_mover(owner_url)
    try:
        stopped = await writes.are_stopped(connection) and not await recovery.is_recovering(connection)
    finally:
        await connection.close()
    if stopped:
        raise errors.CannotProceed(
            what="this database takes no writes: it moved elsewhere, or is moving just now",
            do=f"look where database_url in {settings_file.OPERATOR_FILE} leads; while `piggybank move` runs, wait for it",
        )


async def _check_there(settings: Settings) -> None:
    """An empty database where one was is a disk that is not mounted, or an address that is wrong."""
    if not had_database(settings.data_dir):
        return
    connection = await writes.open_mover(settings.owner_database_url)
    try:
        empty = await connection.fetchval("SELECT to_regclass('installation') IS NULL")
    finally:
        await connection.close()
    if empty:
        raise errors.CannotProceed(
            what=f"the database of {settings.data_dir} is empty, and was not: its disk is not there, or database_url leads elsewhere",
            do=f"stop, and mount it; with replicas promote one, else restore a backup; only if a new, empty bank is meant:"
            f" : > {settings.data_dir / MARK}",
        )
