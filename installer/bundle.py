"""`make bundle`: everything that an installation needs, in one file, for machines without a network.

    piggybank-<version>-<python>-<machine>-bundle.tar.gz
      wheels/           piggybank and every library, as requirements.lock has them, for this Python and this kind of machine
      installer/        install.sh beside the wheels uses them and asks no package index
      bundle.json       what the wheels are for
      sbom.cdx.json     what is in it (CycloneDX 1.5), from the wheels' own metadata
      SHA256SUMS        of every file

A bundle is made where the package index can be reached, on the kind of machine and with the Python that it is for.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import uuid
import zipfile
from datetime import UTC, datetime
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
ABOUT, SBOM, SUMS = "bundle.json", "sbom.cdx.json", "SHA256SUMS"
LOCKED = ("--require-hashes", "--only-binary", ":all:", "--no-input")
BESIDE = ("README.md", "CHANGELOG.md", "LICENSE", "requirements.lock")


def main() -> int:
    """Make it; prints the file's path."""
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "dist").absolute()
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="piggybank-bundle-") as folder:
        made = make(Path(folder), target)
    print(made)
    return 0


def make(work: Path, target: Path) -> Path:
    """In the folder `work`; the finished file is in `target`."""
    wheels = work / "wheels"
    wheels.mkdir()
    _step("building piggybank's wheel")
    wheel = build_wheel(work, wheels)
    _step("collecting the libraries")
    (work / "wanted.txt").write_text(for_any_patch((CHECKOUT / "requirements.lock").read_text(encoding="utf-8")), encoding="utf-8")
    _pip("download", "--quiet", *LOCKED, "--dest", str(wheels), "-r", str(work / "wanted.txt"))
    version, python = wheel.name.split("-")[1], f"cp{sys.version_info.major}{sys.version_info.minor}"
    name = f"piggybank-{version}-{python}-{platform.machine()}-bundle"
    root = work / name
    root.mkdir()
    wheels.rename(root / "wheels")
    for file in BESIDE:
        shutil.copy2(CHECKOUT / file, root)
    copy_installer(root)
    about = {"version": version, "python": f"{sys.version_info.major}.{sys.version_info.minor}", "machine": platform.machine()}
    _write(root / ABOUT, about)
    _step("listing what is in it")
    _write(root / SBOM, sbom(sorted((root / "wheels").glob("*.whl")), version))
    files = sorted(path for path in root.rglob("*") if path.is_file())
    (root / SUMS).write_text("".join(f"{_sha256(path)}  {path.relative_to(root)}\n" for path in files), encoding="utf-8")
    making = target / f"{name}.tar.gz.new"
    with tarfile.open(making, "w:gz", compresslevel=1) as archive:  # wheels are compressed already
        archive.add(root, name)
    return making.rename(target / f"{name}.tar.gz")


def copy_installer(root: Path) -> None:
    """All of it: which of its files need which others is theirs to know."""
    shutil.copytree(CHECKOUT / "installer", root / "installer", ignore=shutil.ignore_patterns("__pycache__"))


def for_any_patch(lock: str) -> str:
    """With what only some patch releases of a Python need: 3.11.2 may install what 3.11.7 has made."""
    return re.sub(r"^(\S+) ; python_full_version [<>=]+ '\d+\.\d+\.\d+'( \\)$", r"\1\2", lock, flags=re.MULTILINE)


def build_wheel(work: Path, wheels: Path) -> Path:
    """piggybank's own, with the locked build tools."""
    tools = work / "tools"
    _pip("install", "--quiet", *LOCKED, "--target", str(tools), "-r", str(CHECKOUT / "requirements-build.lock"))
    words = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(CHECKOUT))
    _pip(*words, environment={"PYTHONPATH": str(tools)})
    return next(wheels.glob("piggybank-*.whl"))


def sbom(wheels: list[Path], version: str) -> dict[str, Any]:
    """CycloneDX 1.5: what each wheel says of itself, with its hash and what it asks for."""
    components = [component(wheel) for wheel in wheels]
    known = {found["name"]: found["bom-ref"] for found in components}
    needs = {found["bom-ref"]: _needs(wheel, known) for found, wheel in zip(components, wheels, strict=True)}
    own = next(found for found in components if found["name"] == "piggybank")
    made = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", datetime.now(UTC).timestamp())), UTC)
    hashes = "".join(found["hashes"][0]["content"] for found in components)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, hashes)}",
        "version": 1,
        "metadata": {
            "timestamp": made.isoformat(),
            "tools": {"components": [{"type": "application", "name": "piggybank installer/bundle.py", "version": version}]},
            "component": own | {"type": "application"},
        },
        "components": [found for found in components if found is not own],
        "dependencies": [{"ref": ref, "dependsOn": below} for ref, below in needs.items()],
    }


def component(wheel: Path) -> dict[str, Any]:
    """One wheel as CycloneDX has it."""
    said = _metadata(wheel)
    name = _normal(said["Name"])
    purl = f"pkg:pypi/{name}@{said['Version']}"
    found: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": said["Version"],
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": _sha256(wheel)}],
    }
    if said["Summary"]:
        found["description"] = said["Summary"]
    if licences := _licences(said):
        found["licenses"] = licences
    return found


def _licences(said: Any) -> list[dict[str, Any]]:
    if said["License-Expression"]:
        return [{"expression": said["License-Expression"]}]
    classified = [text.rpartition(" :: ")[2] for text in said.get_all("Classifier") or [] if text.startswith("License :: ")]
    names = classified or (said["License"] or "").strip().splitlines()[:1]
    return [{"license": {"name": name}} for name in names]


def _needs(wheel: Path, known: dict[str, str]) -> list[str]:
    """Of what it asks for, what is in the bundle."""
    asked = [re.split(r"[\s;<>=!~\[(]", text, maxsplit=1)[0] for text in _metadata(wheel).get_all("Requires-Dist") or []]
    return sorted({known[_normal(name)] for name in asked if _normal(name) in known})


def _metadata(wheel: Path) -> Any:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return HeaderParser().parsestr(archive.read(name).decode("utf-8"))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _pip(*words: str, environment: dict[str, str] | None = None) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    subprocess.run(command, check=True, env={**os.environ, **(environment or {})})


def _step(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
