"""A restore drill: the newest backup is restored beside everything else, opened in recovery, verified and thrown away.

A backup that nobody has restored is a hope. This is done each month by itself, and what it found is kept.
"""

import asyncio
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
from msgspec import Struct

from piggybank import errors
from piggybank.appliance import binaries, data_folder
from piggybank.appliance.backups import databases, manifests, restoring
from piggybank.appliance.backups.making import BASE, DUMP
from piggybank.appliance.backups.manifests import Manifest
from piggybank.appliance.backups.opening import Restored
from piggybank.appliance.backups.targets import Target
from piggybank.appliance.embedded import Embedded
from piggybank.db import archived, backups, roles
from piggybank.db.locks import Alone
from piggybank.settings import Settings

FOLDER = "drill"  # in the data folder, while it lasts

Tell = Callable[[str], None]


class Drill(Struct, frozen=True, kw_only=True):
    """How it ended."""

    backup_id: str
    passed: bool
    seconds: float
    said: str
    restored: Restored | None = None


def drill(settings: Settings, target: Target, backup_id: str, tell: Tell) -> Drill:
    """Restore, compare with the manifest, verify, delete; written down.

    Raises `errors.CannotProceed` only where there is no backup, `errors.AlreadyRunning` where another drill runs."""
    manifest = manifests.choose(target, backup_id)
    began, at = time.monotonic(), datetime.now(UTC)
    restored: Restored | None = None
    passed = False
    try:
        for file in manifest.files:
            if not file.name.endswith((DUMP, BASE)):  # those are read when they are restored
                manifests.check(target, file)
        restored = _restore(settings, target, manifest, tell)
        if restored.missing_months:
            what = f"archived months are not at the target: {', '.join(restored.missing_months)}"
            raise errors.CannotProceed(what=what, do=f"copy them into {settings.data_dir / archived.FOLDER}, then piggybank backup create")
        said = f"{restored.accounts} accounts, {restored.transactions} transactions up to {restored.point:%Y-%m-%dT%H:%M:%SZ}: all fits"
    except errors.AlreadyRunning:
        raise  # says nothing about the backup
    except (errors.Error, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as cause:
        said = str(cause.details.get("what", cause)) if isinstance(cause, errors.Error) else f"{type(cause).__name__}: {cause}"
    else:
        passed = True
    found = Drill(backup_id=manifest.id, passed=passed, seconds=time.monotonic() - began, said=said, restored=restored)
    asyncio.run(backups.record_drill(settings.owner_database_url, manifest.id, at, found.seconds, said, passed=found.passed))
    return found


def _restore(settings: Settings, target: Target, manifest: Manifest, tell: Tell) -> Restored:
    """On a server of its own where this machine has the programs, else in a database beside the real one."""
    try:
        binaries.client("psql").with_name("postgres").resolve(strict=True)
    except (errors.CannotProceed, OSError):
        return asyncio.run(_beside(settings, target, manifest, tell))
    folder = settings.data_dir / FOLDER
    data_folder.prepare_folder(settings.data_dir)
    with _alone(settings.data_dir):
        return _restore_apart(target, manifest, folder, tell)


def _restore_apart(target: Target, manifest: Manifest, folder: Path, tell: Tell) -> Restored:
    shutil.rmtree(folder, ignore_errors=True)  # of a drill that was killed
    try:
        restored = restoring.into_folder(target, manifest, folder, None, "", tell)
        tell("looking whether it takes writes")
        _check_recovery(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return restored


@contextmanager
def _alone(data_dir: Path) -> Iterator[None]:
    """Two drills share a folder; the kernel frees the lock of one that is killed."""
    handle = os.open(data_dir / "run" / "drill.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as cause:
        raise errors.AlreadyRunning(data_dir=str(data_dir), what="backup drill") from cause
    finally:
        os.close(handle)


def _check_recovery(folder: Path) -> None:
    """Start it as `up` would, and try to write: only reads are let in. Raises `errors.CannotProceed`."""
    stores = Embedded(folder)
    stores.prepare()
    primary = stores.postgres.primary
    try:
        stores.ensure(primary)
        stores.wait_ready(primary)
        stores.postgres.make_roles()
        asyncio.run(_refuses_writes(stores.addresses()["database_url"]))
    finally:
        stores.stop()


async def _refuses_writes(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("DELETE FROM outbox")
    except asyncpg.ReadOnlySQLTransactionError:
        return
    finally:
        await connection.close()
    raise errors.CannotProceed(what="the restored database took a write", do="keep this backup, and report it")


async def _beside(settings: Settings, target: Target, manifest: Manifest, tell: Tell) -> Restored:
    """In a container: no server of its own; the owner may make a database."""
    owner = await asyncpg.connect(settings.owner_database_url)
    try:
        if not await owner.fetchval("SELECT pg_try_advisory_lock($1)", Alone.DRILL):
            raise errors.AlreadyRunning(data_dir=str(settings.data_dir), what="backup drill")
        prefix = await owner.fetchval("SELECT 'piggybank_drill_' || oid || '_' FROM pg_database WHERE datname = current_database()")
        await _drop_left(owner, prefix, tell)
        name = f"{prefix}{uuid4().hex[:8]}"
        owner_url = urlsplit(settings.owner_database_url)._replace(path=f"/{name}").geturl()
        try:
            await owner.execute(f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0")
        except asyncpg.InsufficientPrivilegeError as cause:
            role = roles.quoted(roles.role_of(settings.owner_database_url))
            raise errors.CannotProceed(
                what="the owner's role may not make a database for the drill", do=f"as an administrator there: ALTER ROLE {role} CREATEDB"
            ) from cause
        try:
            role = roles.role_of(settings.database_url)
            restored = await asyncio.to_thread(databases.into_database, target, manifest, owner_url, role, tell)
            await _refuses_writes(urlsplit(settings.database_url)._replace(path=f"/{name}").geturl())
            return restored
        finally:
            await owner.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    finally:
        await owner.close()


async def _drop_left(owner: asyncpg.Connection, prefix: str, tell: Tell) -> None:
    """Of drills that were killed; under the lock nobody else's is at work. Another installation on that server has another prefix."""
    left = await owner.fetch(
        """
        SELECT datname FROM pg_database
        WHERE (starts_with(datname, $1) OR datname ~ '^piggybank_drill_[0-9a-f]{8}$') AND pg_has_role(datdba, 'USAGE')
        """,
        prefix,
    )
    for row in left:
        tell(f"dropping {row['datname']}, of a drill that was cut short")
        await owner.execute(f"DROP DATABASE IF EXISTS {row['datname']} WITH (FORCE)")
