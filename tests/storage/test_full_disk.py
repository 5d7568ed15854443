"""An installation on a small disk that fills up: writes are refused before PostgreSQL is in trouble, and go on by themselves."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import httpx
import msgspec
import pytest

from piggybank import settings as settings_file
from piggybank.appliance import store_files
from piggybank.db.storage import RESERVE_MIB
from tests.appliance.bank import Bank, wait_until
from tests.conftest import ALL_SCOPES, start_server
from tests.storage.disks import fill, free_mib, make_room, small_disk

pytestmark = pytest.mark.deep

DISK_MIB = 1_024
DEPOSITS_MOST = 8_000  # until a table has to grow
FULL = "No space left on device"


@pytest.fixture
def disk(open_path: Path) -> Iterator[Path]:
    with small_disk(open_path / "disk", DISK_MIB) as made:
        yield made


@pytest.fixture
def bank(disk: Path) -> Iterator[Bank]:
    made = Bank(disk / "bank", PIGGYBANK_PORT=str(store_files.free_ports(1)[0]), PIGGYBANK_RATE_SERVICE_PER_MINUTE="0")
    made.do("up", "--detach")
    yield made
    made.run("down")


class Saver:
    """Somebody who pays in, and counts what was answered."""

    def __init__(self, url: str, token: str) -> None:
        self.http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=20)
        self.saved = 0
        self.refused: Counter[str] = Counter()
        self.account = ""

    def close(self) -> None:
        self.http.close()

    def open_account(self) -> None:
        user = self.http.post("/v1/users", json={"external_id": uuid4().hex}).json()["id"]
        self.account = self.http.post("/v1/accounts", json={"user_id": user, "currency": "EUR"}).json()["id"]

    def pay_in(self) -> httpx.Response:
        answer = self.http.post(
            f"/v1/accounts/{self.account}/deposits", json={"amount": 1, "method": "direct"}, headers={"Idempotency-Key": uuid4().hex}
        )
        if answer.status_code == 201:
            self.saved += 1
        else:
            assert (answer.status_code, answer.json()["retryable"]) == (503, True), answer.text
            assert answer.headers["content-type"].startswith("application/problem+json")
            self.refused[answer.json()["code"]] += 1
        return answer

    @property
    def balance(self) -> int:
        found = self.http.get(f"/v1/accounts/{self.account}/balance")
        assert found.status_code == 200, found.text
        return int(found.json()["balance"])


def _token(bank: Bank) -> str:
    return str(json.loads(bank.do("apikeys", "create", "--name", "saver", "--scopes", ALL_SCOPES, "--json"))["token"])


def test_writes_stop_before_postgresql_does_and_go_on_by_themselves(bank: Bank, disk: Path) -> None:
    with closing(Saver(bank.url, _token(bank))) as saver:
        saver.open_account()
        assert saver.pay_in().status_code == 201
        fill(disk, RESERVE_MIB - 16)
        wait_until(lambda: saver.pay_in().status_code == 503)
        for _ in range(20):
            assert saver.pay_in().json()["code"] == "storage_full"
        assert saver.http.post("/v1/users", json={"external_id": "late"}).json()["code"] == "storage_full"
        assert saver.balance == saver.saved
        assert httpx.get(f"{bank.url}/health/ready").status_code == 200
        examined = json.loads(bank.run("doctor", "--json").stdout)
        assert next(check for check in examined["checks"] if check["name"] == "disk")["result"] == "broken"
        assert free_mib(disk) > 0
        make_room(disk)
        wait_until(lambda: saver.pay_in().status_code == 201)
        assert saver.balance == saver.saved
        assert set(saver.refused) == {"storage_full"}
    assert FULL not in (bank.data_dir / "logs" / "postgres.log").read_text(errors="replace")
    bank.do("verify")


def test_a_database_elsewhere_that_says_so_is_answered_in_the_same_way(bank: Bank, disk: Path, open_path: Path) -> None:
    """Its tables are on the full disk, its log is not: PostgreSQL then says 53100 and lives."""
    token = _token(bank)
    bank.do("down")
    log, elsewhere = bank.data_dir / "stores" / "postgres" / "pg_wal", open_path / "wal"
    shutil.copytree(log, elsewhere, copy_function=shutil.copy2)
    for path in (elsewhere, *elsewhere.rglob("*")):
        shutil.chown(path, log.stat().st_uid, log.stat().st_gid)
    shutil.rmtree(log)
    log.symlink_to(elsewhere)
    bank.do("up", "--detach")
    own = settings_file.load(bank.data_dir, {})
    server = start_server(msgspec.structs.replace(own, data_dir=open_path / "elsewhere", web_processes=2))
    try:
        with closing(Saver(server.url, token)) as saver:
            saver.open_account()
            fill(disk, 0)
            for _ in range(DEPOSITS_MOST):
                saver.pay_in()
                if saver.refused:  # PostgreSQL may have made tables longer ahead, for thousands of rows
                    break
            assert set(saver.refused) == {"storage_full"}, (saver.refused, saver.saved)
            assert saver.balance == saver.saved
            assert "could not extend file" in (bank.data_dir / "logs" / "postgres.log").read_text(errors="replace")
            make_room(disk)
            wait_until(lambda: saver.pay_in().status_code == 201)
            assert saver.balance == saver.saved
    finally:
        server.stop()
    bank.do("verify")
