"""The program, side by side by version, as `installer/program.py` lays it out (a test keeps the two together).

<data>/versions/<version>-<mark>/venv    one virtual environment each; the file `installed` beside it says that it is whole
<data>/current                           the link to the one that runs, by which `bin/piggybank` finds it

A wheel of ours carries the list of the libraries that it was tested with, each with its hash. No package index is asked for a version by
its name: whoever holds that name there need not be us.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from piggybank import errors
from piggybank.appliance.embedded import Tell

FOLDER, CURRENT, FINISHED, LOG = "versions", "current", "installed", "install.log"
LOCK = "piggybank/requirements.lock"  # in the wheel
LOG_TAIL_LINES = 6
PIP_ENVIRONMENT = {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_REQUIRE_VIRTUALENV": "0"}
PIP_INSTALL = ("-m", "pip", "install", "--no-input", "--only-binary", ":all:")
_WHEEL = re.compile(r"piggybank-(?P<version>[0-9.]+)-py3-none-any\.whl")


def place(data_dir: Path, name: str) -> Path:
    """The folder of that version."""
    return data_dir / FOLDER / name


def python(data_dir: Path, name: str) -> Path:
    """Its interpreter."""
    return place(data_dir, name) / "venv" / "bin" / "python"


def number(name: str) -> str:
    """`0.1.0` of `0.1.0-3f2a91bc`."""
    return name.rpartition("-")[0]


def present(data_dir: Path) -> str:
    """The name of the version that `current` leads to; empty: this folder has no versions of its own."""
    link = data_dir / CURRENT
    return link.readlink().name if link.is_symlink() and (link / FINISHED).is_file() else ""


def here(data_dir: Path) -> list[str]:
    """The names of those that are installed, whole, the newest last."""
    found = [path for path in (data_dir / FOLDER).glob("*-*") if (path / FINISHED).is_file()]
    return [path.name for path in sorted(found, key=lambda path: (path / FINISHED).stat().st_mtime)]


def running(data_dir: Path) -> str:
    """The name of the version that this very process is of; empty: it is of none of them."""
    prefix = Path(sys.prefix).resolve()
    return prefix.parent.name if prefix.parent.parent == (data_dir / FOLDER).resolve() else ""


def find(data_dir: Path, wanted: str) -> str:
    """The installed version of that name or number, the newest of its builds. Raises `errors.CannotProceed`."""
    fitting = [name for name in here(data_dir) if wanted in (name, number(name))]
    if not fitting:
        raise errors.CannotProceed(
            what=f"{wanted} is neither a file nor a version that is here ({', '.join(here(data_dir)) or 'there is none'})",
            do="give the wheel or the bundle of that version: --to FILE; or run installer/install.sh of its checkout",
        )
    return fitting[-1]


def point(data_dir: Path, name: str) -> None:
    """From now on `bin/piggybank` is that version."""
    link = data_dir / f"{CURRENT}.new"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(FOLDER) / name)
    link.replace(data_dir / CURRENT)


def install(data_dir: Path, file: Path, tell: Tell) -> str:
    """Install a wheel, or a bundle (which asks no package index), beside what is there; its name. Raises `errors.CannotProceed`."""
    os.umask(0o022)  # the system user must read it
    with _wheel_of(file) as (wheel, beside):
        if (known := _WHEEL.fullmatch(wheel.name)) is None:
            raise errors.CannotProceed(what=f"{wheel.name} is no wheel of piggybank", do="make one: make bundle, or pip wheel --no-deps .")
        mark = hashlib.sha256(f"{sys.version}{sys.base_prefix}".encode() + wheel.read_bytes()).hexdigest()[:8]
        name = f"{known['version']}-{mark}"
        if (place(data_dir, name) / FINISHED).is_file():
            return name
        tell(f"installing {name} beside {present(data_dir)}")
        folder = place(data_dir, name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "requirements.lock").write_bytes(_lock_of(wheel))
        source = ("--no-index", "--find-links", str(beside)) if beside else ()
        interpreter = str(python(data_dir, name))
        _logged(folder, sys.executable, "-m", "venv", str(folder / "venv"))
        _logged(folder, interpreter, *PIP_INSTALL, *source, "--require-hashes", "-r", str(folder / "requirements.lock"))
        _logged(folder, interpreter, *PIP_INSTALL, "--no-index", "--no-deps", str(wheel))
        (folder / FINISHED).touch()
    return name


def remove_old(data_dir: Path, before: str) -> list[str]:
    """Keep the version that runs, the one before, and those that something still runs from (a store lives longer than an upgrade)."""
    kept = {present(data_dir), before, *in_use(data_dir)}
    gone = [name for name in here(data_dir) if name not in kept]
    for name in gone:
        shutil.rmtree(place(data_dir, name), ignore_errors=True)
    return gone


def in_use(data_dir: Path) -> set[str]:
    """The versions that a live process is of."""
    root, found = f"{data_dir / FOLDER}/", set()
    for process in psutil.process_iter(["cmdline", "exe"]):
        for word in (process.info["exe"], *(process.info["cmdline"] or ())):
            if word and word.startswith(root):
                found.add(word.removeprefix(root).partition("/")[0])
    return found


def of_process(data_dir: Path, pid: int) -> str:
    """The name of the version that this process was started from; empty: of none."""
    try:
        program = psutil.Process(pid).cmdline()[0]
    except (psutil.Error, IndexError):
        return ""
    root = f"{data_dir / FOLDER}/"
    return program.removeprefix(root).partition("/")[0] if program.startswith(root) else ""


@contextmanager
def _wheel_of(file: Path) -> Iterator[tuple[Path, Path | None]]:
    """The wheel, and the folder of all wheels where the file is a bundle."""
    if not file.is_file():
        raise errors.CannotProceed(what=f"there is no file {file}", do="give a wheel (.whl) or a bundle (.tar.gz)")
    if file.suffix == ".whl":
        yield file.absolute(), None
        return
    with tempfile.TemporaryDirectory(prefix="piggybank-bundle-") as folder:
        try:
            with tarfile.open(file) as bundle:
                for member in bundle.getmembers():
                    path = Path(member.name)
                    if member.isfile() and not path.is_absolute() and ".." not in path.parts:  # files only, and none beside the folder
                        bundle.extract(member, folder)
        except (tarfile.TarError, OSError) as cause:
            raise errors.CannotProceed(what=f"{file} cannot be unpacked: {cause}", do="give a wheel or a bundle that is whole") from cause
        wheels = sorted(Path(folder).glob("*/wheels/piggybank-*.whl"))
        if len(wheels) != 1:
            raise errors.CannotProceed(what=f"{file} is no bundle of piggybank", do="make one: make bundle")
        yield wheels[0], wheels[0].parent


def _lock_of(wheel: Path) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(LOCK)
    except (zipfile.BadZipFile, KeyError) as cause:
        raise errors.CannotProceed(
            what=f"{wheel.name} does not say which libraries it was tested with", do="install it with installer/install.sh of its checkout"
        ) from cause


def _logged(folder: Path, *command: str) -> None:
    with (folder / LOG).open("a", encoding="utf-8") as log:
        done = subprocess.run(  # noqa: S603 - our own interpreter
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False, cwd=folder, env={**os.environ, **PIP_ENVIRONMENT}
        )
    if done.returncode != 0:
        tail = " / ".join((folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:])
        raise errors.CannotProceed(
            what=f"it could not be installed, and nothing else was changed: {tail}",
            do=f"look into {folder / LOG}; pip takes PIP_INDEX_URL, PIP_CERT, https_proxy; a bundle needs no package index",
        )
