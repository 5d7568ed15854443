"""One installation flips 0 -> 3 under load, fails over there, goes back to 2, and shows itself what it is."""

import asyncio
import json
import os
import re
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import asyncpg
import pytest

from piggybank.appliance import store_files, topology
from tests.appliance.bank import Bank, wait_until
from tests.conftest import require
from tests.phases.load import loaded, shows_itself

UP, BACK = 3, 2  # through all phases, one by one, and under more load: test_soak.py
PAUSE_S = 0.1  # of a client between two requests: the servers that start, and the other test workers, want the machine, too


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


async def test_an_installation_grows_loses_its_primary_and_goes_back_under_load(bank: Bank) -> None:
    """No write fails, none is lost or doubled, nothing that was written is read older, and the books fit after each step."""
    async with loaded(bank, pause_s=PAUSE_S) as load:
        await asyncio.to_thread(bank.do, "phase", "apply", str(UP))
        await shows_itself(bank)
        assert load.stale == []
        await a_killed_primary_is_failed_over(bank)
        await shows_itself(bank)
        assert load.stale == []
        await asyncio.to_thread(bank.do, "phase", "apply", str(BACK))
    await shows_itself(bank)
    await what_was_done_is_in_the_audit_log(bank)
    a_killed_replica_is_a_difference(bank)
    a_pooler_of_another_size_is_a_difference(bank)


async def a_killed_primary_is_failed_over(bank: Bank) -> None:
    """kill -9, and a standby takes over; the old one comes back, and takes no row."""
    old = topology.primary_of(bank.data_dir / "stores")
    bank.kill(old)
    said = await asyncio.to_thread(bank.do, "failover")
    new = topology.primary_of(bank.data_dir / "stores")
    assert new != old
    assert f"{new} takes writes" in said
    connection = await asyncpg.connect(bank.stores.database_url(store_files.OWNER_ROLE, old))
    try:
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await connection.execute("INSERT INTO outbox (id, bucket, topic, payload) VALUES (gen_random_uuid(), 0, 'no', '{}')")
    finally:
        await connection.close()


async def what_was_done_is_in_the_audit_log(bank: Bank) -> None:
    """Who has the command line changes servers: the next operator sees what, and when."""
    primary = topology.primary_of(bank.data_dir / "stores")
    connection = await asyncpg.connect(bank.stores.database_url(store_files.OWNER_ROLE, primary))
    try:
        rows = await connection.fetch(
            "SELECT actor, action, target, details FROM audit_log WHERE actor = 'cli' AND action NOT LIKE 'apikey.%' ORDER BY id"
        )
    finally:
        await connection.close()
    assert [(row["action"], row["target"], json.loads(row["details"])) for row in rows] == [
        ("phase.apply", f"phase:{UP}", {"before": 0}),
        ("failover", f"database:{primary}", {}),
        ("phase.apply", f"phase:{BACK}", {"before": UP}),
    ]


def a_killed_replica_is_a_difference(bank: Bank) -> None:
    """`phase show --observed` asks the servers: it ends with 1 until the supervisor has brought the replica back."""
    names = topology.standbys_of(bank.data_dir / "stores", 2)
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


def a_pooler_of_another_size_is_a_difference(bank: Bank) -> None:
    """It reads its file anew when it is told to; so does the next start of what somebody edited."""
    ini, pid = bank.data_dir / "stores" / "pooler" / "pgbouncer.ini", bank.pids()["pooler"]
    as_it_was = ini.read_text()
    for text, code in ((re.sub(r"default_pool_size = \d+", "default_pool_size = 5", as_it_was), 1), (as_it_was, 0)):
        ini.write_text(text)
        os.kill(pid, signal.SIGHUP)
        wait_until(partial(_shows, bank, code))


def _shows(bank: Bank, code: int) -> bool:
    return bank.ask("phase", "show", "--observed").exit_code == code
