"""What a backup says of itself, and which backups a target has. Only those with a manifest count: it is written last."""

import hashlib
import io
import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import IO, Literal

import msgspec
from msgspec import Struct

from piggybank import errors
from piggybank.appliance.backups.months import Month
from piggybank.appliance.backups.targets import CHUNK_BYTES, Target
from piggybank.db.recovery import Lineage

FORMAT = 1
MANIFEST = "manifest.json"
MANIFEST_MAX_BYTES = 4 * 1024 * 1024
LATEST = "latest"
OWNER_FILE = "installation.json"
_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_NAME = re.compile(r"[A-Za-z0-9.]{1,64}")

Kind = Literal["base", "logical"]


class File(Struct, frozen=True, kw_only=True):
    """As it lies at the target."""

    name: str
    size_bytes: int
    sha256: str


class Facts(Struct, frozen=True, kw_only=True):
    """What the database said of itself: of a base backup shortly before it, so that it holds at least that."""

    installation: str
    schema_revision: str
    epoch: str
    provider_mode: str
    rows: dict[str, int]
    books: dict[str, str]  # trial balance, highest transaction
    highest_transaction: str | None
    database_bytes: int
    postgres_version: str
    postgres_major: int
    months: list[Month] = []  # archived ones


class Manifest(Struct, frozen=True, kw_only=True):
    """`first_wal`: the first segment that a base backup needs; `next_wal`: the one that was written to when it began, since which all go to
    the target; `system`: of whose log; `taken_at`: what was committed by then is in it."""

    format: int = FORMAT
    id: str
    kind: Kind
    version: str
    phase: int
    started_at: datetime
    taken_at: datetime
    finished_at: datetime
    facts: Facts
    files: list[File]
    first_wal: str = ""
    next_wal: str = ""  # backups of older versions do not say it
    system: str = ""
    recipient: str = ""  # whose recovery key opens the secrets; empty: they are not in it

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def file(self, name: str) -> File:
        """The file whose name ends so."""
        return next(file for file in self.files if file.name.endswith(f"/{name}"))


class Hashing:
    """A stream that is hashed and counted while it is read."""

    def __init__(self, source: IO[bytes], tell: Callable[[int], None] = lambda _: None) -> None:
        self._source = source
        self._hash = hashlib.sha256()
        self._tell = tell
        self.size_bytes = 0

    def read(self, size: int = -1) -> bytes:
        chunk = self._source.read(size)
        self._hash.update(chunk)
        self.size_bytes += len(chunk)
        self._tell(self.size_bytes)
        return chunk

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def put(target: Target, name: str, source: IO[bytes], tell: Callable[[int], None] = lambda _: None) -> File:
    """Write a file, and say what was written."""
    hashing = Hashing(source, tell)
    target.put(name, hashing)  # type: ignore[arg-type]  # `read` is all that is called
    return File(name=name, size_bytes=hashing.size_bytes, sha256=hashing.sha256)


def check(target: Target, file: File, tell: Callable[[int], None] = lambda _: None) -> None:
    """Read a file to its end; raises `errors.CannotProceed` where it is not what was written."""
    try:
        with target.open(file.name) as source:
            hashing = Hashing(source, tell)
            while hashing.read(CHUNK_BYTES):
                pass
    except FileNotFoundError as cause:
        raise damaged(file, "it is missing") from cause
    compare(file, hashing)


def compare(file: File, hashing: Hashing) -> None:
    """Raises `errors.CannotProceed` where what was read is not what was written."""
    if hashing.size_bytes != file.size_bytes:
        raise damaged(file, f"{hashing.size_bytes} bytes of {file.size_bytes}")
    if hashing.sha256 != file.sha256:
        raise damaged(file, "its checksum differs")


def damaged(file: File, why: str) -> errors.CannotProceed:
    """What to say of such a file."""
    return errors.CannotProceed(what=f"{file.name} is damaged: {why}", do="use another backup (piggybank backup list), and make a new one")


def save(target: Target, manifest: Manifest) -> None:
    """From now on there is this backup."""
    text = json.dumps(msgspec.to_builtins(manifest), indent=1, ensure_ascii=False) + "\n"
    target.put(f"backups/{manifest.id}/{MANIFEST}", io.BytesIO(text.encode()))


def listed(target: Target, unreadable: Callable[[str], None] = lambda _: None) -> list[Manifest]:
    """The good ones, the newest first. `unreadable` hears of those that are none: they must not keep the others from being used."""
    found = []
    for name in target.names("backups"):
        if name.endswith(f"/{MANIFEST}"):
            try:
                found.append(load(target, name.split("/")[1]))
            except errors.CannotProceed as cause:
                unreadable(str(cause.details["what"]))
    return sorted(found, key=lambda manifest: manifest.taken_at, reverse=True)


def load(target: Target, backup_id: str) -> Manifest:
    """Raises `errors.CannotProceed`."""
    if not _ID.fullmatch(backup_id):
        raise errors.CannotProceed(what=f"{backup_id} is no backup's id", do="see: piggybank backup list")
    try:
        with target.open(f"backups/{backup_id}/{MANIFEST}") as file:
            found = msgspec.json.decode(file.read(MANIFEST_MAX_BYTES), type=Manifest)
    except FileNotFoundError as cause:
        raise errors.CannotProceed(what=f"there is no backup {backup_id} in {target.shown}", do="see: piggybank backup list") from cause
    except msgspec.MsgspecError as cause:
        what = f"the manifest of {backup_id} cannot be read: {cause}"
        raise errors.CannotProceed(what=what, do="use another backup: piggybank backup list") from cause
    if found.format != FORMAT:
        raise errors.CannotProceed(what=f"{backup_id} was made by a newer version ({found.version})", do="use that version of piggybank")
    folder = f"backups/{backup_id}/"
    strange = [file.name for file in found.files if not (file.name.startswith(folder) and _NAME.fullmatch(file.name.removeprefix(folder)))]
    if found.id != backup_id or strange:
        what = f"the manifest of {backup_id} names what is not in its folder: {', '.join(strange) or found.id}"
        raise errors.CannotProceed(what=what, do="somebody changed it: use another backup (piggybank backup list)")
    return found


def choose(target: Target, backup_id: str, at: datetime | None = None) -> Manifest:
    """By its id; `latest`: the newest, or the newest with a log before `at`. Raises `errors.CannotProceed`."""
    if backup_id != LATEST:
        return load(target, backup_id)
    found = [manifest for manifest in listed(target) if at is None or (manifest.kind == "base" and manifest.taken_at <= at)]
    if not found:
        when = f" from before {at:%Y-%m-%dT%H:%M:%SZ}" if at else ""
        raise errors.CannotProceed(what=f"there is no backup{when} in {target.shown}", do="see: piggybank backup list")
    return found[0]


class Owner(Struct, frozen=True, kw_only=True):
    """Whose a target is: one copy of one installation. `restore`: the one that this copy comes from, finished at `since`; empty: none."""

    installation: str
    restore: str = ""
    since: datetime | None = None


def owner(target: Target) -> Owner | None:
    """None: nobody's yet."""
    try:
        with target.open(OWNER_FILE) as file:
            return msgspec.json.decode(file.read(MANIFEST_MAX_BYTES), type=Owner)
    except FileNotFoundError:
        return None


def check_owner(target: Target, ours: Lineage, *, claim: bool = False) -> None:
    """Raises `errors.CannotProceed` where it is another installation's, or another copy's of this one (`superseded_since`).

    `claim`: it is ours from now on, also where the copy that we were restored from has it.
    """
    found = owner(target)
    if found is not None and found.installation != ours.installation:
        raise errors.CannotProceed(
            what=f"{target.shown} holds the backups of another installation ({found.installation})",
            do="give this one a folder or a prefix of its own",
        )
    if found is not None and _is_another(found, ours):
        raise errors.CannotProceed(
            what=f"{target.shown} was taken over by a copy of this installation that was restored and finished: this is the old one",
            do="stop it for good: piggybank down",
        )
    last = ours.restores[-1] if ours.restores else ""
    if claim and (found is None or found.restore != last):
        take_over(target, Owner(installation=ours.installation, restore=last, since=ours.point))


def superseded_since(target: Target, ours: Lineage) -> datetime | None:
    """When another copy of this installation, restored from its backup, took the target over: this one is the old one then."""
    found = owner(target)
    return found.since if found is not None and found.installation == ours.installation and _is_another(found, ours) else None


def _is_another(found: Owner, ours: Lineage) -> bool:
    return bool(found.restore) and found.restore not in ours.restores


def take_over(target: Target, by: Owner) -> None:
    """From now on it is this copy's; whichever had it notices that, and stands down."""
    target.put(OWNER_FILE, io.BytesIO(msgspec.json.encode(by)))
