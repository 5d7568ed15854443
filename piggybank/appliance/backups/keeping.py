"""Which backups stay: the newest ones, up to a number and an age; never without the newest that is good."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from piggybank.appliance.backups import manifests, timelines, wal
from piggybank.appliance.backups.manifests import MANIFEST, Manifest
from piggybank.appliance.backups.targets import Target

CUT_SHORT_AFTER = timedelta(days=1)  # what has no manifest by then never gets one


def beyond(found: Sequence[Manifest], keep: int, keep_days: int, now: datetime) -> list[Manifest]:
    """Those that go, of all, the newest first."""
    oldest = now - timedelta(days=keep_days)
    return [manifest for number, manifest in enumerate(found) if number and (number >= keep or manifest.taken_at < oldest)]


def prune(target: Target, keep: int, keep_days: int, now: datetime) -> list[str]:
    """Delete what is beyond, what was cut short, and the log that nobody needs any more; returns the ids that went."""
    found = manifests.listed(target)
    gone = [manifest.id for manifest in beyond(found, keep, keep_days, now)]
    kept = [manifest for manifest in found if manifest.id not in gone]
    names = target.names("backups")
    whole = {name.split("/")[1] for name in names if name.endswith(f"/{MANIFEST}")}  # one that cannot be read is for people to look at
    cut_short = {backup_id for name in names if (backup_id := name.split("/")[1]) not in whole and _is_old(backup_id, now)}
    # the manifest goes first: half a backup is none
    for name in sorted(names, key=lambda name: not name.endswith(f"/{MANIFEST}")):
        if name.split("/")[1] in {*gone, *cut_short}:
            target.delete(name)
    bases = [manifest for manifest in kept if manifest.kind == "base"]
    first = {base.system: min((one.first_wal for one in bases if one.system == base.system), key=timelines.number) for base in bases}
    log = target.names(wal.FOLDER)
    needed = {name for system, first_wal in first.items() for name in wal.needed(log, first_wal) if name.startswith(wal.folder_of(system))}
    for name in sorted(set(log) - needed):  # where there is no base backup left the log is good for nothing
        target.delete(name)
    return gone


def _is_old(backup_id: str, now: datetime) -> bool:
    try:
        started = datetime.strptime(backup_id[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=now.tzinfo)
    except ValueError:  # not ours
        return False
    return now - started > CUT_SHORT_AFTER
