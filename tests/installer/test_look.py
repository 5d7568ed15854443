"""install.sh before it changes anything: flags, findings, exit codes."""

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTALL_TIMEOUT_S = 900
INSTALL = ROOT / "installer" / "install.sh"


def install(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("PIGGYBANK_")}
    return subprocess.run(
        [INSTALL, *flags], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env={**own, **environment}, timeout=400
    )


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    return {finding["check"]: finding for finding in json.loads(done.stdout.splitlines()[-1])["findings"]}


def a_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_help_names_every_flag() -> None:
    done = install("--help")
    assert done.returncode == 0
    for flag in (
        "--data-dir",
        "--port",
        "--listen",
        "--public-url",
        "--tls-cert",
        "--tls-key",
        "--insecure",
        "--yes",
        "--json",
        "--check",
        "--docker",
    ):
        assert flag in done.stdout


def test_check_looks_and_leaves_nothing(tmp_path: Path) -> None:
    done = install("--check", "--json", "--data-dir", str(tmp_path / "data"), "--port", str(a_free_port()))
    assert done.returncode == 0, done.stderr
    looked_at = findings(done)
    assert {"python", "system", "kernel", "clock", "memory", "folder", "disk", "fsync", "existing", "port", "reach"} <= looked_at.keys()
    assert looked_at["fsync"]["found"].endswith(" ms")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--port", "0"), "1 to 65535"),
        (("--port", "http"), "1 to 65535"),
        (("--port", "٣٣"), "1 to 65535"),
        (("--phase", "2"), "piggybank phase apply"),
        (("--public-url", "money.example.com"), "https://"),
        (("--tls-cert", "/nowhere/cert.pem"), "no such file"),
        (("--data-dir", "/tmp/it's"), "quotes"),
        (("--prot", "9000"), "unrecognized arguments"),
    ],
)
def test_bad_flags_are_named(flags: tuple[str, ...], says: str) -> None:
    done = install("--check", *flags)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_stops_it(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        done = install("--json", "--data-dir", str(tmp_path / "data"), "--port", str(other.getsockname()[1]))
    assert done.returncode == 2
    assert "in use by another program" in done.stderr
    assert "Nothing was changed" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_listening_beyond_loopback_needs_a_word(tmp_path: Path) -> None:
    flags = ("--check", "--json", "--data-dir", str(tmp_path / "data"), "--port", str(a_free_port()), "--listen", "0.0.0.0")
    refused = install(*flags)
    assert refused.returncode == 2
    assert findings(refused)["reach"]["level"] == "stop"
    assert install(*flags, "--insecure").returncode == 0
    assert install(*flags, PIGGYBANK_TRUSTED_PROXIES="10.0.0.1").returncode == 0


@pytest.mark.parametrize("name", ["holiday.jpg", "versions", "logs"])
def test_a_folder_of_something_else_stops_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    done = install("--check", "--json", "--data-dir", str(tmp_path), "--port", str(a_free_port()))
    assert done.returncode == 2
    assert findings(done)["existing"]["level"] == "stop"


def test_a_setting_of_this_shell_is_pointed_at(tmp_path: Path) -> None:
    done = install("--check", "--json", "--data-dir", str(tmp_path / "data"), "--port", str(a_free_port()), PIGGYBANK_LOG_LEVEL="debug")
    assert "PIGGYBANK_LOG_LEVEL" in findings(done)["environment"]["found"]


def test_without_python_it_names_the_apt_line(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("sh", "dirname", "id"):
        (tools / tool).symlink_to(f"/usr/bin/{tool}" if Path(f"/usr/bin/{tool}").exists() else f"/bin/{tool}")
    old = tools / "python3"
    old.write_text("#!/bin/sh\nexit 0\n")  # one that is too old says nothing
    old.chmod(0o755)
    script = INSTALL.read_text(encoding="utf-8")
    python = (
        (INSTALL.parent / "python.sh").read_text(encoding="utf-8").replace("/usr/bin/python3", "").replace("/usr/local/bin/python3", "")
    )
    (tmp_path / "install.sh").write_text(script)
    (tmp_path / "python.sh").write_text(python)
    done = subprocess.run(
        [tools / "sh", tmp_path / "install.sh"], capture_output=True, text=True, check=False, env={"PATH": str(tools)}, timeout=60
    )
    assert done.returncode == 2
    assert "apt-get install -y python3 python3-venv make" in done.stderr
