"""What is stored is what is shown: tiles, charts, alerts and forecasts read the minutes; without any they say "no data", never 0."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from piggybank import ids
from piggybank.capacity import projection, runbooks
from tests.console.conftest import Bank, Console

NOTHING = {
    "requests": "no data",
    "transactions": "no data",
    "p95": "no data",
    "errors": "no data",
    "hits": "no data",
    "lag": "no data",
    "cpu": "no data",
    "connections": "no data",
    "memory": "no data",
    "disk": "no data",
}
# what a minute may hold, and what its tile says then
MEASURED: dict[str, tuple[dict[str, Any], str, str]] = {
    "requests": ({"requests": 5_400}, "90/s", ""),
    "transactions": ({"transactions": 1_380}, "23/s", "well"),
    "p95": ({"p95_ms": 230.0}, "230 ms", "warning"),
    "errors": ({"requests": 5_400, "errors": 324}, "6%", "critical"),
    "hits": ({"lookup_hits": 490, "lookup_misses": 510}, "49%", "critical"),
    "lag": ({"lag_ms": 12.5}, "12.5 ms", "well"),
    "cpu": ({"db_cpu_ratio": 0.71}, "71%", "warning"),
    "connections": ({"connections": 60, "max_connections": 100}, "60%", "well"),
    "memory": ({"cache_used_bytes": 450 * 2**20, "cache_max_bytes": 500 * 2**20}, "90%", "warning"),
    "disk": ({"disk_free_ratio": 0.385}, "38.5%", ""),
}


@pytest.fixture
async def sql(bank: Bank) -> AsyncIterator[asyncpg.Connection]:
    """With no minute, no alert."""
    await bank.desk.sql.execute("DELETE FROM usage_minutes; DELETE FROM alerts")
    yield bank.desk.sql
    await bank.desk.sql.execute("DELETE FROM usage_minutes; DELETE FROM alerts")


async def minute(sql: asyncpg.Connection, at: datetime, **values: Any) -> None:
    """A row as the worker writes it; what is not given is not known."""
    row = {"at": at, "phase": 0, "transactions": 0, "busiest_minute": values.get("transactions", 0)} | values
    names = ", ".join(row)
    await sql.execute(
        f"INSERT INTO usage_minutes ({names}) VALUES ({', '.join(f'${number + 1}' for number in range(len(row)))})", *row.values()
    )


def just_now() -> datetime:
    return datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=1)


async def tiles(console: Console) -> dict[str, tuple[str, str]]:
    """(value, verdict) of each, by its name."""
    await console.open("overview", "Overview")
    await console.page.locator(".tile").first.wait_for()
    found = {}
    for tile in await console.page.locator(".tile").all():
        badge = tile.locator(".badge")
        verdict = await badge.inner_text() if await badge.count() else ""
        found[str(await tile.get_attribute("data-measure"))] = (await tile.locator(".value").inner_text(), verdict)
    return found


async def reload(console: Console) -> None:
    await console.page.reload()
    await console.settled("Overview")


async def test_without_minutes_every_tile_and_chart_says_no_data(console: Console, sql: asyncpg.Connection) -> None:
    await reload(console)
    found = await tiles(console)
    assert {name: value for name, (value, _) in found.items()} == NOTHING
    assert {verdict for _, verdict in found.values()} == {""}
    assert "this phase has no replicas" in await console.page.locator(".tile[data-measure=lag]").inner_text()
    charts = await console.page.locator(".chart").all()
    assert len(charts) == 9
    for chart in charts:
        assert "no data" in await chart.inner_text()
        assert await chart.locator("canvas").count() == 0
    assert "By Railway's prices, wherever this runs: those of others." in await console.main()
    await console.open("capacity", "Capacity and cost")
    text = await console.main()
    assert "no data" in text
    assert await console.page.locator("canvas").count() == 0
    assert "Under 7 days of data" in text
    assert "Now: no data" in text  # the cost


async def test_each_tile_shows_what_was_measured(console: Console, sql: asyncpg.Connection) -> None:
    every = {name: value for values, _, _ in MEASURED.values() for name, value in values.items()}
    await minute(sql, just_now(), **every)
    await reload(console)
    assert await tiles(console) == {name: (shown, verdict) for name, (_, shown, verdict) in MEASURED.items()}


@pytest.mark.deep
async def test_no_tile_shows_what_is_of_another(console: Console, sql: asyncpg.Connection) -> None:
    for name, (values, shown, verdict) in MEASURED.items():
        await sql.execute("DELETE FROM usage_minutes")
        await minute(sql, just_now(), **values)
        await reload(console)
        found = await tiles(console)
        assert found[name] == (shown, verdict), name
        others = {other for other in NOTHING if other not in (name, "requests", "transactions")}
        assert {found[other][0] for other in others} == {"no data"}, name


@pytest.mark.deep
async def test_old_minutes_are_not_now(console: Console, sql: asyncpg.Connection) -> None:
    await minute(sql, just_now() - timedelta(minutes=20), requests=600, p95_ms=100.0)
    await reload(console)
    found = await tiles(console)
    assert (found["requests"][0], found["p95"][0]) == ("no data", "no data")
    assert "does a worker run?" in await console.main()
    assert "Last 10/s" in await console.page.locator(".chart").first.inner_text()  # the chart has it


@pytest.mark.deep
async def test_charts_draw_the_minutes_with_their_gaps(console: Console, sql: asyncpg.Connection) -> None:
    first = just_now() - timedelta(minutes=50)
    for number in range(50):
        if not 20 <= number < 30:
            await minute(sql, first + timedelta(minutes=number), requests=60 * (number + 1), errors=0, transactions=0, p95_ms=None)
    await reload(console)
    chart = console.page.locator(".chart").first
    words = await chart.locator(".words").inner_text()
    assert "least 1/s" in words
    assert "most 50/s" in words
    assert words.startswith("Last 50/s")
    assert await chart.locator("canvas").count() == 1
    assert await chart.locator("[role=img]").get_attribute("aria-label") == f"Requests. {words}"
    await chart.locator("summary").click()
    await chart.locator("tbody tr").nth(39).wait_for()
    rows = await chart.locator("tbody tr").all()
    assert len(rows) == 40
    assert "50/s" in await rows[0].inner_text()
    assert "no data" in await console.page.locator(".chart", has_text="Response time").inner_text()
    pixels = "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(value => value > 0)"
    assert await chart.locator("canvas").evaluate(pixels)
    await console.keep("overview-with-data-wide-light")
    assert await console.accessibility() == []


@pytest.mark.deep
async def test_the_week_is_asked_for_in_parts(console: Console, sql: asyncpg.Connection) -> None:
    await sql.execute(
        "INSERT INTO usage_minutes (at, phase, transactions, busiest_minute, requests)"
        " SELECT at, 0, 60, 60, 120 FROM generate_series($1::timestamptz, $2::timestamptz, '1 minute') AS at",
        just_now() - timedelta(days=6),
        just_now(),
    )
    await console.open("overview?hours=168", "Overview")
    await console.page.locator(".chart canvas").first.wait_for()
    asked = [url for url in console.asked if "/v1/ops/minutes" in url and "limit=1000" in url and "&to=" in url]
    assert len(asked) >= 8
    words = await console.page.locator(".chart").first.locator(".words").inner_text()
    assert "least 2/s, most 2/s" in words
    await console.keep("overview-week-wide-light")


@pytest.mark.deep
async def test_alerts_say_what_to_do(console: Console, sql: asyncpg.Connection) -> None:
    await sql.execute(
        "INSERT INTO alerts (id, name, severity, since, value, threshold, message) VALUES ($1, 'ApiSlow', 'critical', now(), 0.7, 0.5, $2)",
        ids.new_id(0),
        "one request in twenty takes longer than 0.5 s <b>now</b>",
    )
    await reload(console)
    shown = await console.page.locator("section", has=console.page.get_by_role("heading", name="Alerts", exact=True)).inner_text()
    for part in ("ApiSlow", "critical", "longer than 0.5 s <b>now</b>", *(step.replace("`", "") for step in runbooks.steps("ApiSlow"))):
        assert part in shown
    await console.keep("overview-with-an-alert-wide-light")
    assert await console.accessibility() == []
    await console.page.get_by_role("link", name="Runbook of ApiSlow").click()
    await console.settled("Runbook")
    page = runbooks.table()["ApiSlow"]
    text = await console.main()
    assert all(line.replace("`", "") in text for line in (page.means, *page.look, *page.do))
    await console.page.get_by_role("link", name="CacheMisses").click()  # a page names others
    await console.page.get_by_text("CacheMisses.", exact=True).wait_for()


@pytest.mark.deep
async def test_growth_and_the_first_limit_are_told_from_a_week_on(console: Console, sql: asyncpg.Connection) -> None:
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for number in range(20):
        await sql.execute(
            "INSERT INTO usage_minutes (at, rolled, minutes, phase, transactions, busiest_minute, users, database_bytes)"
            " SELECT $1::timestamptz + make_interval(hours => hour), true, 60, 0, 100, 300, $2, $3 FROM generate_series(0, 23) AS hour",
            today - timedelta(days=20 - number),
            500 + 20 * number,
            10**9 + 10**7 * number,
        )
    await console.open("capacity?days=30", "Capacity and cost")
    text = await console.main()
    assert "Users comes first: 880 of 1,000" in text
    assert "piggybank phase plan 1" in text
    for caption in (
        "When each limit is reached",
        "How long each phase carries it",
        "Cost of each phase at full load at Railway, Pro plan, by prices read on",
    ):
        assert caption in text
    assert "a month now" in text  # of the measured load
    costs = console.page.locator("table", has_text="Cost of each phase")
    here, there = [projection.differences(0, 2)[0].usd_a_month_before, projection.differences(0, 2)[0].usd_a_month_after]
    shown = await costs.locator("tr", has_text="2 read/write separation").inner_text()
    assert f"+${round(there - here):,}" in shown.split("\t")  # against the phase that runs
    users = console.page.locator(".chart", has_text="Users")
    assert "Last 880" in await users.inner_text()
    assert "limit of the phase 1,000" in await users.inner_text()
    await console.keep("capacity-with-data-wide-light")
