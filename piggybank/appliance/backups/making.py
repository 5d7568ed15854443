"""Make a backup: the data streams from PostgreSQL to the target, with no copy on this disk; then the secrets; then the manifest.

A base backup takes the log that it needs with it (`fetch`), so it can be restored even where nothing was archived; a slot keeps that
log meanwhile. What the database says of itself is asked before a base backup, and in the very snapshot of a logical one.
"""

import asyncio
import io
import os
import secrets as random
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
from msgspec import Struct

import piggybank
from piggybank import errors
from piggybank import settings as settings_file
from piggybank.appliance import binaries, store_files, system_user, topology
from piggybank.appliance.backups import manifests, months, secrets, wal
from piggybank.appliance.backups.manifests import Facts, File, Kind, Manifest
from piggybank.appliance.backups.months import Month
from piggybank.appliance.backups.targets import Target
from piggybank.db import archived, backups, copies, recovery
from piggybank.db.locks import Alone
from piggybank.db.roles import quoted
from piggybank.settings import Settings

COMPRESSION = "1"  # gzip's quickest: the disk and the network are slower than that
CONNECT_TIMEOUT_S = 10
ENDS_WITHIN_S = 60  # after its output has ended
WORDS_SHOWN = 3  # last lines of a program that failed
BASE, DUMP = "base.tar.gz", "dump.pgc"
ENCRYPTED = ("require", "verify-ca", "verify-full")
_KEEP_LOG = (
    "SELECT pg_walfile_name(lsn), pg_walfile_name(pg_current_wal_insert_lsn()) FROM pg_create_physical_replication_slot($1, true, true)"
)

Tell = Callable[[str], None]


class Made(Struct, frozen=True, kw_only=True):
    """A backup that is whole, and what people should know of it."""

    manifest: Manifest
    target: str
    warnings: list[str]


def usual_kind(settings: Settings) -> Kind:
    """A data folder's own database is taken whole, with its log; another one is dumped."""
    return "base" if topology.DATABASE in settings_file.embedded_stores(settings.data_dir) else "logical"


def create(settings: Settings, target: Target, kind: Kind, tell: Tell) -> Made:
    """Make one. Raises `errors.CannotProceed`; then there is none, and what was written is taken away."""
    if kind == "base" and usual_kind(settings) != "base":
        raise errors.CannotProceed(
            what="the database is elsewhere: its files cannot be copied from here", do="piggybank backup create --logical"
        )
    started = datetime.now(UTC)
    backup_id = f"{started:%Y%m%dT%H%M%S}Z-{kind}-{random.token_hex(2)}"  # two of one second are two
    folder = f"backups/{backup_id}"
    try:
        manifest, lacking = asyncio.run(_make(settings, target, kind, backup_id, started, tell))
        manifests.save(target, manifest)
    except BaseException:
        tell("taking away what was written")
        for name in target.names(folder):
            target.delete(name)
        raise
    asyncio.run(
        backups.record(
            settings.owner_database_url, manifest.id, kind, target.shown, manifest.started_at, manifest.finished_at, manifest.size_bytes
        )
    )
    if kind == "base":
        wal.note_hole(settings.data_dir, "")  # what is later begins with this one
    return Made(manifest=manifest, target=target.shown, warnings=[*warnings(settings, target), *lacking])


def warnings(settings: Settings, target: Target) -> list[str]:
    """What makes a backup worth less than it looks."""
    found = []
    if is_same_disk(settings, target):
        found.append(f"{target.shown} is on the same disk as the data: whoever loses one loses both")
    if not settings.backup_recipient:
        found.append("settings and key files are NOT in it: make a recovery key with `piggybank backup key`")
    return found


def is_same_disk(settings: Settings, target: Target) -> bool:
    """True of a folder on the device that the data is on."""
    if target.place is None or not target.place.is_dir():
        return False
    stores = settings.data_dir / "stores"
    return target.place.stat().st_dev == (stores if stores.is_dir() else settings.data_dir).stat().st_dev


async def _make(
    settings: Settings, target: Target, kind: Kind, backup_id: str, started: datetime, tell: Tell
) -> tuple[Manifest, list[str]]:
    """And what it lacks, for people."""
    folder = f"backups/{backup_id}"
    connection = await _connect(settings.owner_database_url)
    try:
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", Alone.BACKUP):
            raise errors.AlreadyRunning(data_dir=str(settings.data_dir), what="backup create")
        if await recovery.is_recovering(connection):
            raise errors.CannotProceed(what="this database is in recovery: it may lack what happened since", do="piggybank restore finish")
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            tell("counting")
            found = await facts(connection)
            lineage = await recovery.lineage(connection)
            await asyncio.to_thread(manifests.check_owner, target, lineage, claim=True)
            if kind == "logical":
                snapshot = await connection.fetchval("SELECT pg_export_snapshot()")
                taken_at: datetime = await connection.fetchval("SELECT now()")
                data = await asyncio.to_thread(_dump, settings.owner_database_url, found, snapshot, target, f"{folder}/{DUMP}", tell)
                first_wal = next_wal = system = ""
        if kind == "base":
            system = wal.system_of(settings.data_dir / "stores" / topology.primary_of(settings.data_dir / "stores"))
            async with _slot(settings) as (first_wal, next_wal):
                data = await asyncio.to_thread(_base, settings, target, f"{folder}/{BASE}", tell)
            taken_at = datetime.now(UTC)
    finally:
        await connection.close()
    tell("archived months")
    lacking = await asyncio.to_thread(_months, settings, target, found)
    files = [data]
    if settings.backup_recipient:
        tell("secrets")
        bundle = io.BytesIO(secrets.sealed(settings))
        files.append(await asyncio.to_thread(manifests.put, target, f"{folder}/{secrets.NAME}", bundle))
    manifest = Manifest(
        id=backup_id,
        kind=kind,
        version=piggybank.__version__,
        phase=settings.phase,
        started_at=started,
        taken_at=taken_at,
        finished_at=datetime.now(UTC),
        facts=found,
        files=files,
        first_wal=first_wal,
        next_wal=next_wal,
        system=system,
        recipient=settings.backup_recipient,
    )
    return manifest, lacking


def _months(settings: Settings, target: Target, found: Facts) -> list[str]:
    """Their files go with it; what to say where one is not on this machine."""
    known = set(target.names(months.FOLDER))
    months.ship(settings.data_dir, target, known)
    missing = ", ".join(months.missing(found.months, known))
    where = settings.data_dir / archived.FOLDER
    return [f"rows of archived months are NOT in it: copy {missing} into {where}, then again"] if missing else []


async def facts(connection: asyncpg.Connection) -> Facts:
    """In a transaction that sees one moment."""
    row = await connection.fetchrow("SELECT id::text AS id, epoch, provider_mode FROM installation")
    said = await copies.books(connection)
    return Facts(
        installation=row["id"],
        epoch=row["epoch"],
        provider_mode=row["provider_mode"],
        schema_revision=await connection.fetchval("SELECT version_num FROM alembic_version"),
        rows={name: await connection.fetchval(f"SELECT count(*) FROM {quoted(name)}") for name in await copies.tables_of(connection)},
        books={what: value for what, value in said.items() if what.startswith("trial balance")},
        highest_transaction=None if said["highest transaction"] == "none" else said["highest transaction"],
        database_bytes=await connection.fetchval("SELECT pg_database_size(current_database())"),
        postgres_version=await connection.fetchval("SHOW server_version"),
        postgres_major=await connection.fetchval("SELECT current_setting('server_version_num')::int / 10000"),
        months=await months_of(connection),
    )


async def months_of(connection: asyncpg.Connection) -> list[Month]:
    """Those that are archived, by this database."""
    return [Month(**row) for row in await connection.fetch("SELECT file, sha256 FROM archived_months ORDER BY month")]


async def _connect(url: str) -> asyncpg.Connection:
    if not url:
        raise errors.CannotProceed(what="no database is known", do="piggybank up --detach")
    try:
        return await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S)
    except (OSError, TimeoutError, asyncpg.PostgresError) as cause:
        raise errors.CannotProceed(what=f"the database does not answer: {cause}", do="piggybank up --detach, then again") from cause


# A whole server ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _slot(settings: Settings) -> AsyncIterator[tuple[str, str]]:
    """Keep the log from here on for as long as the backup reads it; the first segment that it needs, and the one that is written to."""
    primary = topology.primary_of(settings.data_dir / "stores")
    known = store_files.load_secrets(settings.data_dir / "stores", system_user.chosen())
    connection = await _connect(known.database_url(store_files.ADMIN_ROLE, primary).rpartition("/")[0] + "/postgres")
    try:
        name = f"backup_{random.token_hex(4)}"
        first, following = await connection.fetchrow(_KEEP_LOG, name)
        yield first, following
    finally:
        await connection.close()  # a temporary slot goes with its session


def _base(settings: Settings, target: Target, name: str, tell: Tell) -> File:
    user = system_user.chosen()
    stores = settings.data_dir / "stores"
    known = store_files.load_secrets(stores, user)
    command = (
        str(binaries.postgres(stores, user) / "pg_basebackup"),
        "--pgdata=-",
        "--format=tar",
        f"--compress=client-gzip:{COMPRESSION}",
        "--wal-method=fetch",
        "--checkpoint=fast",
        "--no-password",
        "--host=127.0.0.1",
        f"--port={known.port_of(topology.primary_of(stores))}",
        f"--username={store_files.REPLICATION_ROLE}",
    )
    with _streaming(command, {"PGPASSWORD": known.replication_password}) as source:
        return manifests.put(target, name, source, lambda size: tell(f"copying the database: {size / 1024**2:,.0f} MiB"))


# A database -----------------------------------------------------------------------------------------------------------


def _dump(url: str, found: Facts, snapshot: str, target: Target, name: str, tell: Tell) -> File:
    program = client_program("pg_dump", url, found.postgres_major)
    place, environment = client_address(url)
    command = (
        str(program),
        "--format=custom",
        f"--compress={COMPRESSION}",
        f"--snapshot={snapshot}",
        "--no-owner",
        "--no-privileges",
        "--no-password",
        f"--dbname={place}",
    )
    with _streaming(command, environment) as source:
        return manifests.put(target, name, source, lambda size: tell(f"dumping the database: {size / 1024**2:,.0f} MiB"))


def client_program(name: str, url: str, server_major: int) -> Path:
    """pg_dump or pg_restore for that server: not older than it. The wheel's speaks no TLS. Raises `errors.CannotProceed`."""
    candidates = [Path(found) for folder in os.get_exec_path() if (found := shutil.which(name, path=folder))]
    if is_encrypted := parse_qs(urlsplit(url).query).get("sslmode", [""])[-1] in ENCRYPTED:
        # the image has the wheel's on its PATH, by a link
        candidates = [path for path in candidates if binaries.POSTGRES_PACKAGE not in path.resolve().parts]
    else:
        with suppress(errors.CannotProceed):
            candidates.insert(0, binaries.client("psql").with_name(name))
    versions = []
    for candidate in candidates:
        said = system_user.run(None, str(candidate), "--version", check=False).stdout.split()
        major = next((int(word.split(".")[0]) for word in said if word[:1].isdigit()), 0)
        if major >= server_major:
            return candidate
        versions.append(str(major))
    have = f"{name} {', '.join(versions)} is older than the server" if versions else f"there is no {name} here"
    without = "; the one that piggybank brings speaks no TLS" if is_encrypted else ""
    raise errors.CannotProceed(
        what=f"{have} (PostgreSQL {server_major}{without})",
        do=f"install Debian's postgresql-client-{server_major} (from apt.postgresql.org where Debian's is older);"
        " for containers into an image that is made FROM ours",
    )


def client_address(url: str) -> tuple[str, dict[str, str]]:
    """What a client program is called with, and what it is told where no process list shows it."""
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    user = login.partition(":")[0]
    return parts._replace(netloc=f"{user}@{hosts}" if user else hosts).geturl(), {
        "PGPASSWORD": unquote(parts.password or ""),
        "PGCONNECT_TIMEOUT": str(CONNECT_TIMEOUT_S),
    }


@contextmanager
def _streaming(command: tuple[str, ...], environment: dict[str, str]) -> Iterator[IO[bytes]]:
    """What a program says; raises `errors.CannotProceed` with its last words where it does not end well."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(  # noqa: S603 - PostgreSQL's own programs
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            cwd="/",
            env={**os.environ, "LC_ALL": "C", **environment},
            **system_user.as_user(system_user.chosen() if command[0].endswith("pg_basebackup") else None),
        )
        assert process.stdout is not None
        watched = _Whole(process, said)
        try:
            yield watched  # type: ignore[misc]  # `read` is all that is called
        finally:
            process.stdout.close()
            if process.poll() is None:
                process.terminate()
            process.wait(ENDS_WITHIN_S)


class _Whole:
    """A program's output, whose end is the end only when the program says so, too: else a target would take a part for the whole."""

    def __init__(self, process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
        self._process = process
        self._said = said

    def read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        chunk = self._process.stdout.read(size)
        if not chunk and self._process.wait(ENDS_WITHIN_S) != 0:
            self._said.seek(0)
            words = self._said.read().decode(errors="replace").strip().splitlines()[-WORDS_SHOWN:]
            program = Path(str(self._process.args[0])).name  # type: ignore[index]  # a tuple, as we called it
            raise errors.CannotProceed(what=f"{program} failed: {' / '.join(words)}", do="look into the log of PostgreSQL, then again")
        return chunk
