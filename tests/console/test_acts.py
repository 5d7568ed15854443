"""What operators do on the pages: it happens, it is said, and it is in the audit log."""

import re
from datetime import UTC, datetime

import pytest
from playwright.async_api import Browser, Locator

from piggybank import ids, queues
from piggybank.queues import Run, Schedule
from tests.console.conftest import Bank, Console, opened


async def table(console: Console, caption: str) -> Locator:
    found = console.page.get_by_role("region", name=caption, exact=True)
    await found.wait_for()
    return found


async def rows(console: Console, caption: str) -> list[str]:
    return [await row.inner_text() for row in await (await table(console, caption)).locator("tbody tr").all()]


async def told(console: Console, words: str) -> None:
    await console.page.locator("#news", has_text=words).wait_for()


async def acts(bank: Bank, action: str) -> list[tuple[str, str]]:
    """(actor, target), the newest first."""
    found = await bank.desk.sql.fetch("SELECT actor, target FROM audit_log WHERE action = $1 ORDER BY id DESC", action)
    return [tuple(row) for row in found]


async def test_find_somebody_freeze_and_unfreeze_their_account(console: Console, bank: Bank) -> None:
    page = console.page
    await page.get_by_role("link", name="Users and accounts").click()
    await console.settled("Users and accounts")
    await page.get_by_label("Find").fill("customer-1")
    await page.get_by_role("button", name="Show", exact=True).click()
    await page.get_by_role("link", name=re.compile("^Ada")).click()
    await console.settled("User")
    await page.get_by_role("link", name=re.compile("^Holiday")).click()
    await console.settled("Account")
    for verb, status, action in (("Freeze", "frozen", "account.frozen"), ("Unfreeze", "active", "account.active")):
        await page.get_by_role("button", name=verb, exact=True).click()
        asked = page.get_by_role("dialog")
        await asked.get_by_role("button", name="Leave it").click()  # nothing happened
        await asked.wait_for(state="detached")
        await page.get_by_role("button", name=verb, exact=True).click()
        await page.get_by_role("dialog").get_by_role("button", name=verb, exact=True).click()
        await told(console, "frozen" if verb == "Freeze" else "takes requests again")
        await console.settled("Account")
        assert await bank.desk.sql.fetchval("SELECT status FROM accounts WHERE id = $1", bank.account_id) == status
        assert (await acts(bank, action))[0] == (f"user:{bank.operator.id}", str(bank.account_id))
    await page.get_by_role("link", name="What was done to this account").click()
    await console.settled("Audit log")
    assert [row.split("\t")[2] for row in await rows(console, "Acts, newest first")][:2] == ["account.active", "account.frozen"]


@pytest.mark.deep
async def test_an_id_of_anything_leads_to_it(console: Console, bank: Bank) -> None:
    for wanted, title in (
        (bank.user_id, "User"),
        (str(bank.account_id), "Account"),
        (bank.unknown["id"], "Payment"),
        (bank.transaction_id.upper(), "Transaction"),
    ):
        await console.open("users", "Users and accounts")
        await console.page.get_by_label("Find").fill(wanted)
        await console.page.get_by_label("Find").press("Enter")
        await console.settled(title)
    await console.open(f"users?search={ids.new_id(0)}", "Users and accounts")
    assert "Nobody is called that" in await console.main()


@pytest.mark.deep
async def test_a_history_goes_on_and_is_filtered(console: Console, bank: Bank) -> None:
    await console.open(f"accounts/{bank.account_id}", "Account")
    caption = "Transactions of the account, newest first"
    history = await table(console, caption)
    assert await history.locator("tbody tr").count() == 25
    more = console.page.get_by_role("button", name="Show more")
    for expected in (50, 62):
        await more.first.click()
        await told(console, f"{expected} in all")
        assert await history.locator("tbody tr").count() == expected
    assert not await more.first.is_visible()
    amounts = [row.split("\t")[2] for row in await rows(console, caption)]
    assert amounts[-1] == "12,345.67 ZAR"
    assert len(set(await rows(console, caption))) == 62  # each once
    await console.page.get_by_label("Reference").fill("coin-7")
    await console.page.get_by_role("button", name="Show", exact=True).click()
    await console.page.wait_for_url("**reference=coin-7")
    await console.settled("Account")
    assert [row.split("\t")[2] for row in await rows(console, caption)] == ["1.07 ZAR"]
    await console.page.go_back()
    await console.settled("Account")
    assert await (await table(console, caption)).locator("tbody tr").count() == 25


@pytest.mark.deep
async def test_everybodys_transactions_are_filtered(console: Console, bank: Bank) -> None:
    await console.open("transactions", "Transactions")
    page, caption = console.page, "Transactions of everybody, newest first"
    await page.get_by_label("Amount from").fill("12,345.67")
    await page.get_by_label("Currency").select_option("ZAR")
    await page.get_by_role("button", name="Show", exact=True).click()
    await page.wait_for_url("**least=**")
    await console.settled("Transactions")
    assert [row.split("\t")[2] for row in await rows(console, caption)] == ["12,345.67 ZAR"]
    await page.get_by_label("Amount from").fill("1.234")
    await page.get_by_role("button", name="Show", exact=True).click()
    await page.get_by_role("alert").filter(has_text="2 decimals at most").wait_for()
    tomorrow = datetime.now(UTC).replace(year=datetime.now(UTC).year + 1).strftime("%Y-%m-%dT%H:%M")
    await console.open(f"transactions?from={tomorrow}", "Transactions")
    assert await rows(console, caption) == ["No transaction in what was looked at."]


async def test_a_key_is_shown_once_works_and_is_revoked(console: Console, bank: Bank) -> None:
    page = console.page
    await console.open("keys", "API keys")
    await page.get_by_role("button", name="Make the key").click()
    assert await page.get_by_label("Name").evaluate("input => input.matches(':invalid')")  # the browser says why
    await page.get_by_label("Name").fill("The <b>till</b>")
    await page.get_by_role("button", name="Make the key").click()
    await page.get_by_role("alert").filter(has_text="scopes").wait_for()  # the server says why
    await page.get_by_label("ops:read").check()
    await page.get_by_role("button", name="Make the key").click()
    shown = page.get_by_label("copy it now")
    token = await shown.input_value()
    assert token.startswith("pbk_")
    assert await shown.evaluate("input => input === document.activeElement")
    assert (await bank.desk.http.get("/v1/ops/status", headers={"Authorization": f"Bearer {token}"})).status_code == 200
    row = page.get_by_role("row").filter(has_text="The <b>till</b>")
    await row.wait_for()
    assert token[-4:] in await row.inner_text()
    assert await console.accessibility() == []
    await console.keep("key-shown-once-wide-light")
    await page.reload()
    await console.settled("API keys")
    assert token not in await page.content()
    await page.get_by_role("button", name="Revoke The <b>till</b>").click()
    await page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    await told(console, "is revoked")
    await row.wait_for(state="detached")
    assert {actor for actor, _ in (await acts(bank, "apikey.revoke"))[:1]} == {f"user:{bank.operator.id}"}


@pytest.mark.deep
async def test_an_event_is_replayed(console: Console, bank: Bank) -> None:
    await console.open("events?status=unmatched", "Provider events")
    listed = await table(console, "Events, newest first")
    await listed.get_by_role("link").first.click()
    await console.settled("Provider event")
    assert '"event_type": "purchase.paid"' in await console.main()  # its body, in lines
    await console.page.get_by_role("button", name="Apply again").click()
    await console.page.get_by_role("dialog").get_by_role("button", name="Apply it again").click()
    await told(console, "It is unmatched now")
    assert (await acts(bank, "provider_event.replay"))[0] == (f"user:{bank.operator.id}", f"provider_event:{bank.unmatched['id']}")


@pytest.mark.deep
async def test_an_event_that_is_none_of_ours_is_dismissed(console: Console, bank: Bank) -> None:
    event = ids.new_id(0)
    await bank.desk.sql.execute(
        "INSERT INTO provider_events (id, body_hash, provider, body, status, note, updated_at)"
        " VALUES ($1, $2, 'simulator', '{}', 'unmatched', 'no payment of ours', now())",
        *(event, event.bytes),
    )
    await console.open(f"events/{event}", "Provider event")
    await console.page.get_by_role("button", name="Dismiss", exact=True).click()
    asked = console.page.get_by_role("dialog")
    await asked.get_by_role("button", name="Dismiss it").click()
    assert await asked.get_by_label("Why").evaluate("input => input.matches(':invalid')")  # the browser says so
    await asked.get_by_label("Why").fill("Of another shop")
    await asked.get_by_role("button", name="Dismiss it").click()
    await told(console, "It is dismissed")
    await console.settled("Provider event")
    assert "dismissed: Of another shop" in await console.main()
    assert not await console.page.get_by_role("button", name="Dismiss", exact=True).is_visible()
    assert await bank.desk.sql.fetchval("SELECT status FROM provider_events WHERE id = $1", event) == "ignored"
    assert (await acts(bank, "provider_event.dismiss"))[0] == (f"user:{bank.operator.id}", f"provider_event:{event}")


@pytest.mark.deep
async def test_two_operators_resolve_a_payment(browser: Browser, bank: Bank) -> None:
    account = await bank.desk.account(20_000)
    payment = await bank.desk.withdraw(account, 7_000)
    await bank.desk.sql.execute("UPDATE payments SET status = 'unknown' WHERE id = $1", payment["id"])
    for person, said in ((bank.operator, "another operator must confirm"), (bank.other, "It is resolved")):
        context, console = await opened(browser, bank)
        await console.enter(person)
        await console.open(f"payments/{payment['id']}", "Payment")
        if person is bank.other:
            assert 'proposed "failed": The bank says so' in await console.main()
        await console.page.get_by_role("button", name="Resolve").click()
        asked = console.page.get_by_role("dialog")
        await asked.get_by_label("What became of it").select_option("failed")
        await asked.get_by_label("How you know").fill("The bank says so")
        await asked.get_by_role("button", name="Say so").click()
        await told(console, said)
        await console.check()
        await context.close()
    assert (await bank.desk.payment(payment["id"]))["status"] == "failed"
    assert (await bank.desk.balance(account))[:2] == (20_000, 0)
    assert [actor for actor, _ in await acts(bank, "payment.resolve.confirm")][:1] == [f"user:{bank.other.id}"]


@pytest.mark.deep
async def test_what_is_refused_is_said_in_the_question(console: Console, bank: Bank) -> None:
    """By one operator alone a payment is not resolved, and a closed account is not frozen."""
    account = await bank.desk.account()
    await console.open(f"accounts/{account}", "Account")
    await console.page.get_by_role("button", name="Freeze", exact=True).click()
    assert (await bank.desk.post(f"/v1/accounts/{account}/close")).status_code == 200  # meanwhile, by somebody else
    asked = console.page.get_by_role("dialog")
    await asked.get_by_role("button", name="Freeze", exact=True).click()
    problem = asked.get_by_role("alert")
    await problem.wait_for()
    assert await console.accessibility() == []
    await console.keep("dialog-with-a-problem-wide-light")
    assert "closed" in await problem.inner_text()
    assert "request " in await problem.inner_text()  # by which the log is found
    await console.page.keyboard.press("Escape")
    await asked.wait_for(state="detached")


@pytest.mark.deep
async def test_jobs_are_run_again_and_events_hurried(console: Console, bank: Bank) -> None:
    queue = queues.open_queue(bank.desk.settings.queue_url)
    await queue.announce({name: Schedule(cron="30 2 * * *", timeout_s=60, retries=3) for name in ("reconcile_yesterday", "prune_keys")})
    failed = Run(
        job="reconcile_yesterday", ended_at=datetime.now(UTC), took_s=2.5, attempt=3, error="Unclear: <b>no answer</b>", final=True
    )
    await queue.remember(failed)
    event = ids.new_id(7)
    await bank.desk.sql.execute(
        "INSERT INTO outbox (id, bucket, topic, payload, attempts, due_at)"
        " VALUES ($1, 7, 'mail.reset', '{}', 4, now() + interval '1 hour')",
        event,
    )
    try:
        await console.open("queue", "Queue and jobs")
        assert "none runs" in await console.main()  # no worker
        jobs = await rows(console, "Jobs that the workers know")
        assert "none yet" in jobs[0]
        assert jobs[1].startswith("reconcile_yesterday\t30 2 * * *")
        assert "failed" in jobs[1]
        assert "Unclear: <b>no answer</b>" in (await rows(console, "Attempts that failed, newest first"))[0]
        await console.keep("queue-with-failures-wide-light")
        await console.page.get_by_role("button", name="Run reconcile_yesterday now").first.click()
        await console.page.get_by_role("dialog").get_by_role("button", name="Run it").click()
        await told(console, "waits for a worker")
        assert await queue.job("now:reconcile_yesterday") is not None
        await console.page.get_by_role("button", name="Try mail.reset now").click()
        await console.page.get_by_role("dialog").get_by_role("button", name="Try it").click()
        await told(console, "within seconds")
        assert await bank.desk.sql.fetchval("SELECT due_at FROM outbox WHERE id = $1", event) is None
        assert (await acts(bank, "job.run"))[0] == (f"user:{bank.operator.id}", "job:reconcile_yesterday")
        assert (await acts(bank, "outbox.retry"))[0] == (f"user:{bank.operator.id}", f"outbox:{event}")
    finally:
        await bank.desk.sql.execute("DELETE FROM outbox WHERE id = $1", event)
        await queue.redis.flushdb()
        await queue.close()


@pytest.mark.deep
async def test_everything_by_keyboard_alone(browser: Browser, bank: Bank) -> None:
    """Sign in, go past the menu, open a page, freeze and unfreeze, and leave; the focus is always somewhere sensible."""
    context, console = await opened(browser, bank)
    page = console.page

    async def focused() -> str:
        text: str = await page.evaluate(
            "(document.activeElement.innerText || document.activeElement.name || document.activeElement.id).trim()"
        )
        return text

    async def tab_to(words: str) -> None:
        for _ in range(60):
            await page.keyboard.press("Tab")
            if (await focused()).startswith(words):
                outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline == "solid", words  # one sees where one is
                return
        pytest.fail(f"{words} is not reached")

    await page.goto(bank.url)
    await console.settled("Sign in")
    await tab_to("email")
    await page.keyboard.type(bank.operator.email)
    await page.keyboard.press("Tab")
    await page.keyboard.type("a long enough sentence, seldom used")
    await page.keyboard.press("Enter")
    await console.settled("Overview")
    assert await focused() == "Overview"  # the page's heading, so that a reader begins there
    await page.evaluate("document.activeElement.blur()")
    await page.goto(f"{bank.url}#/accounts/{bank.account_id}")
    await console.settled("Account")
    await page.evaluate("document.body.focus()")
    await tab_to("Freeze")
    await page.keyboard.press("Enter")
    await page.get_by_role("dialog").wait_for()
    assert await page.evaluate("document.activeElement.closest('dialog') !== null")
    await page.keyboard.press("Escape")
    await page.get_by_role("dialog").wait_for(state="detached")
    assert await focused() == "Freeze"  # back where one was
    await page.keyboard.press("Enter")
    await page.get_by_role("dialog").wait_for()
    await page.keyboard.press("Enter")
    await told(console, "frozen")
    await console.settled("Account")
    await tab_to("Unfreeze")
    await page.keyboard.press("Enter")
    await page.get_by_role("dialog").wait_for()
    await page.keyboard.press("Enter")
    await told(console, "takes requests again")
    await page.reload()
    await console.settled("Account")
    await page.keyboard.press("Tab")
    await page.locator("#skip").focus()
    assert await page.locator("#skip").evaluate("button => button.getBoundingClientRect().top >= 0")  # it comes into view
    await page.keyboard.press("Enter")
    assert await page.evaluate("document.activeElement.id") == "main"
    await console.check()
    await context.close()


@pytest.mark.deep
async def test_the_menu_of_a_phone(browser: Browser, bank: Bank) -> None:
    context, console = await opened(browser, bank, size="phone")
    await console.sign_in()
    menu = console.page.get_by_role("button", name="Menu")
    assert await menu.get_attribute("aria-expanded") == "false"
    assert not await console.page.get_by_role("link", name="Audit log").is_visible()
    await menu.click()
    assert await menu.get_attribute("aria-expanded") == "true"
    await console.page.get_by_role("link", name="Audit log").click()
    await console.settled("Audit log")
    assert await menu.get_attribute("aria-expanded") == "false"  # closed again
    await console.check()
    await context.close()


@pytest.mark.deep
async def test_updates_go_on_and_stop_when_told(console: Console, bank: Bank) -> None:
    await bank.desk.sql.execute("DELETE FROM usage_minutes")
    await console.page.clock.install()
    await console.page.reload()
    await console.settled("Overview")
    before = len(console.asked)
    await console.page.clock.run_for(16_000)
    await console.page.wait_for_timeout(500)
    assert len(console.asked) > before
    await console.page.get_by_role("button", name="Stop updating").click()
    await console.page.wait_for_timeout(500)
    before = len(console.asked)
    await console.page.clock.run_for(130_000)
    await console.page.wait_for_timeout(500)
    assert len(console.asked) == before
    assert await console.page.get_by_role("button", name="Go on updating").is_visible()
