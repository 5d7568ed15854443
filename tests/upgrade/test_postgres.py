"""A database that PostgreSQL 16 made: it is not started, and `piggybank upgrade postgres` takes it to 18."""

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from piggybank import errors
from piggybank.appliance import binaries, processes, store_files, system_user
from piggybank.appliance.embedded import Embedded
from piggybank.appliance.processes import Program
from piggybank.cache import Cache
from piggybank.db import migrate, roles
from piggybank.db.engines import Database
from piggybank.ledger import SYSTEM, Ledger, Submission, commands
from tests.appliance.bank import Bank, wait_until
from tests.conftest import run_apart
from tests.ledger.conftest import new_account

OLD = 16
DEPOSITS = 20


def test_another_major_s_data_is_not_started(open_path: Path) -> None:
    stores = Embedded(open_path / "bank")
    stores.prepare()
    version = stores.dir / "postgres" / "PG_VERSION"
    processes.write_file(version, f"{OLD}\n", 0o600, stores.user)
    with pytest.raises(errors.CannotProceed) as refused:
        Embedded(open_path / "bank").start()
    assert "piggybank upgrade postgres" in refused.value.details["do"]
    assert f"PostgreSQL {OLD}" in refused.value.details["what"]


def test_a_major_that_the_wheel_does_not_carry_is_named(open_path: Path) -> None:
    with pytest.raises(errors.CannotProceed, match="PostgreSQL 16 and 18, not 15"):
        binaries.postgres(open_path, None, 15)


@pytest.fixture
def bank(open_path: Path) -> Iterator[Bank]:
    made = Bank(open_path / "bank", PIGGYBANK_PORT=str(store_files.free_ports(1)[0]))
    yield made
    made.run("down")


def _made_by_16(data_dir: Path) -> tuple[str, int]:
    """Its own initdb and server, our schema, deposits through our ledger, and a crash at the end. The account, and what it has."""
    stores = Embedded(data_dir)
    stores.prepare()
    cluster = stores.dir / "postgres"
    shutil.rmtree(cluster)
    programs = binaries.postgres(stores.dir, stores.user, OLD)
    password = stores.dir / "password"
    processes.write_file(password, stores.secrets.admin_password + "\n", 0o600, stores.user)
    system_user.make_folder(cluster, stores.user)
    words = (f"--pgdata={cluster}", "--username=postgres", f"--pwfile={password}", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C")
    system_user.run(stores.user, str(programs / "initdb"), *words, "--data-checksums")
    password.unlink()
    stores.write_configuration("postgres")
    server = processes.start(
        Program(
            name="postgres",
            argv=(str(programs / "postgres"), "-D", str(cluster)),
            run_dir=stores.run_dir,
            log=stores.logs / "postgres.log",
            user=stores.user,
        )
    )
    try:
        wait_until(lambda: stores.postgres.is_ready("postgres"))
        stores.postgres.make_roles()
        return run_apart(lambda: _save(stores))
    finally:
        server.signal(signal.SIGKILL)
        server.wait(10)
        for process in processes.in_folder(cluster):
            process.kill()


async def _save(stores: Embedded) -> tuple[str, int]:

    addresses = stores.secrets.addresses()
    await migrate.upgrade(addresses["owner_database_url"], store_files.APPLICATION_ROLE)
    await roles.limit_role(addresses["owner_database_url"], store_files.APPLICATION_ROLE)
    connection = await asyncpg.connect(addresses["owner_database_url"])
    account_id = await new_account(connection)
    await connection.close()
    db, cache = Database(addresses["database_url"]), Cache("redis://127.0.0.1:1")
    ledger = Ledger(db, cache)
    await ledger.start()
    for number in range(DEPOSITS):
        await ledger.submit(Submission(commands.Deposit(account_id=account_id, amount=5), SYSTEM, f"key-{number}", b"one"))
    await ledger.stop()
    await cache.close()
    await db.close()
    return str(account_id), 5 * DEPOSITS


async def _noted(bank: Bank) -> list[tuple[str, str, str]]:
    """In the audit log: it was done while nothing ran."""
    connection = await asyncpg.connect(bank.stores.addresses()["owner_database_url"])
    try:
        return [
            tuple(row) for row in await connection.fetch("SELECT actor, target, details FROM audit_log WHERE action = 'upgrade.postgres'")
        ]
    finally:
        await connection.close()


@pytest.mark.deep
def test_from_16_to_18(bank: Bank) -> None:
    account_id, saved = _made_by_16(bank.data_dir)
    refused = bank.run("up", "--detach")
    assert refused.returncode == 1
    assert "piggybank upgrade postgres" in refused.stderr, refused.stderr
    assert (bank.data_dir / "stores" / "postgres" / "PG_VERSION").read_text().strip() == str(OLD)

    done = bank.run("upgrade", "postgres")
    assert done.returncode == 0, done.stderr
    assert "the same rows in" in done.stderr
    assert "checksums of the old cluster are right" in done.stderr
    kept = bank.data_dir / "stores" / f"postgres-{OLD}"
    assert (kept / "PG_VERSION").read_text().strip() == str(OLD)
    assert next((bank.data_dir / "upgrades").glob("before-postgres-18-*.dump")).stat().st_size > 10_000

    bank.do("up", "--detach")
    token = bank.do("apikeys", "create", "--name", "x", "--scopes", "accounts:read", "--token-only").strip()
    said = subprocess.run(
        ["curl", "-sS", f"{bank.url}/v1/accounts/{account_id}/balance", "-H", f"Authorization: Bearer {token}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(said.stdout)["balance"] == saved, said.stdout
    assert run_apart(lambda: _noted(bank)) == [("cli", "postgresql:18", f'{{"before": {OLD}}}')]
    bank.do("verify")
    assert "nothing to do" in bank.run("upgrade", "postgres").stdout
