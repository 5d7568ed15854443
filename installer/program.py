"""The program, side by side by version: `versions/<version>-<mark>/` holds one virtual environment, `current` points at one of them.

The mark is made of the source, the locks and the Python, so the same checkout is installed once and a changed one beside the old.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from installer.options import Options

CHECKOUT = Path(__file__).resolve().parent.parent
SOURCES = ("piggybank", "alembic", "pyproject.toml", "requirements.lock", "requirements-build.lock")
FINISHED = "installed"  # a version without this file was interrupted
KEPT_VERSIONS = 2
LOG_TAIL_LINES = 6
LOCKED = ("--require-hashes", "--only-binary", ":all:", "--no-input")

# pip as a library of the new environment; the machine's own pip configuration counts, but for where to install to
PIP_ENVIRONMENT = {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_REQUIRE_VIRTUALENV": "0"}
WRAPPER = """\
#!/bin/sh
# The command of the installation in {data_dir}; written by installer/install.sh.
exec {current}/venv/bin/piggybank --data-dir {data_dir} "$@"
"""


class Failed(Exception):
    """A step went wrong; the text says what to do."""


@dataclass(frozen=True)
class Source:
    """What is installed: a checkout, or a bundle (`wheel`), which needs no package index."""

    folder: Path
    wheel: Path | None = None

    @property
    def libraries(self) -> tuple[str, ...]:
        """Where pip takes them from."""
        return () if self.wheel is None else ("--no-index", "--find-links", str(self.wheel.parent))

    @property
    def about(self) -> dict[str, str]:
        """What a bundle is for: version, python, machine."""
        found: dict[str, str] = json.loads((self.folder / "bundle.json").read_text(encoding="utf-8")) if self.wheel else {}
        return found


@contextmanager
def source(options: Options) -> Iterator[Source]:
    """The bundle that was named, the one that this installer lies in, else the checkout. Raises `Failed`."""
    if options.bundle is None:
        yield _source_in(CHECKOUT)
        return
    with tempfile.TemporaryDirectory(prefix="piggybank-bundle-") as folder:
        try:
            with tarfile.open(options.bundle) as bundle:
                for member in bundle.getmembers():
                    path = Path(member.name)
                    if member.isfile() and not path.is_absolute() and ".." not in path.parts:  # files only, and none beside the folder
                        bundle.extract(member, folder)
        except (tarfile.TarError, OSError) as cause:
            raise Failed(f"{options.bundle} cannot be unpacked: {cause}") from cause
        found = [_source_in(path) for path in Path(folder).iterdir() if path.is_dir()]
        if len(found) != 1 or found[0].wheel is None:
            raise Failed(f"{options.bundle} is no bundle of piggybank; `make bundle` makes one")
        yield found[0]


def _source_in(folder: Path) -> Source:
    wheels = sorted((folder / "wheels").glob("piggybank-*.whl"))
    return Source(folder, wheels[0] if wheels else None)


def wanted(options: Options, source: Source) -> Path:
    """The folder that this program, as it is now, belongs in."""
    if source.wheel is not None:  # as `piggybank upgrade --to` names it
        mark = hashlib.sha256(f"{sys.version}{sys.base_prefix}".encode() + source.wheel.read_bytes())
        return options.data_dir / "versions" / f"{source.wheel.name.split('-')[1]}-{mark.hexdigest()[:8]}"
    source_text = (CHECKOUT / "piggybank" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'__version__ = "([^"]+)"', source_text)
    assert version is not None, "piggybank/__init__.py names the version"
    mark = hashlib.sha256(f"{sys.version}{sys.base_prefix}".encode())
    for path in _source_files():
        mark.update(str(path.relative_to(CHECKOUT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return options.data_dir / "versions" / f"{version[1]}-{mark.hexdigest()[:8]}"


def is_installed(place: Path) -> bool:
    """True when that version is there, whole."""
    return (place / FINISHED).is_file()


def install_libraries(place: Path, source: Source) -> None:
    """A fresh virtual environment with what requirements.lock says, each file checked against its hash."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    _logged(place, sys.executable, "-m", "venv", str(place / "venv"))
    _pip(place, "install", *source.libraries, *LOCKED, "-r", str(source.folder / "requirements.lock"))


def install_piggybank(place: Path, source: Source) -> None:
    """piggybank itself: the bundle's wheel, or built with the locked build tools, which do not stay."""
    if source.wheel is not None:
        _pip(place, "install", "--no-index", "--no-deps", str(source.wheel))
    else:
        with tempfile.TemporaryDirectory(prefix="piggybank-build-") as tools:
            _pip(place, "install", *LOCKED, "--target", tools, "-r", str(CHECKOUT / "requirements-build.lock"))
            _pip(place, "install", "--no-deps", "--no-build-isolation", "--no-cache-dir", str(CHECKOUT), PYTHONPATH=tools)
    (place / FINISHED).touch()


def replaces(options: Options, place: Path) -> bool:
    """True where `current` is another version, whole."""
    current = options.data_dir / "current"
    return current.is_symlink() and is_installed(current) and current.resolve() != place.resolve()


def switch(options: Options, place: Path) -> bool:
    """Point `current` and the command at it; True when that changed something."""
    current, command = options.data_dir / "current", options.cli
    target = Path("versions") / place.name
    changed = not current.is_symlink() or current.readlink() != target
    if changed:
        link = options.data_dir / "current.new"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        link.replace(current)
    command.parent.mkdir(exist_ok=True)
    wrapper = WRAPPER.format(current=shlex.quote(str(current)), data_dir=shlex.quote(str(options.data_dir)))
    if not command.is_file() or command.read_text(encoding="utf-8") != wrapper:
        making = command.with_name("piggybank.new")
        making.write_text(wrapper, encoding="utf-8")
        making.chmod(0o755)
        making.replace(command)
    return changed


def remove_old(place: Path) -> None:
    """Keep the version in use and the one before it."""
    versions = sorted(place.parent.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for version in [path for path in versions if path != place][KEPT_VERSIONS - 1 :]:
        shutil.rmtree(version, ignore_errors=True)


def remove_unless_ours(path: Path) -> None:
    """What root did not make goes, to be installed anew."""
    if path.lstat().st_uid == 0:
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _source_files() -> Iterator[Path]:
    for name in SOURCES:
        path = CHECKOUT / name
        found = [path] if path.is_file() else sorted(path.rglob("*"))
        yield from (file for file in found if file.is_file() and "__pycache__" not in file.parts)


def _pip(place: Path, *arguments: str, **environment: str) -> None:
    _logged(place, str(place / "venv" / "bin" / "python"), "-m", "pip", *arguments, **environment)


def _logged(place: Path, *command: str, **environment: str) -> None:
    """Run a step quietly; its words are in install.log, and shown when it fails."""
    log = place / "install.log"
    with log.open("a", encoding="utf-8") as file:
        print("$", shlex.join(command), file=file, flush=True)
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            check=False,
            cwd=place,
            env={**os.environ, **PIP_ENVIRONMENT, **environment},
        )
    if done.returncode != 0:
        tail = "\n".join("    " + line for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:])
        raise Failed(
            f"this command ended with {done.returncode}: {shlex.join(command)}\n{tail}\n"
            f"  The whole log: {log}\n"
            "  If the package index could not be reached: pip takes PIP_INDEX_URL, PIP_CERT, https_proxy and pip.conf. Then run this again."
        )
