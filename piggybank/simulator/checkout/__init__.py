"""The page on which a purchase is paid: plain HTML forms, no script, nothing from elsewhere.

After a form the browser is sent on with a 303: to the address that the purchase names for it, or back to the page, which says how
the purchase stands. The policy names the purchase's own addresses, since browsers hold a form to `form-action` through redirects.
"""

from urllib.parse import parse_qs, urlsplit

from litestar import Response, get, post
from litestar.response import Redirect

from piggybank.simulator import kept_objects, purchases
from piggybank.simulator.api.bodies import Asked, Id, Sim
from piggybank.simulator.checkout import cards, pages
from piggybank.simulator.kept_objects import KeptPurchase
from piggybank.simulator.refusals import Refused
from piggybank.simulator.simulation import Simulation


@get("/checkout/{purchase_id:str}", sync_to_thread=False)
def page(request: Asked, purchase_id: Id, sim: Sim) -> Response[bytes]:
    """The page; opening it is seen by the seller."""
    try:
        with sim.book.writing():
            kept = purchases.view(sim, purchase_id)
    except Refused:
        return pages.unknown()
    if not purchases.is_payable(sim, kept):
        return pages.ended(kept.sent)
    return pages.checkout(_base(sim, purchase_id), kept.sent, problem=request.query_params.get("problem", ""))


@post("/checkout/{purchase_id:str}/pay")
async def pay(request: Asked, purchase_id: Id, sim: Sim) -> Response[bytes] | Redirect:
    """The button: paid."""
    return _act(request, sim, purchase_id, "pay")


@post("/checkout/{purchase_id:str}/decline")
async def decline(request: Asked, purchase_id: Id, sim: Sim) -> Response[bytes] | Redirect:
    """The button: declined; the purchase stays open."""
    return _act(request, sim, purchase_id, "decline")


@post("/checkout/{purchase_id:str}/decline-then-pay")
async def decline_then_pay(request: Asked, purchase_id: Id, sim: Sim) -> Response[bytes] | Redirect:
    """The button: declined at first, paid with another card."""
    return _act(request, sim, purchase_id, "decline", "pay")


@post("/checkout/{purchase_id:str}/abandon")
async def abandon(request: Asked, purchase_id: Id, sim: Sim) -> Response[bytes] | Redirect:
    """The button: the payer walks away; nothing changes."""
    return _act(request, sim, purchase_id)


@post("/checkout/{purchase_id:str}/card")
async def card(request: Asked, purchase_id: Id, sim: Sim) -> Response[bytes] | Redirect:
    """The form: what the test card says."""
    form = parse_qs((await request.body()).decode("utf-8", "replace"))
    given = cards.Card(*(form.get(name, [""])[0] for name in ("number", "expiry", "cvc")))
    outcome = cards.outcome(given, sim.book.now())
    if outcome.error is None and outcome.is_3ds:
        return Redirect(f"{_base(sim, purchase_id)}/3ds", status_code=303)
    action = "pay" if outcome.error is None else "decline"
    return _act(request, sim, purchase_id, action, outcome=outcome)


@get("/checkout/{purchase_id:str}/3ds", sync_to_thread=False)
def confirmation(purchase_id: Id, sim: Sim) -> Response[bytes]:
    """The bank's page."""
    try:
        kept = kept_objects.load(sim.book, KeptPurchase, purchase_id)
    except Refused:
        return pages.unknown()
    if not purchases.is_payable(sim, kept):
        return pages.ended(kept.sent)
    return pages.confirmation(_base(sim, purchase_id), kept.sent)


@post("/checkout/{purchase_id:str}/3ds/confirm")
async def confirm(request: Asked, purchase_id: Id, sim: Sim) -> Response[bytes] | Redirect:
    """The payer confirms."""
    return _act(request, sim, purchase_id, "pay", outcome=cards.CONFIRMED)


@post("/checkout/{purchase_id:str}/3ds/refuse")
async def refuse(request: Asked, purchase_id: Id, sim: Sim) -> Response[bytes] | Redirect:
    """The payer refuses."""
    return _act(request, sim, purchase_id, "decline", outcome=cards.REFUSED)


routes = [page, pay, decline, decline_then_pay, abandon, card, confirmation, confirm, refuse]


def _act(
    request: Asked, sim: Simulation, purchase_id: str, *actions: str, outcome: cards.Outcome = cards.USUAL
) -> Response[bytes] | Redirect:
    """Do what the payer does, one transaction each, and send the browser on."""
    ip = request.client.host if request.client else ""
    try:
        kept = kept_objects.load(sim.book, KeptPurchase, purchase_id)
        if not purchases.is_payable(sim, kept):
            return pages.ended(kept.sent)
        for action in actions:
            with sim.book.writing():
                if action == "pay":
                    kept = purchases.pay(sim, purchase_id, method=outcome.method, ip=ip)
                else:
                    error = outcome.error or purchases.DECLINED
                    kept = purchases.decline(sim, purchase_id, method=outcome.method, ip=ip, error=error)
    except Refused:
        return pages.unknown()
    last = actions[-1] if actions else "abandon"
    sent = kept.sent
    wanted = {"pay": sent.success_redirect, "decline": sent.failure_redirect, "abandon": sent.cancel_redirect}[last]
    problem = {"pay": "", "decline": "?problem=declined", "abandon": "?problem=abandoned"}[last]
    return Redirect(wanted or f"{_base(sim, purchase_id)}/{problem}", status_code=303)


def _base(sim: Simulation, purchase_id: str) -> str:
    """The page's path as a browser sees it, also behind a proxy's path; without a host, which may be any of several."""
    return f"{urlsplit(sim.config.page_url or sim.config.url).path}/checkout/{purchase_id}"
