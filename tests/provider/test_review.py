"""What somebody who did not write it found, one test each."""

import asyncio
import json
import signal
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import msgspec
import pytest

from piggybank import errors
from piggybank.jobs import revio as jobs
from piggybank.ledger import SYSTEM, Submission, commands
from piggybank.ledger.idempotency import Answer
from piggybank.wallet import deposits, provider
from tests.conftest import start_server, start_simulator
from tests.provider.conftest import PATIENCE_S, Desk, until
from tests.provider.test_events import Signer, paid_event, send
from tests.provider.test_reconciliation import compare
from tests.provider.test_refunds import ended, refund

BACKLOG = 300  # payouts; more than a worker that is told to stop could send before it is cut off


async def test_a_late_event_does_not_take_the_next_refund_for_its_own(desk: Desk) -> None:
    """The first was ended by hand; the second, of the same amount, has not been sent when the event of the first comes."""
    account = await desk.account()
    deposit = await desk.paid_deposit(account, 10_000)
    first = (await refund(desk, deposit, 3_000)).json()["payment"]
    await desk.sql.execute("UPDATE payments SET status = 'unknown' WHERE id = $1", UUID(first["id"]))
    for operator in (0, 1):
        answer = await desk.http.post(
            f"/v1/ops/payments/{first['id']}/resolve",
            json={"outcome": "completed", "note": "seen"},
            headers=await desk.as_operator(operator),
        )
        assert answer.status_code in (200, 202)
    second = (await refund(desk, deposit, 3_000)).json()["payment"]
    assert second["status"] == "creating"
    client = await desk.work.provider.client()
    await client.refund(deposit["provider_id"], 3_000)  # what the first one had done

    async def told() -> bool:
        await desk.delivered()
        await jobs.apply_events(desk.work)
        return await desk.sql.fetchval("SELECT provider_id IS NOT NULL FROM payments WHERE id = $1", UUID(first["id"])) is True

    await until(told)
    assert (await desk.payment(second["id"]))["status"] == "creating"
    assert await desk.balance(account) == (7_000, 3_000, 0)
    assert (await ended(desk, second))["status"] == "completed"
    purchase = (await desk.sim.get(f"/api/v1/purchases/{deposit['provider_id']}/")).json()
    assert purchase["refundable_amount"] == 4_000
    assert await desk.balance(account) == (4_000, 0, 0)


async def test_an_old_failure_is_not_the_next_refunds(desk: Desk) -> None:
    account = await desk.account()
    deposit = await desk.paid_deposit(account, 10_000)
    await desk.faults(refund_failure=1)
    assert (await ended(desk, (await refund(desk, deposit, 2_000)).json()["payment"]))["status"] == "failed"
    await desk.faults()
    waiting = (await refund(desk, deposit, 2_000)).json()["payment"]
    event = await desk.sql.fetchval(
        "SELECT id FROM provider_events WHERE object_id = $1 AND event_type = 'purchase.refund_failure'", deposit["provider_id"]
    )
    replayed = await desk.http.post(f"/v1/ops/provider-events/{event}/replay", headers=await desk.as_operator())
    assert replayed.status_code == 200
    assert (await desk.payment(waiting["id"]))["status"] == "creating"
    assert (await ended(desk, waiting))["status"] == "completed"


async def test_the_row_of_a_deposit_is_its_deposit_whatever_came_first(desk: Desk) -> None:
    account = await desk.account()
    payment = await desk.deposit(account, 8_000)
    charged_back = commands.Settle(
        account_id=account, kind="chargeback", amount=8_000, source="revio", effect=f"chargeback:{uuid4()}", payment_id=UUID(payment["id"])
    )
    await desk.work.ledger.submit(Submission(charged_back, SYSTEM))
    await desk.act(f"purchases/{payment['provider_id']}/pay")
    await desk.work_through()
    done = await desk.payment(payment["id"])
    row = (await desk.http.get(f"/v1/transactions/{done['transaction_id']}")).json()
    assert (row["kind"], row["amount"]) == ("deposit", 8_000)
    assert await desk.balance(account) == (0, 0, 0)


async def test_a_key_that_was_removed_is_good_no_longer(desk: Desk) -> None:
    made = Signer()
    async with desk.work.db.write() as write:
        await provider.add_key(write, "simulator", made.pem)
    await asyncio.sleep(provider.KEYS_AGAIN_S)
    payment = await desk.deposit(await desk.account(), 500)
    body = json.dumps(paid_event(payment)).encode()
    assert (await send(desk, body, made.sign(body)))[0] == 200
    fingerprint = await desk.sql.fetchval("SELECT fingerprint FROM provider_keys WHERE pem = $1", made.pem)
    async with desk.work.db.write() as write:
        assert await provider.remove_key(write, fingerprint, "simulator")
    await asyncio.sleep(provider.KEYS_REMEMBERED_S)
    other = body + b" "
    assert (await send(desk, other, made.sign(other)))[0] == 401


async def test_the_same_key_is_known_in_both_modes_and_good_in_its_own(desk: Desk) -> None:
    made = Signer()
    async with desk.work.db.write() as write:
        assert await provider.add_key(write, "live", made.pem)
        assert await provider.add_key(write, "simulator", made.pem)
        await provider.remove_key(write, (await provider.keys(write, "live"))[-1].fingerprint, "simulator")
    await asyncio.sleep(provider.KEYS_AGAIN_S)
    body = json.dumps({"event_type": "purchase.viewed", "id": "x", "type": "purchase"}).encode()
    assert (await send(desk, body, made.sign(body)))[0] == 401  # only the live one is left


@pytest.mark.deep
async def test_a_stop_cuts_off_no_call_that_moves_money(desk: Desk) -> None:
    """A backlog, a slow provider, and SIGTERM: what was begun is finished, what was not is sent by the next one."""
    account = await desk.account(BACKLOG * 1_000)
    payments = [await desk.withdraw(account, 1_000) for _ in range(BACKLOG)]
    await desk.faults(slow_ms=600_000)  # over the scale of time: most of a second a call
    worker = await asyncio.to_thread(start_server, msgspec.structs.replace(desk.settings, worker_processes=0))
    query = "SELECT count(*) FROM payments WHERE account_id = $1 AND status = ANY($2)"

    async def begun() -> bool:
        return bool(await desk.sql.fetchval(query, account, ["processing", "completed"]))

    await until(begun)
    worker.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(worker.stop) == 0
    assert await desk.sql.fetchval(query, account, ["processing", "unknown"]) == 0
    assert await jobs.look_after_webhook(desk.work) == 1  # events had gone to that worker's address
    await desk.faults()
    await desk.hurry()
    await desk.work_through()
    assert {(await desk.payment(payment["id"]))["status"] for payment in payments} == {"completed"}
    assert await desk.balance(account) == (0, 0, 0)


async def test_nights_that_were_missed_are_made_up_for(desk: Desk) -> None:
    await desk.sql.execute("DELETE FROM booked_transactions")
    await desk.sql.execute("DELETE FROM reconciliation_items")
    await desk.sql.execute("DELETE FROM reconciliations")
    await jobs.reconcile_yesterday(desk.work)
    await desk.sql.execute("UPDATE reconciliations SET since = since - interval '5 days', until = until - interval '5 days'")
    await jobs.reconcile_yesterday(desk.work)
    rows = await desk.sql.fetch("SELECT since, until, status FROM reconciliations ORDER BY id")
    assert [row["status"] for row in rows] == ["finished", "finished"]
    assert rows[1]["since"] == rows[0]["until"]
    assert (rows[1]["until"] - rows[1]["since"]).days == 6 - 1


async def test_what_a_statement_had_is_never_ours_only_later(desk: Desk) -> None:
    """Mended at night: posted today, booked yesterday."""
    account = await desk.account()
    payment = await desk.deposit(account, 4_000)
    await desk.act(f"purchases/{payment['provider_id']}/pay")
    await desk.delivered()
    await desk.sql.execute("DELETE FROM provider_events WHERE status = 'new'")
    assert (await compare(desk)).reconciliation.mended == 1
    await desk.faults(statement_mismatch=0)
    booked = await desk.sql.fetchval(
        "SELECT count(*) FROM booked_transactions b JOIN transactions t ON t.id = b.transaction_id WHERE t.account_id = $1", account
    )
    assert booked == 1


async def test_people_may_reach_the_page_by_another_address_than_programs(desk: Desk) -> None:
    desk.simulator.kill()
    port = desk.settings.simulator_port
    moved = msgspec.structs.replace(desk.settings, simulator_url=f"http://localhost:{port}")
    desk.simulator = await asyncio.to_thread(start_simulator, moved)
    account = await desk.account(5_000)
    payment = await desk.deposit(account, 500)
    assert payment["checkout_url"].startswith(f"http://localhost:{port}/checkout/")
    payout = await desk.withdraw(account, 1_000)
    await desk.work_through()
    assert (await desk.payment(payout["id"]))["status"] == "completed"
    desk.simulator.kill()
    desk.restart_simulator()


async def test_a_provider_that_hangs_keeps_nobody_waiting_for_long(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection and says nothing: whoever asked is told so long before each try has had its time."""
    monkeypatch.setattr(deposits, "CHECKOUT_WITHIN_S", 0.5)
    settings = msgspec.structs.replace(desk.settings, revio_timeout_s=15)
    patient = provider.Provider(settings, desk.work.db)
    account = await desk.account()
    opening = commands.OpenPayment(
        account_id=account,
        kind="deposit",
        amount=500,
        method="revio",
        provider="simulator",
        expires_at=datetime.now(UTC) + timedelta(hours=1),
    )
    opened = (await desk.work.ledger.submit(Submission(opening, SYSTEM))).decision
    assert isinstance(opened, Answer)
    assert opened.payment_id is not None
    desk.simulator.process.send_signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(errors.ProviderUnavailable):
                await deposits.checkout(desk.work.db, desk.work.ledger, patient, opened.payment_id)
    finally:
        desk.simulator.process.send_signal(signal.SIGCONT)
        await patient.close()
    assert (await desk.payment(str(opened.payment_id)))["status"] == "creating"


async def test_no_proxy_of_the_environment_is_told_our_key(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    own = provider.Provider(desk.settings, desk.work.db)
    assert await (await own.client()).webhooks()
    await own.close()


async def test_an_operators_refund_is_written_down_once(desk: Desk) -> None:
    account, key = await desk.account(), uuid4().hex
    deposit = await desk.paid_deposit(account)
    query = "SELECT count(*) FROM audit_log WHERE action = 'payment.refund' AND target = $1"
    for _ in range(3):
        assert (await refund(desk, deposit, 1_000, key)).status_code == 202
        assert await desk.sql.fetchval(query, f"payment:{deposit['id']}") == 1


async def test_two_keys_in_one_request_are_none(desk: Desk) -> None:
    account = await desk.account()
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b"), *desk.server.headers.items()]
    answer = await desk.http.post(f"/v1/accounts/{account}/deposits", json={"amount": 1, "method": "direct"}, headers=headers)
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, "doubled")
    assert await desk.balance(account) == (0, 0, 0)


async def test_problems_keep_their_own_status(desk: Desk) -> None:
    account = await desk.account(5_000)
    payment = await desk.withdraw(account, 1_000)
    await desk.work_through()
    answer = await desk.post(f"/v1/payments/{payment['id']}/cancel")
    assert (answer.json()["status"], answer.json()["payment_status"]) == (409, "completed")


async def test_the_book_is_right(desk: Desk) -> None:
    await desk.work_through()
    assert await desk.differences() == []
