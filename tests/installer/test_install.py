"""install.sh for real: into a folder, again, with another port, then a deposit with what it printed."""

import json
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .test_look import a_free_port, install

pytestmark = pytest.mark.xdist_group("install")  # one installation for all of them

SCOPES = "users:write,accounts:write,accounts:read,ledger:write"


def installed(*flags: str) -> dict[str, Any]:
    done = install("--json", *flags)
    assert done.returncode == 0, done.stderr
    last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return last


def ask(url: str, token: str = "", body: dict[str, Any] | None = None) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": "k-1", "Content-Type": "application/json"}
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="piggybank install ") as folder:  # a blank in the path, as on many a Mac
        Path(folder).chmod(0o755)
        place = Path(folder) / "data"
        yield place
        cli = place / "bin" / "piggybank"
        if cli.exists():
            subprocess.run([cli, "down"], check=False, capture_output=True)


@pytest.fixture(scope="module")
def first(data_dir: Path) -> dict[str, Any]:
    return installed("--data-dir", str(data_dir), "--port", str(a_free_port()))


def test_last_line_says_what_a_script_needs(first: dict[str, Any], data_dir: Path) -> None:
    assert first.keys() == {"url", "data_dir", "cli", "operator_link"}
    assert first["data_dir"] == str(data_dir)
    assert first["operator_link"].startswith(first["url"])


def test_from_nothing_to_a_deposit(first: dict[str, Any]) -> None:
    made = subprocess.run([first["cli"], "apikeys", "create", "--scopes", SCOPES, "--json"], capture_output=True, text=True, check=True)
    token = json.loads(made.stdout)["token"]
    user = ask(f"{first['url']}/v1/users", token, {"external_id": "customer-1"})
    account = ask(f"{first['url']}/v1/accounts", token, {"user_id": user["id"], "currency": "ZAR"})
    ask(f"{first['url']}/v1/accounts/{account['id']}/deposits", token, {"amount": 10_000, "method": "direct"})
    assert ask(f"{first['url']}/v1/accounts/{account['id']}/balance", token)["balance"] == 10_000
    subprocess.run([first["cli"], "verify"], check=True, capture_output=True)


def test_again_changes_nothing_and_a_flag_changes_its_line(first: dict[str, Any], data_dir: Path) -> None:
    settings = data_dir / "piggybank.toml"
    settings.write_text(settings.read_text(encoding="utf-8") + '# mine\nlog_level = "warning"\n', encoding="utf-8")
    before = settings.read_text(encoding="utf-8")
    again = installed("--data-dir", str(data_dir))
    assert again["url"] == first["url"]
    assert settings.read_text(encoding="utf-8") == before

    moved = installed("--data-dir", str(data_dir), "--port", str(port := a_free_port()))
    assert moved["url"] == f"http://127.0.0.1:{port}"
    assert ask(f"{moved['url']}/health/ready")
    after = settings.read_text(encoding="utf-8")
    assert "# mine" in after
    assert f"port = {port}" in after
    assert len(list((data_dir / "versions").iterdir())) == 1
