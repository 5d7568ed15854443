"""End a recovery: learn from the provider what happened since the restore point, and only then let writes and payouts go on."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import asyncpg
import msgspec
from msgspec import Struct

from piggybank import checks, errors
from piggybank.appliance.backups import manifests, targets
from piggybank.appliance.backups.manifests import Owner
from piggybank.cache import Cache
from piggybank.db import installation, partitions, recovery, roles, writes
from piggybank.db.engines import Database
from piggybank.db.locks import Alone
from piggybank.db.recovery import Lineage, Restore
from piggybank.ledger import Ledger
from piggybank.settings import Settings
from piggybank.wallet import recovery as learning
from piggybank.wallet.provider import Provider
from piggybank.wallet.recovery import Found

Tell = Callable[[str], None]


class Finished(Struct, frozen=True, kw_only=True):
    """What was learnt; `found` is None where no payment ever went through a provider. `warnings` are for people."""

    restore: Restore
    found: Found | None
    warnings: list[str] = []


async def finish(settings: Settings, tell: Tell, *, accept_unexplained: bool = False, old_copy: bool = False) -> Finished | None:
    """None: it is not in recovery. May be repeated, also after it was cut off.

    Raises `errors.CannotProceed` where something must be settled first: then it stays in recovery.
    """
    connection = await writes.open_mover(settings.owner_database_url)
    try:
        if not await recovery.is_recovering(connection):
            return None
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", Alone.FINISH):
            raise errors.AlreadyRunning(data_dir=str(settings.data_dir), what="restore finish")
        restore = await recovery.current(connection)
        assert restore is not None
        if restore.backup_id == recovery.SUPERSEDED and not old_copy:
            raise errors.CannotProceed(
                what="this is the old copy: another one was restored and finished, and has what was written since",
                do="stop it for good: piggybank down. Only where the other one shall go instead: stop that, then finish --old-copy here",
            )
        async with _provider(settings) as (db, provider):
            if provider is not None:
                await learning.check_answers(provider)  # else the old copy would stand down, and this one stay closed
            # Not later than this: what the old copy still pays out is learnt only where it stands down before we ask.
            warnings = await asyncio.to_thread(_take_over, settings, await recovery.lineage(connection), restore, tell)
            await partitions.ensure(writes.mover_url(settings.owner_database_url), tell=tell)  # the job cannot while nobody may write
            found = None if provider is None else await _learn(settings, db, provider, restore, tell)
        if found is not None and not accept_unexplained:
            _check_explained(found)
        tell("verifying every balance")
        await _verify(settings.owner_database_url)
        report = msgspec.json.encode(found)
        await recovery.end(settings.owner_database_url, roles.role_of(settings.database_url), report)
        return Finished(restore=restore, found=found, warnings=warnings)
    finally:
        await connection.close()


def _take_over(settings: Settings, lineage: Lineage, restore: Restore, tell: Tell) -> list[str]:
    """The backup target is this copy's from now on: one that still runs elsewhere, or comes back, notices that and stands down.

    A target that is away keeps nobody from finishing: it may have gone with the rest.
    """
    if not settings.backup_target:
        return ["no backup_target is set: an old installation that still runs is not told. See that it does not: two copies would pay"]
    tell("taking over the backup target")
    try:
        with targets.opened(settings) as target:
            found = manifests.owner(target)
            if found is not None and found.installation != lineage.installation:
                return [f"{target.shown} is another installation's: set a backup_target of its own"]
            manifests.take_over(target, Owner(installation=lineage.installation, restore=str(restore.id), since=restore.point))
    except (errors.CannotProceed, OSError) as cause:
        why = cause.details["what"] if isinstance(cause, errors.Error) else cause
        return [f"{why}. So an old installation that still runs is not told: see that it does not, two copies would pay"]
    return []


def _check_explained(found: Found) -> None:
    """Raises `errors.CannotProceed` while a payout of the lost time may exist that nobody can name."""
    if found.unexplained:
        raise errors.CannotProceed(
            what=f"the provider is still paying out {_sums(found.unexplained)} that this database knows nothing of:"
            " payouts of the time that was lost",
            do="wait until they have ended there, then again; --accept-unexplained where they are somebody else's",
        )
    if found.missing:
        raise errors.CannotProceed(
            what=f"the provider owes us {_sums(found.missing)} less than our book and its statement come to:"
            " payouts of the time that was lost may not be in the statement yet",
            do="wait until its statement has them, then again; --accept-unexplained where the difference is older than the restore point",
        )


def _sums(amounts: dict[str, int]) -> str:
    return ", ".join(f"{amount} {currency}" for currency, amount in amounts.items())


@asynccontextmanager
async def _provider(settings: Settings) -> AsyncIterator[tuple[Database, Provider | None]]:
    """None where no payment ever went through one."""
    # with the application's rights, direct: a pooler passes on no setting of a session
    db = Database(writes.mover_url(settings.database_url), waits_for=settings.waits_for)
    provider = Provider(settings, db)
    try:
        is_asked = await learning.is_used(db) or await _is_configured(provider)
        yield db, provider if is_asked else None
    finally:
        await provider.close()
        await db.close()


async def _learn(settings: Settings, db: Database, provider: Provider, restore: Restore, tell: Tell) -> Found:
    async with _ledger(settings, db) as ledger:
        return await learning.learn(db, ledger, provider, restore.point, tell)


async def _is_configured(provider: Provider) -> bool:
    try:
        await provider.check()
    except errors.ProviderNotConfigured:
        return False
    return True


@asynccontextmanager
async def _ledger(settings: Settings, db: Database) -> AsyncIterator[Ledger]:
    cache = Cache.of(settings)
    async with db.read() as read:
        epoch, closed, _ = await installation.epoch(read)
        cache.know(epoch, closed=closed)
    ledger = Ledger(db, cache)
    await ledger.start()
    try:
        yield ledger
    finally:
        await ledger.stop()
        await cache.close()


async def _verify(owner_url: str) -> None:
    async for progress in checks.verify(owner_url):
        if progress.findings:
            one = progress.findings[0]
            raise errors.CannotProceed(
                what=f"account {one.account_id}: {one.what}: stored {one.stored}, derived {one.derived}",
                do="piggybank verify --json shows all; restore another backup, or an earlier moment (--at)",
            )


def run(settings: Settings, tell: Tell, *, accept_unexplained: bool, old_copy: bool = False) -> Finished | None:
    """For the command line. Raises `errors.CannotProceed`."""
    try:
        return asyncio.run(finish(settings, tell, accept_unexplained=accept_unexplained, old_copy=old_copy))
    except errors.ProviderNotConfigured as cause:
        missing = ", ".join(name.removeprefix("PIGGYBANK_").lower() for name in cause.details.get("missing", ()))
        raise errors.CannotProceed(
            what=f"nobody can be asked what was paid since: the provider needs {missing or 'its settings'}",
            do="put it into piggybank.toml, restart (piggybank down; up --detach), then again",
        ) from cause
    except errors.ProviderUnavailable as cause:
        what = f"the provider does not answer: {cause.details.get('reason', 'no connection')}"
        raise errors.CannotProceed(what=what, do="piggybank provider status; then again: nothing was decided without it") from cause
    except (OSError, TimeoutError, errors.DatabaseUnavailable, asyncpg.PostgresError, asyncpg.InterfaceError) as cause:
        raise errors.CannotProceed(what=f"the database does not answer: {cause}", do="piggybank up --detach, then again") from cause
