"""`piggybank verify` and `piggybank currencies` as an operator runs them."""

import asyncio
import json

import asyncpg

from piggybank import money
from piggybank.settings import Settings
from tests.conftest import command, run_apart, run_command
from tests.ledger.conftest import new_account


async def acts(settings: Settings) -> list[tuple[str, ...]]:
    """The audit log, oldest first."""
    sql = await asyncpg.connect(settings.owner_database_url)
    try:
        return [tuple(row) for row in await sql.fetch("SELECT actor, action, target FROM audit_log ORDER BY id")]
    finally:
        await sql.close()


async def test_verify_says_what_it_saw_and_ends_with_1_where_something_differs(fresh_settings: Settings) -> None:
    sql = await asyncpg.connect(fresh_settings.owner_database_url)
    account = await new_account(sql)
    fine = await asyncio.to_thread(run_command, fresh_settings, "verify")
    assert (fine.returncode, fine.stdout) == (0, "1 accounts, 0 transactions: everything fits\n")
    await sql.execute("UPDATE accounts SET transactions_count = 1 WHERE id = $1", account)
    await sql.close()
    done = await asyncio.to_thread(run_command, fresh_settings, "verify")
    assert done.returncode == 1
    assert f"account {account}: transactions_count: stored 1, derived 0" in done.stdout


def test_an_operator_enables_and_disables_currencies(fresh_settings: Settings) -> None:
    def enabled() -> list[str]:
        return [row["code"] for row in json.loads(command(fresh_settings, "currencies", "list", "--json"))["items"]]

    assert enabled() == list(money.ENABLED_AT_FIRST)
    command(fresh_settings, "currencies", "enable", "kes")
    command(fresh_settings, "currencies", "disable", "USD")
    assert enabled() == ["EUR", "GBP", "KES", "ZAR"]
    assert run_command(fresh_settings, "currencies", "enable", "XXX").returncode == 1
    assert run_apart(lambda: acts(fresh_settings)) == [
        ("cli", "currency.enable", "currency:KES"),
        ("cli", "currency.disable", "currency:USD"),
    ]
    command(fresh_settings, "migrate")  # an upgrade leaves the operator's choice alone
    assert enabled() == ["EUR", "GBP", "KES", "ZAR"]
