"""The company over HTTP: its key, its balance, its ways to be paid, its statements."""

import time
from typing import Annotated
from zoneinfo import available_timezones

import msgspec
from litestar import Response, get, post
from litestar.params import FromQuery
from litestar.response import Stream
from msgspec import Meta, Struct

from piggybank.simulator import entries, keys, statements
from piggybank.simulator.api.bodies import Asked, Id, Sim, answer, check_brand, check_currency, read
from piggybank.simulator.refusals import Refused, not_found

METHODS = {"visa": "Visa", "mastercard": "Mastercard", "eft": "Instant EFT"}
STATEMENTS_LISTED = 100
MOMENT_MAX = 2**40  # unix seconds

Moment = Annotated[int, Meta(ge=0, le=MOMENT_MAX)]


class Filters(Struct, frozen=True, kw_only=True):
    """From included, to not."""

    since: Moment = msgspec.field(name="from", default=0)
    until: Moment | None = msgspec.field(name="to", default=None)


class NewStatement(Struct, frozen=True, kw_only=True):
    """What a statement is made of."""

    format: str = "csv"
    timezone: str = "UTC"
    filters: Filters = Filters()


@get("/api/v1/public_key", sync_to_thread=False)
def public_key(sim: Sim) -> Response[bytes]:
    """The company's key in PEM, as a JSON string."""
    return answer(keys.public_of(sim.keys.company_private))


@get(["/api/v1/balance", "/api/v1/account/json/balance"], sync_to_thread=False)
def balance(sim: Sim) -> Response[bytes]:
    """By currency."""
    return answer(entries.balances(sim.book))


@get("/api/v1/payment_methods", sync_to_thread=False)
def payment_methods(sim: Sim, brand_id: FromQuery[str] = "", currency: FromQuery[str] = "ZAR") -> Response[bytes]:
    """How a purchase may be paid."""
    check_brand(sim, brand_id)
    check_currency("currency", currency)
    return answer({"available_payment_methods": list(METHODS), "names": METHODS, "by_country": {"any": list(METHODS)}})


@post("/api/v1/company_statements")
async def create_statement(request: Asked, sim: Sim) -> Response[bytes]:
    """Ask for a statement; it is ready a moment later."""
    asked = await read(request, NewStatement)
    if asked.format != "csv":
        raise Refused(f'"{asked.format}" is not a valid choice.', "invalid_choice", field="format")
    if asked.timezone not in available_timezones():
        raise Refused(f'"{asked.timezone}" is not a valid choice.', "invalid_choice", field="timezone")
    until = int(time.time()) + 1 if asked.filters.until is None else asked.filters.until
    if until <= asked.filters.since:
        raise Refused("It must be after from.", "invalid", field="filters.to")
    with sim.book.writing():
        made = statements.create(sim, timezone=asked.timezone, since=asked.filters.since, until=until)
    return answer(made, 201)


@get("/api/v1/company_statements", sync_to_thread=False)
def list_statements(sim: Sim) -> Response[bytes]:
    """The newest."""
    rows = sim.book.rows("SELECT id FROM statements ORDER BY seq DESC LIMIT ?", (STATEMENTS_LISTED,))
    found = [statements.load(sim.book, row["id"]).sent for row in rows]
    return answer({"results": found, "next": None, "previous": None})


@get("/api/v1/company_statements/{statement_id:str}", sync_to_thread=False)
def statement(statement_id: Id, sim: Sim) -> Response[bytes]:
    """How it stands, and where it is."""
    return answer(statements.load(sim.book, statement_id).sent)


@post("/api/v1/company_statements/{statement_id:str}/cancel", sync_to_thread=False)
def cancel_statement(statement_id: Id, sim: Sim) -> Response[bytes]:
    """While it is not finished."""
    with sim.book.writing():
        return answer(statements.cancel(sim, statement_id))


@get("/api/v1/company_statements/{statement_id:str}/download", sync_to_thread=False)
def download_statement(statement_id: Id, sim: Sim) -> Stream:
    """The CSV."""
    if statements.load(sim.book, statement_id).sent.status != "finished":
        raise not_found()
    headers = {"Content-Disposition": f'attachment; filename="statement-{statement_id}.csv"'}
    return Stream(statements.parts(sim.book, statement_id), media_type="text/csv", headers=headers)


routes = [
    public_key,
    balance,
    payment_methods,
    create_statement,
    list_statements,
    statement,
    cancel_statement,
    download_statement,
]
