"""The data folder itself: whether it is ours, whose what in it is, and what of it goes at the end.

Its owner and mode are changed, and `uninstall --purge` deletes, so a folder must be empty or carry a mark of ours: not somebody's
home, not /var. A name like `logs` is no mark.
"""

import os
import pwd
import shutil
from contextlib import suppress
from pathlib import Path

from piggybank import errors, settings
from piggybank.appliance import processes, system_user
from piggybank.appliance.system_user import SystemUser, ours, shared

MARK = ".piggybank"  # written before anything else; it says, too, that there was a database
HAD_DATABASE = "A database was made for this installation: an empty one is not put in its place. Empty this file, and it is.\n"
# each says that the folder is ours: what `up` and the installer write first, and what older folders have
MARKS = (MARK, ".install.lock", settings.OPERATOR_FILE, settings.STORES_FILE, "stores/secrets.toml", "run/supervisor.lock")
# all that we or the installer put there; the mark last, so that a purge that was interrupted can be repeated
ENTRIES = (
    *("bin/piggybank", "bin/piggybank.new", "current", "current.new", "versions"),
    *("run", "logs", "stores", "simulator", "metrics", f"{settings.STORES_FILE}.new", settings.STORES_FILE),
    *(f"{settings.PHASE_FILE}.new", settings.PHASE_FILE, "archive", "upgrades", "keys", "drill", "restore.unfinished"),
    *(f"{settings.OPERATOR_FILE}.new", settings.OPERATOR_FILE, "move.toml.new", "move.toml", ".install.lock", MARK),
)


def is_ours(data_dir: Path) -> bool:
    """True when it carries a mark of ours."""
    return any((data_dir / mark).is_file() for mark in MARKS)


def note_database(data_dir: Path) -> None:
    """From now on a database that is empty is not the one that was."""
    if not had_database(data_dir):
        with suppress(OSError):  # whose folder cannot be written or is not there, is not protected
            processes.write_file(data_dir / MARK, HAD_DATABASE, 0o644)


def had_database(data_dir: Path) -> bool:
    """True when one was made for this folder, here or elsewhere."""
    with suppress(OSError):
        return (data_dir / MARK).stat().st_size > 0
    return False


def prepare_folder(data_dir: Path) -> SystemUser | None:
    """The data folder with `run` and `logs`; what an earlier version gave to the system user is taken back.

    Raises `errors.CannotProceed`.
    """
    try:
        user = system_user.chosen()
        _check_ours(data_dir)
        _check_owner(data_dir, user)
        system_user.make_folder(data_dir, ours(user), shared(user, 0o750))  # first: then nothing below it is exchanged
        os.close(system_user.open_file(data_dir / MARK, os.O_RDONLY | os.O_CREAT, 0o644))
        for name in ("logs", "run"):
            system_user.make_folder(data_dir / name, ours(user), shared(user, 0o750))
        for name in (settings.OPERATOR_FILE, settings.STORES_FILE):
            system_user.keep_file(data_dir / name, user, 0o640)
        system_user.let_enter(data_dir / "logs", user)
    except PermissionError as cause:
        raise errors.CannotProceed(
            what=f"cannot write to {cause.filename}", do="run it as the user who owns that folder, or choose another: --data-dir"
        ) from cause
    return user


def purge(data_dir: Path) -> list[str]:
    """Delete what is ours; returns what was left, with the folder, because it is not."""
    left = []
    for path in (data_dir / name for name in ENTRIES):
        if path.is_symlink():
            if path.name == "stores":
                left.append(str(path.resolve()))
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for folder in (data_dir / "bin", data_dir):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.resolve().rmdir()
    return left + (sorted(str(path) for path in data_dir.iterdir()) if data_dir.is_dir() else [])


def _check_ours(data_dir: Path) -> None:
    if data_dir.is_dir() and any(data_dir.iterdir()) and not is_ours(data_dir):
        raise errors.CannotProceed(what=f"{data_dir} holds something else", do="choose an empty or a new folder: --data-dir")


def _check_owner(data_dir: Path, user: SystemUser | None) -> None:
    """Root does not take over what somebody runs as oneself: their database would not open for the system user."""
    if user is None or not data_dir.is_dir() or not any(data_dir.iterdir()):
        return
    owner = data_dir.stat().st_uid
    if owner not in (0, user.uid):
        raise errors.CannotProceed(what=f"{data_dir} belongs to {_name_of(owner)}", do="run it as that user, or choose another: --data-dir")


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
