"""What every restore ends with, wherever it went: the database opens in recovery (db/recovery.py), and holds what its manifest says."""

from collections.abc import Callable
from datetime import UTC, datetime

from msgspec import Struct

from piggybank import __version__, checks, errors
from piggybank.appliance import stops
from piggybank.appliance.backups import wal
from piggybank.appliance.backups.making import facts, months_of
from piggybank.appliance.backups.manifests import Facts, Manifest
from piggybank.appliance.backups.months import Month
from piggybank.appliance.backups.targets import Target
from piggybank.db import migrate, recovery, revisions, writes

APPEND_ONLY = ("transactions", "effects", "system_entries")  # of a base backup: at least the rows that it had

Tell = Callable[[str], None]


class Restored(Struct, frozen=True, kw_only=True):
    """What was restored, and what was found in it."""

    backup_id: str
    place: str
    point: datetime  # up to there it knows everything
    phase: int = 0  # that the backup was made in
    accounts: int
    transactions: int
    secrets: bool
    left_out: list[str] = []  # settings that lead to the databases of the old installation
    missing_months: list[str] = []  # archived, and neither here nor at the target
    kept: str = ""  # what was here before: its folder, or the name that its database has now


def check_possible(manifest: Manifest, at: datetime | None, target: Target) -> None:
    """Raises `errors.CannotProceed` where this version, or that moment, is none for this backup."""
    if manifest.facts.schema_revision > revisions.head():
        what = f"{manifest.id} was made by piggybank {manifest.version}, whose schema {manifest.facts.schema_revision} is newer than ours"
        raise errors.CannotProceed(what=what, do=f"restore it with piggybank {manifest.version} or newer")
    stops.check(manifest.version, __version__, stops.table())
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


async def open_in_recovery(owner_url: str, role: str, manifest: Manifest, point: datetime, tell: Tell) -> Restored:
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
    return Restored(
        backup_id=manifest.id, place="", point=point, phase=manifest.phase, accounts=accounts, transactions=transactions, secrets=False
    )


async def archived_months(owner_url: str) -> list[Month]:
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
