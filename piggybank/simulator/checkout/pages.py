"""The pages: templates filled with escaped text, and the headers that keep them to themselves."""

import base64
import hashlib
import re
import time
from functools import lru_cache
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

from litestar import Response

from piggybank import money
from piggybank.simulator.checkout import cards
from piggybank.simulator.objects import Purchase

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*:(//[A-Za-z0-9._:\[\]-]+)?")  # nothing that would end or part the policy
_FOLDER = Path(__file__).parent
_PROBLEMS = {
    "declined": "The payment was declined. The purchase is still open: you may try again.",
    "abandoned": "You left without paying. The purchase is still open.",
}
_ENDINGS = {
    "cancelled": ("Cancelled", "The seller cancelled this purchase. It cannot be paid any more."),
    "overdue": ("Too late", "This purchase was to be paid earlier. It cannot be paid any more."),
    "expired": ("Expired", "This purchase has expired. It cannot be paid any more."),
    "paid": ("Paid", "This purchase is paid. There is nothing left to do."),
}
_TITLES_OF_PAID = {"pending_refund": "Being refunded", "refunded": "Refunded", "chargeback": "Charged back"}


def checkout(base: str, sent: Purchase, *, problem: str) -> Response[bytes]:
    """All the ways to pay or not to pay; `base` is the page's path."""
    said = _PROBLEMS.get(problem, "")
    text = {
        "base": base,
        "problem": said,
        "problem_class": "problem" if said else "none",
        "expiry": cards.expiry_to_offer(int(time.time())),
        **_about(sent),
    }
    return _page("Checkout", "checkout.html", text, sent)


def confirmation(base: str, sent: Purchase) -> Response[bytes]:
    """What a payer's bank asks."""
    return _page("Confirm the payment", "confirmation.html", {"base": base, **_about(sent)}, sent)


def ended(sent: Purchase) -> Response[bytes]:
    """The purchase cannot be paid any more."""
    status = "overdue" if sent.status not in _ENDINGS and sent.payment is None else sent.status
    title, text = _ENDINGS.get(status, (_TITLES_OF_PAID.get(status, "Paid"), _ENDINGS["paid"][1]))
    # gone, but for one that went well
    return _page(title, "ended.html", {"text": text, **_about(sent)}, sent, status_code=200 if sent.payment else 410)


def unknown() -> Response[bytes]:
    """There is no such purchase."""
    return _page("Unknown purchase", "unknown.html", {}, None, status_code=404)


def _about(sent: Purchase) -> dict[str, str]:
    paid = sent.payment
    amount = money.shown(paid.amount, paid.currency) if paid else money.shown(sent.purchase.total, sent.purchase.currency)
    what = ", ".join(product.name for product in sent.purchase.products)
    return {"amount": amount, "reference": sent.reference or sent.reference_generated, "what": what, "status": sent.status}


def _page(title: str, template: str, text: dict[str, str], sent: Purchase | None, *, status_code: int = 200) -> Response[bytes]:
    main = _template(template).substitute({name: escape(value) for name, value in text.items()})
    html = _template("frame.html").substitute(title=escape(title), style=_style(), main=main)
    headers = {
        "Content-Security-Policy": _policy(sent),
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }
    return Response(html.encode(), status_code=status_code, media_type="text/html", headers=headers)


def _policy(sent: Purchase | None) -> str:
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
    redirects = [sent.success_redirect, sent.failure_redirect, sent.cancel_redirect] if sent else []
    targets = " ".join(dict.fromkeys(["'self'", *map(_origin, filter(None, redirects))]))
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; form-action {targets}; base-uri 'none'; frame-ancestors 'none'"


def _origin(url: str) -> str:
    """What a policy calls the place of an address; a custom scheme (an app's) is a place as a whole."""
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.scheme in ("http", "https") else f"{parts.scheme}:"
    return origin if _ORIGIN.fullmatch(origin) else "'self'"


@lru_cache
def _template(name: str) -> Template:
    return Template((_FOLDER / name).read_text(encoding="utf-8"))


@lru_cache
def _style() -> str:
    return (_FOLDER / "checkout.css").read_text(encoding="utf-8")
