"""Minutes have what the processes told, and alerts fire once, end, and are told through each channel until it has heard."""

import asyncio
import io
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email import message_from_string
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest
from aiosmtpd.controller import Controller
from litestar.testing import AsyncTestClient

from piggybank import ids, metrics, telemetry
from piggybank.app import create_app
from piggybank.appliance import store_files
from piggybank.capacity import alerts, figures, runbooks, shares, usage, watching
from piggybank.capacity.shares import Share
from piggybank.db.engines import Database
from piggybank.identity import apikeys
from piggybank.jobs import alerts as job
from piggybank.jobs import capacity
from piggybank.jobs.work import Work
from tests.api.conftest import log  # noqa: F401 - a fixture

NOW = datetime(2026, 6, 10, 12, 30, 20, tzinfo=UTC)
MINUTE = datetime(2026, 6, 10, 12, 29, tzinfo=UTC)
LAST = len(metrics.SECONDS)
INSERT = "INSERT INTO usage_minutes (at, phase, transactions, busiest_minute, figures) VALUES ($1, 0, 0, 0, $2::jsonb)"


async def note(sql: asyncpg.Connection, at: datetime, **found: Any) -> None:
    noted = usage.Noted(share=found.pop("share", Share(web=True)), figures={"app_phase": 0.0, **found})
    await sql.execute(INSERT, at, msgspec.json.encode(noted).decode())


async def watch(work: Work, at: datetime) -> tuple[int, int]:
    async with work.db.write() as write:
        return await watching.watch(write, at, 1.0)


async def listed(work: Work, state: watching.State) -> list[watching.Fired]:
    async with work.db.read() as read:
        return await watching.listed(read, state)


@pytest.fixture
async def operator(work: Work) -> AsyncIterator[httpx.AsyncClient]:
    """Who may read operations, in this process."""
    async with work.db.write() as write:
        _, token = await apikeys.create(write, name="console", scopes=["ops:read"], actor="test")
    async with AsyncTestClient(create_app(work.settings)) as client:
        client.headers["Authorization"] = f"Bearer {token}"
        yield client


async def test_a_minute_has_what_all_processes_told_and_nobody_is_counted_twice(work: Work, sql: asyncpg.Connection) -> None:
    seconds = [0] * (LAST + 1)
    seconds[7] = 100  # 75 to 100 ms
    one = Share(requests=100, errors=2, seconds=seconds, hits=30, misses=10, lag_s={"a": 0.01})
    for share in (one, one, Share(requests=1, lag_s={"a": 0.2, "b": 0.0})):
        await sql.execute("INSERT INTO minute_shares VALUES (gen_random_uuid(), $1, $2::jsonb)", NOW, msgspec.json.encode(share).decode())
    assert await capacity.record(work) == 1
    (row,) = await sql.fetch("SELECT * FROM usage_minutes")
    assert (row["requests"], row["errors"], row["lookup_hits"], row["lookup_misses"], row["lag_ms"]) == (201, 4, 60, 20, 200.0)
    assert 75 < row["p95_ms"] < 100
    assert await sql.fetchval("SELECT count(*) FROM minute_shares") == 0
    noted = msgspec.json.decode(row["figures"], type=usage.Noted)
    assert noted.figures["replica_lag_seconds"] == {"a": 0.2, "b": 0.0}
    assert noted.figures["saq_queue_depth"] == {"queued": 0, "active": 0, "incomplete": 0}
    assert set(noted.figures) | set(noted.unknown) == {gauge.name for gauge in figures.GAUGES}
    assert "two minutes" in noted.unknown["db_cpu_ratio"]  # unknown, with the reason, never 0
    assert isinstance(used := noted.figures["db_cpu_seconds"], float)
    assert used > 0


async def test_a_version_with_other_buckets_does_not_blind_the_others(work: Work, sql: asyncpg.Connection) -> None:
    seconds = [0] * (LAST + 1)
    seconds[-3] = 30  # 2.5 to 5 s
    other = Share(requests=70, seconds=[70, 0, 0], webhook_lags=[7], web=True)
    for share in (other, Share(requests=30, seconds=seconds, web=True), other):
        await sql.execute("INSERT INTO minute_shares VALUES (gen_random_uuid(), $1, $2::jsonb)", NOW, msgspec.json.encode(share).decode())
    assert await capacity.record(work) == 1
    (row,) = await sql.fetch("SELECT requests, p95_ms FROM usage_minutes")
    assert row["requests"] == 170
    assert row["p95_ms"] > 2_500
    (slow, *_) = (alert for alert in alerts.table() if alert.function == "p95")
    minutes = {MINUTE: usage.Noted(share=other), MINUTE - usage.MINUTE: usage.Noted(share=Share(seconds=seconds))}
    assert (alerts.value(slow, minutes, MINUTE) or 0) > 2.5


async def test_a_process_tells_what_it_counted_once_and_what_was_not_written_with_the_next(
    own_settings: Any, sql: asyncpg.Connection
) -> None:
    db = Database(own_settings.database_url)
    sharing = shares.Sharing(db, web=True)
    metrics.request("GET", "/v1/accounts", 200, 0.003)
    metrics.request("GET", "/v1/accounts", 503, 0.3)
    metrics.request("GET", "/health/ready", 503, 0.3)
    broken, sharing._db = sharing._db, Database("postgresql://nobody:nothing@127.0.0.1:1/none")
    assert not await sharing.tell()
    sharing._db = broken
    metrics.request("POST", "/v1/accounts", 201, 20.0)
    assert await sharing.tell()
    assert await sharing.tell()
    told = [msgspec.json.decode(row["share"], type=Share) for row in await sql.fetch("SELECT share FROM minute_shares ORDER BY at")]
    assert [(share.requests, share.errors) for share in told] == [(3, 1), (0, 0)]
    assert (sum(told[0].seconds), told[0].seconds[-1]) == (3, 1)
    await db.close()


async def test_where_nobody_records_what_was_told_does_not_pile_up(own_settings: Any, sql: asyncpg.Connection) -> None:
    now, db = datetime.now(UTC), Database(own_settings.database_url)
    await sql.execute("DELETE FROM minute_shares")
    for minutes in (3 * 24 * 60, shares.KEPT_MINUTES + 1, shares.KEPT_MINUTES - 1):
        await sql.execute("INSERT INTO minute_shares VALUES (gen_random_uuid(), $1, '{}')", now - timedelta(minutes=minutes))
    assert await shares.Sharing(db, web=True).tell()
    kept = [row["at"] for row in await sql.fetch("SELECT at FROM minute_shares ORDER BY at")]
    assert len(kept) == 2  # what may still be of a minute, and what was told just now
    assert kept[0] == now - timedelta(minutes=shares.KEPT_MINUTES - 1)
    await db.close()


async def test_an_alert_fires_once_keeps_its_value_and_ends(work: Work, sql: asyncpg.Connection) -> None:
    for number in range(4):
        await note(sql, MINUTE - number * usage.MINUTE, replica_lag_seconds={"a": 0.0, "b": 0.2 + number / 10})
    assert sorted(await asyncio.gather(*(watch(work, MINUTE) for _ in range(3)))) == [(0, 0), (0, 0), (1, 0)]
    (fired,) = await listed(work, "firing")
    assert (fired.name, fired.severity, fired.value, fired.threshold) == ("ReplicaLag", "warning", 0.2, 0.1)
    assert "200 ms" in fired.message
    await note(sql, MINUTE + usage.MINUTE, replica_lag_seconds={"a": 0.15})
    assert await watch(work, MINUTE + usage.MINUTE) == (0, 0)
    assert [each.value for each in await listed(work, "firing")] == [0.15]
    await note(sql, MINUTE + 2 * usage.MINUTE, replica_lag_seconds={"a": 0.01})
    assert await watch(work, MINUTE + 2 * usage.MINUTE) == (0, 1)
    assert await listed(work, "firing") == []
    assert [each.name for each in await listed(work, "all")] == ["ReplicaLag"]
    async with work.db.write() as write:
        assert await watching.prune(write, datetime.now(UTC) + watching.KEPT + timedelta(minutes=1)) == 1


async def test_minutes_and_alerts_are_read_over_http_and_what_is_not_known_is_null(
    work: Work, sql: asyncpg.Connection, operator: httpx.AsyncClient
) -> None:
    assert (await operator.get("/v1/ops/minutes")).json() == {"items": []}
    assert (await operator.get("/v1/ops/alerts")).json() == {"items": []}
    await note(sql, MINUTE - usage.MINUTE)
    await sql.execute(
        "INSERT INTO usage_minutes (at, phase, transactions, busiest_minute, requests, errors, p95_ms, lookup_hits, lookup_misses,"
        " connections, max_connections, db_cpu_ratio, cache_used_bytes, cache_max_bytes, disk_free_ratio, lag_ms)"
        " VALUES ($1, 1, 120, 120, 600, 3, 81.5, 9, 1, 20, 100, 0.4, 1, 4, 0.5, 7)",
        MINUTE,
    )
    newest, older = (await operator.get("/v1/ops/minutes", params={"limit": 2})).json()["items"]
    assert newest["at"] == "2026-06-10T12:29:00Z"
    wanted = {
        "requests": 600,
        "errors": 3,
        "p95_ms": 81.5,
        "cache_hit_ratio": 0.9,
        "cache_memory_ratio": 0.25,
        "disk_free_ratio": 0.5,
        "db_cpu_ratio": 0.4,
        "replica_lag_ms": 7.0,
        "transactions": 120,
        "connections": 20,
    }
    assert {name: newest[name] for name in wanted} == wanted
    assert {older[name] for name in wanted if name != "transactions"} == {None}
    only = (await operator.get("/v1/ops/minutes", params={"from": "2026-06-10T12:29:00Z"})).json()["items"]
    assert [row["at"] for row in only] == [newest["at"]]
    await note(sql, MINUTE + usage.MINUTE, ledger_trial_balance_difference_minor={"ZAR": 5.0})
    await watch(work, MINUTE + usage.MINUTE)
    for state in ("firing", "all"):
        (item,) = (await operator.get("/v1/ops/alerts", params={"state": state})).json()["items"]
        assert (item["name"], item["severity"], item["value"], item["resolved_at"]) == ("TrialBalanceBroken", "critical", 5.0, None)
        assert item["do"] == runbooks.steps("TrialBalanceBroken") != []
        assert item["runbook"] == f"{work.settings.url}/console#/runbooks/TrialBalanceBroken"
    page = (await operator.get("/v1/ops/runbooks/TrialBalanceBroken")).json()
    assert (page["name"], page["do"]) == ("TrialBalanceBroken", item["do"])
    assert page["means"]
    assert page["look"]
    assert (await operator.get("/v1/ops/runbooks/Unknown")).status_code == 404
    assert (await operator.get("/v1/ops/alerts", params={"state": "never"})).status_code == 400


class Mailbox:
    """What an SMTP server got."""

    def __init__(self) -> None:
        self.bodies: list[str] = []

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802 - its library's name
        self.bodies.append(envelope.content.decode())
        return "250 OK"


async def test_every_channel_hears_of_it_once_and_a_deaf_one_is_told_again(
    work: Work,
    sql: asyncpg.Connection,
    log: io.StringIO,  # noqa: F811 - the fixture
) -> None:
    telemetry.configure("info", "json", stream=log)
    heard: list[dict[str, Any]] = []
    pings, refusing = 0, True

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal pings
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next((int(line.split(":")[1]) for line in head.splitlines() if line.lower().startswith("content-length")), 0)
        body = await reader.readexactly(length)
        if head.startswith("GET /ping"):
            pings += 1
        elif not refusing:
            heard.append(msgspec.json.decode(body))
        status = b"500 No" if refusing and not head.startswith("GET") else b"200 OK"
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    mailbox = Mailbox()
    smtp = Controller(mailbox, hostname="127.0.0.1", port=store_files.free_ports(1)[0])
    smtp.start()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = msgspec.structs.replace(
        work.settings,
        alert_email="keeper@example.com",
        alert_webhook_url=f"http://127.0.0.1:{port}/alerts",
        alert_ping_url=f"http://127.0.0.1:{port}/ping",
        smtp_url=f"smtp://127.0.0.1:{smtp.port}",
        mail_from="bank@example.com",
    )
    telling = msgspec.structs.replace(work, settings=settings)
    try:
        await note(sql, MINUTE, psp_open_payments={}, ledger_commits_local=1.0)
        assert await job.look(telling, MINUTE) == 1
        assert (len(mailbox.bodies), heard, pings) == (1, [], 0)  # whoever waits for the ping is told instead
        assert "DurabilityLocal" in mailbox.bodies[0]
        written = message_from_string(mailbox.bodies[0]).get_payload(decode=True)
        assert isinstance(written, bytes)
        page = f"{work.settings.url}/console#/runbooks/DurabilityLocal"
        for line in (*(f"- {step}" for step in runbooks.steps("DurabilityLocal")), f"all about it: {page}"):
            assert line in written.decode().splitlines()
        refusing = False
        assert await job.tell(telling) == 1
        assert await job.tell(telling) == 0
        assert [(each["status"], each["name"], each["severity"]) for each in heard] == [("firing", "DurabilityLocal", "warning")]
        assert (heard[0]["do"], heard[0]["runbook"]) == (runbooks.steps("DurabilityLocal"), page)
        (logged,) = [msgspec.json.decode(line) for line in log.getvalue().splitlines() if "alert_firing" in line]
        assert (logged["do"], logged["runbook"]) == (heard[0]["do"], page)
        await note(sql, MINUTE + usage.MINUTE, ledger_commits_local=0.0)
        assert await job.look(telling, MINUTE + usage.MINUTE) == 1
        assert [each["status"] for each in heard] == ["firing", "resolved"]
        assert (len(mailbox.bodies), pings) == (2, 1)
        (ended,) = await listed(work, "all")
        assert ended.told == [f"{channel}:{news}" for channel in ("email", "log", "webhook") for news in ("firing", "resolved")]
    finally:
        smtp.stop()
        server.close()


async def test_what_fired_for_days_is_told_to_be_over(
    work: Work,
    sql: asyncpg.Connection,
    log: io.StringIO,  # noqa: F811 - the fixture
) -> None:
    telemetry.configure("info", "json", stream=log)
    await note(sql, MINUTE, ledger_commits_local=1.0)
    assert await job.look(work, MINUTE) == 1
    await sql.execute("UPDATE alerts SET since = since - interval '3 days'")
    await note(sql, MINUTE + usage.MINUTE, ledger_commits_local=0.0)
    assert await job.look(work, MINUTE + usage.MINUTE) == 1
    assert [line["event"] for line in map(msgspec.json.decode, log.getvalue().splitlines()) if "alert" in line] == [
        "alert_firing",
        "alert_resolved",
    ]
    await sql.execute("UPDATE alerts SET told = '{}', resolved_at = resolved_at - interval '2 days'")
    assert await job.tell(work) == 0  # older news is none


async def test_stores_that_are_away_are_told_of_and_what_only_they_know_does_not_end(work: Work, sql: asyncpg.Connection) -> None:
    for number in range(6):
        await note(sql, MINUTE - number * usage.MINUTE, queue_up=1.0, saq_oldest_job_age_seconds=400.0, cache_up=1.0)
    assert await watch(work, MINUTE) == (1, 0)
    nowhere = f"redis://127.0.0.1:{store_files.free_ports(1)[0]}/0"
    settings = msgspec.structs.replace(work.settings, cache_url=nowhere, queue_url=nowhere, alert_pace=60.0)
    without = msgspec.structs.replace(work, settings=settings)
    minute = usage.last_minute(datetime.now(UTC))
    await sql.execute("INSERT INTO minute_shares VALUES (gen_random_uuid(), now() - interval '5 s', '{\"web\": true}')")
    assert await job.look(without, minute) == 2
    assert {each.name for each in await listed(work, "firing")} == {"JobsStuck", "CacheAway", "QueueAway"}
    await sql.execute("DELETE FROM usage_minutes WHERE at = $1", minute)
    await sql.execute("INSERT INTO minute_shares VALUES (gen_random_uuid(), now() - interval '5 s', '{\"web\": true}')")
    assert await job.look(work, minute) == 3  # they are back, and nothing waits
    assert await listed(work, "firing") == []


@pytest.mark.parametrize(("every_h", "overdue_h"), [(24, 6.0), (720, 0.0), (1, 29.0), (0, None)])
async def test_a_backup_is_overdue_by_its_own_rhythm(work: Work, sql: asyncpg.Connection, every_h: int, overdue_h: float | None) -> None:
    await sql.execute("DELETE FROM backups")
    made = "VALUES ('one', 'base', '/there', $1, $1, 1)"
    await sql.execute(
        f"INSERT INTO backups (id, kind, target, started_at, finished_at, size_bytes) {made}", datetime.now(UTC) - timedelta(hours=30)
    )
    async with work.db.read() as read:
        found, unknown = await figures.look(read, msgspec.structs.replace(work.settings, backup_every_h=every_h))
    await sql.execute("DELETE FROM backups")
    overdue = found.get("backup_overdue_seconds")
    assert overdue == (None if overdue_h is None else pytest.approx(overdue_h * 3_600, abs=60))
    assert ("backup_overdue_seconds" in unknown) == (overdue_h is None)
    (stale,) = (alert for alert in alerts.table() if alert.name == "BackupStale")
    minutes = {MINUTE - number * usage.MINUTE: usage.Noted(figures=found) for number in range(6)}
    assert (alerts.firing(stale, minutes, MINUTE) is not None) == (overdue_h is not None and overdue_h > 2)


async def test_a_mail_that_bounces_is_no_outbox_that_is_stuck(work: Work, sql: asyncpg.Connection) -> None:
    await sql.execute("DELETE FROM outbox")
    for topic, age_s in (("mail.reset", 900), ("ledger.posted", 7)):
        made = ids.new_id(7, time.time_ns() - age_s * 1_000_000_000)
        await sql.execute("INSERT INTO outbox (id, bucket, topic, payload) VALUES ($1, 7, $2, '{}')", made, topic)
    async with work.db.read() as read:
        found, _ = await figures.look(read, work.settings)
    await sql.execute("DELETE FROM outbox")
    assert (found["ledger_outbox_waiting"], found["mail_waiting"]) == (1, 1)
    assert found["ledger_outbox_oldest_age_seconds"] == pytest.approx(7, abs=5)


ERRORS = Share(requests=100, errors=90, web=True)


@pytest.mark.parametrize(
    ("after", "ends"),
    [
        pytest.param(Share(web=False), False, id="no web process tells"),
        pytest.param(None, False, id="nobody tells"),
        pytest.param(Share(web=True), False, id="nobody asks"),
        pytest.param(Share(requests=2, errors=2, web=True), False, id="two ask in vain"),
        pytest.param(Share(requests=2, web=True), True, id="two are answered"),
    ],
)
async def test_errors_end_when_somebody_was_answered_and_not_because_nobody_knows(
    work: Work, sql: asyncpg.Connection, after: Share | None, ends: bool
) -> None:
    for number in range(12):
        await note(sql, MINUTE - number * usage.MINUTE, share=ERRORS)
    assert await watch(work, MINUTE) == (2, 0)
    for number in range(1, 7):
        await note(sql, MINUTE + number * usage.MINUTE, share=after)
        await watch(work, MINUTE + number * usage.MINUTE)
    firing = {each.name for each in await listed(work, "firing")}
    assert ("ApiErrors" not in firing) == ends
    assert ("WebGone" in firing) == (after is None or not after.web)


def test_one_web_process_that_tells_is_enough_and_an_earlier_version_is_not_accused() -> None:
    web, worker, earlier = Share(web=True), Share(web=False), msgspec.json.decode(b'{"requests":1}', type=Share)
    assert [(worker + other).web for other in (worker, earlier, web)] == [False, None, True]
    assert [(other + worker).web for other in (earlier, web)] == [None, True]
    (gone,) = (alert for alert in alerts.table() if alert.function == "silent")
    for share, value in ((worker, 1.0), (earlier, None), (web, None), (None, 1.0)):
        assert alerts.value(gone, {MINUTE: usage.Noted(share=share)}, MINUTE) == value


def test_what_nobody_asks_for_any_more_ends_after_a_day() -> None:
    (slow, *_) = (alert for alert in alerts.table() if alert.function == "p95")
    minutes = {MINUTE: usage.Noted(share=Share(web=True))}
    assert not alerts.is_over(slow, minutes, MINUTE, MINUTE - timedelta(hours=23))
    assert alerts.is_over(slow, minutes, MINUTE, MINUTE - timedelta(hours=25))
