"""Every command of the ledger on a real database: what it posts, what it refuses, and that a key counts once."""

import asyncio
import json
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from piggybank import errors, ids, metrics, money
from piggybank.api.transactions import DepositRequest
from piggybank.db.engines import Database
from piggybank.ledger import SYSTEM, Actor, Ledger, Submission, commands
from piggybank.ledger.commands import Command
from piggybank.ledger.idempotency import Answer, fingerprint
from piggybank.wallet.reversals import reversal_of
from tests.ledger.conftest import Open


async def ask(ledger: Ledger, command: Command, key: str | None = None, fingerprint: bytes = b"same") -> Answer | errors.Error:
    outcome = await ledger.submit(Submission(command, SYSTEM, uuid4().hex if key is None else key, fingerprint))
    return outcome.decision


async def done(ledger: Ledger, command: Command, key: str | None = None) -> Answer:
    answer = await ask(ledger, command, key)
    assert isinstance(answer, Answer), answer
    return answer


async def test_a_deposit_posts_one_row_on_both_sides(ledger: Ledger, open_account: Open, sql: asyncpg.Connection) -> None:
    account = await open_account()
    answer = await done(ledger, commands.Deposit(account_id=account, amount=1_250, reference="r1", metadata={"order": "7"}))
    assert (answer.balance, answer.sequence, answer.version, answer.currency) == (1_250, 1, 1, "EUR")
    row = await sql.fetchrow("SELECT * FROM transactions WHERE id = $1", answer.transaction_id)
    assert (row["amount"], row["kind"], row["system_account"], row["reference"]) == (1_250, "deposit", "clearing", "r1")
    assert row["metadata"] == '{"order": "7"}'
    stored = await sql.fetchrow("SELECT * FROM accounts WHERE id = $1", account)
    assert (stored["balance"], stored["clearing"], stored["transactions_count"]) == (1_250, -1_250, 1)
    assert stored["last_transaction_id"] == answer.transaction_id
    assert ids.bucket_of(answer.transaction_id or uuid4()) == ids.bucket_of(account)


async def test_the_same_key_counts_once_and_another_body_is_refused(ledger: Ledger, open_account: Open) -> None:
    account = await open_account()
    deposit = commands.Deposit(account_id=account, amount=10)
    first = await ledger.submit(Submission(deposit, SYSTEM, "k", b"a"))
    again = await ledger.submit(Submission(deposit, SYSTEM, "k", b"a"))
    assert again.decision == first.decision
    assert (first.replayed, again.replayed) == (False, True)
    assert isinstance(await ask(ledger, deposit, "k", b"b"), errors.IdempotencyKeyReused)
    assert (await done(ledger, commands.Deposit(account_id=account, amount=1))).balance == 11


async def test_the_same_key_twice_in_one_batch_counts_once(ledger: Ledger, open_account: Open) -> None:
    account = await open_account()
    deposit = Submission(commands.Deposit(account_id=account, amount=10), SYSTEM, "twice", b"a")
    outcomes = await ledger.submit_many([deposit, deposit, deposit._replace(fingerprint=b"b")])
    assert [getattr(outcome, "replayed", None) for outcome in outcomes] == [False, True, False]
    assert isinstance(outcomes[2], tuple)
    assert isinstance(outcomes[2].decision, errors.IdempotencyKeyReused)
    assert (await done(ledger, commands.Deposit(account_id=account, amount=1))).balance == 11


async def test_keys_of_different_actors_and_owners_do_not_meet(ledger: Ledger, open_account: Open, sql: asyncpg.Connection) -> None:
    one, other = await open_account(), await open_account()
    owner = await sql.fetchval("SELECT user_id FROM accounts WHERE id = $1", one)
    for actor, account in ((SYSTEM, one), (Actor("service"), one), (Actor("user", owner), one), (SYSTEM, other)):
        outcome = await ledger.submit(Submission(commands.Deposit(account_id=account, amount=5), actor, "shared", b"x"))
        assert not outcome.replayed
        assert isinstance(outcome.decision, Answer)


async def test_a_refusal_sticks_with_its_key(ledger: Ledger, open_account: Open) -> None:
    account = await open_account(5)
    withdraw = commands.Withdraw(account_id=account, amount=6)
    refused = await ask(ledger, withdraw, "w")
    assert isinstance(refused, errors.InsufficientFunds)
    assert refused.details == {"available": 5, "requested": 6, "currency": "EUR"}
    await done(ledger, commands.Deposit(account_id=account, amount=100))
    again = await ask(ledger, withdraw, "w")
    assert isinstance(again, errors.InsufficientFunds)
    assert again.details == refused.details


async def test_a_user_does_not_reach_anothers_account(ledger: Ledger, open_account: Open) -> None:
    account = await open_account(50)
    stranger = Actor("user", uuid4())
    outcome = await ledger.submit(
        Submission(commands.Transfer(account_id=account, to_account=await open_account(), amount=1), stranger, "k")
    )
    assert isinstance(outcome.decision, errors.NotFound)


async def test_a_hold_reserves_and_completes(ledger: Ledger, open_account: Open, sql: asyncpg.Connection) -> None:
    account = await open_account(100)
    held = await done(ledger, commands.OpenPayment(account_id=account, amount=70, destination={"iban": "x"}))
    assert (held.balance, held.held) == (100, 70)
    assert isinstance(await ask(ledger, commands.Withdraw(account_id=account, amount=31)), errors.InsufficientFunds)
    assert held.payment_id is not None
    completed = await done(ledger, commands.CompletePayment(account_id=account, payment_id=held.payment_id))
    assert (completed.balance, completed.held, completed.owed) == (30, 0, 0)
    again = await ask(ledger, commands.CancelPayment(account_id=account, payment_id=held.payment_id))
    assert isinstance(again, errors.PaymentNotOpen)
    payment = await sql.fetchrow("SELECT * FROM payments WHERE id = $1", held.payment_id)
    assert (payment["status"], payment["held"], payment["transaction_id"]) == ("completed", 0, completed.transaction_id)


async def test_a_cancelled_hold_posts_nothing(ledger: Ledger, open_account: Open) -> None:
    account = await open_account(100)
    held = await done(ledger, commands.OpenPayment(account_id=account, amount=100))
    assert held.payment_id is not None
    answer = await done(ledger, commands.CancelPayment(account_id=account, payment_id=held.payment_id))
    assert (answer.balance, answer.held, answer.transaction_id) == (100, 0, None)


async def test_a_transfer_is_two_rows_or_none(ledger: Ledger, open_account: Open, sql: asyncpg.Connection) -> None:
    source, target = await open_account(100), await open_account()
    answer = await done(ledger, commands.Transfer(account_id=source, to_account=target, amount=40))
    rows = await sql.fetch("SELECT * FROM transactions WHERE transfer_id = $1 ORDER BY amount", answer.transfer_id)
    assert [(row["account_id"], row["amount"], row["kind"]) for row in rows] == [(source, -40, "transfer_out"), (target, 40, "transfer_in")]
    assert isinstance(await ask(ledger, commands.Transfer(account_id=source, to_account=uuid4(), amount=1)), errors.NotFound)
    assert isinstance(await ask(ledger, commands.Transfer(account_id=source, to_account=source, amount=1)), errors.SameAccount)
    dollars = await open_account(currency="USD")
    assert isinstance(await ask(ledger, commands.Transfer(account_id=source, to_account=dollars, amount=1)), errors.CurrencyMismatch)
    assert await sql.fetchval("SELECT balance FROM accounts WHERE id = $1", source) == 60


async def reverse(ledger: Ledger, db: Database, transaction_id: UUID | None) -> Answer | errors.Error:
    assert transaction_id is not None
    async with db.read() as read:
        command = await reversal_of(read, transaction_id, reference=None, description=None, metadata=None)
    return await ask(ledger, command)


async def test_a_reversal_undoes_once(ledger: Ledger, open_account: Open, db: Database) -> None:
    account = await open_account()
    deposit = await done(ledger, commands.Deposit(account_id=account, amount=40))
    reversal = await reverse(ledger, db, deposit.transaction_id)
    assert isinstance(reversal, Answer)
    assert reversal.balance == 0
    assert isinstance(await reverse(ledger, db, deposit.transaction_id), errors.AlreadyReversed)
    assert isinstance(await reverse(ledger, db, reversal.transaction_id), errors.NotReversible)


async def test_a_transfer_is_reversed_on_both_sides_or_not_at_all(
    ledger: Ledger, open_account: Open, db: Database, sql: asyncpg.Connection
) -> None:
    source, target = await open_account(100), await open_account()
    transfer = await done(ledger, commands.Transfer(account_id=source, to_account=target, amount=40))
    await done(ledger, commands.Withdraw(account_id=target, amount=1))
    assert isinstance(await reverse(ledger, db, transfer.transaction_id), errors.InsufficientFunds)
    await done(ledger, commands.Deposit(account_id=target, amount=1))
    incoming = await sql.fetchval("SELECT id FROM transactions WHERE account_id = $1 AND kind = 'transfer_in'", target)
    answer = await reverse(ledger, db, incoming)  # either leg may be named
    assert isinstance(answer, Answer)
    assert answer.balance == 0
    assert await sql.fetchval("SELECT balance FROM accounts WHERE id = $1", source) == 100
    assert isinstance(await reverse(ledger, db, transfer.transaction_id), errors.AlreadyReversed)


async def test_frozen_and_closed_accounts_take_settlements_only(ledger: Ledger, open_account: Open) -> None:
    account = await open_account(10)
    await done(ledger, commands.Freeze(account_id=account), "")
    for command in (
        commands.Deposit(account_id=account, amount=1),
        commands.Withdraw(account_id=account, amount=1),
        commands.OpenPayment(account_id=account, amount=1),
        commands.Transfer(account_id=account, to_account=await open_account(), amount=1),
        commands.Transfer(account_id=await open_account(5), to_account=account, amount=1),
    ):
        assert isinstance(await ask(ledger, command), errors.AccountFrozen)
    settled = await done(ledger, commands.Settle(account_id=account, kind="chargeback", amount=10, source="test", effect=uuid4().hex), "")
    assert settled.balance == 0
    assert isinstance(await ask(ledger, commands.Close(account_id=account), ""), errors.AccountFrozen)
    await done(ledger, commands.Unfreeze(account_id=account), "")
    closed = await done(ledger, commands.Close(account_id=account), "")
    assert isinstance(await ask(ledger, commands.Deposit(account_id=account, amount=1)), errors.AccountClosed)
    assert isinstance(await ask(ledger, commands.Unfreeze(account_id=account), ""), errors.AccountClosed)
    late = await done(ledger, commands.Settle(account_id=account, kind="deposit", amount=3, source="test", effect=uuid4().hex), "")
    assert (late.balance, late.version) == (3, closed.version + 1)


async def test_only_an_empty_account_closes(ledger: Ledger, open_account: Open) -> None:
    account = await open_account(1)
    assert isinstance(await ask(ledger, commands.Close(account_id=account), ""), errors.AccountNotEmpty)


async def test_a_settlement_beyond_the_balance_is_owed_until_covered(ledger: Ledger, open_account: Open) -> None:
    account = await open_account(100)
    held = await done(ledger, commands.OpenPayment(account_id=account, amount=80))
    effect = uuid4().hex
    chargeback = commands.Settle(account_id=account, kind="chargeback", amount=50, source="test", effect=effect)
    answer = await done(ledger, chargeback, "")
    assert (answer.balance, answer.held, answer.owed) == (50, 80, 30)
    again = await ledger.submit(Submission(chargeback, SYSTEM))
    assert again.replayed
    assert isinstance(await ask(ledger, commands.Withdraw(account_id=account, amount=1)), errors.AccountOwes)
    assert (await done(ledger, commands.Deposit(account_id=account, amount=10))).owed == 20
    assert held.payment_id is not None
    released = await done(ledger, commands.CancelPayment(account_id=account, payment_id=held.payment_id))
    assert (released.balance, released.held, released.owed) == (60, 0, 0)


async def test_the_balance_has_a_limit(ledger: Ledger, open_account: Open, sql: asyncpg.Connection) -> None:
    account = await open_account()
    top = money.MAX_BALANCE
    await sql.execute("UPDATE accounts SET balance = $2, clearing = -$2::bigint WHERE id = $1", account, top)
    assert isinstance(await ask(ledger, commands.Deposit(account_id=account, amount=1)), errors.BalanceLimit)
    await sql.execute("UPDATE accounts SET balance = 0, clearing = 0 WHERE id = $1", account)


async def test_ids_follow_the_sequence_when_the_clock_goes_back(ledger: Ledger, open_account: Open, sql: asyncpg.Connection) -> None:
    account = await open_account(1)
    future = ids.new_id(ids.bucket_of(account), 4_000_000_000_000_000_000)
    await sql.execute("UPDATE accounts SET last_transaction_id = $2 WHERE id = $1", account, future)
    answer = await done(ledger, commands.Deposit(account_id=account, amount=1))
    assert answer.transaction_id is not None
    assert answer.transaction_id.int == future.int + 256


async def test_a_poisoned_command_fails_alone(ledger: Ledger, open_account: Open) -> None:
    account = await open_account()
    poison = Submission(commands.Deposit(account_id=account, amount=1, reference="\0"), SYSTEM, "poison", b"p")
    fine = [Submission(commands.Deposit(account_id=account, amount=1), SYSTEM, f"fine-{n}", b"f") for n in range(20)]
    outcomes = await ledger.submit_many([*fine[:10], poison, *fine[10:]])
    assert isinstance(outcomes[10], errors.InternalError)
    assert sum(isinstance(outcome, tuple) for outcome in outcomes) == 20
    assert (await done(ledger, commands.Deposit(account_id=account, amount=1))).balance == 21


@pytest.mark.parametrize("size", [1, 256])
async def test_a_locked_account_is_answered_busy_and_holds_up_nobody_else(
    ledger: Ledger, open_account: Open, sql: asyncpg.Connection, size: int
) -> None:
    locked, free = await open_account(), await open_account()
    async with sql.transaction():
        await sql.execute("SELECT FROM accounts WHERE id = $1 FOR UPDATE", locked)
        batch = [commands.Deposit(account_id=locked, amount=1)] + [commands.Deposit(account_id=free, amount=1)] * (size - 1)
        outcomes = await ledger.submit_many([Submission(command, SYSTEM, uuid4().hex) for command in batch])
    decisions = [outcome.decision if isinstance(outcome, tuple) else outcome for outcome in outcomes]
    assert isinstance(decisions[0], errors.AccountBusy)
    assert all(isinstance(decision, Answer) for decision in decisions[1:])


async def test_after_one_timeout_a_locked_account_holds_up_nobody(ledger: Ledger, open_account: Open, sql: asyncpg.Connection) -> None:
    locked, free = await open_account(), await open_account()
    async with sql.transaction():
        await sql.execute("SELECT FROM accounts WHERE id = $1 FOR UPDATE", locked)
        assert isinstance(await ask(ledger, commands.Deposit(account_id=locked, amount=1)), errors.AccountBusy)
        blocked = asyncio.create_task(ask(ledger, commands.Deposit(account_id=locked, amount=1)))
        passing = asyncio.create_task(done(ledger, commands.Deposit(account_id=free, amount=1)))
        first, _ = await asyncio.wait((blocked, passing), return_when=asyncio.FIRST_COMPLETED)
        assert first == {passing}  # in a batch with the blocked one it would have waited as long
        assert isinstance(await blocked, errors.AccountBusy)


async def test_a_value_that_cannot_be_encoded_is_no_outage(ledger: Ledger, open_account: Open) -> None:
    account = await open_account()
    too_large = Submission(commands.Settle(account_id=account, kind="deposit", amount=2**70, source="test", effect="x"), SYSTEM)
    outcomes = await ledger.submit_many([too_large, Submission(commands.Deposit(account_id=account, amount=1), SYSTEM, "k", b"x")])
    assert isinstance(outcomes[0], errors.InternalError)
    assert isinstance(outcomes[1], tuple)


def test_a_fingerprint_is_for_ever() -> None:
    # keys are kept for 90 days: what a body was known by must not change with a release
    body = msgspec.json.decode(b'{"method":"direct","metadata":{"b":"2","a":"1"},"amount":5}', type=DepositRequest)
    assert fingerprint("deposit x", body).hex() == "8e0abb0c64f054219e948dc1d52c8e80"
    other_order = msgspec.json.decode(b'{"amount":5,"metadata":{"a":"1","b":"2"},"method":"direct"}', type=DepositRequest)
    assert fingerprint("deposit x", other_order) == fingerprint("deposit x", body)


async def test_what_a_provider_moved_is_not_reversed_here(
    ledger: Ledger, open_account: Open, db: Database, sql: asyncpg.Connection
) -> None:
    account = await open_account(10)
    held = await done(ledger, commands.OpenPayment(account_id=account, amount=5))
    assert held.payment_id is not None
    completed = await done(ledger, commands.CompletePayment(account_id=account, payment_id=held.payment_id))
    await sql.execute("UPDATE payments SET method = 'revio', provider = 'simulator' WHERE id = $1", held.payment_id)
    assert isinstance(await reverse(ledger, db, completed.transaction_id), errors.NotReversible)


async def test_a_caller_who_hangs_up_cancels_nothing(ledger: Ledger, open_account: Open, sql: asyncpg.Connection) -> None:
    account = await open_account()
    call = asyncio.create_task(ask(ledger, commands.Deposit(account_id=account, amount=5)))
    await asyncio.sleep(0)
    call.cancel()
    await ledger.stop()  # drains
    assert await sql.fetchval("SELECT balance FROM accounts WHERE id = $1", account) == 5
    with pytest.raises(errors.ShuttingDown):
        await ask(ledger, commands.Deposit(account_id=account, amount=5))


async def test_what_cannot_be_counted_is_answered_and_not_posted_again(
    ledger: Ledger, open_account: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: float) -> None:
        raise OSError("no space left on device")

    account = await open_account()
    monkeypatch.setattr(metrics.BATCH_SIZE, "observe", fail)
    deposit = Submission(commands.Deposit(account_id=account, amount=10), SYSTEM, "", b"")  # without a key nothing would tell the second
    outcomes = await ledger.submit_many([deposit, deposit])
    assert [getattr(outcome, "decision", outcome).balance for outcome in outcomes] == [10, 20]  # type: ignore[union-attr]
    monkeypatch.undo()
    assert (await done(ledger, commands.Deposit(account_id=account, amount=1))).balance == 21


# The audit log --------------------------------------------------------------------------------------------------------


async def test_an_act_is_written_down_in_the_transaction_that_does_it(ledger: Ledger, open_account: Open, sql: asyncpg.Connection) -> None:
    account = await open_account(10)
    act = commands.Act(ids.new_id(0), "user:somebody", "account.withdraw", str(account), {"amount": 4})
    withdrawal = Submission(commands.Withdraw(account_id=account, amount=4), SYSTEM, "noted", b"x", act)
    answer = (await ledger.submit(withdrawal)).decision
    assert isinstance(answer, Answer)
    again = commands.Act(ids.new_id(0), *[getattr(act, field) for field in ("by", "action", "target", "details")])
    assert (await ledger.submit(withdrawal._replace(act=again))).replayed  # which is no act
    frozen = commands.Act(ids.new_id(0), "user:somebody", "account.frozen", str(account), {})
    for _ in range(2):  # tried again by a lane that does not know whether it was committed
        await ledger.submit(Submission(commands.Freeze(account_id=account), SYSTEM, act=frozen))
    refused = commands.Act(ids.new_id(0), "user:somebody", "account.withdraw", str(account), {})
    outcome = await ledger.submit(Submission(commands.Withdraw(account_id=account, amount=4), SYSTEM, "refused", b"x", refused))
    assert isinstance(outcome.decision, errors.AccountFrozen)
    rows = await sql.fetch("SELECT id, action, details, xmin::text FROM audit_log WHERE target = $1 ORDER BY id", str(account))
    assert [(row["id"], row["action"]) for row in rows] == [(act.id, "account.withdraw"), (frozen.id, "account.frozen")]
    assert json.loads(rows[0]["details"]) == {"amount": 4, "transaction": str(answer.transaction_id)}
    assert rows[0]["xmin"] == await sql.fetchval("SELECT xmin::text FROM transactions WHERE id = $1", answer.transaction_id)
