"""EFT credits over HTTP: a token, a credit, where to be called back."""

import datetime
from typing import Annotated, Literal
from urllib.parse import parse_qs

from litestar import Response, get, post
from litestar.di import NamedDependency
from msgspec import Meta, Struct

from piggybank.simulator import eft_credits, kept_objects
from piggybank.simulator.api.bodies import Asked, Id, Sim, Text, answer, read
from piggybank.simulator.api.guard import TOKEN_TTL_S, Guard
from piggybank.simulator.book import new_id
from piggybank.simulator.kept_objects import KeptCredit
from piggybank.simulator.objects import EftCredit
from piggybank.simulator.refusals import required

AMOUNT_MAX_CENTS = 499_999_999  # less than R5,000,000 a payment
FOUND_MAX = 100  # credits of one contractReference

Short = Annotated[str, Meta(min_length=1, max_length=100)]
AccountNumber = Annotated[str, Meta(pattern=r"^[0-9]{5,20}$")]
BranchCode = Annotated[str, Meta(pattern=r"^[0-9]{4,6}$")]
AccountType = Literal["CURRENT", "SAVINGS", "TRANSMISSION"]

_PUT_CALLBACK = """
INSERT INTO callbacks (callback_type, client_id, url, version) VALUES (?, ?, ?, ?)
ON CONFLICT (callback_type) DO UPDATE SET client_id = excluded.client_id, url = excluded.url, version = excluded.version
"""
_BY_REFERENCE = "SELECT id FROM objects WHERE type = 'eft_credit' AND reference = ? ORDER BY seq LIMIT ?"


class Identification(Struct, frozen=True, kw_only=True):
    """How to reach the debtor."""

    phoneNumber: Text = ""  # noqa: N815 - the API's own name
    emailAddress: Text = ""  # noqa: N815


class Debtor(Struct, frozen=True, kw_only=True):
    """Whose account the money leaves."""

    accountNumber: AccountNumber  # noqa: N815
    branchCode: BranchCode  # noqa: N815
    accountType: AccountType  # noqa: N815
    bank: Text = ""
    firstName: Text = ""  # noqa: N815
    identification: Identification = Identification()


class Creditor(Struct, frozen=True, kw_only=True):
    """Who is paid."""

    accountNumber: AccountNumber  # noqa: N815
    branchCode: BranchCode  # noqa: N815
    accountType: AccountType  # noqa: N815
    name: Short
    idNumber: Text = ""  # noqa: N815
    phoneNumber: Text = ""  # noqa: N815


class NewCredit(Struct, frozen=True, kw_only=True):
    """What a credit is made of."""

    paymentDate: datetime.date  # noqa: N815
    profileCode: Short  # noqa: N815
    abbreviatedName: Short  # noqa: N815
    contractReference: Short  # noqa: N815
    amountCents: Annotated[int, Meta(ge=1, le=AMOUNT_MAX_CENTS)]  # noqa: N815
    serviceType: Literal["SAMEDAY", "ONEDAY", "TWODAY"]  # noqa: N815
    debtor: Debtor
    creditor: Creditor


class NewCallback(Struct, frozen=True, kw_only=True):
    """Where changes of what kind are told."""

    clientId: str | int  # noqa: N815
    url: Annotated[str, Meta(max_length=2_000, pattern=r"^https?://[^\s]+$")]
    callbackType: Literal["DEBICHECK_COLLECTION", "DEBICHECK_MANDATE", "EFT_COLLECTION", "EFT_PAYMENT"]  # noqa: N815
    callbackVersion: Literal["V2"] = "V2"  # noqa: N815


@post("/oauth2/token")
async def token(request: Asked, guard: NamedDependency[Guard]) -> Response[bytes]:
    """OAuth2 client credentials."""
    form = parse_qs((await request.body()).decode("ascii", "replace"))
    if not guard.may_have_token(request):
        return answer({"error": "invalid_client"}, 401)
    if form.get("grant_type") != ["client_credentials"]:
        return answer({"error": "unsupported_grant_type"}, 400)
    return answer({"access_token": guard.new_token(), "expires_in": TOKEN_TTL_S, "token_type": "Bearer"})


@post("/v2/payment/eft")
async def create(request: Asked, sim: Sim) -> Response[bytes]:
    """Pay. The same contractReference again pays again."""
    asked = await read(request, NewCredit)
    sent = EftCredit(
        id=new_id(),
        status="PENDING",
        contractReference=asked.contractReference,
        amountCents=asked.amountCents,
        serviceType=asked.serviceType,
        paymentDate=asked.paymentDate.isoformat(),
    )
    now = sim.book.now()
    kept = KeptCredit(sent=sent, account=asked.creditor.accountNumber, currency=eft_credits.CURRENCY, created_on=now, updated_on=now)
    with sim.book.writing():
        eft_credits.create(sim, kept)
    return answer({"id": sent.id, "status": sent.status, "contractReference": sent.contractReference}, 201)


@get("/v2/payment/eft/{credit_id:str}", sync_to_thread=False)
def one(credit_id: Id, sim: Sim) -> Response[bytes]:
    """How it stands."""
    return answer(kept_objects.load(sim.book, KeptCredit, credit_id).sent)


@get("/v2/payment/eft", sync_to_thread=False)
def found(request: Asked, sim: Sim) -> Response[bytes]:
    """All of one contractReference, the oldest first."""
    reference = request.query_params.get("contractReference", "")
    if not reference:
        raise required("contractReference")
    rows = sim.book.rows(_BY_REFERENCE, (reference, FOUND_MAX))
    return answer([kept_objects.load(sim.book, KeptCredit, row["id"]).sent for row in rows])


@post("/v2/clientcallbackurl")
async def put_callback(request: Asked, sim: Sim) -> Response[bytes]:
    """One URL a type; calls are not signed."""
    asked = await read(request, NewCallback)
    with sim.book.writing():
        sim.book.execute(_PUT_CALLBACK, (asked.callbackType, str(asked.clientId), asked.url, asked.callbackVersion))
    return answer(asked)


routes = [token, create, one, found, put_callback]
