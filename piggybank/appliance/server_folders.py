"""The folders of the PostgreSQL servers below `stores/`: each is made beside its place and taken away beside it.

So whoever is killed in between leaves no half cluster under a server's name: that is what a disk looks like that is not mounted, and no
start would take it. What lies beside is cleared away when the servers stand (`Postgres.clear_copies`).

    postgres-2            the server's
    postgres-2.new        being made
    postgres-2.gone       being taken away
    postgres-2.upgraded   whole, of the next major, and about to take the place of the old one
    postgres-2.rewinding  a file: pg_rewind is at work, or was killed; what it leaves half done nobody can tell, so it is copied anew
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import psutil

from piggybank import errors
from piggybank.appliance import processes, system_user
from piggybank.appliance.system_user import SystemUser

UPGRADED = ".upgraded"
GONE_TIMEOUT_S = 15  # until what was killed is gone


def major_of(cluster: Path) -> int:
    """The major that made a cluster."""
    with os.fdopen(system_user.open_file(cluster / "PG_VERSION", os.O_RDONLY), encoding="ascii") as file:
        return int(file.read())


class ServerFolders:
    """Of one data folder."""

    def __init__(self, stores: Path, user: SystemUser | None) -> None:
        self._stores = stores
        self._user = user

    def is_made(self, name: str) -> bool:
        """True when the server has its folder."""
        return (self._stores / name).exists()

    def is_being_made(self, name: str) -> bool:
        """By somebody at work, or by one who was killed."""
        return self._making(name).exists()

    def upgraded(self, name: str) -> Path:
        """Where one of the next major lies."""
        return self._stores / f"{name}{UPGRADED}"

    def make(self, name: str) -> Path:
        """An empty folder of the user's, to be put into the server's place when it is whole."""
        self.end_orphans(name)
        making = self._making(name)
        shutil.rmtree(making, ignore_errors=True)
        system_user.make_folder(making, self._user)
        return making

    def put_away(self, name: str, successor: Path | None = None) -> None:
        """Take away the folder of a server that has ended, and put another one into its place."""
        place, gone = self._stores / name, self._gone(name)
        shutil.rmtree(gone, ignore_errors=True)
        with suppress(OSError):  # a disk of its own, or what could not be taken away before
            place.rename(gone)
        shutil.rmtree(place, ignore_errors=True)
        if successor is not None:
            successor.rename(place)
        self.end_rewind(name)
        shutil.rmtree(gone, ignore_errors=True)

    def clear(self, name: str) -> None:
        """What was not made to its end, and what was not taken away to its end."""
        for folder in (self._making(name), self._gone(name)):
            shutil.rmtree(folder, ignore_errors=True)

    def begin_rewind(self, name: str) -> None:
        """Raises `errors.StoreFailed` where one was killed."""
        if self._rewinding(name).exists():
            raise errors.StoreFailed(store=name, says="pg_rewind was killed")
        processes.write_file(self._rewinding(name), "", 0o600, system_user.ours(self._user))

    def end_rewind(self, name: str) -> None:
        """It was done, or what it was done to is there no longer."""
        self._rewinding(name).unlink(missing_ok=True)

    def end_orphans(self, name: str) -> None:
        """What a supervisor that was killed left at work on that server: it would go on writing there, beside us."""
        copies, rewinds = {f"--pgdata={self._making(name)}"}, {f"--target-pgdata={self._stores / name}"}

        def at_work() -> list[psutil.Process]:
            return processes.with_word("pg_basebackup", copies) + processes.with_word("pg_rewind", rewinds)

        if left := processes.end(at_work, GONE_TIMEOUT_S):
            raise errors.StoreFailed(store=name, says=f"what works on it does not end: {', '.join(str(process.pid) for process in left)}")

    def _making(self, name: str) -> Path:
        return self._stores / f"{name}.new"

    def _gone(self, name: str) -> Path:
        return self._stores / f"{name}.gone"

    def _rewinding(self, name: str) -> Path:
        return self._stores / f"{name}.rewinding"
