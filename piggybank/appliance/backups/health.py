"""How backups stand, for `doctor` and `status`: looks at the database's tables and at this machine, asks no target."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import msgspec

from piggybank.appliance import folder, reboot
from piggybank.appliance.backups import making, wal
from piggybank.appliance.backups.targets import Folder, is_local
from piggybank.appliance.check import Check
from piggybank.db import backups
from piggybank.db.backups import Standing
from piggybank.settings import Settings

LATE_FACTOR = 2  # a backup that is missing so many times its rhythm
WAL_LATE = timedelta(minutes=10)  # with a target that takes it, the log is there within one
DRILL_LATE_DAYS = 7  # beyond its rhythm


async def of_database(connection: asyncpg.Connection, settings: Settings) -> Check:
    """Whether there is a backup that can be trusted: the first thing that is wrong."""
    found, now = await backups.standing(connection), datetime.now(UTC)
    check = _first(found, settings, now)
    if making.usual_kind(settings) == "base" or found.backup_at is None or not settings.backup_target:
        return check
    return check._replace(found=f"{check.found}; {_loss(found, settings, now)}")


def _first(found: Standing, settings: Settings, now: datetime) -> Check:
    if (wrong := next(_wrong(found, settings, now), None)) is not None:
        return wrong
    if found.lost_payments:
        what = f"{found.lost_payments} payments of the time that a restore lost were not asked for again"
        return Check("backups", "warning", what, "piggybank restore lost")
    drilled = f"restored in a drill {_ago(now - found.drill_at)} ago" if found.drill_at else "no drill yet"
    return Check("backups", "ok", f"{found.backup_id}, {drilled}")


def _loss(found: Standing, settings: Settings, now: datetime) -> str:
    """Where there is no log between: what a restore cannot bring back."""
    since = f"{found.backup_id} is {_ago(now - found.backup_at)} old" if found.backup_at is not None else ""
    most = f"at most {settings.backup_every_h} h and a dump's own time" if settings.backup_every_h else "and none is made by itself"
    return f"dumps without a log: a restore lacks what came after the last ({since}), {most}"


def _wrong(found: Standing, settings: Settings, now: datetime) -> Iterator[Check]:
    if not settings.backup_target:
        do = "set backup_target to a folder on another disk, ssh://.. or s3://..; then piggybank backup key, piggybank backup create"
        yield Check("backups", "warning", "none are made: whoever loses this disk loses everything", do)
        return
    card = folder.read_card(settings.data_dir)
    if card is not None and is_local(settings.backup_target) and is_read_only_for(card.pid, settings.backup_target):
        do = (
            f"run the installer again; or: systemctl edit {reboot.unit_name(settings.data_dir)}, two lines: [Service] and "
            f'ReadWritePaths="{settings.backup_target}"; then systemctl restart it'
        )
        yield Check("backups", "broken", f"the service may not write into {settings.backup_target}: its unit does not name it", do)
    if found.backup_at is None:
        yield Check("backups", "warning", f"none was made yet in {settings.backup_target}", "piggybank backup create")
        return
    if found.drill_passed is False:
        do = "piggybank backup create; piggybank backup drill"
        yield Check("backups", "broken", f"the last restore drill failed: {found.drill_said}", do)
    age, every = now - found.backup_at, timedelta(hours=settings.backup_every_h)
    if every and age > LATE_FACTOR * every:
        yield Check("backups", "broken", f"the last one is {_ago(age)} old", "piggybank backup create says why")
    if hole := wal.noted_hole(settings.data_dir):
        do = "see that the target answers: `up` makes a base backup then; or at once: piggybank backup create"
        yield Check("backups", "broken", f"later moments cannot be restored: {hole}", do)
    yield from _log_is_late(settings, now)
    if is_on_the_same_disk(settings):
        do = "set backup_target to a folder on another disk, ssh://.. or s3://.."
        yield Check("backups", "warning", f"{settings.backup_target} is on the same disk as the data: one loss takes both", do)
    if not settings.backup_recipient:
        do = "piggybank backup key, and keep what it shows"
        yield Check("backups", "warning", f"{found.backup_id} has no settings and no key files in it", do)
    rhythm = timedelta(days=settings.backup_drill_days + DRILL_LATE_DAYS)
    if settings.backup_drill_days and now - (found.drill_at or found.backup_at) > rhythm:
        yield Check("backups", "warning", "nobody has restored one for too long", "piggybank backup drill")


def _log_is_late(settings: Settings, now: datetime) -> Iterator[Check]:
    """Of a data folder's own database: how much would be lost with this disk."""
    if making.usual_kind(settings) != "base":
        return
    waiting = wal.waiting(settings.data_dir)
    oldest = min((datetime.fromtimestamp(path.stat().st_mtime, UTC) for path in waiting), default=now)
    if now - oldest > WAL_LATE:
        size = sum(path.stat().st_size for path in waiting) / 1024**2
        what = f"{len(waiting)} segments of the log wait since {_ago(now - oldest)} ({size:,.0f} MiB of this disk)"
        do = f"see that {settings.backup_target} takes them; logs/supervisor.log says why it does not"
        yield Check("backups", "broken", what, do)


def is_read_only_for(pid: int, place: str) -> bool:
    """Of a process in mounts of its own, as systemd gives them; False where nobody may look."""
    with suppress(OSError):
        return bool(os.statvfs(f"/proc/{pid}/root{place}").f_flag & os.ST_RDONLY)
    return False


def is_on_the_same_disk(settings: Settings) -> bool:
    """Where whoever loses the data loses the backups, too."""
    return is_local(settings.backup_target) and making.is_same_disk(settings, Folder(Path(settings.backup_target)))


async def standing(connection: asyncpg.Connection, settings: Settings) -> Mapping[str, Any]:
    """For `status`."""
    found = await backups.standing(connection)
    said: dict[str, Any] = msgspec.to_builtins(found)
    return said | {
        "target": settings.backup_target or None,
        "same_disk": is_on_the_same_disk(settings),
    }


def _ago(age: timedelta) -> str:
    minutes = int(age.total_seconds() // 60)
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 48 * 60 else f"{minutes // 60 // 24} days"
