"""Archived months: their rows are in no database any more, so their files are part of what is backed up.

    archive/<sha256>.parquet, .json      as they lie in the data folder, under the hash that the database knows them by

They go to the target before the segment of the log that takes their rows out, and are never deleted there.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from piggybank.appliance import system_user
from piggybank.appliance.backups.targets import CHUNK_BYTES, Target
from piggybank.appliance.system_user import SystemUser, ours, shared
from piggybank.db import archived

FOLDER = "archive"  # at the target
PART = ".part"


class Month(Struct, frozen=True, kw_only=True):
    """As the database has it."""

    file: str
    sha256: str


def ship(data_dir: Path, target: Target, known: set[str]) -> None:
    """Take the months to the target that are not there yet; `known` names are."""
    for described in sorted((data_dir / archived.FOLDER).glob("*.json")):  # written after its file is whole
        month = msgspec.json.decode(described.read_bytes(), type=Month)
        for path, name in ((described.with_name(month.file), _name(month, ".parquet")), (described, _name(month, ".json"))):
            if name not in known and path.is_file():
                with path.open("rb") as file:
                    target.put(name, file)
                known.add(name)


def missing(months: Iterable[Month], known: Iterable[str]) -> list[str]:
    """Those that the target does not have."""
    there = set(known)
    return [month.file for month in months if _name(month, ".parquet") not in there]


def fetch(target: Target, months: Sequence[Month], data_dir: Path, user: SystemUser | None) -> list[str]:
    """Put them back into the data folder, where they are not; answers those that cannot be had, or are not what they were."""
    folder, gone = data_dir / archived.FOLDER, []
    if months:
        system_user.make_folder(folder, ours(user), shared(user, 0o700))
    for month in months:
        path = folder / Path(month.file).name
        if path.is_file() and _sha256(path) == month.sha256:
            continue
        if not _bring(target, _name(month, ".parquet"), path, month.sha256):
            gone.append(month.file)
            continue
        _bring(target, _name(month, ".json"), path.with_suffix(".json"))
    return gone


def _bring(target: Target, name: str, path: Path, sha256: str = "") -> bool:
    making = path.with_name(path.name + PART)
    try:
        with target.open(name) as source, making.open("wb") as file:
            while chunk := source.read(CHUNK_BYTES):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    except FileNotFoundError:
        making.unlink(missing_ok=True)
        return False
    if sha256 and _sha256(making) != sha256:
        making.unlink()
        return False
    making.rename(path)
    return True


def _name(month: Month, suffix: str) -> str:
    return f"{FOLDER}/{month.sha256}{suffix}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
