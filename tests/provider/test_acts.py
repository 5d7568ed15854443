"""Whatever an operator does is in the audit log with their name: every route that changes something, tried one by one."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from piggybank import ids, queues
from piggybank.api.guards import ROUTES
from piggybank.queues import Schedule
from tests.prove.conftest import sign_in
from tests.provider.conftest import DESTINATION, Desk

# those that an operator may call; that these are all of the document is tested in tests/api/test_guards.py
CHANGING = {name for name, access in ROUTES.items() if not name.startswith("GET ") and access.operator and not access.public}

Asked = tuple[str, Any, str]  # path, body, how the action begins


async def user(_: Desk) -> Asked:
    return "/v1/users", {"external_id": uuid4().hex}, "user.create"


async def oneself(_: Desk) -> Asked:
    return "/v1/users/me", {"name": "Grace"}, "user.change"


async def session(_: Desk) -> Asked:
    return "/v1/sessions/current", None, "session.end"


async def key(_: Desk) -> Asked:
    return "/v1/api-keys", {"name": "till", "scopes": ["ops:read"]}, "apikey.create"


async def revocation(desk: Desk) -> Asked:
    made = await desk.http.post("/v1/api-keys", json={"name": "till", "scopes": ["ops:read"]}, headers=await desk.as_operator())
    return f"/v1/api-keys/{made.json()['id']}", None, "apikey.revoke"


async def opening(desk: Desk) -> Asked:
    made = await desk.http.post("/v1/users", json={"external_id": uuid4().hex})
    return "/v1/accounts", {"user_id": made.json()["id"], "currency": "ZAR"}, "account.open"


async def renaming(desk: Desk) -> Asked:
    return f"/v1/accounts/{await desk.account()}", {"name": "Holiday"}, "account.change"


async def freezing(desk: Desk) -> Asked:
    return f"/v1/accounts/{await desk.account()}/freeze", None, "account.frozen"


async def unfreezing(desk: Desk) -> Asked:
    return f"/v1/accounts/{await desk.account()}/unfreeze", None, "account.active"


async def closing(desk: Desk) -> Asked:
    return f"/v1/accounts/{await desk.account()}/close", None, "account.closed"


async def held(desk: Desk) -> str:
    hold = {"amount": 50, "method": "direct", "hold": True}
    return str((await desk.post(f"/v1/accounts/{await desk.account(100)}/withdrawals", hold)).json()["payment"]["id"])


async def cancelling(desk: Desk) -> Asked:
    return f"/v1/payments/{await held(desk)}/cancel", None, "payment.cancel"


async def completing(desk: Desk) -> Asked:
    return f"/v1/payments/{await held(desk)}/complete", None, "payment.complete"


async def deposit(desk: Desk) -> Asked:
    return f"/v1/accounts/{await desk.account()}/deposits", {"amount": 1_000, "method": "revio"}, "account.deposit"


async def withdrawal(desk: Desk) -> Asked:
    body = {"amount": 1_000, "method": "revio", "destination": DESTINATION}
    return f"/v1/accounts/{await desk.account(9_000)}/withdrawals", body, "account.withdraw"


async def transfer(desk: Desk) -> Asked:
    body = {"from_account": str(await desk.account(10)), "to_account": str(await desk.account()), "amount": 1}
    return "/v1/transfers", body, "account.transfer"


async def batch(desk: Desk) -> Asked:
    _, one, action = await transfer(desk)
    return "/v1/transactions:batch", {"commands": [one | {"type": "transfer"}]}, action


async def reversal(desk: Desk) -> Asked:
    posted = await desk.post(f"/v1/accounts/{await desk.account()}/deposits", {"amount": 5, "method": "direct"})
    return f"/v1/transactions/{posted.json()['transaction']['id']}/reversal", {}, "transaction.reverse"


async def refund(desk: Desk) -> Asked:
    paid = await desk.paid_deposit(await desk.account())
    return f"/v1/ops/payments/{paid['id']}/refund", {"amount": 100}, "payment.refund"


async def resolution(desk: Desk) -> Asked:
    payment = await desk.withdraw(await desk.account(9_000))
    await desk.sql.execute("UPDATE payments SET status = 'unknown' WHERE id = $1", UUID(payment["id"]))
    return f"/v1/ops/payments/{payment['id']}/resolve", {"outcome": "failed", "note": "The bank says so"}, "payment.resolve.propose"


async def replay(desk: Desk) -> Asked:
    await desk.paid_deposit(await desk.account())
    event = (await desk.http.get("/v1/ops/provider-events", params={"status": "applied"})).json()["items"][0]
    return f"/v1/ops/provider-events/{event['id']}/replay", None, "provider_event.replay"


async def dismissal(desk: Desk) -> Asked:
    row = ids.new_id(0)
    await desk.sql.execute(
        "INSERT INTO provider_events (id, body_hash, provider, body, status, updated_at)"
        " VALUES ($1, $2, 'simulator', '{}', 'unmatched', now())",
        *(row, row.bytes),
    )
    return f"/v1/ops/provider-events/{row}/dismiss", {"note": "Of another shop"}, "provider_event.dismiss"


async def job(desk: Desk) -> Asked:
    queue = queues.open_queue(desk.settings.queue_url)
    await queue.announce({"build_reports": Schedule(cron="*/5 * * * *", timeout_s=300, retries=3)})
    await queue.close()
    return "/v1/ops/queue/jobs/build_reports/run", None, "job.run"


async def event(desk: Desk) -> Asked:
    row = ids.new_id(7)
    await desk.sql.execute(
        "INSERT INTO outbox (id, bucket, topic, payload, attempts, due_at) VALUES ($1, 7, 'mail.reset', '{}', 3, now() + interval '1 h')",
        row,
    )
    return f"/v1/ops/outbox/{row}/retry", None, "outbox.retry"


ACTS: dict[str, Callable[[Desk], Awaitable[Asked]]] = {
    "POST /v1/users": user,
    "PATCH /v1/users/me": oneself,
    "DELETE /v1/sessions/current": session,
    "POST /v1/api-keys": key,
    "DELETE /v1/api-keys/{key_id}": revocation,
    "POST /v1/accounts": opening,
    "PATCH /v1/accounts/{account_id}": renaming,
    "POST /v1/accounts/{account_id}/freeze": freezing,
    "POST /v1/accounts/{account_id}/unfreeze": unfreezing,
    "POST /v1/accounts/{account_id}/close": closing,
    "POST /v1/payments/{payment_id}/cancel": cancelling,
    "POST /v1/payments/{payment_id}/complete": completing,
    "POST /v1/accounts/{account_id}/deposits": deposit,
    "POST /v1/accounts/{account_id}/withdrawals": withdrawal,
    "POST /v1/transfers": transfer,
    "POST /v1/transactions:batch": batch,
    "POST /v1/transactions/{transaction_id}/reversal": reversal,
    "POST /v1/ops/payments/{payment_id}/refund": refund,
    "POST /v1/ops/payments/{payment_id}/resolve": resolution,
    "POST /v1/ops/provider-events/{event_id}/replay": replay,
    "POST /v1/ops/provider-events/{event_id}/dismiss": dismissal,
    "POST /v1/ops/queue/jobs/{name}/run": job,
    "POST /v1/ops/outbox/{row_id}/retry": event,
}


def test_every_route_that_changes_something_is_tried() -> None:
    assert set(ACTS) == CHANGING


@pytest.mark.parametrize("name", ACTS)
async def test_it_is_written_down_with_the_operators_name(desk: Desk, name: str) -> None:
    await desk.as_operator()  # a payment is resolved by two
    path, body, action = await ACTS[name](desk)
    who = await asyncio.to_thread(sign_in, desk.settings, "operator")
    before = await desk.sql.fetchval("SELECT max(id::text) FROM audit_log")
    answer = await desk.http.request(name.split(maxsplit=1)[0], path, json=body, headers=who.headers | {"Idempotency-Key": uuid4().hex})
    assert answer.is_success, answer.text
    written = await desk.sql.fetch("SELECT actor, action FROM audit_log WHERE id::text > $1", before)
    assert [tuple(row) for row in written] == [(f"user:{who.id}", action)]
    page = (await desk.http.get("/v1/ops/audit", params={"limit": 1}, headers=await desk.as_operator())).json()
    assert page["items"][0]["actor_name"] in (who.email, "Grace")
