"""`piggybank move`: from this database to another server, without losing or doubling anything.

    look       changes nothing
    prepare    schema, role and rights over there, while all goes on here; over there writes are stopped from the first moment
    copy       writes are stopped here (503 with Retry-After, reads go on), rows go over, both books are compared
    switch     the addresses in piggybank.toml: the one moment that decides
    finish     the old folder is marked, writes are allowed over there, what runs is started again

At each moment at most one of the two databases takes writes. `move.toml` says that a move is under way and how to reach both sides: a
run that was killed is undone before the switch and finished after it, by the next `piggybank move` or the next `piggybank up`.
The old database takes no writes ever after, so a process that was forgotten somewhere cannot write to it.
"""

import asyncio
import base64
import fcntl
import hashlib
import hmac
import os
import secrets
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import asyncpg
import msgspec
from msgspec import Struct

from piggybank import errors
from piggybank import settings as settings_file
from piggybank.appliance import data_folder, store_files, system_user
from piggybank.appliance.external import Finding
from piggybank.appliance.processes import write_file
from piggybank.appliance.system_user import SystemUser, ours, shared
from piggybank.db import copies, migrate, revisions, roles, writes
from piggybank.settings import Settings

JOURNAL = "move.toml"  # in the data folder while a move is under way
CLOCK_TOLERANCE_S = 1.0  # as in api/health.py: beyond it no process is ready
COPY_BYTES_PER_S = 20 * 1024 * 1024  # of its size on disk; 24 were measured with both servers on two busy cores
OVERHEAD_S = 15  # stopping, comparing, starting again what runs
LOCK_TRIES = 3
PASSWORD_BYTES = 24
ROLE_MARK_LETTERS = 12
SCRAM_ITERATIONS = 4_096  # PostgreSQL's own default
SALT_BYTES = 16
UNREACHABLE = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.ClientConfigurationError, ValueError)

Tell = Callable[[str], None]


class Look(Struct, frozen=True, kw_only=True):
    """What a move would do; with `problems` it does not begin."""

    source: str
    target: str
    size_bytes: int = 0
    writes_wait_s: int = 0
    facts: list[str] = []
    problems: list[Finding] = []


class Journal(Struct, frozen=True, kw_only=True):
    """Both sides of a move that is under way."""

    source_owner_url: str
    source_role: str
    target_owner_url: str
    target_role: str
    embedded: bool
    was_running: bool = False


class Settled(Struct, frozen=True, kw_only=True):
    """What became of a move: the last one's journal, and whether it was undone."""

    journal: Journal
    undone: bool
    copied: copies.Copied | None = None


async def look(settings: Settings, to: str, application_url: str = "") -> Look:
    """Ask both sides; changes nothing."""
    here, there = _shown(settings.owner_database_url), _shown(to)
    problems = _of_settings(settings, to)
    if problems:
        return Look(source=here, target=there, problems=problems)
    try:
        source = await writes.open_mover(settings.owner_database_url)
    except UNREACHABLE as cause:
        return Look(source=here, target=there, problems=[Finding(what=f"{here} does not answer: {cause}", do="piggybank up --detach")])
    try:
        target = await writes.open_mover(to)
    except UNREACHABLE as cause:
        found = Finding(what=f"{there} does not answer: {cause}", do="look at the address, the password, its firewall and pg_hba.conf")
        await source.close()
        return Look(source=here, target=there, problems=[found])
    try:
        return await _compare(settings, source, target, to, application_url)
    finally:
        await source.close()
        await target.close()


def move(settings: Settings, to: str, application_url: str, tell: Tell, *, was_running: bool) -> Settled:
    """All but the last step: start again what runs. Raises `errors.CannotProceed`; then nothing has changed, and writes go on."""
    with _alone(settings.data_dir) as user:
        found = asyncio.run(look(settings, to, application_url))
        if found.problems:
            raise errors.CannotProceed(what=found.problems[0].what, do=found.problems[0].do)
        application_url = asyncio.run(_prepare(settings, to, application_url, tell))
        journal = Journal(
            source_owner_url=settings.owner_database_url,
            source_role=roles.role_of(settings.database_url),
            target_owner_url=to,
            target_role=roles.role_of(application_url),
            embedded="postgres" in settings_file.embedded_stores(settings.data_dir),
            was_running=was_running,
        )
        _save(settings.data_dir, journal, user)
        try:
            copied = asyncio.run(_copy(journal, tell))
            _switch(settings.data_dir, {"database_url": application_url, "owner_database_url": to}, user)
        except BaseException:
            tell("undoing: writes go on here")
            asyncio.run(_settle(settings.data_dir, journal, user))
            raise
        tell("switched")
        done = asyncio.run(_settle(settings.data_dir, journal, user, keep=was_running))
        return msgspec.structs.replace(done, copied=copied)


def settle(data_dir: Path) -> Settled | None:
    """Undo what a killed move left, or finish it when it had switched; None: nothing was left, or a move is under way just now."""
    if not (data_dir / JOURNAL).exists():
        return None
    try:
        with _alone(data_dir) as user:
            journal = _load(data_dir)
            return None if journal is None else asyncio.run(_settle(data_dir, journal, user))
    except errors.AlreadyRunning:
        return None


@contextmanager
def _alone(data_dir: Path) -> Iterator[SystemUser | None]:
    """One move a folder; raises `errors.AlreadyRunning`."""
    user = data_folder.prepare_folder(data_dir)
    handle = os.open(data_dir / "run" / "move.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as cause:
        raise errors.AlreadyRunning(data_dir=str(data_dir), what="a move of its database") from cause
    else:
        yield user
    finally:
        os.close(handle)


# Looking --------------------------------------------------------------------------------------------------------------


def _of_settings(settings: Settings, to: str) -> list[Finding]:
    parts = urlsplit(to)
    if parts.scheme not in ("postgresql", "postgres") or not parts.hostname or not parts.username or not parts.path.strip("/"):
        return [Finding(what=f"{_shown(to)} is no address", do="give postgresql://owner:password@host:5432/name[?sslmode=verify-full]")]
    if given := settings_file.in_environment("database_url", "owner_database_url"):
        what = f"{', '.join(given)} in the environment wins over {settings_file.OPERATOR_FILE}, where the new address is written"
        return [
            Finding(what=what, do=f"put what it says into {settings.data_dir / settings_file.OPERATOR_FILE}, and start again without it")
        ]
    if settings.phase >= 2 or settings.replica_urls or settings.pooler_url:
        what = "replicas and pooler belong to this database, and would stay with it"
        return [Finding(what=what, do="piggybank phase apply 1, then move, then apply the phase again with replicas of the new one")]
    if not settings.owner_database_url:
        return [Finding(what=f"no database is known in {settings.data_dir}", do="piggybank up --detach")]
    return []


async def _compare(settings: Settings, source: asyncpg.Connection, target: asyncpg.Connection, to: str, application_url: str) -> Look:
    size = int(await source.fetchval("SELECT pg_database_size(current_database())"))
    encrypted = await target.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    facts = [
        f"PostgreSQL {await source.fetchval('SHOW server_version')} here, {await target.fetchval('SHOW server_version')} there",
        "the connection is encrypted" if encrypted else "the connection is NOT encrypted; ?sslmode=verify-full asks for it",
    ]
    problems = [
        *await _of_servers(source, target, to),
        *await _of_source(source, roles.role_of(settings.database_url), _shown(settings.owner_database_url)),
        *await _of_target(source, target, to),
        *await _of_role(target, to, application_url),
    ]
    return Look(
        source=_shown(settings.owner_database_url),
        target=_shown(to),
        size_bytes=size,
        writes_wait_s=OVERHEAD_S + size // COPY_BYTES_PER_S,
        facts=facts,
        problems=problems,
    )


_WHICH = "SELECT system_identifier::text || '/' || current_database() FROM pg_control_system()"
_MAJOR = "SELECT current_setting('server_version_num')::int / 10000"


async def _of_servers(source: asyncpg.Connection, target: asyncpg.Connection, to: str) -> list[Finding]:
    here, there = await source.fetchval(_MAJOR), await target.fetchval(_MAJOR)
    found = []
    if there < here:
        found.append(Finding(what=f"PostgreSQL {there} is older than the {here} here", do=f"move to PostgreSQL {here} or newer"))
    if await source.fetchval(_WHICH) == await target.fetchval(_WHICH):
        found.append(Finding(what=f"{_shown(to)} is the database that this installation uses", do="give the address of another one"))
    if await target.fetchval("SELECT pg_is_in_recovery()"):
        found.append(Finding(what=f"{_shown(to)} is a replica", do="give the address of its primary"))
    if (encoding := await target.fetchval("SHOW server_encoding")) != "UTF8":
        found.append(Finding(what=f"its encoding is {encoding}", do="CREATE DATABASE .. ENCODING 'UTF8' TEMPLATE template0"))
    before = time.time()
    now = float(await target.fetchval("SELECT extract(epoch FROM clock_timestamp())"))
    if (off_s := max(0.0, before - now, now - time.time())) > CLOCK_TOLERANCE_S:
        found.append(Finding(what=f"its clock is {off_s:.1f} s off ours", do="run a time service (chrony, systemd-timesyncd) on both"))
    return found


async def _of_source(source: asyncpg.Connection, role: str, name: str) -> list[Finding]:
    if await source.fetchval("SELECT to_regclass('public.alembic_version')") is None:
        return [Finding(what=f"{name} has no schema", do="piggybank migrate")]
    if await source.fetchval("SELECT version_num FROM alembic_version") != revisions.head():
        return [Finding(what=f"the schema of {name} is not this version's", do="piggybank migrate")]
    if await writes.are_stopped(source):
        return [Finding(what=f"{name} takes no writes: it moved elsewhere", do="look at database_url in piggybank.toml")]
    if missing := await writes.missing_right(source, role):
        return [Finding(what=f"the owner's role may not stop writes at {name}", do=f"as an administrator there: {missing}")]
    return []


async def _of_target(source: asyncpg.Connection, target: asyncpg.Connection, to: str) -> list[Finding]:
    """Empty, or an unfinished copy of ours, which takes no writes."""
    if not await target.fetchval("SELECT pg_has_role(datdba, 'USAGE') FROM pg_database WHERE datname = current_database()"):
        return [Finding(what=f"that role does not own {_shown(to)}", do="give the owner's address, or ALTER DATABASE .. OWNER TO .. there")]
    if not await target.fetchval("SELECT has_schema_privilege('public', 'CREATE')"):
        return [Finding(what="that role may not make tables there", do="as an administrator there: GRANT CREATE ON SCHEMA public TO it")]
    if not await copies.tables_of(target):
        return []
    holds_ours = False
    if await writes.are_stopped(target) and await target.fetchval("SELECT to_regclass('public.installation')") is not None:
        this = await source.fetchval("SELECT id FROM installation")
        empty = not await target.fetchval("SELECT EXISTS (SELECT FROM users) OR EXISTS (SELECT FROM accounts)")
        holds_ours = empty or await target.fetchval("SELECT id FROM installation") == this
    if holds_ours:
        return []
    return [
        Finding(
            what=f"{_shown(to)} is not empty", do="give an empty database: CREATE DATABASE piggybank ENCODING 'UTF8' TEMPLATE template0"
        )
    ]


async def _of_role(target: asyncpg.Connection, to: str, application_url: str) -> list[Finding]:
    may_make = await target.fetchval("SELECT rolcreaterole OR rolsuper FROM pg_roles WHERE rolname = current_user")
    if not application_url:
        if may_make:
            return []
        made = f"CREATE ROLE piggybank_app LOGIN PASSWORD '..'; GRANT piggybank_app TO {roles.quoted(roles.role_of(to))} WITH ADMIN OPTION"
        return [
            Finding(what="that role may not make the application's role", do=f"as an administrator there: {made}; then --application-url")
        ]
    try:
        await (await asyncpg.connect(application_url, timeout=writes.CONNECT_TIMEOUT_S)).close()
    except UNREACHABLE as cause:
        return [Finding(what=f"--application-url does not answer: {cause}", do="make that role there, with that password")]
    same_place = [_shown(application_url), roles.role_of(application_url) == roles.role_of(to)] == [_shown(to), False]
    return [] if same_place else [Finding(what="--application-url is another database, or the owner's role", do="give a role of its own")]


# Moving ---------------------------------------------------------------------------------------------------------------


async def _prepare(settings: Settings, to: str, application_url: str, tell: Tell) -> str:
    """Over there: no writes, the application's role, the schema, its shape. Returns the application's address."""
    tell("preparing the schema over there")
    source, target = await writes.open_mover(settings.owner_database_url), await writes.open_mover(to)
    try:
        await writes.stop(target)
        if not application_url:
            application_url = await _make_role(source, target, to)
        role = roles.role_of(application_url)
        await migrate.upgrade(writes.mover_url(to), role)
        with suppress(asyncpg.InsufficientPrivilegeError):  # `piggybank doctor` prints what an administrator has to do
            await roles.limit_role(writes.mover_url(to), role)
        await copies.shape(source, target)
        await (await asyncpg.connect(application_url, timeout=writes.CONNECT_TIMEOUT_S)).close()
        return application_url
    except UNREACHABLE as cause:
        raise errors.CannotProceed(
            what=f"{_shown(to)} could not be prepared: {cause}; nothing was changed here", do="run it again"
        ) from cause
    finally:
        await source.close()
        await target.close()


async def _make_role(source: asyncpg.Connection, target: asyncpg.Connection, to: str) -> str:
    """A role of this installation and this database alone: on that server there may be another piggybank, or a copy of this one, and
    roles are the whole server's. Its password is new each time."""
    which = f"{await source.fetchval('SELECT id FROM installation')}/{await target.fetchval('SELECT current_database()')}"
    mark = hashlib.sha256(which.encode()).hexdigest()[:ROLE_MARK_LETTERS]
    role, password = f"{store_files.APPLICATION_ROLE}_{mark}", secrets.token_hex(PASSWORD_BYTES)
    verb = "ALTER" if await target.fetchval("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", role) else "CREATE"
    await target.execute(f"{verb} ROLE {roles.quoted(role)} LOGIN PASSWORD '{_scram(password)}'")  # servers log statements
    parts = urlsplit(to)
    return parts._replace(netloc=f"{quote(role)}:{password}@{parts.netloc.rpartition('@')[2]}").geturl()


def _scram(password: str) -> str:
    """What PostgreSQL keeps of a password (RFC 5803)."""
    salt = secrets.token_bytes(SALT_BYTES)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, SCRAM_ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${SCRAM_ITERATIONS}:{encoded[0]}${encoded[1]}:{encoded[2]}"


async def _copy(journal: Journal, tell: Tell) -> copies.Copied:
    """Stop writes, copy, compare."""
    source, target = await writes.open_mover(journal.source_owner_url), await writes.open_mover(journal.target_owner_url)
    try:
        tell("stopping writes")
        await writes.stop(source)
        for number in range(LOCK_TRIES):
            await writes.end_sessions(source, journal.source_role)
            try:
                async with copies.locked(source), target.transaction():
                    return await copies.copy(source, target, lambda what, size: tell(f"copying: {what}, {size // 1024**2:,} MiB"))
            except asyncpg.LockNotAvailableError:
                if number + 1 == LOCK_TRIES:
                    raise
        raise AssertionError("unreachable")
    except UNREACHABLE as cause:
        raise errors.CannotProceed(what=f"the copy failed: {cause}; nothing was changed", do="run it again") from cause
    finally:
        source.terminate()  # a COPY that was cut off is not waited for
        target.terminate()


def _switch(data_dir: Path, addresses: dict[str, str], user: SystemUser | None) -> None:
    """The moment that decides."""
    path = (data_dir / settings_file.OPERATOR_FILE).resolve()  # an operator may keep it elsewhere, behind a link
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    write_file(path, settings_file.with_values(text, addresses), shared(user, 0o640), ours(user))


async def _settle(data_dir: Path, journal: Journal, user: SystemUser | None, *, keep: bool = False) -> Settled:
    """Finish after the switch, undo before it; `keep` the journal for who starts again what runs. May be repeated."""
    switched = settings_file.load(data_dir).owner_database_url == journal.target_owner_url
    if switched and journal.embedded:
        store_files.mark_moved(data_dir / "stores", _shown(journal.target_owner_url), user)
    url, role = (journal.target_owner_url, journal.target_role) if switched else (journal.source_owner_url, journal.source_role)
    try:
        connection = await writes.open_mover(url)
    except UNREACHABLE as cause:
        raise errors.CannotProceed(
            what=f"a move is unfinished, and {_shown(url)}, which is to take writes again, does not answer: {cause}",
            do="see that it runs, then: piggybank move --undo",
        ) from cause
    try:
        await writes.allow(connection)
        with suppress(asyncpg.InsufficientPrivilegeError):  # over there: nobody who matters has a session yet
            await writes.end_sessions(connection, role)
    finally:
        await connection.close()
    if not keep:
        (data_dir / JOURNAL).unlink(missing_ok=True)
    return Settled(journal=journal, undone=not switched)


def _save(data_dir: Path, journal: Journal, user: SystemUser | None) -> None:
    write_file(data_dir / JOURNAL, store_files.toml(msgspec.to_builtins(journal)), 0o600, ours(user))


def _load(data_dir: Path) -> Journal | None:
    try:
        handle = system_user.open_file(data_dir / JOURNAL, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with os.fdopen(handle, encoding="utf-8") as file:
        return msgspec.convert(tomllib.loads(file.read()), Journal)


def _shown(url: str) -> str:
    """An address without its login: host:port/name."""
    parts = urlsplit(url)
    with suppress(ValueError):
        return f"{parts.hostname}:{parts.port or 5432}/{unquote(parts.path.lstrip('/'))}"
    return "the address"
