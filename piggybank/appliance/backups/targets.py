"""Where backups go: a folder, a host reached by SSH, an S3-compatible bucket. Four verbs, whole files only.

`put` leaves the whole file under its name, or nothing: what is cut short never has the name that somebody looks for.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import urlsplit

from piggybank import errors
from piggybank.settings import Settings

CHUNK_BYTES = 1024 * 1024
PART = ".part"  # of a file that is being written


class Target(Protocol):
    """Files by name; names have `/` between their parts."""

    shown: str  # without anything secret
    place: Path | None  # a folder of this machine

    def put(self, name: str, source: IO[bytes]) -> int:
        """Write `source` to its end, whole or not at all; the bytes that it had. Raises `errors.CannotProceed`."""
        ...

    def open(self, name: str) -> IO[bytes]:
        """Read a file; raises FileNotFoundError, `errors.CannotProceed`."""
        ...

    def names(self, folder: str) -> list[str]:
        """Every file below a folder, by its whole name, sorted; none where there is no such folder."""
        ...

    def delete(self, name: str) -> None:
        """Gone, also where it was not there."""
        ...

    def close(self) -> None:
        """No more."""
        ...


@contextmanager
def opened(settings: Settings, address: str = "") -> Iterator[Target]:
    """The target at `address`, else that of the settings. Raises `errors.CannotProceed` where it cannot be reached."""
    address = address or settings.backup_target
    if not address:
        raise errors.CannotProceed(
            what="no backup target is set", do="set backup_target in piggybank.toml: a folder on another disk, ssh://.. or s3://.."
        )
    parts = urlsplit(address)
    if parts.scheme and parts.password:  # it would stand in logs, in `status` and in the database
        raise errors.CannotProceed(
            what="the address of the backup target holds a password",
            do="ssh:// signs in with backup_ssh_key, s3:// with backup_s3_.. settings",
        )
    target: Target
    with _said_plainly(address):
        if parts.scheme == "s3":
            from piggybank.appliance.backups.s3 import S3  # the weight of a library only where it is used: every command comes by here

            target = S3(settings, parts.netloc, parts.path.strip("/"))
        elif parts.scheme == "ssh":
            from piggybank.appliance.backups.ssh import SshFolder

            target = SshFolder.of(address, settings.backup_ssh_key, settings.backup_ssh_known_hosts)
        else:
            target = Folder(Path(address))
        try:
            yield target
        finally:
            target.close()


def shown(address: str) -> str:
    """What its target is called, wherever it is shown and kept; asks nobody."""
    parts = urlsplit(address)
    if parts.scheme == "s3":
        return f"s3://{'/'.join(part for part in (parts.netloc, parts.path.strip('/')) if part)}"
    return address if parts.scheme == "ssh" else str(Path(address))


def is_local(address: str) -> bool:
    """A folder of this machine."""
    return bool(address) and not urlsplit(address).scheme


@contextmanager
def _said_plainly(address: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as cause:
        raise errors.CannotProceed(
            what=f"the backup target {address} failed: {cause}", do="see that it is there, may be written to and has room; then again"
        ) from cause


class Folder:
    """A folder of this machine, or one that is mounted on it."""

    def __init__(self, place: Path) -> None:
        self.place: Path | None = place
        self._root = place
        self.shown = str(place)

    def put(self, name: str, source: IO[bytes]) -> int:
        path = self._root / name
        _make_folders(self._root, path.parent)
        making = path.with_name(path.name + PART)
        try:
            handle = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(handle, "wb") as file:
                shutil.copyfileobj(source, file, CHUNK_BYTES)
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
        except BaseException:
            making.unlink(missing_ok=True)  # a full disk is not to stay full by what was cut short
            raise
        making.rename(path)
        _sync(path.parent)  # what is there lets the log leave the spool: it is to be there after a power cut, too
        return size

    def open(self, name: str) -> IO[bytes]:
        return (self._root / name).open("rb")

    def names(self, folder: str) -> list[str]:
        found = [path for path in (self._root / folder).rglob("*") if path.is_file()]
        return sorted(str(path.relative_to(self._root)) for path in found if path.suffix != PART)

    def delete(self, name: str) -> None:
        path = self._root / name
        path.unlink(missing_ok=True)
        with suppress(OSError):  # the last of its folder
            path.parent.rmdir()

    def close(self) -> None:
        """There is nothing to close."""


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_folders(root: Path, folder: Path) -> None:
    """Below the target's own folder, which must be there: where a disk is not mounted nothing is to be written beside it."""
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is no folder")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
