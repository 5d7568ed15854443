"""Payouts over HTTP: create, read, execute."""

import msgspec
from litestar import Response, get, post
from litestar.params import FromQuery
from msgspec import Struct

from piggybank.simulator import kept_objects, payouts
from piggybank.simulator.api.bodies import (
    Amount,
    Asked,
    Email,
    Id,
    Reference,
    Sim,
    Text,
    answer,
    check_brand,
    check_currency,
    read,
)
from piggybank.simulator.book import new_id
from piggybank.simulator.kept_objects import KeptPayout
from piggybank.simulator.objects import Client, PaymentBlock, Payout, Step, TransactionData
from piggybank.simulator.simulation import Simulation


class NewClient(Client, kw_only=True):
    """Who is paid."""

    email: Email


class NewPayment(Struct, frozen=True, kw_only=True):
    """How much."""

    amount: Amount
    currency: str
    description: Text = ""


class NewPayout(Struct, frozen=True, kw_only=True):
    """What a payout is made of."""

    brand_id: str
    client: NewClient
    payment: NewPayment
    reference: Reference = ""
    sender_name: Text = ""


@post("/api/v1/payouts")
async def create(request: Asked, sim: Sim) -> Response[bytes]:
    """Make a payout; money moves when its execution_url is called."""
    asked = await read(request, NewPayout)
    kept = KeptPayout(sent=_made(sim, asked))
    with sim.book.writing():
        payouts.create(sim, kept)
    return answer(kept.sent, 201)


@get("/api/v1/payouts/{payout_id:str}", sync_to_thread=False)
def one(payout_id: Id, sim: Sim) -> Response[bytes]:
    """How it stands."""
    return answer(kept_objects.load(sim.book, KeptPayout, payout_id).sent)


@post("/api/v1/payouts/{payout_id:str}/execute")
async def execute(request: Asked, payout_id: Id, sim: Sim) -> Response[bytes]:
    """Send the money. The body holds the details of the method, a card or a phone; any JSON object will do here."""
    with sim.book.writing():
        payouts.count(sim, payout_id)  # on its own, so that a refused call counts too
    await read(request, dict[str, msgspec.Raw])
    with sim.book.writing():
        return answer(payouts.execute(sim, payout_id).sent)


@get("/api/v1/payout_methods", sync_to_thread=False)
def methods(currency: FromQuery[str] = "ZAR") -> Response[bytes]:
    """What a payout may go to."""
    check_currency("currency", currency)
    names = {"visa": "Visa", "mastercard": "Mastercard"}
    return answer({"available_payout_methods": list(names), "names": names, "currency": currency})


routes = [create, one, execute, methods]


def _made(sim: Simulation, asked: NewPayout) -> Payout:
    check_brand(sim, asked.brand_id)
    check_currency("payment.currency", asked.payment.currency)
    made, now = new_id(), sim.book.now()
    return Payout(
        id=made,
        status="initialized",
        status_history=[Step("initialized", now)],
        created_on=now,
        updated_on=now,
        company_id=sim.company_id,
        brand_id=asked.brand_id,
        reference=asked.reference,
        client=msgspec.convert(msgspec.to_builtins(asked.client), Client),
        client_id=new_id(),
        payment=PaymentBlock(
            payment_type="payout",
            is_outgoing=True,
            amount=asked.payment.amount,
            currency=asked.payment.currency,
            net_amount=asked.payment.amount,
            description=asked.payment.description,
        ),
        sender_name=asked.sender_name,
        execution_url=f"{sim.config.url}/api/v1/payouts/{made}/execute/",
        transaction_data=TransactionData(),
    )
