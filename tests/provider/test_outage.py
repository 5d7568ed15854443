"""The provider cannot be reached for an hour: clear answers, held money, nothing lost, and everything goes on afterwards."""

from uuid import UUID, uuid4

from piggybank.jobs import revio as jobs
from tests.provider.conftest import Desk

HOUR = "interval '1 hour'"


async def an_hour_passes(desk: Desk) -> None:
    """For what is waiting: as if everything had been put in an hour ago."""
    for table, column in (("payments", "expires_at"), ("payments", "updated_at"), ("payments", "due_at"), ("provider_events", "due_at")):
        await desk.sql.execute(f"UPDATE {table} SET {column} = {column} - {HOUR} WHERE {column} IS NOT NULL")


async def test_an_hour_without_the_provider(desk: Desk) -> None:
    account = await desk.account(20_000)
    paid_before = await desk.deposit(account, 1_000)
    await desk.work_through()
    desk.simulator.kill()

    # deposits answer clearly, again and again, and stay one payment
    key, body = uuid4().hex, {"amount": 3_000, "method": "revio"}
    for _ in range(2):
        answer = await desk.post(f"/v1/accounts/{account}/deposits", body, key)
        assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (503, "provider_unavailable", True)
        assert int(answer.headers["retry-after"]) >= 1
    waiting = answer.json()["payment_id"]

    # withdrawals are taken, and held
    payout = await desk.withdraw(account, 5_000)
    assert await desk.balance(account) == (20_000, 5_000, 0)
    for _ in range(4):  # the workers try, an hour long
        await desk.hurry()
        await jobs.send_payments(desk.work)
        await jobs.ask_about_payments(desk.work, quiet_s=-1)
        await jobs.look_after_webhook(desk.work)
    assert (await desk.payment(payout["id"]))["status"] == "creating"
    assert (await desk.payment(waiting))["status"] == "creating"
    assert await desk.balance(account) == (20_000, 5_000, 0)
    # everything else works
    assert (await desk.post(f"/v1/accounts/{account}/withdrawals", {"amount": 100, "method": "direct"})).status_code == 201
    assert (await desk.http.get(f"/v1/accounts/{account}/payments")).status_code == 200
    cancel = await desk.post(f"/v1/payments/{paid_before['id']}/cancel")
    assert (cancel.status_code, cancel.json()["code"]) == (503, "provider_unavailable")
    await an_hour_passes(desk)
    # people paid just before the provider went away; its event comes when it is back
    desk.restart_simulator()
    await desk.act(f"purchases/{paid_before['provider_id']}/pay")
    await desk.hurry()
    await desk.work_through()
    await desk.ask()
    await desk.work_through()
    assert (await desk.payment(payout["id"]))["status"] == "completed"
    assert (await desk.payment(paid_before["id"]))["status"] == "completed"
    ended = await desk.payment(waiting)  # nobody ever saw its checkout
    assert (ended["status"], ended["failure"]) == ("failed", "not_created")
    assert await desk.balance(account) == (20_000 - 100 + 1_000 - 5_000, 0, 0)
    # the same key tells what became of it; a new one makes a new checkout
    again = await desk.post(f"/v1/accounts/{account}/deposits", body, key)
    assert (again.status_code, again.json()["code"], again.json()["reason"]) == (409, "provider_refused", "not_created")
    assert (await desk.post(f"/v1/accounts/{account}/deposits", body)).status_code == 202
    assert await desk.sql.fetchval("SELECT open_payments FROM accounts WHERE id = $1", account) == 1
    assert UUID(waiting)
    assert await desk.differences() == []
