"""The console in a real Chromium, on an installation in which something has happened: one for all tests of this package.

Names, descriptions and metadata are attempts to get a script onto the page; a page that lets one through has run it.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import pytest
from playwright.async_api import Browser, BrowserContext, Page, async_playwright

from piggybank.settings import Settings
from piggybank.wallet import reconciliation
from tests.conftest import Stores, _database_copy, _worker_number, require
from tests.prove.conftest import PASSWORD, Person, sign_in
from tests.provider.conftest import TIME_SCALE, Desk, Object, running_desk
from tests.provider.test_checkout_page import CHROMIUM, FLAGS
from tests.provider.test_events import Signer, paid_event, send

ATTACK = '<img src=x onerror="window.attacked = true">'
AXE = Path(__file__).with_name("axe") / "axe.min.js"
SIZES = {"phone": (360, 740), "tablet": (820, 1100), "wide": (1440, 900)}


class Bank(NamedTuple):
    """What is there to be seen."""

    desk: Desk
    operator: Person
    other: Person  # a second operator
    user: Person  # no operator
    user_id: str
    account_id: UUID
    transaction_id: str
    unknown: Object  # a payment
    unmatched: Object  # an event
    reconciliation_id: UUID

    @property
    def url(self) -> str:
        return f"{self.desk.server.url}/console"


@pytest.fixture(scope="package")
def bank_settings(stores: Stores, worker_id: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with _database_copy(stores, tmp_path_factory.mktemp("console"), 2 * _worker_number(worker_id) + 1) as made:
        yield msgspec.structs.replace(made, worker_processes=1, simulator_time_scale=TIME_SCALE)


@pytest.fixture(scope="package")
async def bank(bank_settings: Settings) -> AsyncIterator[Bank]:
    async with running_desk(bank_settings) as desk:
        yield await filled(desk)


async def filled(desk: Desk) -> Bank:
    """A user whose every text is an attack, with an account, transactions, a payment that nobody knows, an event and a comparison."""
    operator, other, user = [await asyncio.to_thread(sign_in, desk.settings, role) for role in ("operator", "operator", "user")]
    made = await desk.http.post(
        "/v1/users",
        json={"email": "ada@example.com", "name": f"Ada {ATTACK}", "external_id": "customer-1", "metadata": {"<b>note</b>": ATTACK}},
    )
    user_id = made.json()["id"]
    opened = await desk.http.post("/v1/accounts", json={"user_id": user_id, "currency": "ZAR", "name": f"Holiday {ATTACK}"})
    account_id = UUID(opened.json()["id"])
    posted = await desk.post(
        f"/v1/accounts/{account_id}/deposits",
        {
            "amount": 1_234_567,
            "method": "direct",
            "reference": "salary",
            "description": f"Pay {ATTACK}",
            "metadata": {"note": ATTACK},
        },
    )
    for number in range(60):  # more than two pages of 25
        await desk.post(f"/v1/accounts/{account_id}/deposits", {"amount": 100 + number, "method": "direct", "reference": f"coin-{number}"})
    await desk.paid_deposit(account_id, 15_000)
    unknown = await desk.withdraw(account_id, 5_000, description=ATTACK)
    await desk.sql.execute("UPDATE payments SET status = 'unknown', failure = $2 WHERE id = $1", UUID(unknown["id"]), ATTACK)
    signer = Signer()
    await desk.sql.execute(
        "INSERT INTO provider_keys (fingerprint, provider, pem, added_at) VALUES ('of the tests', 'simulator', $1, now())", signer.pem
    )
    await asyncio.sleep(1.1)  # a server that has just looked for keys looks again after a second
    body = json.dumps(paid_event(unknown, id="00000000-0000-4000-8000-000000000001", reference=ATTACK)).encode()
    assert (await send(desk, body, signer.sign(body)))[0] == 200
    await desk.work_through()
    unmatched = (await desk.http.get("/v1/ops/provider-events", params={"status": "unmatched"})).json()["items"][0]
    since = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    run = await reconciliation.reconcile(desk.work.db, desk.work.ledger, desk.work.provider, since, since + timedelta(days=1))
    return Bank(desk, operator, other, user, user_id, account_id, posted.json()["transaction"]["id"], unknown, unmatched, run.id)


# The browser ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="package")
async def browser() -> AsyncIterator[Browser]:
    require("chromium")
    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        await opened.close()


class Console:
    """A tab in which somebody may be signed in; what the browser has against the page is kept."""

    def __init__(self, page: Page, bank: Bank) -> None:
        self.page = page
        self.bank = bank
        self.wrong: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self._heard(message.type, message.text))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def _heard(self, kind: str, text: str) -> None:
        # a 4xx that the page handles is told as an error by the browser, too
        if kind in ("error", "warning") and "the server responded with a status of 4" not in text:
            self.wrong.append(text)

    async def sign_in(self, person: Person | None = None) -> None:
        """Through the form, as people do."""
        await self.page.goto(self.bank.url)
        await self.page.get_by_label("E-mail address").fill((person or self.bank.operator).email)
        await self.page.get_by_label("Password").fill(PASSWORD)
        await self.page.get_by_role("button", name="Sign in").click()
        await self.settled("Overview")

    async def enter(self, person: Person) -> None:
        """With a session that they have: the form and its slow hash are not what is tried."""
        await self.page.goto(self.bank.url)
        token = person.headers["Authorization"].removeprefix("Bearer ")
        await self.page.evaluate("token => sessionStorage.setItem('piggybank.session', token)", token)
        await self.page.reload()
        await self.settled("Overview")

    async def open(self, address: str, title: str) -> None:
        await self.page.goto(f"{self.bank.url}#/{address}")
        await self.settled(title)

    async def settled(self, title: str) -> None:
        """The page of that title is there, and all that it waits for."""
        await self.page.get_by_role("heading", name=title, level=1, exact=True).wait_for()
        await self.page.locator("main[aria-busy=false]").wait_for()

    async def main(self) -> str:
        return await self.page.inner_text("main")

    async def keep(self, name: str) -> None:
        """A picture, where the run wants some."""
        if folder := os.environ.get("SCREENSHOTS"):
            await self.page.screenshot(path=Path(folder) / f"console-{name}.png", full_page=True)

    async def accessibility(self) -> list[str]:
        """What axe-core finds."""
        await self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found: dict[str, Any] = await self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [f"{one['impact']}: {one['id']}: {one['nodes'][0]['html'][:200]} ({len(one['nodes'])})" for one in found["violations"]]

    async def check(self) -> None:
        """Nothing was loaded from elsewhere, the browser refused nothing, and no attack ran."""
        origin = self.bank.desk.server.url
        assert [url for url in self.asked if not url.startswith((origin, "data:"))] == []
        told = [line for line in self.bank.desk.server.log.read_text(errors="replace").splitlines() if '"level":"error"' in line]
        assert self.wrong == [], told[-3:]
        assert await self.page.evaluate("window.attacked") is None


async def opened(browser: Browser, bank: Bank, *, size: str = "wide", scheme: str = "light") -> tuple[BrowserContext, Console]:
    """A browser of one's own."""
    width, height = SIZES[size]
    context = await browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,  # type: ignore[arg-type]
        timezone_id="Africa/Johannesburg",
        locale="en-ZA",
    )
    return context, Console(await context.new_page(), bank)


@pytest.fixture
async def console(browser: Browser, bank: Bank) -> AsyncIterator[Console]:
    """Somebody is signed in as an operator."""
    context, made = await opened(browser, bank)
    await made.enter(bank.operator)
    yield made
    await made.check()
    await context.close()
