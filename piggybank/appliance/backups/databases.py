"""Restore of a dump into a database: an empty one, or in the place of the one that is there, which is kept beside it."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import asyncpg
import msgspec

from piggybank import errors
from piggybank.appliance import system_user
from piggybank.appliance.backups import manifests, months
from piggybank.appliance.backups.making import DUMP, client_address, client_program
from piggybank.appliance.backups.manifests import Manifest
from piggybank.appliance.backups.opening import Restored, Tell, check_possible, open_in_recovery
from piggybank.appliance.backups.targets import CHUNK_BYTES, Target
from piggybank.db import copies, roles, writes

MAKING, REPLACED = "restoring", "replaced"  # parts of the names of the one that is being made, and of the one that was there
NAME_MOST_BYTES = 63  # of a database; PostgreSQL cuts off the rest
MAINTENANCE = "postgres"  # the database to be in while another one is renamed
LOG_TAIL_LINES = 3


def into_database(target: Target, manifest: Manifest, owner_url: str, role: str, tell: Tell) -> Restored:
    """An empty database, which its owner signs in to; `role` is the application's, and must be there. It is left empty on failure."""
    if manifest.kind != "logical":
        raise errors.CannotProceed(
            what=f"{manifest.id} is a base backup: it becomes a data folder",
            do="--to FOLDER; or take a logical one: backup create --logical",
        )
    check_possible(manifest, None, target)
    asyncio.run(_check_empty(owner_url, role))
    file = manifest.file(DUMP)
    manifests.check(target, file, lambda size: tell(f"checking: {size / 1024**2:,.0f} of {file.size_bytes / 1024**2:,.0f} MiB"))
    _pg_restore(target, manifest, owner_url, tell)
    restored = asyncio.run(open_in_recovery(owner_url, role, manifest, manifest.taken_at, tell))
    missing = months.missing(manifest.facts.months, target.names(months.FOLDER))
    return msgspec.structs.replace(restored, place=owner_url.rpartition("@")[2], missing_months=missing)


def over_database(target: Target, manifest: Manifest, owner_url: str, role: str, data_dir: Path, tell: Tell) -> Restored:
    """In the place of the database at `owner_url`, which nobody uses meanwhile, and which is kept beside the new one. Archived months
    come back into the data folder.

    The new one is made, filled and verified under another name; then both change their names in one transaction. Raises
    `errors.CannotProceed`; then the old one is as it was. The owner needs CREATEDB.
    """
    check_possible(manifest, None, target)
    name = unquote(urlsplit(owner_url).path.removeprefix("/"))
    making, kept = f"{name}_{MAKING}", f"{name}_{REPLACED}_{datetime.now(UTC):%Y%m%dt%H%M%S}"
    if len(kept.encode()) > NAME_MOST_BYTES:
        raise errors.CannotProceed(what=f"{kept} is too long for the name of a database", do="restore into a new database: --to URL")
    asyncio.run(_make_beside(owner_url, name, making))
    try:
        restored = into_database(target, manifest, _url_of(owner_url, making), role, tell)
        tell("exchanging the databases")
        asyncio.run(_exchange(owner_url, name, making, kept))
    except BaseException:
        asyncio.run(_drop(owner_url, making))
        raise
    try:
        missing = months.fetch(target, manifest.facts.months, data_dir, system_user.chosen())
    except (OSError, errors.CannotProceed):  # no room, say: the database is restored all the same
        missing = [month.file for month in manifest.facts.months]
    return msgspec.structs.replace(restored, place=restored.place.replace(making, name), kept=kept, missing_months=missing)


def _url_of(owner_url: str, database: str) -> str:
    return urlsplit(owner_url)._replace(path=f"/{quote(database)}").geturl()


async def _make_beside(owner_url: str, name: str, making: str) -> None:
    async with _signed_in(owner_url) as owner:
        await _check_unused(owner, name)
        try:
            await owner.execute(f"DROP DATABASE IF EXISTS {roles.quoted(making)}")  # of a restore that was cut short
            await owner.execute(f"CREATE DATABASE {roles.quoted(making)} ENCODING 'UTF8' TEMPLATE template0")
        except asyncpg.InsufficientPrivilegeError as cause:
            user = roles.quoted(roles.role_of(owner_url))
            do = f"as an administrator there: ALTER ROLE {user} CREATEDB; or restore into a database that they make: --to URL"
            raise errors.CannotProceed(what="the owner's role may not make a database", do=do) from cause


async def _exchange(owner_url: str, name: str, making: str, kept: str) -> None:
    async with _signed_in(_url_of(owner_url, MAINTENANCE)) as owner:
        await _check_unused(owner, name)
        try:
            async with owner.transaction():
                await owner.execute(f"ALTER DATABASE {roles.quoted(name)} RENAME TO {roles.quoted(kept)}")
                await owner.execute(f"ALTER DATABASE {roles.quoted(making)} RENAME TO {roles.quoted(name)}")
        except asyncpg.ObjectInUseError as cause:
            raise errors.CannotProceed(what=f"somebody uses {name} again: {cause}", do="stop that, then again") from cause


async def _check_unused(owner: asyncpg.Connection, name: str) -> None:
    """A process that went on would write into the old one, and then into the new one as if nothing had been."""
    others = await owner.fetch(
        "SELECT usename, application_name, count(*) FROM pg_stat_activity"
        " WHERE datname = $1 AND pid <> $2 AND usename IS NOT NULL GROUP BY 1, 2 ORDER BY 1, 2",  # PostgreSQL's own workers have no name
        name,
        owner.get_server_pid(),
    )
    if others:
        who = ", ".join(f"{one['usename']}{f' ({app})' if (app := one['application_name']) else ''} {one['count']}" for one in others)
        raise errors.CannotProceed(
            what=f"the database {name} is in use, sessions: {who}",
            do="stop everything that uses it: web, workers, backups, the pooler; then again",
        )


async def _drop(owner_url: str, database: str) -> None:
    with suppress(OSError, TimeoutError, asyncpg.PostgresError, errors.CannotProceed):  # what it was about is told; the next one drops it
        async with _signed_in(_url_of(owner_url, MAINTENANCE)) as owner:
            await owner.execute(f"DROP DATABASE IF EXISTS {roles.quoted(database)}")


@asynccontextmanager
async def _signed_in(owner_url: str) -> AsyncIterator[asyncpg.Connection]:
    try:
        owner = await writes.open_mover(owner_url)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as cause:
        raise errors.CannotProceed(what=f"that database does not answer: {cause}", do="look at the address and the password") from cause
    try:
        yield owner
    finally:
        await owner.close()


async def _check_empty(owner_url: str, role: str) -> None:
    async with _signed_in(owner_url) as connection:
        if await copies.tables_of(connection):
            raise errors.CannotProceed(
                what="that database is not empty", do="give an empty one: CREATE DATABASE piggybank ENCODING 'UTF8' TEMPLATE template0"
            )
        if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", role):
            do = f"as an administrator there: CREATE ROLE {roles.quoted(role)} LOGIN PASSWORD '..'; or name another: --application-role"
            raise errors.CannotProceed(what=f"there is no role {role} for the application", do=do)
        await writes.stop(connection)


def _pg_restore(target: Target, manifest: Manifest, owner_url: str, tell: Tell) -> None:
    program = client_program("pg_restore", owner_url, manifest.facts.postgres_major)
    place, environment = client_address(owner_url)
    command = (
        str(program),
        "--no-owner",
        "--no-privileges",
        "--exit-on-error",
        "--single-transaction",
        "--no-password",
        f"--dbname={place}",
    )
    process = subprocess.Popen(  # noqa: S603 - PostgreSQL's own program
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C", "PGOPTIONS": "-c default_transaction_read_only=off", **environment},
    )
    assert process.stdin is not None
    size = 0
    with target.open(manifest.file(DUMP).name) as source:
        try:
            while chunk := source.read(CHUNK_BYTES):
                process.stdin.write(chunk)
                size += len(chunk)
                tell(f"restoring: {size / 1024**2:,.0f} of {manifest.file(DUMP).size_bytes / 1024**2:,.0f} MiB")
        except BrokenPipeError:  # it says why
            pass
    _, said = process.communicate()
    if process.returncode != 0:
        words = said.decode(errors="replace").strip().splitlines()[-LOG_TAIL_LINES:]
        raise errors.CannotProceed(what=f"pg_restore failed: {' / '.join(words)}", do="look at that server's log, then again")
