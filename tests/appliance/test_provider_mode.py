"""Play money and real money share no book, and a live installation without keys never turns to the simulator."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from piggybank.appliance import store_files
from tests.appliance.bank import Bank, wait_until
from tests.conftest import run_apart

SCOPES = "users:write,accounts:write,accounts:read,ledger:write,ops:read"


class Client:
    """What a team's own backend does."""

    def __init__(self, bank: Bank) -> None:
        token = bank.ask("apikeys", "create", "--scopes", SCOPES, "--token-only").stdout.strip()
        self._http = httpx.Client(base_url=bank.url, headers={"Authorization": f"Bearer {token}"}, timeout=30)

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return self._http.post(path, json=body, headers={"Idempotency-Key": uuid4().hex})

    def get(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = self._http.get(path).raise_for_status().json()
        return found

    def account(self) -> str:
        user = self.post("/v1/users", {"external_id": uuid4().hex}).json()["id"]
        return str(self.post("/v1/accounts", {"user_id": user, "currency": "ZAR"}).json()["id"])

    def close(self) -> None:
        self._http.close()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def bank(open_path: Path) -> Iterator[Bank]:
    made = Bank(open_path / "bank", PIGGYBANK_PORT=str(store_files.free_ports(1)[0]))
    yield made
    made.run("down")


def settings(bank: Bank, **values: str) -> None:
    (bank.data_dir / "piggybank.toml").write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))


def test_live_without_its_keys_refuses_and_never_plays(bank: Bank) -> None:
    """Started live with keys; then the keys are gone: it starts, answers reads, and refuses what needs the provider."""
    bank.data_dir.mkdir(mode=0o755)
    nowhere = f"http://127.0.0.1:{store_files.free_ports(1)[0]}/"
    keys = {"revio_url": nowhere, "revio_key": "sk_secret_of_this_test", "revio_brand_id": "brand"}
    settings(bank, provider_mode="live", **keys, revio_fallback_email="payments@example.com")
    assert bank.run("up", "--detach").returncode == 0
    client = Client(bank)
    account = client.account()
    assert client.post(f"/v1/accounts/{account}/deposits", {"amount": 500, "method": "direct"}).status_code == 201
    unreachable = client.post(f"/v1/accounts/{account}/deposits", {"amount": 500, "method": "revio"})
    assert (unreachable.status_code, unreachable.json()["code"]) == (503, "provider_unavailable")
    assert bank.run("down").returncode == 0

    settings(bank)
    assert bank.run("up", "--detach").returncode == 0
    status = json.loads(bank.ask("status", "--json").stdout)
    assert (status["ok"], status["provider"]) == (True, {"mode": "live", "simulator_url": None})
    assert "simulator" not in {process["name"] for process in status["processes"]}
    assert not (bank.data_dir / "run" / "simulator.json").exists()
    assert not listens(bank.stores.simulator_port)
    assert client.get(f"/v1/accounts/{account}/balance")["balance"] == 500
    for path, body in (
        (f"/v1/accounts/{account}/deposits", {"amount": 500, "method": "revio"}),
        (f"/v1/accounts/{account}/withdrawals", {"amount": 5, "method": "revio", "destination": {"phone": "1"}}),
    ):
        refused = client.post(path, body)
        assert (refused.status_code, refused.json()["code"]) == (409, "provider_not_configured")
        assert refused.json()["missing"] == ["PIGGYBANK_REVIO_KEY", "PIGGYBANK_REVIO_BRAND_ID"]
    assert client.get(f"/v1/accounts/{account}/balance")["available"] == 500  # nothing was reserved
    assert client.get("/v1/ops/status")["provider"] == {"mode": "live", "configured": False, "wrong_signatures": 0}
    client.close()
    found = {check["name"]: check for check in json.loads(bank.ask("doctor", "--json").stdout)["checks"]}
    assert found["provider"]["result"] == "broken"
    assert "revio_key" in found["provider"]["do"]
    simulator = bank.run("simulator")
    assert simulator.returncode == 1
    assert "live" in simulator.stderr
    for log in (bank.data_dir / "logs").glob("*.log"):
        assert "sk_secret_of_this_test" not in log.read_text(errors="replace"), log


def test_a_database_with_play_money_does_not_become_live(bank: Bank) -> None:
    assert bank.run("up", "--detach").returncode == 0
    assert bank.ask("provider", "mode").stdout.strip() == "simulator"
    wait_until(lambda: listens(bank.stores.simulator_port))
    # while there are no payments it may be chosen, both ways
    assert bank.ask("provider", "mode", "live").exit_code == 0
    assert bank.ask("provider", "mode").stdout.strip() == "live"
    assert bank.ask("provider", "mode", "simulator").exit_code == 0
    client = Client(bank)
    account = client.account()
    wait_until(lambda: client.post(f"/v1/accounts/{account}/deposits", {"amount": 500, "method": "revio"}).status_code == 202)
    client.close()
    refused = bank.run("provider", "mode", "live")
    assert refused.returncode == 1
    assert "simulator payment(s)" in refused.stderr
    assert "--provider-mode live" in refused.stderr  # the way out
    assert bank.ask("provider", "mode").stdout.strip() == "simulator"
    assert bank.ask("status").exit_code == 0  # and it runs on
    wait_until(lambda: bank.ask("provider", "status").exit_code == 0)  # it answers, and knows where its events go
    assert "SIMULATOR" in bank.ask("provider", "status").stdout
    assert "SIMULATOR" in bank.ask("status").stdout
    run_apart(lambda: the_database_itself_keeps_them_apart(bank))


async def the_database_itself_keeps_them_apart(bank: Bank) -> None:
    """Whatever a process believes: no payment of another mode, and no other mode once there is a payment."""
    owner = await asyncpg.connect(bank.stores.addresses()["owner_database_url"])
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await owner.execute("UPDATE installation SET provider_mode = 'live'")
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await owner.execute("UPDATE payments SET provider = 'live'")
    await owner.close()
    application = await asyncpg.connect(bank.stores.addresses()["database_url"])
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await application.execute("UPDATE installation SET provider_mode = 'live'")
    await application.close()
