"""Every page of the console, in a real browser: it shows what is there, its acts work and are written down."""

import pytest
from playwright.async_api import Browser

from piggybank import ids
from tests.console.conftest import SIZES, Bank, Console, opened

# address and title, with `{..}` of the bank
PAGES = {
    "overview": "Overview",
    "users": "Users and accounts",
    "users?search=ada": "Users and accounts",
    "users/{user_id}": "User",
    "accounts/{account_id}": "Account",
    "transactions": "Transactions",
    "transactions/{transaction_id}": "Transaction",
    "payments": "Payments",
    "payments/{unknown}": "Payment",
    "events": "Provider events",
    "events/{unmatched}": "Provider event",
    "reconciliations": "Reconciliations",
    "reconciliations/{reconciliation_id}": "Reconciliation",
    "capacity": "Capacity and cost",
    "partitions": "Partitions",
    "backups": "Backups",
    "queue": "Queue and jobs",
    "keys": "API keys",
    "audit": "Audit log",
    "runbooks/ApiSlow": "Runbook",
}


def address_of(bank: Bank, template: str) -> str:
    given = bank._asdict() | {"unknown": bank.unknown["id"], "unmatched": bank.unmatched["id"]}
    return template.format(**given)


@pytest.mark.deep
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
async def test_every_page_fits_every_screen_and_is_accessible(browser: Browser, bank: Bank, size: str, scheme: str) -> None:
    context, console = await opened(browser, bank, size=size, scheme=scheme)
    await console.page.goto(bank.url)
    await console.settled("Sign in")
    assert await console.accessibility() == []
    await console.keep(f"sign-in-{size}-{scheme}")
    await console.sign_in()
    found = {}
    for template, title in PAGES.items():
        await console.open(address_of(bank, template), title)
        assert "SIMULATOR" in await console.page.inner_text("body > .simulator"), template
        assert await console.page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0], template
        found[template] = await console.accessibility()
        await console.keep(f"{template.partition('?')[0].replace('/', '-').replace('{', '').replace('}', '')}-{size}-{scheme}")
    assert {template: wrong for template, wrong in found.items() if wrong} == {}
    await console.check()
    await context.close()


@pytest.mark.deep
async def test_backups_say_what_a_drill_said(console: Console, bank: Bank) -> None:
    await console.open("backups", "Backups")
    assert "2026-11-03T02" not in await console.main()
    await bank.desk.sql.execute(
        "INSERT INTO backups (id, kind, target, started_at, finished_at, size_bytes) VALUES"
        " ('2026-11-03T02-base', 'base', '/mnt/far', '2026-11-03 02:00+00', '2026-11-03 02:04+00', 5242880);"
        " INSERT INTO drills (id, backup_id, at, seconds, passed, said)"
        f" VALUES ('{ids.new_id(0)}', '2026-11-03T02-base', now(), 3, false, 'a row is missing')"
    )
    try:
        await console.page.reload()
        await console.settled("Backups")
        row = await console.page.get_by_role("row").filter(has_text="2026-11-03T02-base").inner_text()
        assert all(part in row for part in ("base", "5 MiB", "failed", "a row is missing")), row
    finally:
        await bank.desk.sql.execute("DELETE FROM drills; DELETE FROM backups")


@pytest.mark.deep
async def test_partitions_and_reconciliations_say_what_is_there(console: Console, bank: Bank) -> None:
    await console.open("partitions", "Partitions")
    row = await console.page.get_by_role("row").filter(has_text="transactions").first.inner_text()
    assert "all" in row
    assert "Months are off: one partition takes everything." in await console.main()
    await console.open("reconciliations", "Reconciliations")
    await console.page.locator(f"a[href='#/reconciliations/{bank.reconciliation_id}']").click()
    await console.settled("Reconciliation")
    text = await console.main()
    kinds = await bank.desk.sql.fetch("SELECT kind FROM reconciliation_items WHERE reconciliation_id = $1", bank.reconciliation_id)
    assert kinds
    assert all(item["kind"] in text for item in kinds), (text, kinds)


@pytest.mark.deep
async def test_axe_would_find_something(console: Console) -> None:
    """The check of accessibility itself: a page without names for its fields and with pale text is found out."""
    await console.page.evaluate(
        """() => {
            const bad = document.createElement("p");
            bad.append("pale", document.createElement("input"));
            bad.style.color = "#eeeeee";
            document.querySelector("main").append(bad);
        }"""
    )
    found = " ".join(await console.accessibility())
    assert "label" in found
    assert "color-contrast" in found
