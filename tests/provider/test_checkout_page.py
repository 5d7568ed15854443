"""The checkout page, clicked through in a real browser."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, async_playwright

from tests.conftest import require
from tests.provider.conftest import Desk, Object

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
]
SIZES = {"phone": (360, 740), "wide": (1280, 900)}


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    require("chromium")
    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        await opened.close()


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    context = await browser.new_context()
    opened = await context.new_page()
    wrong: list[str] = []
    opened.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("requestfailed", lambda request: wrong.append(request.url))
    yield opened
    await context.close()
    assert [message for message in wrong if "410 (Gone)" not in message] == []


async def checkout(desk: Desk, page: Page, **more: str) -> Object:
    """A deposit whose checkout is open in the browser."""
    payment = await desk.deposit(await desk.account(), 15_000, reference="top-up 7", **more)
    await page.goto(payment["checkout_url"])
    assert "SIMULATOR" in await page.inner_text("header")
    assert "150.00" in await page.inner_text("main")
    return payment


async def ends(desk: Desk, payment: Object) -> Object:
    await desk.work_through()
    return await desk.payment(payment["id"])


async def test_pay_with_the_card_that_is_filled_in(desk: Desk, page: Page) -> None:
    payment = await checkout(desk, page)
    async with page.expect_navigation():
        await page.get_by_role("button", name="Pay 150.00 ZAR").click()
    assert "paid" in (await page.inner_text("main")).lower()
    done = await ends(desk, payment)
    assert (done["status"], done["paid"]) == ("completed", 15_000)


@pytest.mark.deep
async def test_pay_by_keyboard_alone(desk: Desk, page: Page) -> None:
    payment = await checkout(desk, page)
    await page.get_by_role("button", name="Pay", exact=True).focus()
    async with page.expect_navigation():
        await page.keyboard.press("Enter")
    assert (await ends(desk, payment))["status"] == "completed"


@pytest.mark.deep
async def test_decline(desk: Desk, page: Page) -> None:
    payment = await checkout(desk, page)
    async with page.expect_navigation():
        await page.get_by_role("button", name="Decline", exact=True).click()
    assert "declined" in (await page.inner_text("main")).lower()
    declined = await ends(desk, payment)
    assert declined["status"] == "pending"
    assert declined["failure"]
    async with page.expect_navigation():
        await page.get_by_role("button", name="Pay", exact=True).click()
    assert (await ends(desk, payment))["status"] == "completed"


@pytest.mark.deep
async def test_a_wrong_code_is_declined(desk: Desk, page: Page) -> None:
    payment = await checkout(desk, page)
    await page.get_by_label("Security code").fill("999")
    async with page.expect_navigation():
        await page.get_by_label("Security code").press("Enter")
    assert (await ends(desk, payment))["status"] == "pending"


async def test_decline_then_pay(desk: Desk, page: Page) -> None:
    payment = await checkout(desk, page)
    async with page.expect_navigation():
        await page.get_by_role("button", name="Decline then pay").click()
    assert (await ends(desk, payment))["status"] == "completed"


@pytest.mark.deep
async def test_abandon(desk: Desk, page: Page) -> None:
    payment = await checkout(desk, page)
    async with page.expect_navigation():
        await page.get_by_role("button", name="Abandon").click()
    assert (await ends(desk, payment))["status"] == "pending"
    await desk.act(f"purchases/{payment['provider_id']}/expire")
    await desk.ask()
    assert (await ends(desk, payment))["status"] == "failed"
    await page.goto(payment["checkout_url"])
    assert "expired" in (await page.inner_text("main")).lower()  # with the status 410, which the browser's console tells


@pytest.mark.deep
@pytest.mark.parametrize(("answer", "status"), [("Confirm", "completed"), ("Refuse", "pending")])
async def test_3_d_secure(desk: Desk, page: Page, answer: str, status: str) -> None:
    payment = await checkout(desk, page)
    await page.get_by_role("button", name="3-D Secure").click()
    async with page.expect_navigation():
        await page.get_by_role("button", name=answer).click()
    assert (await ends(desk, payment))["status"] == status


@pytest.mark.deep
async def test_people_go_back_to_the_shop(desk: Desk, page: Page) -> None:
    shop = f"{desk.server.url}/health/live"
    payment = await checkout(desk, page, return_url=shop)
    await page.get_by_role("button", name="Pay", exact=True).click()
    await page.wait_for_url(shop)
    assert (await ends(desk, payment))["status"] == "completed"


@pytest.mark.deep
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
async def test_it_fits_every_screen(desk: Desk, browser: Browser, size: str, scheme: str, tmp_path: Path) -> None:
    width, height = SIZES[size]
    context = await browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page = await context.new_page()
    await checkout(desk, page)
    assert await page.evaluate("document.documentElement.scrollWidth") <= width
    shown = Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"checkout-{size}-{scheme}.png"
    await page.screenshot(path=shown, full_page=True)
    assert shown.stat().st_size > 5_000
    await context.close()


@pytest.mark.deep
@pytest.mark.parametrize("path", ["/schema", "/welcome"])
async def test_our_own_pages_say_simulator(desk: Desk, page: Page, path: str, tmp_path: Path) -> None:
    await page.goto(desk.server.url + path)
    assert "SIMULATOR" in await page.inner_text("body")
    await page.screenshot(path=Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"page-{path.strip('/')}.png")
