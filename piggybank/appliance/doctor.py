"""`piggybank doctor`: what is wrong, and what to do. Looks only, and each check stands alone: one that fails hides no other."""

import platform
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import asyncpg
import psutil

from piggybank import errors, ids
from piggybank import settings as settings_file
from piggybank.appliance import folder, logs, overview, store_files, valkeys, web
from piggybank.appliance.backups import health
from piggybank.appliance.check import Check, Result
from piggybank.capacity import connections, phases
from piggybank.capacity.connections import Processes
from piggybank.db import installation, partitions, recovery, revisions, roles, standbys, writes
from piggybank.db.storage import RESERVE_MIB, Storage
from piggybank.settings import ProviderMode, Settings

CONNECT_TIMEOUT_S = 5.0
CLOCK_TOLERANCE_S = 1.0  # a web process further off is not ready
DISK_LEAST_BYTES = 1024**3
DISK_FEW_BYTES = 5 * 1024**3
MEMORY_FEW_MIB = 900
CRASHES_SECONDS = 24 * 3_600
RECONCILED_WITHIN_DAYS = 2
SECRET_FILES = (
    settings_file.STORES_FILE,
    settings_file.OPERATOR_FILE,
    "stores/secrets.toml",
    "stores/cache/valkey.conf",
    "stores/queue/valkey.conf",
    "stores/pooler/userlist.txt",
)
DURABLE = {"fsync": "on", "synchronous_commit": ("on", "remote_write", "remote_apply"), "full_page_writes": "on", "data_checksums": "on"}


class _Databases(NamedTuple):
    application: asyncpg.Connection
    settings: Settings


async def examine(settings: Settings) -> list[Check]:
    """All checks, the machine first."""
    mode = await installation.stored_mode(settings.database_url) if settings.database_url else None
    local = [_python(), _disk(settings), _memory(), _secrets(settings), _crashes(settings), _supervisor(settings, mode), _port(settings)]
    return [*local, *await _database(settings), *await valkeys.examine(settings)]


async def examine_stores(settings: Settings) -> list[Check]:
    """What a web process can look at wherever it runs: the stores, and the disk and memory beside it."""
    return [_disk(settings), _memory(), *await _database(settings), *await valkeys.examine(settings)]


def worst(found: list[Check]) -> Result:
    """The result of the whole."""
    results = {check.result for check in found}
    return "broken" if "broken" in results else "warning" if "warning" in results else "ok"


def _python() -> Check:
    version = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return (
        Check("python", "ok", version)
        if sys.version_info >= (3, 11)
        else Check("python", "broken", version, "install Python 3.11 or newer")
    )


def _disk(settings: Settings) -> Check:
    place = next(path for path in (settings.data_dir, *settings.data_dir.parents) if path.exists())
    free = shutil.disk_usage(place).free
    found = f"{free / 1024**3:.1f} GiB free in {place}"
    if Storage.of(settings).free_mib < RESERVE_MIB:
        return Check("disk", "broken", found, f"make room now: below {RESERVE_MIB} MiB writes answer 503 storage_full, reads go on")
    if free < DISK_LEAST_BYTES:
        return Check("disk", "broken", found, f"make room now: below {RESERVE_MIB} MiB writes are refused")
    return Check("disk", "warning", found, "make room soon") if free < DISK_FEW_BYTES else Check("disk", "ok", found)


def _memory() -> Check:
    total, available = store_files.memory_mib(), psutil.virtual_memory().available // store_files.MIB
    found = f"{total:,} MiB, {available:,} MiB available"
    return (
        Check("memory", "warning", found, "1 GiB is the least for all on one machine")
        if total < MEMORY_FEW_MIB
        else Check("memory", "ok", found)
    )


def _secrets(settings: Settings) -> Check:
    readable = [name for name in SECRET_FILES if (path := settings.data_dir / name).exists() and path.stat().st_mode & 0o007]
    if settings.tls_key and Path(settings.tls_key).stat().st_mode & 0o007:
        readable.append(settings.tls_key)
    if readable:
        return Check("secrets", "broken", f"everybody may read {', '.join(readable)}", f"chmod o-rwx {' '.join(readable)}")
    return Check("secrets", "ok", "files with passwords are closed to others")


def _crashes(settings: Settings) -> Check:
    crashes = logs.crashes_since(settings.data_dir / "logs", CRASHES_SECONDS)
    if not crashes:
        return Check("crashes", "ok", "none in 24 hours")
    names = ", ".join(sorted({str(crash["name"]) for crash in crashes}))
    do = f"look at the end of {settings.data_dir}/logs/<name>.log; -9 without a reason in it is often the system out of memory (dmesg)"
    return Check("crashes", "warning", f"{len(crashes)} in 24 hours: {names}; the last at {crashes[-1]['at']}", do)


def _supervisor(settings: Settings, mode: ProviderMode | None) -> Check:
    if (platform_name := settings_file.orchestrator(settings.data_dir)) is not None:
        return Check("supervisor", "ok", f"{platform_name} starts and stops the processes")
    card = folder.read_card(settings.data_dir)
    if card is None:
        return Check("supervisor", "warning", "nothing supervises this folder", "piggybank up --detach")
    live = overview.processes_of(settings)
    missing = set(web.names(settings, mode)) - {process.name for process in live}
    if missing:
        return Check("supervisor", "broken", f"not running: {', '.join(sorted(missing))}", f"look into {settings.data_dir}/logs")
    if any(process.name.startswith("web-") and _is_root(process.pid) for process in live):
        return Check(
            "supervisor", "warning", "the web runs as root: the system user cannot read the program", "install it with installer/install.sh"
        )
    return Check("supervisor", "ok", f"pid {card.pid}, {card.state} since {card.since}")


def _is_root(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).uids().real == 0)
    except psutil.Error:
        return False


def _port(settings: Settings) -> Check:
    if settings_file.orchestrator(settings.data_dir) is not None:
        where = settings.own_address
        if overview.is_ready(settings):
            return Check("web", "ok", f"{where} is ready")
        return Check("web", "broken", f"{where} is not ready", "look at the web containers and their log")
    if any(process.name.startswith("web-") for process in overview.processes_of(settings)):
        card = folder.read_card(settings.data_dir)
        url, ready = card.url if card else settings.url, overview.is_ready(settings)
        return Check("web", "ok", f"{url} is ready") if ready else Check("web", "broken", f"{url} is not ready", f"curl {url}/health/ready")
    try:
        web.check_port(settings)
    except errors.CannotProceed as error:
        return Check("web", "broken", error.details["what"], error.details["do"])
    except OSError as error:
        return Check("web", "broken", str(error), "choose another address to listen on")
    return Check("web", "warning", f"does not run; {settings.listen}:{settings.port} is free", "piggybank up --detach")


async def _database(settings: Settings) -> list[Check]:
    if not settings.database_url:
        return [Check("database", "broken", "no address", "start the embedded stores: piggybank up --detach")]
    try:
        application = await asyncpg.connect(settings.database_url, timeout=CONNECT_TIMEOUT_S)
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        return [Check("database", "broken", f"does not answer: {error}", "piggybank status; then the log postgres.log, or your own server")]
    inside = _Databases(application, settings)
    try:
        checks: list[tuple[str, Callable[[_Databases], Awaitable[Check]]]] = [
            ("durability", _durability),
            ("standbys", _standbys),
            ("schema", _schema),
            ("rights", _rights),
            ("caching", _caching),
            ("writes", _writes),
            ("timeouts", _timeouts),
            ("clock", _clock),
            ("connections", _connections),
            ("partitions", _partitions),
            ("provider", _provider),
            ("provider events", _provider_events),
            ("payments", _payments),
            ("reconciliation", _reconciliation),
            ("backups", _backups),
        ]
        found = [Check("database", "ok", await application.fetchval("SELECT version()"))]
        for name, check in checks:
            try:
                found.append(await check(inside))
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                found.append(Check(name, "broken", f"could not be looked at: {error}", "piggybank migrate, then again"))
        return found
    finally:
        await application.close()


async def _durability(databases: _Databases) -> Check:
    rows = await databases.application.fetch("SELECT name, setting FROM pg_settings WHERE name = ANY($1)", list(DURABLE))
    off = [f"{row['name']} = {row['setting']}" for row in rows if row["setting"] not in DURABLE[row["name"]]]
    if off:
        broken = any(not text.startswith("data_checksums") for text in off)
        do = "ALTER SYSTEM RESET <name>; SELECT pg_reload_conf(); without them an answered deposit may be lost"
        return Check(
            "durability",
            "broken" if broken else "warning",
            ", ".join(off),
            do if broken else "pg_checksums --enable on the stopped cluster",
        )
    return Check("durability", "ok", "fsync, synchronous_commit, full_page_writes and checksums are on")


async def _standbys(databases: _Databases) -> Check:
    """Whether commits have whom to wait for."""
    settings, role = databases.settings, roles.role_of(databases.settings.database_url)
    if settings.waits_for == "disk":
        return Check("standbys", "ok", f"phase {settings.phase} has none")
    if settings.waits_for == "local":
        do = "with a replica that streams: remove durability, or set it to synchronous"
        return Check("standbys", "warning", "durability = local: a lost primary may lose answered writes", do)
    count = await databases.application.fetchval(standbys.CONFIRMING)
    if count is None:
        what = f"the role {role} may not see the replicas: every write is refused"
        return Check("standbys", "broken", what, f"as a superuser: GRANT {roles.SEES_STANDBYS} TO {role}")
    if count == 0:
        do = "look whether the replicas run and synchronous_standby_names names them; durability = local writes without them, at a risk"
        return Check("standbys", "broken", "no replica confirms commits: every write is refused", do)
    return Check("standbys", "ok", f"{count} may confirm a commit")


async def _schema(databases: _Databases) -> Check:
    revision, head = await revisions.current(databases.settings.database_url), revisions.head()
    if revision == head:
        return Check("schema", "ok", f"at {head}")
    if revision is not None and not revisions.is_known(revision):
        return Check("schema", "warning", f"at {revision}, which a newer version brought; this one knows {head}", "piggybank upgrade")
    return Check("schema", "broken", f"at {revision or 'nothing'}, this version knows {head}", "piggybank migrate")


async def _rights(databases: _Databases) -> Check:
    row = await databases.application.fetchrow(
        """
        SELECT current_user AS role,
               has_table_privilege('transactions', 'UPDATE') OR has_table_privilege('transactions', 'DELETE')
                   OR has_table_privilege('transactions', 'TRUNCATE') AS may_change,
               (SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user) AS mighty
        """
    )
    if row["may_change"] or row["mighty"]:
        what = f"the role {row['role']} may change posted rows" if row["may_change"] else f"the role {row['role']} is an administrator"
        return Check("rights", "broken", what, "give the application a role of its own in database_url, then: piggybank migrate")
    return Check("rights", "ok", f"the role {row['role']} cannot change posted rows")


async def _caching(databases: _Databases) -> Check:
    if installation.epoch_of(await databases.application.fetchval("SELECT epoch FROM installation")).closed:
        what = "the cache is not read: not every process has the same cache_url, or a change of the phase was cut short"
        return Check("caching", "warning", what, "piggybank phase apply, with the phase that piggybank phase show names")
    return Check("caching", "ok", "the cache is read")


async def _timeouts(databases: _Databases) -> Check:
    role = roles.role_of(databases.settings.database_url)
    kept = await databases.application.fetchval("SELECT coalesce(rolconfig, '{}') FROM pg_roles WHERE rolname = $1", role)
    have = {name.lower(): value for name, _, value in (entry.partition("=") for entry in kept)}  # PostgreSQL writes TimeZone
    missing = {name: value for name, value in roles.ROLE_SETTINGS.items() if have.get(name) != value}
    if missing:
        do = "; ".join(f"ALTER ROLE {role} SET {name} = '{value}'" for name, value in missing.items())
        return Check("timeouts", "warning", f"not set on the role {role}: {', '.join(missing)}", f"as a superuser: {do}")
    return Check("timeouts", "ok", f"lock, statement and idle timeouts are on the role {role}")


async def _partitions(databases: _Databases) -> Check:
    known = await partitions.known(databases.application)
    if missing := await partitions.missing(databases.application, datetime.now(UTC)):
        names = ", ".join(f"{month:%Y-%m}" for month in missing)
        do = "piggybank partitions ensure; the worker does it each hour where it has owner_database_url"
        return Check("partitions", "broken", f"none takes rows of {names}: they would be refused", do)
    if stuck := [partition.name for partition in known if partition.state == "detaching"]:
        return Check("partitions", "warning", f"{', '.join(stuck)} is half detached", "run again: piggybank partitions archive MONTH")
    if not partitions.are_on(known):
        return Check("partitions", "ok", "months are off: one partition takes everything")
    return Check("partitions", "ok", f"months are made up to {max(one.month for one in known if one.month):%Y-%m}")


async def _writes(databases: _Databases) -> Check:
    restore = await recovery.current(databases.application) if await recovery.is_recovering(databases.application) else None
    if restore is not None and restore.backup_id == recovery.SUPERSEDED:
        what = f"another copy of this installation was restored and finished, and goes on since {restore.restored_at:%Y-%m-%dT%H:%M:%SZ}"
        return Check("writes", "broken", f"{what}: this is the old one", "stop it for good: piggybank down")
    if restore is not None:
        do = "piggybank restore finish: it asks the provider what happened since, and only then allows writes and payouts"
        return Check("writes", "broken", "in recovery: restored from a backup, and only read until that is finished", do)
    if await writes.are_stopped(databases.application):
        do = "piggybank move --undo; unless a move runs just now, or the database moved: then look where database_url leads"
        return Check("writes", "broken", "this database takes no writes: it moved elsewhere, or a move is unfinished", do)
    return Check("writes", "ok", "the database takes writes")


async def _clock(databases: _Databases) -> Check:
    before = time.time()
    theirs = float(await databases.application.fetchval("SELECT extract(epoch FROM clock_timestamp())"))
    off_s = max(0.0, before - theirs, theirs - time.time())
    if off_s > CLOCK_TOLERANCE_S:
        return Check(
            "clock", "broken", f"{off_s:.1f} s off the database's", "run a time service (chrony, systemd-timesyncd) on both machines"
        )
    return Check("clock", "ok", f"within {off_s:.3f} s of the database's")


async def _connections(databases: _Databases) -> Check:
    settings = databases.settings
    phase, processes = phases.of(settings.phase), _most_processes(settings)
    max_connections = int(await databases.application.fetchval("SELECT current_setting('max_connections')"))
    pooled = settings.pooling != "none"
    short = connections.shortages(phase, processes, max_connections=max_connections, pooled=pooled)
    if short:
        return Check("connections", "warning", "; ".join(each.what for each in short), "; ".join(each.do for each in short))
    needed = connections.needed(phase, processes)
    taken = f"the pooler takes {connections.pooler(phase)[0]}" if pooled else f"PostgreSQL takes {max_connections}"
    return Check("connections", "ok", f"at most {needed} in the middle of a rollout; {taken}")


def _most_processes(settings: Settings) -> Processes:
    """Those that a supervisor starts here; elsewhere nobody here knows, and the phase's most count."""
    supervised = folder.read_card(settings.data_dir) is not None
    most = Processes(settings.web_processes, web.worker_count(settings), settings.pool_connections)
    phase = phases.of(settings.phase)
    return most if supervised else most._replace(web=max(most.web, phase.web_max), worker=max(most.worker, phase.worker_max))


async def _provider(databases: _Databases) -> Check:
    """Looks at the settings, asks nobody: `piggybank provider status` does."""
    mode: ProviderMode = await databases.application.fetchval("SELECT provider_mode FROM installation")
    settings = databases.settings
    if mode == "simulator":
        if settings.revio_key:
            do = "for real money: piggybank provider mode live; else remove the key"
            return Check("provider", "warning", "a Revio key is set, and payments go to the SIMULATOR", do)
        return Check("provider", "ok", "SIMULATOR: no real money moves")
    missing = [name for name in ("revio_key", "revio_brand_id") if not getattr(settings, name)]
    if missing:
        do = f"set {', '.join(missing)} in {settings_file.OPERATOR_FILE}, then: piggybank provider connect"
        return Check("provider", "broken", f"live, without {', '.join(missing)}: payments through the provider are refused", do)
    known = await databases.application.fetchval("SELECT count(*) FROM provider_keys WHERE provider = 'live'")
    if not known and not settings.revio_webhook_keys:
        return Check("provider", "broken", "live, and no key that events are signed with is known", "piggybank provider connect")
    return Check("provider", "ok", "live")


async def _provider_events(databases: _Databases) -> Check:
    row = await databases.application.fetchrow(
        """
        SELECT count(*) FILTER (WHERE status = 'unmatched') AS unmatched,
               count(*) FILTER (WHERE status = 'new' AND updated_at < now() - interval '10 minutes') AS stuck
        FROM (SELECT status, updated_at FROM provider_events WHERE due_at IS NOT NULL OR status = 'unmatched' LIMIT 10000) AS waiting
        """
    )
    found = f"{row['stuck']} not applied for 10 minutes, {row['unmatched']} that name nothing of ours"
    if row["stuck"] or row["unmatched"]:
        return Check("provider events", "warning", found, "GET /v1/ops/provider-events?status=unmatched tells why; replay them there")
    return Check("provider events", "ok", found)


async def _payments(databases: _Databases) -> Check:
    unknown = await databases.application.fetchval("SELECT count(*) FROM payments WHERE status = 'unknown'")
    if unknown:
        do = "ask the provider, then two operators: POST /v1/ops/payments/{id}/resolve"
        return Check("payments", "warning", f"{unknown} of which nobody knows whether they happened", do)
    return Check("payments", "ok", "none is unknown")


async def _backups(databases: _Databases) -> Check:
    return await health.of_database(databases.application, databases.settings)


async def _reconciliation(databases: _Databases) -> Check:
    row = await databases.application.fetchrow(
        """
        SELECT (SELECT max(until) FROM reconciliations WHERE status = 'finished') AS until,
               (SELECT id FROM payments WHERE method = 'revio' ORDER BY id LIMIT 1) AS first,
               (SELECT status FROM reconciliations ORDER BY id DESC LIMIT 1) AS last, now() AS now
        """
    )
    since = row["until"] or (ids.time_of(row["first"]) if row["first"] else row["now"])
    days = (row["now"] - since).days
    if days >= RECONCILED_WITHIN_DAYS:
        do = "piggybank provider status; then piggybank provider reconcile --day, or wait for the night"
        return Check(
            "reconciliation", "warning", f"not compared with the provider for {days} days; the last one {row['last'] or 'never'}", do
        )
    return Check("reconciliation", "ok", f"compared until {row['until']:%Y-%m-%d}" if row["until"] else "nothing to compare yet")
