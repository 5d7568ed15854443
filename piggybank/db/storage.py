"""Room on the database's disk: writes stop before PostgreSQL runs out of it, and go on when there is room again.

PostgreSQL that cannot write its log ends itself, and comes back only when somebody has made room. So while less than the reserve is
left, every process refuses to write (503 `storage_full`), reads go on, and what PostgreSQL itself still has to write (checkpoints,
vacuum) fits into the reserve. Only the embedded database's disk can be seen; of one elsewhere PostgreSQL's own word for it (53100)
becomes the same answer.
"""

import os
import shutil
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from piggybank import errors, telemetry
from piggybank import settings as settings_file
from piggybank.settings import Settings

RESERVE_MIB = 256  # sixteen files of the log: what a checkpoint under way may still ask for
COPY_MARGIN = 1.2  # of a database's size, for each copy: itself, and the log that comes while it is made
LOOK_EVERY_S = 1.0
MIB = 1024 * 1024
DATABASE = "postgres"  # also how the folders of the servers begin

_log = telemetry.logger("storage")


def size_mib(folder: Path) -> int:
    """What the files below a folder take, while a server may be at work in it."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # it was taken away meanwhile
            status = path.lstat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total // MIB


def free_mib(folder: Path) -> int:
    """Room on the disk of a folder, for those who are not root."""
    return shutil.disk_usage(folder).free // MIB


def needed_mib(size_mib: int, copies: int) -> int:
    """What so many copies of a database need; writes go on meanwhile, and stop when the reserve is touched."""
    return RESERVE_MIB + int(size_mib * COPY_MARGIN * copies) if copies > 0 else 0


def check_room(folder: Path, needed: int, wants: str, do: str = "") -> None:
    """Raises `errors.CannotProceed` where less than so many MiB are free; `wants`: who wants them, with a verb."""
    if (free := free_mib(folder)) < needed:
        raise errors.CannotProceed(
            what=f"{free:,} MiB are free, {wants} {needed:,} MiB", do=do or f"make room on the disk of {folder}, then again"
        )


class Storage:
    """The disks below some folders; without folders there is always room."""

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        self._folders = folders
        self._looked_at = -LOOK_EVERY_S
        self._full = False

    @classmethod
    def of(cls, settings: Settings) -> "Storage":
        """That of an installation's own database, where it has one."""
        if DATABASE not in settings_file.embedded_stores(settings.data_dir):
            return cls()
        stores = settings.data_dir / "stores"
        return cls([folder for folder in (stores, *stores.glob(f"{DATABASE}*")) if folder.is_dir()])

    @property
    def full(self) -> bool:
        """True while less than the reserve is left; asked of the system once a second."""
        now = time.monotonic()
        if self._folders and now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            self._look()
        return self._full

    @property
    def free_mib(self) -> int:
        """Room on the fullest of their disks, for those who are not root; without folders the reserve."""
        found = []
        for folder in self._folders:
            try:
                status = os.statvfs(folder)
            except OSError:  # a standby that was taken away
                continue
            found.append(status.f_bavail * status.f_frsize // MIB)
        return min(found, default=RESERVE_MIB)

    def check(self) -> None:
        """Raises `errors.StorageFull`."""
        if self.full:
            raise errors.StorageFull

    def _look(self) -> None:
        free = self.free_mib
        full = free < RESERVE_MIB
        if full and not self._full:
            _log.error("writes are refused", because="storage_full", free_mib=free, reserve_mib=RESERVE_MIB)
        elif self._full and not full:
            _log.info("there is room again", free_mib=free)
        self._full = full
