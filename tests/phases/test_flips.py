"""One installation flips 0 -> 1 -> 2 -> 3 -> 2 under load, fails over, and shows itself what it is."""

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from piggybank.appliance import store_files
from tests.appliance.bank import Bank, wait_until
from tests.conftest import ALL_SCOPES, require
from tests.phases.load import Load

pytestmark = pytest.mark.xdist_group("phases")

CLIENTS = 6
PAUSE_S = 0.02  # the other test workers want the machine, too
STEADY_S = 1.0  # of load between two flips
FLIPS = (1, 2)


@pytest.fixture(scope="module")
def bank(open_folder: Path) -> Iterator[Bank]:
    """Phase 0 at first; the tests below go on from where the one before ended."""
    require("pgbouncer")
    made = Bank(
        open_folder / "phases",
        PIGGYBANK_PORT=str(store_files.free_ports(1)[0]),
        PIGGYBANK_RATE_SERVICE_PER_MINUTE="0",
    )
    made.do("up", "--detach")
    yield made
    made.run("down")
    for log in sorted((made.data_dir / "logs").glob("*.log")):  # shown when a test failed
        errors = [line for line in log.read_text(errors="replace").splitlines() if '"level":"error"' in line or " FATAL: " in line]
        print(f"{log.name}: {len(errors)} errors", *errors[:3], sep="\n  ")


async def flip(bank: Bank, load: Load, number: int) -> str:
    said = await asyncio.to_thread(bank.do, "phase", "apply", str(number))
    observed = await asyncio.to_thread(bank.run, "phase", "show", "--observed", "--json")
    assert observed.returncode == 0, observed.stdout + observed.stderr
    await asyncio.to_thread(bank.do, "verify")
    return said


async def test_flips_under_load(bank: Bank) -> None:
    """No write fails, none is lost or doubled, nothing that was written is read older, and the books fit after each step."""
    token = json.loads(bank.do("apikeys", "create", "--name", "load", "--scopes", ALL_SCOPES, "--json"))["token"]
    load = Load(bank.url, token, CLIENTS, PAUSE_S)
    await load.open_accounts()
    running = load.start()
    try:
        for number in FLIPS:
            await flip(bank, load, number)
            await asyncio.sleep(STEADY_S)
            assert not running.done(), running.exception()
    finally:
        load.stop()
        await running
    await load.compare()
    await load.close()
    print(f"{len(load.done)} requests, retries: {dict(load.retries)}")


def test_a_killed_replica_is_a_difference(bank: Bank) -> None:
    """`phase show --observed` asks the servers: it ends with 1 until the supervisor has brought the replica back."""
    names = sorted(name for name in bank.pids() if name.startswith("postgres-"))
    supervisor = bank.pids()["supervisor"]
    os.kill(supervisor, signal.SIGSTOP)  # it would be back at once
    try:
        bank.kill(names[0])
        seen = bank.ask("phase", "show", "--observed", "--json")
    finally:
        os.kill(supervisor, signal.SIGCONT)
    assert seen.exit_code == 1
    assert any("replicas: 2 declared, 1 seen" in line for line in json.loads(seen.stdout)["differences"])
    wait_until(lambda: bank.ask("phase", "show", "--observed").exit_code == 0)
