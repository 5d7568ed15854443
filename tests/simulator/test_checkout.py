"""The checkout page, as a browser without scripts uses it."""

import re
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest

from tests.simulator.conftest import Simulator, until
from tests.simulator.receivers import Receiver

REDIRECTS: dict[str, Any] = {
    "success_redirect": "https://app.example/ok",
    "failure_redirect": "https://app.example/fail",
    "cancel_redirect": "wallet-app://cancelled/1",
}


class Forms(HTMLParser):
    """The forms of a page: action -> (method, what its inputs hold), and every id and label."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.forms: dict[str, tuple[str, dict[str, str]]] = {}
        self.labels: set[str] = set()
        self.inputs: set[str] = set()
        self.tags: set[str] = set()
        self.addresses: set[str] = set()
        self._open = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        self.addresses |= {found[name] for name in ("src", "href") if name in found}
        if tag == "form":
            self._open = found["action"]
            self.forms[self._open] = (found["method"], {})
        elif tag == "input":
            self.forms[self._open][1][found["name"]] = found["value"]
            self.inputs.add(found["id"])
        elif tag == "label":
            self.labels.add(found["for"])


class Browser:
    """Opens a purchase's page and sends its forms."""

    def __init__(self, http: httpx.AsyncClient, purchase: dict[str, Any]) -> None:
        self.http = http
        self.url = purchase["checkout_url"]

    async def open(self) -> httpx.Response:
        return await self.http.get(self.url, headers={"Authorization": ""})

    async def submit(self, button: str, **changes: str) -> httpx.Response:
        """The form whose action ends so, on the page as it is."""
        return await self.submit_on(await self.open(), button, **changes)

    async def submit_on(self, page: httpx.Response, button: str, **changes: str) -> httpx.Response:
        forms = Forms(page.text).forms
        (action,) = [action for action in forms if action.endswith(f"/{button}")]
        method, fields = forms[action]
        return await self.http.request(
            method, urljoin(self.url, action), data=fields | changes if method == "post" else None, headers={"Authorization": ""}
        )


async def test_the_page_keeps_to_itself(simulator: Simulator) -> None:
    made = await simulator.purchase(12_345, reference="<b>&dep", **REDIRECTS)
    page = await Browser(simulator.http, made).open()
    assert page.status_code == 200
    for text in ("SIMULATOR", "no real money", "123.45 ZAR", "&lt;b&gt;&amp;dep"):
        assert text in page.text
    parsed = Forms(page.text)
    assert not parsed.tags & {"script", "img", "iframe"}
    assert parsed.addresses == {"data:,"}
    assert parsed.inputs == parsed.labels == {"number", "expiry", "cvc"}
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert "form-action 'self' https://app.example wallet-app:;" in policy  # else a browser would not follow the redirect
    assert page.headers["cache-control"] == "no-store"


async def test_an_address_cannot_change_the_policy(simulator: Simulator) -> None:
    made = await simulator.purchase(success_redirect="https://a.example;script-src/?a=1;b=2,3")
    policy = (await Browser(simulator.http, made).open()).headers["content-security-policy"]
    assert "script-src" not in policy
    assert (await Browser(simulator.http, made).submit("pay")).headers["location"] == made["success_redirect"]


async def test_opening_it_is_seen_once(simulator: Simulator, receiver: Receiver) -> None:
    await simulator.webhook(receiver.url)
    made = await simulator.purchase()
    browser = Browser(simulator.http, made)
    await browser.open()
    await browser.open()
    viewed = await simulator.get(f"/api/v1/purchases/{made['id']}/")
    assert viewed["status"] == "viewed"
    assert type(viewed["viewed_on"]) is int
    await simulator.post(f"/_sim/purchases/{made['id']}/pay")
    await until(lambda: receiver.types_of(made["id"]) == ["purchase.created", "purchase.viewed", "purchase.paid"])


@pytest.mark.parametrize(
    ("button", "redirect", "status", "attempts"),
    [
        ("pay", "success_redirect", "paid", [True]),
        ("decline", "failure_redirect", "error", [False]),
        ("decline-then-pay", "success_redirect", "paid", [True, False]),
        ("abandon", "cancel_redirect", "viewed", []),
    ],
)
@pytest.mark.parametrize("has_redirects", [True, False])
async def test_buttons(simulator: Simulator, button: str, redirect: str, status: str, attempts: list[bool], has_redirects: bool) -> None:
    made = await simulator.purchase(**(REDIRECTS if has_redirects else {}))
    browser = Browser(simulator.http, made)
    sent = await browser.submit(button)
    assert sent.status_code == 303
    now = await simulator.get(f"/api/v1/purchases/{made['id']}/")
    assert now["status"] == status
    assert [attempt["successful"] for attempt in now["transaction_data"]["attempts"]] == attempts
    if has_redirects:
        assert sent.headers["location"] == REDIRECTS[redirect]
        return
    page = await simulator.http.get(urljoin(browser.url, sent.headers["location"]), headers={"Authorization": ""})
    assert page.status_code == 200
    said = {"paid": "This purchase is paid", "error": "The payment was declined", "viewed": "You left without paying"}[status]
    assert said in page.text
    assert ("<form" in page.text) is (status != "paid")


@pytest.mark.parametrize(("button", "status"), [("3ds/confirm", "paid"), ("3ds/refuse", "error")])
@pytest.mark.parametrize("by_card", [True, False])
async def test_three_d_secure_asks_on_a_page_of_its_own(simulator: Simulator, button: str, status: str, by_card: bool) -> None:
    made = await simulator.purchase(**REDIRECTS)
    browser = Browser(simulator.http, made)
    if by_card:
        sent = await browser.submit("card", number="5555 5555 5555 4444")
        assert sent.status_code == 303
        page = await simulator.http.get(urljoin(browser.url, sent.headers["location"]))
    else:
        page = await browser.submit("3ds")
    assert "Confirm the payment" in page.text
    assert await simulator.status("purchases", made["id"]) == "viewed"
    sent = await browser.submit_on(page, button)
    assert sent.headers["location"] == REDIRECTS["success_redirect" if status == "paid" else "failure_redirect"]
    assert await simulator.status("purchases", made["id"]) == status


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({}, None),
        ({"number": "4000000000000077", "expiry": "1/2099"}, None),
        ({"cvc": "124"}, "invalid_cvc"),
        ({"expiry": "12/20"}, "expired_card"),
        ({"expiry": "13/40"}, "expired_card"),
        ({"number": "4111 1111 1111 1111"}, "invalid_card_number"),
        ({"number": "", "cvc": ""}, "invalid_card_number"),
    ],
)
async def test_test_cards(simulator: Simulator, changes: dict[str, str], error: str | None) -> None:
    made = await simulator.purchase()
    await Browser(simulator.http, made).submit("card", **changes)
    now = await simulator.get(f"/api/v1/purchases/{made['id']}/")
    assert now["status"] == ("error" if error else "paid")
    attempt = now["transaction_data"]["attempts"][0]
    assert (attempt["error"] or {}).get("code") == error
    assert attempt["client_ip"] == "127.0.0.1"
    assert attempt["payment_method"] == "visa"


async def test_pages_of_what_cannot_be_paid(simulator: Simulator) -> None:
    unknown = await simulator.http.get("/checkout/6f0c1a52-0000-4000-8000-00000000dead/")
    assert (unknown.status_code, "Unknown purchase" in unknown.text) == (404, True)
    assert (await simulator.http.post("/checkout/nobody/pay")).status_code == 404
    assert (await simulator.http.get("/checkout/nobody/3ds")).status_code == 404
    for path, title, status in (
        ("/_sim/purchases/{}/pay", "Paid", 200),
        ("/_sim/purchases/{}/expire", "Expired", 410),
        ("/api/v1/purchases/{}/cancel/", "Cancelled", 410),
    ):
        made = await simulator.purchase()
        await simulator.post(path.format(made["id"]))
        before = await simulator.get(f"/api/v1/purchases/{made['id']}/")
        for method, end in (("GET", "/"), ("GET", "/3ds"), ("POST", "/pay"), ("POST", "/abandon"), ("POST", "/3ds/confirm")):
            page = await simulator.http.request(method, f"/checkout/{made['id']}{end}")
            assert (page.status_code, re.findall("<h1>(.*)</h1>", page.text)) == (status, [title])
        assert await simulator.get(f"/api/v1/purchases/{made['id']}/") == before  # nothing was paid twice, nothing was seen
