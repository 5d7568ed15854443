"""Restore into a data folder: a new one, or in the place of the one that is there, whose database is kept.

Until the end the data lies under a name that nobody starts, so a restore that was cut short leaves nothing that looks like one.
"""

import asyncio
import shutil
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from piggybank import errors
from piggybank import settings as settings_file
from piggybank.appliance import binaries, data_folder, embedded, processes, store_files, system_user, topology
from piggybank.appliance import folder as installation_folder
from piggybank.appliance.backups import databases, manifests, months, replay, secrets, wal
from piggybank.appliance.backups.manifests import Manifest
from piggybank.appliance.backups.opening import Restored, Tell, archived_months, check_possible, open_in_recovery
from piggybank.appliance.backups.targets import Target
from piggybank.appliance.embedded import Embedded
from piggybank.appliance.system_user import SystemUser, ours, shared
from piggybank.db import storage

MAKING = "restoring"  # in `stores/`, until all is well
DISK_MARGIN = 1.5  # of the database's size: itself, and the log that is replayed
NEW, IN_PLACE = "a new folder\n", "in place\n"  # what an unfinished restore says of itself
REPLACED = "replaced-"  # how the folder in `stores/` begins that keeps what was there
SET_ASIDE = ("primary", store_files.WAL_SPOOL, wal.HOLE_FILE)  # with the servers' folders
NOT_RESTORED = ("database_url", "owner_database_url", "pooler_url", "replica_urls")  # they lead to the database that was


def into_folder(
    target: Target, manifest: Manifest, folder: Path, at: datetime | None, identity: str, tell: Tell, *, until_hole: bool = False
) -> Restored:
    """A new data folder, ready for `piggybank up`. Raises `errors.CannotProceed`; then there is nothing in it."""
    check_possible(manifest, at, target)
    bundle = _open_secrets(target, manifest, identity)
    if embedded.unfinished_restore(folder) == NEW:
        tell("taking away what a restore left that was cut short")
        shutil.rmtree(folder)
    if folder.exists() and any(folder.iterdir()):
        raise errors.CannotProceed(what=f"{folder} is not empty", do="give a new folder, or --in-place for the installation that is there")
    was_there = folder.exists()
    try:
        data_folder.prepare_folder(folder)
        processes.write_file(folder / embedded.UNFINISHED_RESTORE, NEW, 0o644)
        restored = _fill(target, manifest, folder, at, bundle, tell, until_hole=until_hole)
        (folder / embedded.UNFINISHED_RESTORE).unlink()
        return restored
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if was_there:
            folder.mkdir(exist_ok=True)  # one that something is mounted on stays
        raise


def in_place(
    target: Target, manifest: Manifest, folder: Path, at: datetime | None, identity: str, tell: Tell, *, until_hole: bool = False
) -> Restored:
    """Over the stopped installation in `folder`, whose database is kept beside the new one. Its settings stay.

    What waits in its spool goes to the target first: it is the log of the last moments. Until all is well `up` refuses, also when we
    are killed; then this can be run again. Raises `errors.CannotProceed`; then all is as it was, also what an earlier run left undone.
    """
    check_possible(manifest, at, target)
    _open_secrets(target, manifest, identity)  # a wrong key is told, but what is here stays
    stores = folder / "stores"
    if topology.DATABASE not in settings_file.embedded_stores(folder):
        raise errors.CannotProceed(
            what=f"the database of {folder} is elsewhere (database_url)", do="restore into an empty one there: --to postgresql://.."
        )
    with installation_folder.Lock(folder):
        _check_room(folder, manifest)
        _ship_rest(target, folder, tell)
        now = f"{datetime.now(UTC):%Y%m%dT%H%M%S}"
        aside = _cut_short(folder) or stores / f"{REPLACED}{now}"
        system_user.make_folder(aside, None)
        left = [path for path in stores.glob(f"{store_files.FIRST_POSTGRES}*") if path.is_dir()]
        left += [stores / name for name in SET_ASIDE if (stores / name).exists()]
        processes.write_file(folder / embedded.UNFINISHED_RESTORE, IN_PLACE, 0o644)
        moved: list[tuple[Path, Path]] = []
        try:
            for path in left:
                place = aside / path.name
                if place.exists():  # the real one; this was made by the run that was cut short
                    place = aside / f"{path.name}-{now}"
                path.rename(place)
                moved.append((path, place))
            restored = _fill(target, manifest, folder, at, {}, tell, until_hole=until_hole)
        except BaseException:
            shutil.rmtree(stores / store_files.FIRST_POSTGRES, ignore_errors=True)
            for path, place in moved:
                shutil.rmtree(path, ignore_errors=True)
                place.rename(path)
            if not any(aside.iterdir()):  # else what was here first is in there still, and `up` would make an empty bank
                aside.rmdir()
                (folder / embedded.UNFINISHED_RESTORE).unlink()
            raise
        (folder / embedded.UNFINISHED_RESTORE).unlink()
    return msgspec.structs.replace(restored, kept=str(aside))


def _cut_short(folder: Path) -> Path | None:
    """Where a restore that was cut short has put what was here first: the newest such folder, which it made before anything else."""
    if embedded.unfinished_restore(folder) != IN_PLACE:
        return None
    return max((folder / "stores").glob(f"{REPLACED}*"), default=None)


def _ship_rest(target: Target, folder: Path, tell: Tell) -> None:
    """What the stopped server closed last, and nobody took to the target any more."""
    primary = folder / "stores" / topology.primary_of(folder / "stores")
    if not wal.waiting(folder) or not (primary / "global" / "pg_control").exists():
        return
    tell("taking the last of the log to the target")
    system = wal.system_of(primary)
    wal.ship(folder, target, system, set(wal.names_of(target, system)), lambda name, _: tell(f"the log reaches {name}"))


def _open_secrets(target: Target, manifest: Manifest, identity: str) -> dict[str, bytes]:
    if not identity:
        return {}
    if not manifest.recipient:
        raise errors.CannotProceed(what=f"{manifest.id} holds no secrets: there was no recovery key", do="leave --recovery-key away")
    file = manifest.file(secrets.NAME)
    manifests.check(target, file)
    with target.open(file.name) as source:
        return secrets.opened(source.read(), identity, manifest.recipient)


def _fill(
    target: Target, manifest: Manifest, folder: Path, at: datetime | None, bundle: dict[str, bytes], tell: Tell, *, until_hole: bool
) -> Restored:
    user = data_folder.prepare_folder(folder)
    stores = folder / "stores"
    system_user.make_folder(stores, ours(user), shared(user, 0o750))
    _check_room(folder, manifest)
    left_out = _write_settings(folder, bundle, user) if bundle else []
    if manifest.kind == "base":
        restored = _base(target, manifest, folder, user, at, tell, until_hole=until_hole)
    else:
        restored = _logical_folder(target, manifest, folder, tell)
    return msgspec.structs.replace(restored, place=str(folder), secrets=bool(bundle), left_out=left_out)


def _check_room(folder: Path, manifest: Manifest) -> None:
    needed = int(manifest.facts.database_bytes * DISK_MARGIN) // storage.MIB
    storage.check_room(folder, needed, "the restore needs", f"make room on the disk of {folder}, or give a folder on a larger one")


def _write_settings(folder: Path, bundle: dict[str, bytes], user: SystemUser | None) -> list[str]:
    """What the operator had set; key files come below `keys/`, and the settings say so. Answers what is left out of it."""
    values = {}
    for name, content in bundle.items():
        if name.startswith(f"{secrets.KEYS}/"):
            system_user.make_folder(folder / secrets.KEYS, ours(user), shared(user, 0o750))
            path = folder / name
            processes.write_file(path, content.decode(), shared(user, 0o640), ours(user))
            values[path.stem] = str(path)
    left_out: list[str] = []
    for name in (settings_file.OPERATOR_FILE, settings_file.PHASE_FILE):
        text = bundle.get(name, b"").decode()
        if name == settings_file.OPERATOR_FILE:
            text, left_out = settings_file.without_values(text, NOT_RESTORED)
        if name == settings_file.OPERATOR_FILE and values:
            text = settings_file.with_values(text, values)
        if text:
            processes.write_file(folder / name, text, shared(user, 0o640), ours(user))
    if "stores/secrets.toml" in bundle:
        known = msgspec.convert(tomllib.loads(bundle["stores/secrets.toml"].decode()), store_files.Secrets)
        store_files.save_secrets(folder / "stores", known, user)
    return left_out


# Base -----------------------------------------------------------------------------------------------------------------


def _base(
    target: Target, manifest: Manifest, folder: Path, user: SystemUser | None, at: datetime | None, tell: Tell, *, until_hole: bool
) -> Restored:
    stores = folder / "stores"
    program = binaries.postgres(stores, user)
    _check_major(program, manifest)
    making, log = stores / MAKING, stores / f"{MAKING}-log"
    for place in (making, log):
        shutil.rmtree(place, ignore_errors=True)
        system_user.make_folder(place, user)
    known = store_files.load_secrets(stores, user)
    try:
        replay.unpack(target, manifest, making, user, tell)
        fetched = replay.fetch_log(target, manifest, log / "segments", user, tell, until_hole=until_hole)
        with replay.alive(making, log / "segments", program, user, at, tell) as server:
            if at is None and not until_hole:
                replay.check_replayed(server, fetched)
            point = at or server.replayed_to or manifest.taken_at
            server.set_password(store_files.ADMIN_ROLE, known.admin_password)
            restored = asyncio.run(
                open_in_recovery(
                    server.url(store_files.OWNER_ROLE), store_files.APPLICATION_ROLE, manifest, max(point, manifest.taken_at), tell
                )
            )
            archived = asyncio.run(archived_months(server.url(store_files.OWNER_ROLE)))
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(log, ignore_errors=True)
    making.rename(stores / store_files.FIRST_POSTGRES)
    return msgspec.structs.replace(restored, missing_months=months.fetch(target, archived, folder, user))


def _check_major(program: Path, manifest: Manifest) -> None:
    said = system_user.run(None, str(program / "postgres"), "--version", check=False).stdout.split()
    ours_is = next((int(word.split(".")[0]) for word in said if word[:1].isdigit()), manifest.facts.postgres_major)
    if ours_is != manifest.facts.postgres_major:
        raise errors.CannotProceed(
            what=f"{manifest.id} is of PostgreSQL {manifest.facts.postgres_major}, and this version runs {ours_is}",
            do=f"restore it with piggybank {manifest.version}, then upgrade; or use a logical backup",
        )


# Logical --------------------------------------------------------------------------------------------------------------


def _logical_folder(target: Target, manifest: Manifest, folder: Path, tell: Tell) -> Restored:
    server = Embedded(folder)
    server.prepare()
    primary = server.postgres.primary
    try:
        tell("starting an empty server")
        server.ensure(primary)
        server.wait_ready(primary)
        server.postgres.make_roles()
        owner_url = server.addresses()["owner_database_url"]
        restored = databases.into_database(target, manifest, owner_url, store_files.APPLICATION_ROLE, tell)
    finally:
        server.stop()
    return msgspec.structs.replace(restored, missing_months=months.fetch(target, manifest.facts.months, folder, server.user))
