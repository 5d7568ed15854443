"""Restore: into a new data folder or an empty database. It opens in recovery (db/recovery.py), whatever it was restored for.

Until the end the data lies under a name that nobody starts, so a restore that was cut short leaves nothing that looks like one.
"""

import asyncio
import os
import shutil
import subprocess
import tomllib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import asyncpg
import msgspec
from msgspec import Struct

from piggybank import checks, errors
from piggybank import settings as settings_file
from piggybank.appliance import binaries, data_folder, embedded, processes, store_files, system_user, topology
from piggybank.appliance import folder as installation_folder
from piggybank.appliance.backups import manifests, months, replay, secrets, wal
from piggybank.appliance.backups.making import DUMP, client_address, client_program, facts, months_of
from piggybank.appliance.backups.manifests import Facts, Manifest
from piggybank.appliance.backups.months import Month
from piggybank.appliance.backups.targets import CHUNK_BYTES, Target
from piggybank.appliance.embedded import Embedded
from piggybank.appliance.system_user import SystemUser, ours, shared
from piggybank.db import copies, migrate, recovery, writes

MAKING = "restoring"  # in `stores/`, and a part of a database's name, until all is well
REPLACED = "replaced"  # a part of the name of what a restore in place keeps
NAME_MOST_BYTES = 63  # of a database; PostgreSQL cuts off the rest
MAINTENANCE = "postgres"  # the database to be in while another one is renamed
APPEND_ONLY = ("transactions", "effects", "system_entries")  # of a base backup: at least the rows that it had
DISK_MARGIN = 1.5  # of the database's size: itself, and the log that is replayed
LOG_TAIL_LINES = 3
NEW, IN_PLACE = "a new folder\n", "in place\n"  # what an unfinished restore says of itself
REPLACED = "replaced-"  # how the folder in `stores/` begins that keeps what was there
SET_ASIDE = ("primary", store_files.WAL_SPOOL, wal.HOLE_FILE)  # with the servers' folders
NOT_RESTORED = ("database_url", "owner_database_url", "pooler_url", "replica_urls")  # they lead to the database that was

Tell = Callable[[str], None]


class Restored(Struct, frozen=True, kw_only=True):
    """What was restored, and what was found in it."""

    backup_id: str
    place: str
    point: datetime  # up to there it knows everything
    accounts: int
    transactions: int
    secrets: bool
    left_out: list[str] = []  # settings that lead to the databases of the old installation
    missing_months: list[str] = []  # archived, and neither here nor at the target
    kept: str = ""  # what was here before: its folder, or the name that its database has now


def into_folder(
    target: Target, manifest: Manifest, folder: Path, at: datetime | None, identity: str, tell: Tell, *, until_hole: bool = False
) -> Restored:
    """A new data folder, ready for `piggybank up`. Raises `errors.CannotProceed`; then there is nothing in it."""
    check_possible(manifest, at, target)
    bundle = _open_secrets(target, manifest, identity)
    if embedded.unfinished_restore(folder) == NEW:
        tell("taking away what a restore left that was cut short")
        shutil.rmtree(folder)
    if folder.exists() and any(folder.iterdir()):
        raise errors.CannotProceed(what=f"{folder} is not empty", do="give a new folder, or --in-place for the installation that is there")
    was_there = folder.exists()
    try:
        data_folder.prepare_folder(folder)
        processes.write_file(folder / embedded.UNFINISHED_RESTORE, NEW, 0o644)
        restored = _fill(target, manifest, folder, at, bundle, tell, until_hole=until_hole)
        (folder / embedded.UNFINISHED_RESTORE).unlink()
        return restored
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if was_there:
            folder.mkdir()
        raise


def in_place(
    target: Target, manifest: Manifest, folder: Path, at: datetime | None, identity: str, tell: Tell, *, until_hole: bool = False
) -> Restored:
    """Over the stopped installation in `folder`, whose database is kept beside the new one. Its settings stay.

    What waits in its spool goes to the target first: it is the log of the last moments. Until all is well `up` refuses, also when we
    are killed; then this can be run again. Raises `errors.CannotProceed`; then all is as it was.
    """
    check_possible(manifest, at, target)
    _open_secrets(target, manifest, identity)  # a wrong key is told, but what is here stays
    stores = folder / "stores"
    if topology.DATABASE not in settings_file.embedded_stores(folder):
        raise errors.CannotProceed(
            what=f"the database of {folder} is elsewhere (database_url)", do="restore into an empty one there: --to postgresql://.."
        )
    with installation_folder.Lock(folder):
        _check_room(folder, manifest)
        _ship_rest(target, folder, tell)
        aside = stores / f"{REPLACED}{datetime.now(UTC):%Y%m%dT%H%M%S}"
        system_user.make_folder(aside, None)
        left = [path for path in stores.glob(f"{store_files.FIRST_POSTGRES}*") if path.is_dir()]
        left += [stores / name for name in SET_ASIDE if (stores / name).exists()]
        processes.write_file(folder / embedded.UNFINISHED_RESTORE, IN_PLACE, 0o644)
        moved: list[Path] = []
        try:
            for path in left:
                path.rename(aside / path.name)
                moved.append(path)
            restored = _fill(target, manifest, folder, at, {}, tell, until_hole=until_hole)
        except BaseException:
            shutil.rmtree(stores / store_files.FIRST_POSTGRES, ignore_errors=True)
            for path in moved:
                shutil.rmtree(path, ignore_errors=True)
                (aside / path.name).rename(path)
            aside.rmdir()
            (folder / embedded.UNFINISHED_RESTORE).unlink()
            raise
        (folder / embedded.UNFINISHED_RESTORE).unlink()
    return msgspec.structs.replace(restored, kept=str(aside))


def _ship_rest(target: Target, folder: Path, tell: Tell) -> None:
    """What the stopped server closed last, and nobody took to the target any more."""
    primary = folder / "stores" / topology.primary_of(folder / "stores")
    if not wal.waiting(folder) or not (primary / "global" / "pg_control").exists():
        return
    tell("taking the last of the log to the target")
    system = wal.system_of(primary)
    wal.ship(folder, target, system, set(wal.names_of(target, system)), lambda name, _: tell(f"the log reaches {name}"))


def check_possible(manifest: Manifest, at: datetime | None, target: Target) -> None:
    """Raises `errors.CannotProceed` where this version, or that moment, is none for this backup."""
    if manifest.facts.schema_revision > migrate.head():
        what = f"{manifest.id} was made by piggybank {manifest.version}, whose schema {manifest.facts.schema_revision} is newer than ours"
        raise errors.CannotProceed(what=what, do=f"restore it with piggybank {manifest.version} or newer")
    if at is None:
        return
    if manifest.kind == "logical":
        raise errors.CannotProceed(what=f"{manifest.id} is a logical backup: it holds one moment", do="leave --at away")
    if at < manifest.taken_at:
        what = f"{manifest.id} begins at {manifest.taken_at:%Y-%m-%dT%H:%M:%SZ}, after {at:%Y-%m-%dT%H:%M:%SZ}"
        raise errors.CannotProceed(what=what, do="take an earlier backup: piggybank backup list")
    if at > datetime.now(UTC):
        raise errors.CannotProceed(what=f"{at:%Y-%m-%dT%H:%M:%SZ} is in the future", do="leave --at away for the newest")
    if not wal.needed(wal.names_of(target, manifest.system), manifest.first_wal):
        raise errors.CannotProceed(what=f"no log was archived after {manifest.id}", do="leave --at away: it holds the moment of the backup")


def _open_secrets(target: Target, manifest: Manifest, identity: str) -> dict[str, bytes]:
    if not identity:
        return {}
    if not manifest.recipient:
        raise errors.CannotProceed(what=f"{manifest.id} holds no secrets: there was no recovery key", do="leave --recovery-key away")
    file = manifest.file(secrets.NAME)
    manifests.check(target, file)
    with target.open(file.name) as source:
        return secrets.opened(source.read(), identity, manifest.recipient)


def _fill(
    target: Target, manifest: Manifest, folder: Path, at: datetime | None, bundle: dict[str, bytes], tell: Tell, *, until_hole: bool
) -> Restored:
    user = data_folder.prepare_folder(folder)
    stores = folder / "stores"
    system_user.make_folder(stores, ours(user), shared(user, 0o750))
    _check_room(folder, manifest)
    left_out = _write_settings(folder, bundle, user) if bundle else []
    if manifest.kind == "base":
        restored = _base(target, manifest, folder, user, at, tell, until_hole=until_hole)
    else:
        restored = _logical_folder(target, manifest, folder, tell)
    return msgspec.structs.replace(restored, place=str(folder), secrets=bool(bundle), left_out=left_out)


def _check_room(folder: Path, manifest: Manifest) -> None:
    needed, free = int(manifest.facts.database_bytes * DISK_MARGIN), shutil.disk_usage(folder).free
    if free < needed:
        what = f"{folder} has {free / 1024**2:,.0f} MiB free, and {needed / 1024**2:,.0f} are needed"
        raise errors.CannotProceed(what=what, do="make room, or give a folder on a larger disk")


def _write_settings(folder: Path, bundle: dict[str, bytes], user: SystemUser | None) -> list[str]:
    """What the operator had set; key files come below `keys/`, and the settings say so. Answers what is left out of it."""
    values = {}
    for name, content in bundle.items():
        if name.startswith(f"{secrets.KEYS}/"):
            system_user.make_folder(folder / secrets.KEYS, ours(user), shared(user, 0o750))
            path = folder / name
            processes.write_file(path, content.decode(), shared(user, 0o640), ours(user))
            values[path.stem] = str(path)
    left_out: list[str] = []
    for name in (settings_file.OPERATOR_FILE, settings_file.PHASE_FILE):
        text = bundle.get(name, b"").decode()
        if name == settings_file.OPERATOR_FILE:
            text, left_out = settings_file.without_values(text, NOT_RESTORED)
        if name == settings_file.OPERATOR_FILE and values:
            text = settings_file.with_values(text, values)
        if text:
            processes.write_file(folder / name, text, shared(user, 0o640), ours(user))
    if "stores/secrets.toml" in bundle:
        known = msgspec.convert(tomllib.loads(bundle["stores/secrets.toml"].decode()), store_files.Secrets)
        store_files.save_secrets(folder / "stores", known, user)
    return left_out


# Base -----------------------------------------------------------------------------------------------------------------


def _base(
    target: Target, manifest: Manifest, folder: Path, user: SystemUser | None, at: datetime | None, tell: Tell, *, until_hole: bool
) -> Restored:
    stores = folder / "stores"
    program = binaries.postgres(stores, user)
    _check_major(program, manifest)
    making, log = stores / MAKING, stores / f"{MAKING}-log"
    for place in (making, log):
        shutil.rmtree(place, ignore_errors=True)
        system_user.make_folder(place, user)
    known = store_files.load_secrets(stores, user)
    try:
        replay.unpack(target, manifest, making, user, tell)
        names = replay.fetch_log(target, manifest, log / "segments", user, tell, until_hole=until_hole)
        with replay.alive(making, log / "segments", program, user, at, tell) as server:
            if at is None:
                replay.check_replayed(server, names)
            point = at or server.replayed_to or manifest.taken_at
            server.set_password(store_files.ADMIN_ROLE, known.admin_password)
            restored = asyncio.run(
                _open_in_recovery(
                    server.url(store_files.OWNER_ROLE), store_files.APPLICATION_ROLE, manifest, max(point, manifest.taken_at), tell
                )
            )
            archived = asyncio.run(_archived_months(server.url(store_files.OWNER_ROLE)))
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(log, ignore_errors=True)
    making.rename(stores / store_files.FIRST_POSTGRES)
    return msgspec.structs.replace(restored, missing_months=months.fetch(target, archived, folder, user))


def _check_major(program: Path, manifest: Manifest) -> None:
    said = system_user.run(None, str(program / "postgres"), "--version", check=False).stdout.split()
    ours_is = next((int(word.split(".")[0]) for word in said if word[:1].isdigit()), manifest.facts.postgres_major)
    if ours_is != manifest.facts.postgres_major:
        raise errors.CannotProceed(
            what=f"{manifest.id} is of PostgreSQL {manifest.facts.postgres_major}, and this version runs {ours_is}",
            do=f"restore it with piggybank {manifest.version}, then upgrade; or use a logical backup",
        )


# Logical --------------------------------------------------------------------------------------------------------------


def _logical_folder(target: Target, manifest: Manifest, folder: Path, tell: Tell) -> Restored:
    server = Embedded(folder)
    server.prepare()
    primary = server.postgres.primary
    try:
        tell("starting an empty server")
        server.ensure(primary)
        server.wait_ready(primary)
        server.postgres.make_roles()
        owner_url = server.addresses()["owner_database_url"]
        restored = into_database(target, manifest, owner_url, store_files.APPLICATION_ROLE, tell)
    finally:
        server.stop()
    return msgspec.structs.replace(restored, missing_months=months.fetch(target, manifest.facts.months, folder, server.user))


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
    restored = asyncio.run(_open_in_recovery(owner_url, role, manifest, manifest.taken_at, tell))
    missing = months.missing(manifest.facts.months, target.names(months.FOLDER))
    return msgspec.structs.replace(restored, place=owner_url.rpartition("@")[2], missing_months=missing)


def over_database(target: Target, manifest: Manifest, owner_url: str, role: str, tell: Tell) -> Restored:
    """In the place of the database at `owner_url`, which nobody uses meanwhile, and which is kept beside the new one.

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
    return msgspec.structs.replace(restored, place=restored.place.replace(making, name), kept=kept)


def _url_of(owner_url: str, database: str) -> str:
    return urlsplit(owner_url)._replace(path=f"/{quote(database)}").geturl()


async def _make_beside(owner_url: str, name: str, making: str) -> None:
    async with _signed_in(owner_url) as owner:
        await _check_unused(owner, name)
        try:
            await owner.execute(f"DROP DATABASE IF EXISTS {migrate.quoted(making)}")  # of a restore that was cut short
            await owner.execute(f"CREATE DATABASE {migrate.quoted(making)} ENCODING 'UTF8' TEMPLATE template0")
        except asyncpg.InsufficientPrivilegeError as cause:
            user = migrate.quoted(migrate.role_of(owner_url))
            do = f"as an administrator there: ALTER ROLE {user} CREATEDB; or restore into a database that they make: --to URL"
            raise errors.CannotProceed(what="the owner's role may not make a database", do=do) from cause


async def _exchange(owner_url: str, name: str, making: str, kept: str) -> None:
    async with _signed_in(_url_of(owner_url, MAINTENANCE)) as owner:
        await _check_unused(owner, name)
        try:
            async with owner.transaction():
                await owner.execute(f"ALTER DATABASE {migrate.quoted(name)} RENAME TO {migrate.quoted(kept)}")
                await owner.execute(f"ALTER DATABASE {migrate.quoted(making)} RENAME TO {migrate.quoted(name)}")
        except asyncpg.ObjectInUseError as cause:
            raise errors.CannotProceed(what=f"somebody uses {name} again: {cause}", do="stop that, then again") from cause


async def _check_unused(owner: asyncpg.Connection, name: str) -> None:
    """A process that went on would write into the old one, and then into the new one as if nothing had been."""
    others = await owner.fetch(
        "SELECT DISTINCT usename, application_name, host(client_addr) AS host FROM pg_stat_activity WHERE datname = $1 AND pid <> $2",
        name,
        owner.get_server_pid(),
    )
    if others:
        who = ", ".join(sorted(f"{one['usename']} {one['application_name']} from {one['host'] or 'there'}" for one in others))
        raise errors.CannotProceed(
            what=f"the database {name} is in use: {who}", do="stop everything that uses it: web, workers, backups, the pooler; then again"
        )


async def _drop(owner_url: str, database: str) -> None:
    with suppress(OSError, TimeoutError, asyncpg.PostgresError, errors.CannotProceed):  # what it was about is told; the next one drops it
        async with _signed_in(_url_of(owner_url, MAINTENANCE)) as owner:
            await owner.execute(f"DROP DATABASE IF EXISTS {migrate.quoted(database)}")


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
            do = f"as an administrator there: CREATE ROLE {migrate.quoted(role)} LOGIN PASSWORD '..'; or name another: --application-role"
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


# Both -----------------------------------------------------------------------------------------------------------------


async def _open_in_recovery(owner_url: str, role: str, manifest: Manifest, point: datetime, tell: Tell) -> Restored:
    """Compare with what the backup says, then close it to writes; to this version's schema, too."""
    tell("comparing with the manifest")
    connection = await writes.open_mover(owner_url)
    try:
        await writes.stop(connection)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            compare(manifest, await facts(connection))
    finally:
        await connection.close()
    tell("bringing the schema to this version")
    await migrate.upgrade(writes.mover_url(owner_url), role)
    await recovery.begin(owner_url, manifest.id, point)
    accounts = transactions = 0
    async for progress in checks.verify(owner_url):
        accounts += progress.accounts
        transactions += progress.transactions
        tell(f"verifying: {accounts} accounts, {transactions} transactions")
        if progress.findings:
            found = progress.findings[0]
            raise errors.CannotProceed(
                what=f"the restored books do not fit: account {found.account_id}: {found.what}: {found.stored}, derived {found.derived}",
                do="use another backup (piggybank backup list)",
            )
    return Restored(backup_id=manifest.id, place="", point=point, accounts=accounts, transactions=transactions, secrets=False)


async def _archived_months(owner_url: str) -> list[Month]:
    """Of what was restored, which may be later than the backup."""
    connection = await writes.open_mover(owner_url)
    try:
        return await months_of(connection)
    finally:
        await connection.close()


def compare(manifest: Manifest, found: Facts) -> None:
    """A logical backup is exactly what was counted; a base one holds at least that. Raises `errors.CannotProceed`."""
    wanted = manifest.facts
    if found.installation != wanted.installation:
        raise _differs("installation", wanted.installation, found.installation)
    if manifest.kind == "logical":
        for what, said in (wanted.rows | wanted.books).items():
            if (found.rows | found.books).get(what) != said:
                raise _differs(what, said, (found.rows | found.books).get(what))
        if found.highest_transaction != wanted.highest_transaction:
            raise _differs("highest transaction", wanted.highest_transaction, found.highest_transaction)
        return
    for name in APPEND_ONLY:
        if found.rows.get(name, 0) < wanted.rows.get(name, 0) and not _archived(wanted, found, name):
            raise _differs(f"rows of {name}", f"at least {wanted.rows.get(name, 0)}", found.rows.get(name, 0))
    if (found.highest_transaction or "") < (wanted.highest_transaction or ""):
        raise _differs("highest transaction", wanted.highest_transaction, found.highest_transaction)


def _archived(wanted: Facts, found: Facts, name: str) -> bool:
    """A month may have been archived between the backup and the moment that was restored."""
    return name == "transactions" and found.rows.get("archived_months", 0) > wanted.rows.get("archived_months", 0)


def _differs(what: str, wanted: object, found: object) -> errors.CannotProceed:
    return errors.CannotProceed(
        what=f"the restored database differs from its manifest: {what}: {wanted} there, {found} here",
        do="use another backup (piggybank backup list), and keep this one to look into",
    )
