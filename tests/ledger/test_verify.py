"""`verify` finds nothing in what the ledger wrote, and finds what a test breaks by SQL."""

from uuid import UUID

import asyncpg
import pytest

from piggybank import checks
from piggybank.db import roles
from piggybank.ledger import SYSTEM, Submission, commands
from piggybank.settings import Settings
from tests.ledger.conftest import new_account, running_ledger

# what is broken -> (statement, what verify calls it)
BREAKS = {
    "balance": ("UPDATE accounts SET balance = balance + 5, clearing = clearing - 5 WHERE id = $1", {"balance", "clearing"}),
    "held": ("UPDATE accounts SET held = held + 1, owed = GREATEST(0, held + 1 - balance) WHERE id = $1", {"held"}),
    "system column": ("UPDATE accounts SET fees = fees + 3, clearing = clearing - 3 WHERE id = $1", {"fees", "clearing"}),
    "count": ("UPDATE accounts SET transactions_count = transactions_count + 1 WHERE id = $1", {"transactions_count"}),
    "sequence": ("UPDATE accounts SET sequence = sequence + 1 WHERE id = $1", {"sequence"}),
    "open payments": ("UPDATE accounts SET open_payments = open_payments + 1 WHERE id = $1", {"open_payments"}),
    "a missing row": (
        "DELETE FROM transactions WHERE account_id = $1 AND sequence = 2",
        {"balance", "clearing", "transactions_count", "rows out of sequence", "rows with a wrong balance_after"},
    ),
    "a doubled row": (
        "INSERT INTO transactions (id, account_id, amount, balance_after, sequence, bucket, kind, system_account)"
        " SELECT gen_random_uuid(), account_id, amount, balance_after, sequence, bucket, kind, system_account"
        " FROM transactions WHERE account_id = $1 AND sequence = 2",
        {"balance", "clearing", "transactions_count", "rows out of sequence"},
    ),
    "a changed amount": (
        "UPDATE transactions SET amount = amount + 1 WHERE account_id = $1 AND sequence = 1",
        {"balance", "clearing", "rows with a wrong balance_after"},
    ),
    "a released payment": ("UPDATE payments SET held = 0 WHERE account_id = $1", {"held"}),
    "an ended payment that holds": ("UPDATE payments SET status = 'cancelled' WHERE account_id = $1", {"open_payments"}),
    "an orphan": (
        "UPDATE transactions SET account_id = gen_random_uuid() WHERE account_id = $1 AND sequence = 3",
        {"transactions without an account", "transactions_count"},
    ),
}


async def account_with_a_past(settings: Settings, sql: asyncpg.Connection) -> UUID:
    account, other = await new_account(sql), await new_account(sql)
    past = (
        commands.Deposit(account_id=account, amount=100),
        commands.Withdraw(account_id=account, amount=30),
        commands.Transfer(account_id=account, to_account=other, amount=10),
        commands.OpenPayment(account_id=account, amount=20),
    )
    async with running_ledger(settings) as ledger:
        for number, command in enumerate(past):
            await ledger.submit(Submission(command, SYSTEM, str(number), b"x"))
    return account


async def findings(settings: Settings) -> set[str]:
    return {finding.what async for progress in checks.verify(settings.owner_database_url) for finding in progress.findings}


@pytest.mark.parametrize("broken", BREAKS)
async def test_verify_names_what_is_broken(broken: str, fresh_settings: Settings) -> None:
    sql = await asyncpg.connect(fresh_settings.owner_database_url)
    try:
        account = await account_with_a_past(fresh_settings, sql)
        assert await findings(fresh_settings) == set()
        statement, expected = BREAKS[broken]
        await sql.execute(statement, account)
        assert expected <= await findings(fresh_settings)
    finally:
        await sql.close()


async def test_owed_cannot_be_wrong(fresh_settings: Settings) -> None:
    sql = await asyncpg.connect(fresh_settings.owner_database_url)
    try:
        account = await account_with_a_past(fresh_settings, sql)
        with pytest.raises(asyncpg.CheckViolationError):
            await sql.execute("UPDATE accounts SET owed = owed + 1 WHERE id = $1", account)
        await sql.execute("ALTER TABLE accounts DROP CONSTRAINT accounts_held_and_owed")
        await sql.execute("UPDATE accounts SET owed = owed + 1 WHERE id = $1", account)
        assert await findings(fresh_settings) == {"owed"}
    finally:
        await sql.close()


async def test_reports_are_derived_again(fresh_settings: Settings) -> None:
    sql = await asyncpg.connect(fresh_settings.owner_database_url)
    try:
        await account_with_a_past(fresh_settings, sql)
        await sql.execute("UPDATE installation SET reports_through = current_date + 1")  # says that today is built: it is not
        assert any("deposit" in what for what in await findings(fresh_settings))
        await sql.execute("""
            INSERT INTO reports (account_id, day, kind, bucket, count, credit, debit)
            SELECT account_id, (now() AT TIME ZONE 'UTC')::date, kind, bucket, count(*),
                   coalesce(sum(amount) FILTER (WHERE amount > 0), 0), coalesce(-sum(amount) FILTER (WHERE amount < 0), 0)
            FROM transactions GROUP BY account_id, kind, bucket
        """)
        assert await findings(fresh_settings) == set()
        await sql.execute("UPDATE reports SET debit = debit + 1 WHERE kind = 'withdrawal'")
        assert any("withdrawal" in what for what in await findings(fresh_settings))
    finally:
        await sql.close()


async def test_a_torn_transfer_is_found(fresh_settings: Settings) -> None:
    sql = await asyncpg.connect(fresh_settings.owner_database_url)
    try:
        account = await account_with_a_past(fresh_settings, sql)
        await sql.execute("DELETE FROM transactions WHERE kind = 'transfer_in'")
        found = await findings(fresh_settings)
        assert any("is torn" in what for what in found)
        await sql.execute("UPDATE accounts SET transfers = transfers + 1, fees = fees - 1 WHERE id = $1", account)
        assert "transfers in EUR do not cancel out" in await findings(fresh_settings)
    finally:
        await sql.close()


async def test_the_application_cannot_change_what_is_posted(fresh_settings: Settings) -> None:
    connection = await asyncpg.connect(fresh_settings.database_url)
    try:
        for statement in (
            "UPDATE transactions SET amount = 1",
            "DELETE FROM transactions",
            "UPDATE transactions_all SET amount = 1",
            "UPDATE effects SET effect = ''",
            "DELETE FROM effects",
            "DELETE FROM accounts",
            "UPDATE idempotency_keys SET answer = ''",
            "TRUNCATE transactions",
            "ALTER TABLE transactions ADD COLUMN x int",
            "DELETE FROM audit_log",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    finally:
        await connection.close()


async def test_timeouts_stand_on_the_role(fresh_settings: Settings) -> None:
    connection = await asyncpg.connect(fresh_settings.database_url)
    try:
        for name, value in roles.ROLE_SETTINGS.items():
            if name != "tcp_user_timeout":  # milliseconds of a socket: shown only where the platform has it
                assert await connection.fetchval(f"SELECT current_setting('{name}')") == value
    finally:
        await connection.close()
