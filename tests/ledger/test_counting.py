"""What the ledger counts is what it did: each decision by its kind and outcome, each answer from a key, how long the oldest waited."""

import asyncio
import time
from collections import Counter

import asyncpg

from piggybank import metrics
from piggybank.ledger import SYSTEM, Ledger, Submission, commands
from tests.ledger.conftest import Open


def decided() -> Counter[tuple[str, str]]:
    """Of this process, by kind and outcome."""
    (family,) = metrics.POSTINGS.collect()
    return Counter(
        {
            (sample.labels["kind"], sample.labels["outcome"]): int(sample.value)
            for sample in family.samples
            if sample.name == "ledger_postings_total"
        }
    )


def replayed() -> float:
    (family,) = metrics.REPLAYS.collect()
    return next(sample.value for sample in family.samples if sample.name == "ledger_idempotent_replays_total")


def waits() -> tuple[float, float]:
    """How many batches, and the sum of what their oldest had waited."""
    (family,) = metrics.QUEUE_WAIT.collect()
    values = {sample.name: sample.value for sample in family.samples}
    return values["ledger_queue_wait_seconds_count"], values["ledger_queue_wait_seconds_sum"]


async def test_commands_are_counted_by_their_kind_and_what_came_of_them(ledger: Ledger, open_account: Open) -> None:
    one, other = await open_account(), await open_account()
    before, replayed_before = decided(), replayed()

    async def submit(key: str, *wanted: commands.Command) -> None:
        await ledger.submit_many([Submission(command, SYSTEM, f"{key}-{one}-{number}", b"x") for number, command in enumerate(wanted)])

    deposit = commands.Deposit(account_id=one, amount=100)
    await submit("deposit", deposit, deposit, deposit)
    await submit("withdraw", commands.Withdraw(account_id=one, amount=301), commands.Withdraw(account_id=one, amount=1))
    await submit("transfer", commands.Transfer(account_id=one, to_account=other, amount=10))
    await submit("freeze", commands.Freeze(account_id=other), commands.Deposit(account_id=other, amount=1))
    assert replayed() == replayed_before
    await submit("deposit", deposit, deposit)  # known keys
    await submit("withdraw", commands.Withdraw(account_id=one, amount=301))
    assert replayed() == replayed_before + 3
    assert decided() - before == {
        ("deposit", "posted"): 3,
        ("withdrawal", "insufficient_funds"): 1,
        ("withdrawal", "posted"): 1,
        ("transfer", "posted"): 1,
        ("freeze", "posted"): 1,
        ("deposit", "account_frozen"): 1,
    }


async def test_a_batch_tells_how_long_its_oldest_command_had_waited(ledger: Ledger, open_account: Open, sql: asyncpg.Connection) -> None:
    account = await open_account()

    def deposit() -> asyncio.Task[object]:
        return asyncio.create_task(ledger.submit(Submission(commands.Deposit(account_id=account, amount=1), SYSTEM)))

    batches, waited_s = waits()
    async with sql.transaction():
        await sql.execute("SELECT FROM accounts WHERE id = $1 FOR UPDATE", account)
        mine = await sql.fetchval("SELECT pg_current_xact_id()::text::xid")
        first = deposit()
        while not await sql.fetchval("SELECT count(*) FROM pg_locks WHERE transactionid = $1 AND NOT granted", mine):
            pass  # the lane waits for this row soon
        second = deposit()
        await asyncio.sleep(0)  # it is in the queue
        queued_at = time.monotonic()
        await sql.fetchval("SELECT 1")
        held_s = time.monotonic() - queued_at
    await first
    await second
    now_batches, now_waited_s = waits()
    assert now_batches == batches + 2
    assert now_waited_s - waited_s >= held_s > 0
