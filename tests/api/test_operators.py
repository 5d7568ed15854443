"""What operators see and do beside the money: people, everybody's transactions, the audit log, jobs, the doctor."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
from litestar.testing import AsyncTestClient
from sqlalchemy import text

from piggybank import ids, queues
from piggybank.app import create_app
from piggybank.db import backups
from piggybank.db import search as finding
from piggybank.db.engines import Database
from piggybank.queues import Queue, Schedule
from piggybank.settings import Settings
from piggybank.wallet import journal
from tests.api.conftest import Client, People
from tests.conftest import VALKEY_DATABASES, _on_database, _worker_number


@pytest.fixture
async def sql(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """The owner's connection."""
    connection = await asyncpg.connect(settings.owner_database_url)
    yield connection
    await connection.close()


async def found(client: Client, people: People, path: str, **query: Any) -> dict[str, Any]:
    answer = await client.get(path, params=query, headers=people.operator)
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = answer.json()
    return page


async def account(client: Client, people: People, currency: str = "USD", **user: Any) -> tuple[str, str]:
    """(user, account), both new."""
    made = (await client.post("/v1/users", json={"external_id": uuid4().hex} | user, headers=people.service)).json()
    opened = await client.post("/v1/accounts", json={"user_id": made["id"], "currency": currency}, headers=people.service)
    return made["id"], opened.json()["id"]


async def deposit(client: Client, people: People, account_id: str, amount: int, **more: Any) -> str:
    answer = await client.post(
        f"/v1/accounts/{account_id}/deposits",
        json={"amount": amount, "method": "direct", **more},
        headers=people.service | {"Idempotency-Key": uuid4().hex},
    )
    assert answer.status_code == 201, answer.text
    return str(answer.json()["transaction"]["id"])


# People ---------------------------------------------------------------------------------------------------------------


async def test_users_and_their_accounts_are_found_by_every_name_that_they_have(client: Client, people: People) -> None:
    mark = uuid4().hex[:10]
    user_id, account_id = await account(
        client, people, name=f"Ada O'{mark.upper()} 100%", email=f"{mark}.x_y@example.com", external_id=f"c-{mark}"
    )
    searches = (
        mark[:6],
        mark.upper(),
        f"o'{mark}",
        f"100 ada {mark[:4]}",
        f"{mark}.X_Y@EXAMPLE",
        f"C-{mark[:5]}",
        user_id,
        user_id.upper(),
    )
    for search in (*searches, f" {user_id} "):
        assert [one["id"] for one in (await found(client, people, "/v1/users", search=search))["items"]] == [user_id], search
        assert [one["id"] for one in (await found(client, people, "/v1/accounts", search=search))["items"]] == [account_id], search
    assert [one["id"] for one in (await found(client, people, "/v1/accounts", search=account_id))["items"]] == [account_id]
    for search in (mark[1:], f"{mark}.x%", f"{mark}.x__@", f"k%{mark}", "' OR 1=1 --", "%", "_", "!", "\\"):  # nothing is a pattern
        assert (await found(client, people, "/v1/users", search=search))["items"] == [], search
        assert (await found(client, people, "/v1/accounts", search=search))["items"] == [], search


async def test_accounts_are_found_by_their_own_names_and_each_once(client: Client, people: People) -> None:
    mark = uuid4().hex[:10]
    user_id, _ = await account(client, people, name=mark)
    named = {"user_id": user_id, "currency": "ZAR", "name": f"Holiday {mark}", "external_id": f"{mark}-2"}
    opened = (await client.post("/v1/accounts", json=named, headers=people.service)).json()["id"]
    _, other = await account(client, people)
    for search, many in ((mark, 2), (f"{mark}-2", 1), (f"holi {mark}", 1)):
        items = (await found(client, people, "/v1/accounts", search=search))["items"]
        assert (len(items), items[0]["id"]) == (many, opened)  # newest first
    assert (await found(client, people, "/v1/accounts", search=mark, user_id=people.user_id))["items"] == []
    first = await found(client, people, "/v1/accounts", search=mark, limit=1)
    second = await found(client, people, "/v1/accounts", search=mark, limit=1, cursor=first["next_cursor"])
    assert [page["items"][0]["id"] for page in (first, second)] == [
        one["id"] for one in (await found(client, people, "/v1/accounts", search=mark))["items"]
    ]
    assert second["next_cursor"] is None
    refused = await client.get("/v1/accounts", params={"search": other, "cursor": first["next_cursor"]}, headers=people.operator)
    assert refused.status_code == 400  # a cursor of another search
    own = await client.get("/v1/accounts", params={"search": mark}, headers=people.user)
    assert own.json()["items"] == []  # a user finds their own only


_MANY_USERS = """
INSERT INTO users (id, role, name, email, external_id)
SELECT gen_random_uuid(), 'user', md5(n::text), md5(n::text) || '@example.com', 'many-' || md5(n::text) FROM generate_series(1, 5000) AS n
"""
_MANY_ACCOUNTS = """
INSERT INTO accounts (id, bucket, user_id, currency, name, external_id)
SELECT gen_random_uuid(), 7, id, 'ZAR', name, external_id FROM users WHERE external_id LIKE 'many-%'
"""


@pytest.mark.parametrize(
    ("statement", "indexes"),
    [
        (finding.USERS, {"users_search_name", "users_search_email", "users_search_external_id"}),
        (finding.ACCOUNTS, {"accounts_search_name", "accounts_search_external_id", "accounts_user", "users_search_email"}),
    ],
)
async def test_a_search_reads_indexes(settings: Settings, statement: str, indexes: set[str]) -> None:
    """Where there are enough rows to choose; nothing of them stays."""
    database = Database(settings.owner_database_url)
    async with database.engine.connect() as filled:
        for fill in (_MANY_USERS, _MANY_ACCOUNTS, "ANALYZE users", "ANALYZE accounts"):
            await filled.execute(text(fill))
        plan = "\n".join((await filled.scalars(text(f"EXPLAIN {statement}"), finding.given("ada.l"))).all())
        await filled.rollback()
    await database.close()
    assert "Seq Scan" not in plan
    assert {name for name in indexes if name not in plan} == set()


async def test_pages_of_a_search_are_whole(client: Client, people: People) -> None:
    mark = uuid4().hex[:10]
    made = [(await account(client, people, name=f"{mark} {number}"))[0] for number in range(7)]
    seen: list[str] = []
    cursor = None
    while True:
        page = await found(client, people, "/v1/users", search=mark, limit=3, **({"cursor": cursor} if cursor else {}))
        seen += [one["id"] for one in page["items"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert seen == made[::-1]


# The journal ----------------------------------------------------------------------------------------------------------


async def test_everybodys_transactions_by_every_filter(client: Client, people: People) -> None:
    mark = uuid4().hex
    (_, dollars), (owner, rand) = await account(client, people), await account(client, people, "ZAR")
    small = await deposit(client, people, dollars, 150, reference=mark)
    large = await deposit(client, people, rand, 990_000, reference=mark, metadata={"order": "7"})
    taken = await client.post(
        f"/v1/accounts/{rand}/withdrawals",
        json={"amount": 4_000, "method": "direct", "reference": mark},
        headers=people.service | {"Idempotency-Key": mark},
    )
    out = taken.json()["transaction"]["id"]

    async def ids_of(**query: Any) -> list[str]:
        return [one["id"] for one in (await found(client, people, "/v1/ops/transactions", reference=mark, **query))["items"]]

    assert await ids_of() == [out, large, small]
    assert await ids_of(kind="deposit") == [large, small]
    assert await ids_of(currency="USD") == [small]
    assert await ids_of(min_amount=4_000) == [out, large]  # without its sign
    assert await ids_of(min_amount=151, max_amount=989_999) == [out]
    at = ids.time_of(UUID(large)).isoformat()
    assert small in await ids_of(to=at) or ids.time_of(UUID(small)) == ids.time_of(UUID(large))
    assert large in await ids_of(**{"from": at})
    entry = (await found(client, people, "/v1/ops/transactions", reference=mark, min_amount=990_000))["items"][0]
    assert (entry["user_id"], entry["account_id"], entry["minor_unit"], entry["metadata"]) == (owner, rand, 2, {"order": "7"})
    assert (await client.get("/v1/ops/transactions", headers=people.user)).status_code == 403


async def test_a_rare_thing_is_found_over_several_short_pages(client: Client, people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "LOOKED_AT_MAX", 5)
    mark = uuid4().hex
    _, account_id = await account(client, people)
    rare = await deposit(client, people, account_id, 77, reference=mark)
    common = [await deposit(client, people, account_id, 1) for _ in range(12)]
    seen: list[str] = []
    pages, cursor = 0, None
    while not seen:
        query = {"reference": mark} | ({"cursor": cursor} if cursor else {})
        page = await found(client, people, "/v1/ops/transactions", **query)
        seen += [one["id"] for one in page["items"]]
        pages += 1
        if page["next_cursor"]:
            assert page["looked_until"] is not None
        cursor = page["next_cursor"]
    assert (seen, pages) == ([rare], 3)
    everything: list[str] = []
    cursor = None
    while rare not in everything:
        page = await found(client, people, "/v1/ops/transactions", limit=3, **({"cursor": cursor} if cursor else {}))
        everything += [one["id"] for one in page["items"]]
        cursor = page["next_cursor"]
    assert everything[: everything.index(rare) + 1] == [*common[::-1], rare]
    refused = await client.get("/v1/ops/transactions", params={"cursor": cursor or "x", "kind": "fee"}, headers=people.operator)
    assert refused.status_code == 400  # a cursor of another list


async def test_the_journal_says_where_the_archive_begins(client: Client, people: People, sql: asyncpg.Connection) -> None:
    """No list is short without saying so."""
    last = await deposit(client, people, (await account(client, people))[1], 1)
    below = ids.new_id(0, (UUID(last).int >> 80) * 1_000_000 - 3_600 * 10**9)
    await sql.execute(
        "INSERT INTO archived_months (month, partition, below, rows, amount, file, bytes, sha256, archived_at)"
        " VALUES ('2001-01-01', 'transactions_2001_01', $1, 1, 1, 'transactions-2001-01.parquet', 1, '', now())",
        below,
    )
    try:
        page = await found(client, people, "/v1/ops/transactions", kind="fee")
        assert (page["items"], page["next_cursor"]) == ([], None)
        assert page["archived_until"].startswith(ids.time_of(below).isoformat()[:19])
        later = await found(client, people, "/v1/ops/transactions", kind="fee", **{"from": ids.time_of(UUID(last)).isoformat()})
        assert later["archived_until"] is None
    finally:
        await sql.execute("DELETE FROM archived_months WHERE month = '2001-01-01'")


# The audit log --------------------------------------------------------------------------------------------------------


async def test_the_log_names_who_did_what_to_whom(client: Client, people: People, sql: asyncpg.Connection) -> None:
    made = (await client.post("/v1/api-keys", json={"name": "till", "scopes": ["ops:read"]}, headers=people.operator)).json()
    assert (await client.delete(f"/v1/api-keys/{made['id']}", headers=people.operator)).status_code == 204
    page = await found(client, people, "/v1/ops/audit", target=made["id"])
    assert [one["action"] for one in page["items"]] == ["apikey.revoke", "apikey.create"]
    entry = page["items"][1]
    assert (entry["target"], entry["target_name"], entry["details"]["scopes"]) == (f"key:{made['id']}", "till", ["ops:read"])
    assert entry["actor"].startswith("user:")
    assert "@" in entry["actor_name"]
    assert made["token"] not in str(page)
    by = (await found(client, people, "/v1/ops/audit", actor=entry["actor"], action="apikey."))["items"]
    assert {one["action"] for one in by} == {"apikey.create", "apikey.revoke"}
    assert {one["actor"] for one in by} == {entry["actor"]}
    assert (await found(client, people, "/v1/ops/audit", action="apikey.", to=entry["at"], target=made["id"]))["items"] == []
    first = await found(client, people, "/v1/ops/audit", limit=1)
    second = await found(client, people, "/v1/ops/audit", limit=1, cursor=first["next_cursor"])
    assert first["items"][0]["id"] > second["items"][0]["id"]
    for others in (people.user, people.service, people.narrow):  # it names people: no key reads it, whatever its scopes
        assert (await client.get("/v1/ops/audit", headers=others)).status_code == 403


async def test_every_act_of_an_operator_on_money_is_written_down(client: Client, people: People) -> None:
    (_, first), (_, second) = await account(client, people), await account(client, people)
    posted = await deposit(client, people, first, 10_000)
    headers = {"Idempotency-Key": uuid4().hex}
    hold = {"amount": 50, "method": "direct", "hold": True}
    held = [
        (
            await client.post(f"/v1/accounts/{first}/withdrawals", json=hold, headers=people.service | {"Idempotency-Key": uuid4().hex})
        ).json()
        for _ in range(2)
    ]
    payments = [one["payment"]["id"] for one in held]
    acts: list[tuple[str, str, Any, str, str]] = [
        ("POST", "/v1/transfers", {"from_account": first, "to_account": second, "amount": 70}, "account.transfer", first),
        (
            "POST",
            "/v1/transactions:batch",
            {"commands": [{"type": "transfer", "from_account": first, "to_account": second, "amount": 5}]},
            "account.transfer",
            first,
        ),
        ("POST", f"/v1/transactions/{posted}/reversal", {}, "transaction.reverse", f"transaction:{posted}"),
        ("POST", f"/v1/payments/{payments[0]}/complete", None, "payment.complete", f"payment:{payments[0]}"),
        ("POST", f"/v1/payments/{payments[1]}/cancel", None, "payment.cancel", f"payment:{payments[1]}"),
        ("PATCH", f"/v1/accounts/{second}", {"name": "Other"}, "account.change", second),
        ("POST", f"/v1/accounts/{second}/freeze", None, "account.frozen", second),
        ("POST", f"/v1/accounts/{second}/unfreeze", None, "account.active", second),
        ("PATCH", "/v1/users/me", {"name": "An operator"}, "user.change", ""),
    ]
    await deposit(client, people, first, 10_000)  # the reversal takes the first one back
    for method, path, body, action, target in acts:
        answer = await client.request(method, path, json=body, headers=people.operator | {"Idempotency-Key": uuid4().hex})
        assert answer.is_success, (path, answer.text)
        newest = (await found(client, people, "/v1/ops/audit", limit=1))["items"][0]
        assert (newest["action"], newest["actor"][:5]) == (action, "user:"), path
        assert target in newest["target"]
    transfer = {"from_account": first, "to_account": second, "amount": 3}
    before = newest["id"]
    for _ in range(2):  # once, however often it is sent
        made = (await client.post("/v1/transfers", json=transfer, headers=people.operator | headers)).json()["transaction"]
        newest, older = (await found(client, people, "/v1/ops/audit", limit=2))["items"]
        expected = {"to": second, "amount": 3, "transaction": made["id"], "transfer": made["transfer_id"]}
        assert (newest["details"], older["id"]) == (expected, before)
    refused = await client.post(
        "/v1/transfers", json=transfer | {"amount": 10**9}, headers=people.operator | {"Idempotency-Key": uuid4().hex}
    )
    assert refused.status_code == 409
    await client.post("/v1/transfers", json=transfer, headers=people.service | {"Idempotency-Key": uuid4().hex})  # a backend's is not
    assert (await found(client, people, "/v1/ops/audit", limit=1))["items"][0]["id"] == newest["id"]


async def test_a_batch_of_an_operator_is_written_down_transfer_by_transfer(client: Client, people: People) -> None:
    (_, first), (_, second) = await account(client, people), await account(client, people)
    await deposit(client, people, first, 100)
    commands = [{"type": "transfer", "from_account": first, "to_account": second, "amount": amount} for amount in (1, 10**9, 2)]
    headers = people.operator | {"Idempotency-Key": (key := uuid4().hex)}
    for _ in range(2):
        answer = await client.post("/v1/transactions:batch", json={"commands": commands}, headers=headers)
        assert [one["status"] for one in answer.json()["results"]] == [201, 409, 201]
    rows = (await found(client, people, "/v1/ops/audit", target=first, action="account.transfer"))["items"]
    assert sorted((row["details"]["amount"], row["details"]["batch"]) for row in rows) == [(1, f"{key}.0"), (2, f"{key}.2")]
    me = (await client.get("/v1/users/me", headers=people.operator)).json()
    assert {row["actor_name"] for row in rows} == {me["name"] or me["email"]}


# Jobs -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def idle(settings: Settings, worker_id: str) -> Settings:
    """Of an app without a worker, with a queue that no other app has."""
    number = (2 * _worker_number(worker_id) + 1) % VALKEY_DATABASES
    return msgspec.structs.replace(settings, worker_processes=1, queue_url=_on_database(settings.queue_url, str(number)))


@pytest.fixture
async def queue(idle: Settings) -> AsyncIterator[Queue]:
    made = queues.open_queue(idle.queue_url)
    yield made
    await made.redis.flushdb()
    await made.close()


async def test_a_job_that_the_workers_know_is_asked_for_once(idle: Settings, people: People, queue: Queue) -> None:
    async with AsyncTestClient(create_app(idle)) as client:
        await asked_for_once(client, people, queue)


async def asked_for_once(client: Client, people: People, queue: Queue) -> None:
    await queue.announce({"old_job": Schedule(cron="* * * * *", timeout_s=1, retries=1)})
    await queue.announce({"build_reports": Schedule(cron="*/5 * * * *", timeout_s=300, retries=3)})
    state = await found(client, people, "/v1/ops/queue")
    assert [(job["name"], job["cron"], job["last_run"]) for job in state["jobs"]] == [("build_reports", "*/5 * * * *", None)]
    for started in (True, False):
        asked = await client.post("/v1/ops/queue/jobs/build_reports/run", headers=people.operator)
        assert (asked.status_code, asked.json()) == (202, {"job": "build_reports", "started": started})
    state = await found(client, people, "/v1/ops/queue")
    assert (state["answers"], state["queued"], state["workers"]) == (True, 1, 0)
    job = await queue.job("now:build_reports")
    assert job is not None
    assert (job.timeout, job.retries, job.ttl) == (300, 3, -1)
    assert (await client.post("/v1/ops/queue/jobs/old_job/run", headers=people.operator)).status_code == 404
    assert (await client.post("/v1/ops/queue/jobs/build_reports/run", headers=people.service)).status_code == 403
    logged = (await found(client, people, "/v1/ops/audit", action="job.run", limit=2))["items"]
    assert [one["details"]["started"] for one in logged] == [False, True]


async def test_a_queue_that_is_away_is_no_data(settings: Settings, people: People) -> None:
    away = msgspec.structs.replace(settings, queue_url="redis://127.0.0.1:1/0")
    async with AsyncTestClient(create_app(away)) as client:
        state = await found(client, people, "/v1/ops/queue")
        assert (state["answers"], state["workers"], state["queued"], state["jobs"]) == (False, None, None, [])
        refused = await client.post("/v1/ops/queue/jobs/build_reports/run", headers=people.operator)
        assert (refused.status_code, refused.json()["code"], refused.json()["retryable"]) == (503, "queue_unavailable", True)


async def test_an_event_that_failed_is_shown_without_its_payload_and_hurried(
    client: Client, people: People, sql: asyncpg.Connection
) -> None:
    row = ids.new_id(7)
    await sql.execute(
        "INSERT INTO outbox (id, bucket, topic, payload, attempts, due_at) VALUES ($1, 7, 'mail.reset', $2, 3, now() + interval '1 hour')",
        row,
        '{"email": "ada@example.com", "link": "secret"}',
    )
    waits = ids.new_id(7)
    await sql.execute("INSERT INTO outbox (id, bucket, topic, payload) VALUES ($1, 7, 'mail.reset', '{}')", waits)
    try:
        state = (await found(client, people, "/v1/ops/queue"))["outbox"]
        failing = next(one for one in state["failing"] if one["id"] == str(row))
        assert (failing["topic"], failing["attempts"]) == ("mail.reset", 3)
        assert "ada@" not in str(state)
        assert "secret" not in str(state)
        assert str(waits) not in str(state)  # it has not failed
        asked = await client.post(f"/v1/ops/outbox/{row}/retry", headers=people.operator)
        assert (asked.status_code, asked.json()["topic"]) == (202, "mail.reset")
        assert await sql.fetchval("SELECT due_at FROM outbox WHERE id = $1", row) is None
        assert (await client.post(f"/v1/ops/outbox/{waits}/retry", headers=people.operator)).status_code == 404
        logged = (await found(client, people, "/v1/ops/audit", action="outbox.retry", limit=1))["items"][0]
        assert logged["target"] == f"outbox:{row}"
    finally:
        await sql.execute("DELETE FROM outbox WHERE id = ANY($1)", [row, waits])


# The doctor, the phases -----------------------------------------------------------------------------------------------


async def test_the_doctor_says_what_is_wrong_and_what_to_do(client: Client, people: People, sql: asyncpg.Connection) -> None:
    first = await found(client, people, "/v1/ops/doctor")
    names = {one["name"] for one in first["items"]}
    assert {"disk", "memory", "database", "durability", "schema", "rights", "connections", "payments", "cache", "queue"} <= names
    assert {"supervisor", "secrets"}.isdisjoint(names)  # of the machine
    assert first["worst"] == max((one["result"] for one in first["items"]), key=["ok", "warning", "broken"].index)
    assert all(one["do"] for one in first["items"] if one["result"] != "ok")
    assert (await found(client, people, "/v1/ops/doctor"))["looked_at"] == first["looked_at"]  # one look serves many


async def test_the_doctor_sees_stores_that_are_away(settings: Settings, people: People) -> None:
    away = msgspec.structs.replace(settings, queue_url="redis://127.0.0.1:1/0")
    async with AsyncTestClient(create_app(away)) as client:
        items = {one["name"]: one for one in (await found(client, people, "/v1/ops/doctor"))["items"]}
    assert items["queue"]["result"] == "broken"
    assert items["queue"]["do"]
    assert items["database"]["result"] == "ok"


async def test_the_table_of_phases_is_the_one_of_the_file(client: Client, people: People) -> None:
    table = await found(client, people, "/v1/ops/phases")
    assert [(one["phase"]["number"], one["cost"]["usd_a_month"], one["built"]) for one in table["phases"]] == [
        (0, 110, True),
        (1, 300, True),
        (2, 800, True),
        (3, 2_500, True),
        (4, 5_000, False),
    ]
    assert (table["current"], table["goals"]["p95_ms"]) == (0, 200)
    assert {one["name"] for one in table["thresholds"]} == {"p95_ms", "database_cpu", "cache_hit_rate", "error_rate"}


async def test_no_backup_is_recorded_yet(client: Client, people: People) -> None:
    assert await found(client, people, "/v1/ops/backups") == {"items": [], "says": "none recorded"}


async def test_backups_and_their_last_drill_are_listed(client: Client, people: People, settings: Settings) -> None:
    owner, at = settings.owner_database_url, datetime(2026, 11, 24, 3, tzinfo=UTC)
    try:
        for number in (1, 2):
            began = at + timedelta(days=number)
            await backups.record(owner, f"b{number}", "base", "/mnt/other", began, began + timedelta(minutes=1), number * 1_000)
        await backups.record_drill(owner, "b1", at, 8.0, "restored", passed=True)
        await backups.record_drill(owner, "b1", at + timedelta(hours=1), 8.0, "it did not start", passed=False)
        newest, older = (await found(client, people, "/v1/ops/backups"))["items"]
        assert (newest["id"], newest["size_bytes"], newest["drilled_at"]) == ("b2", 2_000, None)
        assert (older["id"], older["drill_passed"], older["drill_said"]) == ("b1", False, "it did not start")
    finally:
        await backups.forget(owner, ["b1", "b2"])
