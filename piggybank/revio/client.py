"""The orchestration API: purchases, refunds, payouts, webhooks, keys, balance, statements. A port, spoken to by `wallet/`.

Creating a purchase or a payout may be repeated: nobody has seen its address, and nothing is executed. A refund is executed by the
call that asks for it, so that is sent once.
"""

import asyncio
import time
from datetime import datetime
from typing import Any, TypeVar

import httpx
import msgspec
import structlog
from msgspec import Struct

from piggybank.revio import http
from piggybank.revio.http import Unclear
from piggybank.revio.objects import Snapshot, Standing, Statement, Webhook, WebhookPage

AGENT = "piggybank"
REFERENCE_MAX_CHARACTERS = 128
STATEMENT_WITHIN_S = 300  # a statement takes its time
STATEMENT_POLL_FIRST_S = 0.2
STATEMENT_POLL_LONGEST_S = 5.0
WEBHOOK_PAGES_MAX = 20
EVENTS = (
    "purchase.created",
    "purchase.paid",
    "purchase.payment_failure",
    "purchase.cancelled",
    "purchase.settled",
    "purchase.pending_execute",
    "purchase.pending_charge",
    "purchase.hold",
    "purchase.pending_refund",
    "purchase.refund_failure",
    "payment.refunded",
    "payment.charged_back",
    "payment.chargeback_reversed",
    "payout.created",
    "payout.pending",
    "payout.success",
    "payout.failed",
)

T = TypeVar("T")
_log = structlog.get_logger()


class Credentials(Struct, frozen=True, kw_only=True):
    """Where, and as whom. `url` ends with a slash; `key` is a secret."""

    url: str
    key: str
    brand_id: str
    timeout_s: float = 10.0
    proxy: str | None = None

    def __repr__(self) -> str:
        return f"Credentials({self.url})"


class Person(Struct, frozen=True, kw_only=True):
    """Who pays, or is paid; the address is all that Revio asks for."""

    email: str
    full_name: str | None = None


class Client:
    """One account at Revio, or at the simulator."""

    def __init__(self, credentials: Credentials) -> None:
        self._as = credentials
        self._http = http.Connections(credentials.timeout_s, credentials.proxy)

    async def close(self) -> None:
        """Close every connection."""
        await self._http.close()

    async def create_purchase(
        self, *, reference: str, amount: int, currency: str, name: str, person: Person, due: datetime, return_url: str | None
    ) -> Snapshot:
        """A checkout for `amount` minor units that ends at `due`. Raises Refused, Unsent, Unclear; may be repeated."""
        redirects = {f"{outcome}_redirect": return_url for outcome in ("success", "failure", "cancel")} if return_url else {}
        body = {
            "brand_id": self._as.brand_id,
            "client": _client(person),
            "purchase": {"currency": currency, "products": [{"name": name, "price": amount, "quantity": "1"}], "due_strict": True},
            "reference": reference,
            "due": int(due.timestamp()),
            "send_receipt": False,
            "creator_agent": AGENT,
            **redirects,
        }
        return await self._ask("POST", "purchases/", Snapshot, body=body, repeatable=True)

    async def purchase(self, purchase_id: str) -> Snapshot:
        """As it is now."""
        return await self._ask("GET", f"purchases/{_part(purchase_id)}/", Snapshot, repeatable=True)

    async def cancel_purchase(self, purchase_id: str) -> Snapshot:
        """Nobody can pay it any more; Refused when somebody has. Cancelling twice is cancelling once."""
        return await self._ask("POST", f"purchases/{_part(purchase_id)}/cancel/", Snapshot, body={}, repeatable=True)

    async def refund(self, purchase_id: str, amount: int) -> Snapshot:
        """Give back: a payment that has happened, or the purchase in `pending_refund`. Sent once."""
        return await self._ask("POST", f"purchases/{_part(purchase_id)}/refund/", Snapshot, body={"amount": amount})

    async def create_payout(self, *, reference: str, amount: int, currency: str, description: str, person: Person) -> Snapshot:
        """A payout that is not executed yet. May be repeated."""
        body = {
            "brand_id": self._as.brand_id,
            "client": _client(person),
            "payment": {"amount": amount, "currency": currency, "description": description},
            "reference": reference,
        }
        return await self._ask("POST", "payouts/", Snapshot, body=body, repeatable=True)

    async def execute_payout(self, execution_url: str, details: dict[str, str]) -> Snapshot:
        """Move the money. Sent once."""
        return await self._ask("POST", self._own(execution_url), Snapshot, body=details)

    async def payout(self, payout_id: str) -> Snapshot:
        """As it is now."""
        return await self._ask("GET", f"payouts/{_part(payout_id)}/", Snapshot, repeatable=True)

    async def public_key(self) -> str:
        """The company's PEM, as it came (see signatures.public_keys)."""
        return await self._ask("GET", "public_key/", str, repeatable=True)

    async def webhooks(self) -> list[Webhook]:
        """All that are registered with this key."""
        found: list[Webhook] = []
        url: str | None = "webhooks/"
        for _ in range(WEBHOOK_PAGES_MAX):
            if url is None:
                break
            page = await self._ask("GET", self._own(url), WebhookPage, repeatable=True)
            found += page.results
            url = page.next
        return found

    async def register_webhook(self, callback: str) -> Webhook:
        """A new webhook with a key pair of its own. Sent once: a second one would send everything twice."""
        body = {"title": AGENT, "all_events": False, "events": list(EVENTS), "callback": callback}
        return await self._ask("POST", "webhooks/", Webhook, body=body)

    async def delete_webhook(self, webhook_id: str) -> None:
        """No more events to it."""
        await self._call("DELETE", f"webhooks/{_part(webhook_id)}/", repeatable=True)

    async def balance(self) -> dict[str, Standing]:
        """By currency."""
        return await self._ask("GET", "balance/", dict[str, Standing], repeatable=True)

    async def statement(self, since: datetime, until: datetime) -> bytes:
        """The company statement of [since, until) as CSV; waits until it is made, at most STATEMENT_WITHIN_S."""
        body = {"format": "csv", "timezone": "UTC", "filters": {"from": int(since.timestamp()), "to": int(until.timestamp())}}
        made = await self._ask("POST", "company_statements/", Statement, body=body, repeatable=True)
        give_up = time.monotonic() + STATEMENT_WITHIN_S
        pause_s = STATEMENT_POLL_FIRST_S
        while made.status != "finished" or not made.download_url:
            if made.status not in ("queued", "processing") or time.monotonic() > give_up:
                raise Unclear(f"the statement is {made.status}")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, STATEMENT_POLL_LONGEST_S)
            made = await self._ask("GET", f"company_statements/{_part(made.id)}/", Statement, repeatable=True)
        return await self._call("GET", self._own(made.download_url), repeatable=True)

    async def _ask(self, method: str, path: str, answer: type[T], *, body: Any = None, repeatable: bool = False) -> T:
        said = await self._call(method, path, body=body, repeatable=repeatable)
        try:
            return msgspec.json.decode(said, type=answer)
        except (msgspec.MsgspecError, UnicodeDecodeError) as cause:
            raise Unclear("an answer that cannot be read") from cause

    async def _call(self, method: str, path: str, *, body: Any = None, repeatable: bool = False) -> bytes:
        headers = {"Authorization": f"Bearer {self._as.key}", "User-Agent": AGENT}
        return await self._http.call(method, httpx.URL(self._as.url).join(path), headers=headers, body=body, repeatable=repeatable)

    def _own(self, url: str) -> str:
        """An address that an answer named: only our provider's host is sent our key. Raises Unsent."""
        base, named = httpx.URL(self._as.url), httpx.URL(self._as.url).join(url)
        if (named.scheme, named.host, named.port) != (base.scheme, base.host, base.port):
            _log.error("provider_names_another_host", scheme=named.scheme, host=named.host, port=named.port)
            raise http.Unsent("the answer names another host")
        return str(named)


def _client(person: Person) -> dict[str, str]:
    return {"email": person.email} | ({"full_name": person.full_name} if person.full_name else {})


def _part(identifier: str) -> str:
    """An id as one part of a path, whatever it holds."""
    return "".join(letter if letter.isalnum() or letter in "-_" else f"%{ord(letter):02X}" for letter in identifier if ord(letter) < 128)
