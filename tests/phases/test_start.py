"""What `up --detach` promises when it returns in a phase whose commits wait for a standby."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from piggybank.appliance import store_files, topology
from tests.appliance.bank import Bank
from tests.conftest import ALL_SCOPES, require

pytestmark = pytest.mark.deep

UNCONFIRMED = "no replica confirms a commit yet"


@pytest.fixture
def bank(open_path: Path) -> Iterator[Bank]:
    require("pgbouncer")
    made = Bank(open_path / "bank", PIGGYBANK_PORT=str(store_files.free_ports(1)[0]))
    yield made
    made.run("down")


def test_who_started_it_may_write_at_once(bank: Bank) -> None:
    """The first write is answered, without a retry; where no standby confirms, it is said what writes answer, and reads go on.

    Without a supervisor too, until `up` adopts what runs: a failover ends none of it.
    """
    assert UNCONFIRMED not in started(bank, "--phase", "2")
    token = bank.ask("apikeys", "create", "--name", "start", "--scopes", ALL_SCOPES, "--token-only").stdout.strip()
    bank.do("down")
    assert UNCONFIRMED not in started(bank)
    with httpx.Client(base_url=bank.url, headers={"Authorization": f"Bearer {token}"}, timeout=15) as client:
        assert client.post("/v1/users", json={"external_id": uuid4().hex}).status_code == 201
        os.kill(supervisor := bank.pids()["supervisor"], signal.SIGSTOP)  # or they would be back at once
        try:
            for name in topology.standbys_of(bank.data_dir / "stores", 2):
                bank.kill(name)
            assert UNCONFIRMED in started(bank)
            assert client.get("/v1/accounts").status_code == 200
        finally:
            os.kill(supervisor, signal.SIGCONT)
        bank.kill("supervisor")
        refused = bank.run("failover")  # of what is served by whom nobody supervises
        assert (refused.returncode, "nothing supervises" in refused.stderr) == (1, True), refused.stderr
        assert client.get("/v1/accounts").status_code == 200


def started(bank: Bank, *words: str) -> str:
    """What it says on standard error; it ends with 0."""
    done = bank.run("up", "--detach", *words)
    assert done.returncode == 0, done.stderr
    return done.stderr
