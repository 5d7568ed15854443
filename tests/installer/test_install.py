"""install.sh for real: into a folder, a deposit with what it printed, again, and with another port."""

import json
import os
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .test_look import a_free_port, install

SCOPES = "users:write,accounts:write,accounts:read,ledger:write"


def installed(*flags: str) -> dict[str, Any]:
    """What it says to machines, and in `printed` to people."""
    done = install("--json", *flags)
    assert done.returncode == 0, done.stderr
    last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return last | {"printed": done.stderr}


def ask(url: str, token: str = "", body: dict[str, Any] | None = None) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": "k-1", "Content-Type": "application/json"}
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="piggybank install ") as folder:  # a blank in the path, as on many a Mac
        Path(folder).chmod(0o755)
        place = Path(folder) / "data"
        yield place
        cli = place / "bin" / "piggybank"
        if cli.exists():
            subprocess.run([cli, "down"], check=False, capture_output=True)


@pytest.mark.deep  # .ci/run installs as well, twice
def test_from_nothing_to_a_deposit_and_again(data_dir: Path) -> None:
    """One test, since one installation takes most of a minute."""
    first = installed("--data-dir", str(data_dir), "--port", str(a_free_port()))
    assert first.keys() == {"url", "data_dir", "cli", "operator_link", "provider_mode", "recovery_key", "printed"}
    assert first["data_dir"] == str(data_dir)
    assert first["recovery_key"].startswith("AGE-SECRET-KEY-1")
    assert first["recovery_key"] in first["printed"]
    kept = [path for path in data_dir.rglob("*.toml") if first["recovery_key"] in path.read_text(encoding="utf-8")]
    assert kept == []
    assert first["operator_link"].startswith(first["url"])

    if os.geteuid() == 0:  # root runs what the system user cannot exchange, and the web is the system user's
        owners = {name: (data_dir / name).lstat().st_uid for name in (".", "bin", "bin/piggybank", "current", "versions", "piggybank.toml")}
        assert set(owners.values()) == {0}, owners
        web = json.loads((data_dir / "run" / "web-1.json").read_text(encoding="utf-8"))["pid"]
        assert Path(f"/proc/{web}").owner() == "piggybank"

    # what it printed for people, typed as it stands
    script = first["printed"].partition("from nothing:\n")[2].partition("\n\n")[0]
    typed = subprocess.run(["sh", "-eu", "-c", script], capture_output=True, text=True, env={**os.environ, "no_proxy": "*"}, check=False)
    assert json.loads(typed.stdout)["balance"]["available"] == 10_000, typed.stderr

    create_key = [first["cli"], "apikeys", "create", "--scopes", SCOPES, "--token-only"]
    token = subprocess.run(create_key, capture_output=True, text=True, check=True).stdout.strip()
    user = ask(f"{first['url']}/v1/users", token, {"external_id": "customer-2"})
    account = ask(f"{first['url']}/v1/accounts", token, {"user_id": user["id"], "currency": "ZAR"})
    ask(f"{first['url']}/v1/accounts/{account['id']}/deposits", token, {"amount": 10_000, "method": "direct"})
    subprocess.run([first["cli"], "verify"], check=True, capture_output=True)

    # again without a flag: nothing changes
    settings = data_dir / "piggybank.toml"
    settings.write_text(settings.read_text(encoding="utf-8") + '# mine\nlog_level = "warning"\n', encoding="utf-8")
    before = settings.read_text(encoding="utf-8")
    again = installed("--data-dir", str(data_dir))
    assert (again["url"], again["recovery_key"]) == (first["url"], None)
    assert settings.read_text(encoding="utf-8") == before

    # again with a flag, now that there is an operator: its line changes, and the money is where it was
    create = [first["cli"], "users", "create", "--operator", "--email", "ada@example.com", "--password-stdin"]
    subprocess.run(create, input="correct horse battery staple\n", text=True, check=True, capture_output=True)
    moved = installed("--data-dir", str(data_dir), "--port", str(port := a_free_port()))
    assert (moved["url"], moved["operator_link"]) == (f"http://127.0.0.1:{port}", None)
    assert ask(f"{moved['url']}/v1/accounts/{account['id']}/balance", token)["balance"] == 10_000
    after = settings.read_text(encoding="utf-8").splitlines()
    assert {"# mine", 'log_level = "warning"', f"port = {port}"} <= set(after)
    assert len([version for version in (data_dir / "versions").iterdir() if (version / "installed").exists()]) == 1
