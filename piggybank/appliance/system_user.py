"""Who the stores and the web run as: oneself, or, started by root, the system user `piggybank`.

PostgreSQL refuses to run as root, and nothing that listens should. The user is made when it is missing; what it must read and
cannot (binaries below somebody's 0700 home) is copied by `binaries.py`, and folders on the way to the data folder let this user
alone pass by an access list.

The owner of a folder may put anything in the place of what is in it. So what root executes, reads or trusts (the data folder
itself, the program, the settings, who runs, the logs' folder) is root's, and the user's group may at most read it; the user owns
what the stores write, and nothing that root opens there is followed to somewhere else.
"""

import errno
import os
import pwd
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from piggybank import errors
from piggybank.appliance import capabilities

NAME = "piggybank"
COMMAND_TIMEOUT_S = 120

# POSIX ACL as the kernel stores it: version 2, then (tag, permissions, id) each
_ACL = "system.posix_acl_access"
_ENTRY = struct.Struct("<HHI")
_USER_OWNER, _USER, _GROUP_OWNER, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_ENTER = 0x1
_NO_ID = 0xFFFFFFFF


class SystemUser(NamedTuple):
    """The user that a root supervisor gives its children."""

    name: str
    uid: int
    gid: int


def chosen() -> SystemUser | None:
    """None: run as oneself. For root the system user, made when missing."""
    if os.geteuid() != 0:
        return None
    try:
        found = pwd.getpwnam(NAME)
    except KeyError:
        _make()
        found = pwd.getpwnam(NAME)
    return SystemUser(NAME, found.pw_uid, found.pw_gid)


def give(file: int | Path, user: SystemUser | None, mode: int) -> None:
    """Make an open file or a folder the user's, with `mode`."""
    if user is not None:
        os.chown(file, user.uid, user.gid)
    os.chmod(file, mode)  # noqa: PTH101 - a descriptor, or a path


def ours(user: SystemUser | None) -> SystemUser | None:
    """The owner of what root keeps for itself: root, with the user's group."""
    return None if user is None else SystemUser("root", 0, user.gid)


def shared(user: SystemUser | None, mode: int) -> int:
    """`mode` for what is `ours`: the group's part counts only where that group is the system user's own."""
    return mode & ~0o070 if user is None else mode


def make_folder(path: Path, user: SystemUser | None, mode: int = 0o700) -> None:
    """A folder of the user's; the folders above it are made open to enter. Raises `errors.CannotProceed` at a planted link."""
    for above in reversed(path.parents):
        above.mkdir(mode=0o755, exist_ok=True)
    path.mkdir(exist_ok=True)
    _refuse_link(path)
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        give(handle, user, mode)
    finally:
        os.close(handle)


def keep_file(path: Path, user: SystemUser | None, mode: int) -> None:
    """A file that is there becomes `ours`; a link that we made ourselves may lead elsewhere."""
    if user is None or not path.exists() or path.is_symlink():
        return _refuse_link(path)
    handle = open_file(path, os.O_RDONLY)
    try:
        give(handle, ours(user), shared(user, mode))
    finally:
        os.close(handle)
    return None


def open_file(path: Path, flags: int, mode: int = 0o600) -> int:
    """Open a file in a folder that the system user may have had in its hands: no link, no pipe, no second name of another file.

    Raises `errors.CannotProceed` when it is one.
    """
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, mode)  # a pipe would wait for its other end
    except OSError as cause:
        if path.is_symlink() or cause.errno == errno.ENXIO:
            raise _planted(path) from cause
        raise
    status = os.fstat(handle)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
        return handle
    os.close(handle)
    raise _planted(path)


def _refuse_link(path: Path) -> None:
    """An operator may move a folder elsewhere and leave a link; that link is then the operator's own."""
    if path.is_symlink() and path.lstat().st_uid not in (0, os.geteuid()):
        raise _planted(path)


def _planted(path: Path) -> errors.CannotProceed:
    return errors.CannotProceed(what=f"{path} leads to somewhere else", do="look who put it there, and remove it")


def can(user: SystemUser | None, *command: str) -> bool:
    """Whether a command ends well as that user: the only honest test of what it may read."""
    try:
        return run(user, *command, check=False).returncode == 0
    except OSError:
        return False


def run(
    user: SystemUser | None,
    *command: str,
    check: bool = True,
    text: str = "",
    environment: Mapping[str, str] | None = None,
    timeout_s: float = COMMAND_TIMEOUT_S,
) -> subprocess.CompletedProcess[str]:
    """Run a short command as the user; a failure is `errors.StoreFailed` with its last words."""
    done: subprocess.CompletedProcess[str] = subprocess.run(  # noqa: S603 - our own binaries
        command,
        input=text,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        cwd="/",
        env={**os.environ, **(environment or {})},
        **as_user(user),
    )
    if check and done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise errors.StoreFailed(command=Path(command[0]).name, says=" / ".join(words[-3:]))
    return done


def as_user(user: SystemUser | None, *, low_ports: bool = False) -> dict[str, Any]:
    """The keywords of subprocess that drop to the user; with `low_ports` it may listen below 1024, and nothing else of root's."""
    if user is None:
        return {}
    if low_ports and sys.platform == "linux":
        return {"preexec_fn": lambda: capabilities.become(user.uid, user.gid, capabilities.NET_BIND_SERVICE)}
    return {"user": user.uid, "group": user.gid, "extra_groups": [user.gid]}


def let_enter(path: Path, user: SystemUser | None) -> list[Path]:
    """Let the user pass the folders above `path`; returns those whose access list had to be changed.

    Raises `errors.CannotProceed` where the file system has no access lists.
    """
    if user is None:
        return []
    changed = []
    for folder in reversed(path.parents):
        if can(user, "/bin/sh", "-c", 'cd "$0"', str(folder)):
            continue
        try:
            _grant_entry(folder, user)
        except OSError as cause:
            raise errors.CannotProceed(
                what=f"user {user.name} cannot enter {folder}", do=f"choose another data folder, or: chmod o+x {folder}"
            ) from cause
        changed.append(folder)
    return changed


def _grant_entry(folder: Path, user: SystemUser) -> None:
    status = folder.stat()
    try:
        stored = os.getxattr(folder, _ACL)
        entries = [entry for entry in _ENTRY.iter_unpack(stored[4:]) if (entry[0], entry[2]) != (_USER, user.uid)]
    except OSError:
        mode = status.st_mode
        entries = [(_USER_OWNER, mode >> 6 & 7, _NO_ID), (_GROUP_OWNER, mode >> 3 & 7, _NO_ID), (_OTHER, mode & 7, _NO_ID)]
    granted = [entry for entry in entries if entry[0] != _MASK] + [(_USER, _ENTER, user.uid)]
    mask = 0
    for tag, permissions, _ in granted:
        mask |= permissions if tag in (_USER, _GROUP_OWNER, _GROUP) else 0
    granted.append((_MASK, mask, _NO_ID))
    os.setxattr(folder, _ACL, struct.pack("<I", 2) + b"".join(_ENTRY.pack(*entry) for entry in sorted(granted)))


def _make() -> None:
    tool = shutil.which("useradd") or shutil.which("useradd", path="/usr/sbin:/sbin")
    if tool is None:
        raise errors.CannotProceed(
            what=f"there is no user {NAME} and no useradd", do=f"make a system user named {NAME}, or start as an ordinary user"
        )
    shell = next((path for path in ("/usr/sbin/nologin", "/sbin/nologin") if Path(path).exists()), "/bin/false")
    run(None, tool, "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent", "--shell", shell, NAME, check=False)
    try:
        pwd.getpwnam(NAME)  # two first starts may meet here: what counts is that the user is there
    except KeyError as cause:
        raise errors.CannotProceed(what=f"useradd could not make the user {NAME}", do=f"make a system user named {NAME}") from cause
