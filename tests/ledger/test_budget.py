"""How many statements a batch sends between BEGIN and COMMIT, counted in the server's own log."""

from uuid import UUID, uuid4

import asyncpg
import pytest

from piggybank import ids
from piggybank.db import roles
from piggybank.ledger import SYSTEM, Submission, commands
from piggybank.ledger.commands import Command
from piggybank.settings import Settings
from tests.conftest import Stores
from tests.ledger.conftest import new_account, running_ledger

MAX_STATEMENTS = 4


def deposits(accounts: list[UUID]) -> list[Command]:
    return [commands.Deposit(account_id=account, amount=1) for account in accounts]


def transfers(accounts: list[UUID]) -> list[Command]:
    return [
        commands.Transfer(account_id=one, to_account=other, amount=1)
        for one, other in zip(accounts, accounts[1:] + accounts[:1], strict=True)
    ]


def settlements(accounts: list[UUID]) -> list[Command]:
    return [commands.Settle(account_id=account, kind="chargeback", amount=1, source="test", effect=uuid4().hex) for account in accounts]


def holds(accounts: list[UUID]) -> list[Command]:
    return [commands.OpenPayment(account_id=account, amount=1) for account in accounts]


def openings(accounts: list[UUID]) -> list[Command]:
    return [
        commands.OpenPayment(account_id=account, kind="deposit", amount=1, method="revio", provider="simulator") for account in accounts
    ]


def observations(accounts: list[UUID]) -> list[Command]:
    """Of payments that are not there, which costs the same statement."""
    return [
        commands.Observe(account_id=account, payment_id=ids.new_id(ids.bucket_of(account)), status="failed", stamp=1)
        for account in accounts
    ]


@pytest.mark.parametrize("kind", [deposits, transfers, settlements, holds, openings, observations])
async def test_a_batch_of_1_and_one_of_256_send_the_same_few_statements(kind: object, fresh_settings: Settings, stores: Stores) -> None:
    assert callable(kind)
    sql = await asyncpg.connect(fresh_settings.owner_database_url)
    try:
        accounts = [await new_account(sql) for _ in range(257)]
        await sql.execute("UPDATE accounts SET balance = 10, clearing = -10")
    finally:
        await sql.close()
    admin = await asyncpg.connect(stores.admin_url)
    role = roles.role_of(fresh_settings.database_url)
    database = fresh_settings.database_url.rpartition("/")[2]
    try:
        # the log is the run's: only this database's sessions of this role write their statements into it
        await admin.execute(f"ALTER ROLE {role} IN DATABASE {database} SET log_statement = 'all'")
        counts = {
            size: await _count(fresh_settings, stores, kind(accounts[:2])[:1] if size == 1 else kind(accounts[1:])) for size in (1, 256)
        }
    finally:
        await admin.execute(f"ALTER ROLE {role} IN DATABASE {database} RESET log_statement")
        await admin.close()
    assert counts[1] == counts[256]
    assert 2 <= counts[1] <= MAX_STATEMENTS


async def _count(settings: Settings, stores: Stores, batch: list[Command]) -> int:
    log = stores.embedded.logs / "postgres.log"
    async with running_ledger(settings) as ledger:
        before = log.stat().st_size
        outcomes = await ledger.submit_many([Submission(command, SYSTEM, uuid4().hex) for command in batch])
        assert all(isinstance(outcome, tuple) for outcome in outcomes)
    with log.open("rb") as file:
        file.seek(before)
        lines = file.read().decode().splitlines()
    said = [line for line in lines if "LOG:  execute" in line or "LOG:  statement:" in line]
    begin = next(number for number, line in enumerate(said) if "BEGIN" in line)
    commit = next(number for number, line in enumerate(said) if "COMMIT" in line)
    assert sum("COMMIT" in line for line in said) == 1, "the commands were one batch"
    return commit - begin - 1
