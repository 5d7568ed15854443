"""The schema's revision: which one a database is at, and which this version knows.

Read from the names of the migrations' files, since Alembic, which applies them (`db/migrate.py`), takes a third of a second to load.
"""

from importlib.resources import files
from pathlib import Path

import asyncpg

from piggybank.db.roles import LOCAL


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
    connection = await asyncpg.connect(owner_url, server_settings=LOCAL)
    try:
        await connection.execute("UPDATE installation SET version = $1 WHERE version IS DISTINCT FROM $1", version)
    finally:
        await connection.close()


def head() -> str:
    """The newest revision that this version knows."""
    return max(_known())


def is_known(revision: str) -> bool:
    """False of one that a newer version brought."""
    return revision in _known()


def folder() -> Path:
    """Where Alembic finds the migrations: beside the package in a checkout, inside it in a wheel."""
    inside = Path(str(files("piggybank"))) / "_alembic"
    return inside if inside.is_dir() else inside.parent.parent / "alembic"


def _known() -> set[str]:
    return {path.name.partition("_")[0] for path in (folder() / "versions").glob("[0-9]*_*.py")}
