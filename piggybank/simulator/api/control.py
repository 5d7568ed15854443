"""The controls: what in the real world a payer, a bank or the provider's staff does, and a look into the book."""

from typing import Annotated

from litestar import Response, get, post, put
from litestar.params import FromQuery, QueryParameter
from msgspec import Struct

from piggybank.simulator import (
    chargebacks,
    deliveries,
    eft_credits,
    entries,
    payouts,
    purchases,
    settlements,
    webhooks,
)
from piggybank.simulator.api.bodies import Amount, Asked, Id, Sim, answer, check_currency, read
from piggybank.simulator.refusals import Refused

OBJECTS_MAX = 10_000  # of one page
OBJECTS_USUAL = 1_000

_OBJECTS = "SELECT seq, type, id, reference, status, currency, amount, executions FROM objects WHERE seq > ? ORDER BY seq LIMIT ?"


class Paid(Struct, frozen=True, kw_only=True):
    """Another amount or currency than was asked for."""

    amount: Amount | None = None
    currency: str | None = None


class ChargedBack(Struct, frozen=True, kw_only=True):
    """Without an amount, all that is left."""

    amount: Amount | None = None


@post("/_sim/purchases/{purchase_id:str}/pay")
async def pay(request: Asked, purchase_id: Id, sim: Sim) -> Response[bytes]:
    """The payer pays."""
    asked = await read(request, Paid)
    if asked.currency is not None:
        check_currency("currency", asked.currency)
    with sim.book.writing():
        return answer(purchases.pay(sim, purchase_id, amount=asked.amount, currency=asked.currency).sent)


@post("/_sim/purchases/{purchase_id:str}/decline", sync_to_thread=False)
def decline(purchase_id: Id, sim: Sim) -> Response[bytes]:
    """The payer's card is declined."""
    with sim.book.writing():
        return answer(purchases.decline(sim, purchase_id).sent)


@post("/_sim/purchases/{purchase_id:str}/expire", sync_to_thread=False)
def expire(purchase_id: Id, sim: Sim) -> Response[bytes]:
    """Its time has passed, whatever `due` says."""
    with sim.book.writing():
        return answer(purchases.expire(sim, purchase_id).sent)


@post("/_sim/purchases/{purchase_id:str}/chargeback")
async def charge_back(request: Asked, purchase_id: Id, sim: Sim) -> Response[bytes]:
    """The payer's bank takes it back."""
    asked = await read(request, ChargedBack)
    with sim.book.writing():
        return answer(chargebacks.charge_back(sim, purchase_id, asked.amount))


@post("/_sim/purchases/{purchase_id:str}/chargeback-reversal", sync_to_thread=False)
def reverse_chargeback(purchase_id: Id, sim: Sim) -> Response[bytes]:
    """The newest chargeback that stands is taken back."""
    with sim.book.writing():
        return answer(chargebacks.reverse(sim, purchase_id))


@post("/_sim/payouts/{payout_id:str}/succeed", sync_to_thread=False)
def succeed_payout(payout_id: Id, sim: Sim) -> Response[bytes]:
    """A pending one succeeds."""
    with sim.book.writing():
        return answer(payouts.succeed(sim, payout_id).sent)


@post("/_sim/payouts/{payout_id:str}/fail", sync_to_thread=False)
def fail_payout(payout_id: Id, sim: Sim) -> Response[bytes]:
    """A pending one fails."""
    with sim.book.writing():
        return answer(payouts.fail(sim, payout_id).sent)


@post("/_sim/payouts/{payout_id:str}/return", sync_to_thread=False)
def return_payout(payout_id: Id, sim: Sim) -> Response[bytes]:
    """One that succeeded comes back."""
    with sim.book.writing():
        return answer(payouts.come_back(sim, payout_id).sent)


@post("/_sim/eft/{credit_id:str}/complete", sync_to_thread=False)
def complete_credit(credit_id: Id, sim: Sim) -> Response[bytes]:
    """A pending credit is paid."""
    with sim.book.writing():
        return answer(eft_credits.complete(sim, credit_id).sent)


@post("/_sim/eft/{credit_id:str}/unpay", sync_to_thread=False)
def unpay_credit(credit_id: Id, sim: Sim) -> Response[bytes]:
    """A credit is unpaid, also one that was completed."""
    with sim.book.writing():
        return answer(eft_credits.unpay(sim, credit_id).sent)


@post("/_sim/settle")
async def settle(sim: Sim) -> Response[bytes]:
    """The settlement of the day, now."""
    made, settled = await settlements.settle(sim)
    return answer({"settlements": made, "purchases": settled})


@post("/_sim/rotate-key")
async def rotate_key(sim: Sim) -> Response[bytes]:
    """Every webhook gets a new pair."""
    rotated = await webhooks.rotate(sim)
    return answer({"webhooks": [{"id": webhook.id, "public_key": webhook.public_key} for webhook in rotated]})


@get("/_sim/faults", sync_to_thread=False)
def faults(sim: Sim) -> Response[bytes]:
    """All of them."""
    return answer(sim.faults.all())


@put("/_sim/faults")
async def put_faults(request: Asked, sim: Sim) -> Response[bytes]:
    """Replace all numbers; what is not named is 0."""
    asked = await read(request, dict[str, float])
    try:
        sim.faults.put(sim.book, asked)
    except ValueError as cause:
        raise Refused(str(cause), "invalid", field="faults") from None
    return answer(sim.faults.all())


@get("/_sim/book", sync_to_thread=False)
def book(
    sim: Sim,
    after: Annotated[int, QueryParameter(ge=0, le=2**53)] = 0,
    limit: Annotated[int, QueryParameter(ge=1, le=OBJECTS_MAX)] = OBJECTS_USUAL,
    sums: FromQuery[bool] = False,
) -> Response[bytes]:
    """The sums of every currency and a page of the objects; `next` is the next page's `after`."""
    currencies = entries.sums(sim.book)
    if sums:
        return answer({"currencies": currencies})
    rows = [dict(row) for row in sim.book.rows(_OBJECTS, (after, limit))]
    last = [row.pop("seq") for row in rows]
    return answer({"currencies": currencies, "objects": rows, "next": last[-1] if len(rows) == limit else None})


@get("/_sim/deliveries", sync_to_thread=False)
def delivered(sim: Sim) -> Response[bytes]:
    """How many wait, were delivered and were given up."""
    return answer(deliveries.counts(sim))


@post("/_sim/deliver-now", sync_to_thread=False)
def deliver_now(sim: Sim) -> Response[bytes]:
    """Whatever waits is due."""
    return answer({"due": deliveries.deliver_now(sim)})


@get("/health/live", sync_to_thread=False)
def live() -> Response[bytes]:
    """It runs."""
    return answer({"status": "ok"})


routes = [
    pay,
    decline,
    expire,
    charge_back,
    reverse_chargeback,
    succeed_payout,
    fail_payout,
    return_payout,
    complete_credit,
    unpay_credit,
    settle,
    rotate_key,
    faults,
    put_faults,
    book,
    delivered,
    deliver_now,
    live,
]
