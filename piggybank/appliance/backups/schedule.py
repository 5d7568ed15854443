"""Backups by themselves: the log as it comes, a whole one each day, a drill each month. A thread of the supervisor, or a container.

What fails is said once, is tried again, and stops nothing else; how long ago the last good one was stands in the database, where alerts
look. The settings are read anew each time: a failover and new passwords change where the database is. While it is in recovery nothing is
taken to the target: it may be one of two that call themselves the same. Where another copy has taken the target over (`restore finish`),
this one is the old one: it stands down, so that no two pay.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import asyncpg
import structlog

from piggybank import errors
from piggybank.appliance import topology
from piggybank.appliance.backups import courses, drills, keeping, making, manifests, months, targets, wal
from piggybank.appliance.backups.targets import Target
from piggybank.db import backups, recovery, roles
from piggybank.db.backups import Standing
from piggybank.settings import Settings

LOOK_EVERY_S = 5.0
AGAIN_AFTER_S = 15.0  # a target that failed, a database that is failed over: with what a segment waits, less than a minute
AGAIN_WHOLE_AFTER = timedelta(minutes=30)  # a whole backup that failed, or a drill that could not begin
CHECK_COPY_EVERY = timedelta(seconds=30)
DRILL_AGAIN_AFTER = timedelta(days=1)  # one that did not pass
TROUBLE = (errors.Error, OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)

T = TypeVar("T")

_log = structlog.get_logger()


class Schedule:
    """Of one installation: two loops, so that the log goes on while a backup is made. `settings` answers as they are now."""

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._data_dir = settings().data_dir
        self.stopping = threading.Event()
        self._failing: dict[str, str] = {}
        self._hole = ""  # why the newest base backup cannot be brought to the end of the log

    def start(self) -> list[threading.Thread]:
        """Both loops, each in a thread that ends with the process."""
        loops = [self._ship_log, self._make_whole] if making.usual_kind(self._settings()) == "base" else [self._make_whole]
        threads = [threading.Thread(target=loop, name=loop.__name__.strip("_"), daemon=True) for loop in loops]
        for thread in threads:
            thread.start()
        return threads

    def _ship_log(self) -> None:
        while not self.stopping.is_set():
            pause_s = LOOK_EVERY_S
            self._limit_spool()
            if not self._tell("log_not_archived", self._ship):
                pause_s = AGAIN_AFTER_S
            self.stopping.wait(pause_s)

    def _ship(self) -> None:
        """With one connection, for as long as the target answers, and is the target."""
        data_dir, settings = self._data_dir, self._settings()
        if not wal.waiting(data_dir) or self._ask(recovery.is_recovering):
            return
        with targets.opened(settings) as target:
            primary = ""
            while not self.stopping.is_set() and self._settings().backup_target == settings.backup_target:
                if primary != (primary := topology.primary_of(data_dir / "stores")):  # all of one history: a failover changes nothing here
                    system = wal.system_of(data_dir / "stores" / primary)
                    known = set(wal.names_of(target, system))
                    archived = set(target.names(months.FOLDER))
                if waiting := len(wal.waiting(data_dir)):
                    self._check_owner(target)
                    months.ship(data_dir, target, archived)  # before the segment that takes their rows out
                    wal.ship(data_dir, target, system, known, self._record_wal, most=waiting)
                    self._look_for_hole(target, system, known)
                self._failing.pop("log_not_archived", None)
                self.stopping.wait(LOOK_EVERY_S)
                self._limit_spool()  # also of a target that is slower than we write

    def _limit_spool(self) -> None:
        if gone := wal.give_up_beyond(self._data_dir):
            _log.critical("log_given_up", segments=gone, because="the spool is full", do="see that the backup target answers")

    def check_copy(self) -> None:
        """At the start, before anything is paid: this may be an old copy that comes back."""
        with targets.opened(self._settings()) as target:
            self._check_owner(target)

    def _check_owner(self, target: Target) -> None:
        """Raises `errors.CannotProceed` where the target is not ours; an old copy stands down before that."""
        lineage = self._ask(recovery.lineage)
        since = manifests.superseded_since(target, lineage)
        if since is not None and not self._ask(recovery.is_recovering):
            settings = self._settings()
            role = roles.role_of(settings.database_url)
            asyncio.run(recovery.stand_down(settings.owner_database_url, role, since))
            _log.critical("another_copy_goes_on", since=since.isoformat(), do="piggybank down, for good: this is the old copy")
        manifests.check_owner(target, lineage, claim=True)

    def _look_for_hole(self, target: Target, system: str, known: set[str]) -> None:
        bases = [manifest for manifest in manifests.listed(target) if manifest.kind == "base"]
        why = ""
        if bases and bases[0].system != system:
            why = f"{bases[0].id}, the newest base backup, is of a database cluster that is not the present one"
        elif bases:
            log = courses.course(target, bases[0], known)
            if log.missing:
                why = f"the log at the target has a hole after {bases[0].id}: {log.missing} is missing"
            elif log.is_given_up:
                why = f"{bases[0].id}, the newest base backup, is of a history that was given up: the log does not lead on from it"
        if why and why != self._hole:
            do = "a base backup is made now" if self._settings().backup_every_h else "piggybank backup create"
            _log.error("log_has_a_hole", because=why, do=do)
        if bases and why != self._hole:
            self._hole = why
            wal.note_hole(self._data_dir, why)

    def _record_wal(self, name: str, written_at: datetime) -> None:
        asyncio.run(backups.record_wal(self._settings().owner_database_url, name, written_at))

    def _make_whole(self) -> None:
        tried = {name: datetime.min.replace(tzinfo=UTC) for name in ("copy", "backup", "drill")}
        while not self.stopping.is_set():
            if datetime.now(UTC) - tried["copy"] > CHECK_COPY_EVERY:
                tried["copy"] = datetime.now(UTC)
                self._tell("target_not_asked", self.check_copy)
            for what, due, work in (("backup", self._backup_due, self._back_up), ("drill", self._drill_due, self._drill)):
                if datetime.now(UTC) - tried[what] > AGAIN_WHOLE_AFTER and self._is_due(due):
                    tried[what] = datetime.now(UTC)
                    self._tell(f"{what}_failed", work)
            self.stopping.wait(LOOK_EVERY_S)

    def _is_due(self, due: Callable[[Standing, datetime], bool]) -> bool:
        try:
            return not self._ask(recovery.is_recovering) and due(self._ask(backups.standing), datetime.now(UTC))
        except TROUBLE:
            return False  # a database that is away has its own alarm

    def _backup_due(self, standing: Standing, now: datetime) -> bool:
        """One of another kind, or elsewhere, is somebody's own: it postpones nothing."""
        settings = self._settings()
        every = timedelta(hours=settings.backup_every_h)
        kind, target = making.usual_kind(settings), targets.shown(settings.backup_target)
        made_at = self._ask(lambda connection: backups.newest_at(connection, kind, target))
        if standing.restored_at is not None and (made_at is None or made_at < standing.restored_at):
            return bool(every)  # what is older belongs to another history
        return bool(every) and (made_at is None or bool(self._hole) or now - made_at >= every)

    def _drill_due(self, standing: Standing, now: datetime) -> bool:
        every = timedelta(days=self._settings().backup_drill_days)
        if not every or standing.backup_at is None:
            return False
        return standing.drill_at is None or now - standing.drill_at >= (every if standing.drill_passed else min(every, DRILL_AGAIN_AFTER))

    def _back_up(self) -> None:
        settings = self._settings()
        with targets.opened(settings) as target:
            made = making.create(settings, target, making.usual_kind(settings), lambda _: None)
            gone = keeping.prune(target, settings.backup_keep, settings.backup_keep_days, datetime.now(UTC))
        asyncio.run(backups.forget(settings.owner_database_url, gone))
        self._hole = ""
        _log.info("backup_made", backup=made.manifest.id, mib=made.manifest.size_bytes // 1024**2, deleted=gone, warnings=made.warnings)

    def _drill(self) -> None:
        settings = self._settings()
        with targets.opened(settings) as target:
            found = drills.drill(settings, target, manifests.LATEST, lambda _: None)
        if not found.passed:
            raise errors.CannotProceed(what=f"the restore drill of {found.backup_id} failed: {found.said}", do="piggybank backup drill")
        _log.info("drill_passed", backup=found.backup_id, seconds=round(found.seconds, 1))

    def _ask(self, question: Callable[[asyncpg.Connection], Coroutine[Any, Any, T]]) -> T:
        return asyncio.run(_asked(self._settings().owner_database_url, question))

    def _tell(self, what: str, work: Callable[[], None]) -> bool:
        """Say it once when it begins to fail, not each time."""
        began = time.monotonic()
        try:
            work()
        except TROUBLE as cause:
            why = str(cause.details.get("what", cause)) if isinstance(cause, errors.Error) else f"{type(cause).__name__}: {cause}"
            if self._failing.get(what) != why:
                _log.error(what, because=why, after_s=round(time.monotonic() - began, 1))
            self._failing[what] = why
            return False
        if self._failing.pop(what, None):
            _log.info("backups_go_on", what=what)
        return True


async def _asked(url: str, question: Callable[[asyncpg.Connection], Coroutine[Any, Any, T]]) -> T:
    connection = await asyncpg.connect(url, timeout=making.CONNECT_TIMEOUT_S)
    try:
        return await question(connection)
    finally:
        await connection.close()
