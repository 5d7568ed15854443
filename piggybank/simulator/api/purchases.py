"""Purchases over HTTP: create, read, refund, cancel."""

from decimal import Decimal, InvalidOperation
from typing import Annotated

import msgspec
from litestar import Response, get, post
from msgspec import Meta, Struct

from piggybank import money
from piggybank.simulator import kept_objects, purchases, refunds
from piggybank.simulator.api.bodies import (
    Amount,
    Asked,
    Email,
    Id,
    Reference,
    Sim,
    Text,
    Url,
    answer,
    check_brand,
    check_currency,
    check_urls,
    read,
)
from piggybank.simulator.book import new_id
from piggybank.simulator.kept_objects import KeptPurchase
from piggybank.simulator.objects import Client, Details, IssuerDetails, Product, Purchase, Step, TransactionData
from piggybank.simulator.refusals import Refused, required
from piggybank.simulator.simulation import Simulation

PRODUCTS_MAX = 100
DUE_MAX = 2**40  # unix seconds; far, and exact everywhere
REFERENCE_GENERATED_CHARACTERS = 8

Price = Annotated[int, Meta(ge=0, le=money.MAX_AMOUNT)]


class NewClient(Client, kw_only=True):
    """Who pays."""

    email: Email


class NewProduct(Struct, frozen=True, kw_only=True):
    """One line."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    price: Price
    quantity: str | int | float = "1"
    discount: Price = 0
    tax_percent: str | int | float = "0"
    category: Text = ""
    total_price_override: Price | None = None


class NewDetails(Struct, frozen=True, kw_only=True):
    """What is bought."""

    products: Annotated[list[NewProduct], Meta(min_length=1, max_length=PRODUCTS_MAX)]
    currency: str = "ZAR"
    language: Text = "en"
    timezone: Text = "UTC"
    notes: Annotated[str, Meta(max_length=10_000)] = ""
    due_strict: bool = False
    email_message: Text = ""
    debt: Price = 0
    subtotal_override: Price | None = None
    total_tax_override: Price | None = None
    total_discount_override: Price | None = None
    total_override: Price | None = None
    request_client_details: list[str] = []
    metadata: dict[str, object] = {}
    payment_method_details: dict[str, object] = {}


class NewPurchase(Struct, frozen=True, kw_only=True):
    """What a purchase is made of."""

    brand_id: str
    client: NewClient | None = None
    purchase: NewDetails
    reference: Reference = ""
    due: Annotated[int, Meta(ge=0, le=DUE_MAX)] | None = None
    success_redirect: Url = ""
    failure_redirect: Url = ""
    cancel_redirect: Url = ""
    success_callback: Url = ""
    payment_method_whitelist: list[Annotated[str, Meta(max_length=64)]] = []
    send_receipt: bool = False
    skip_capture: bool = False
    force_recurring: bool = False
    creator_agent: Text = ""


class Refund(Struct, frozen=True, kw_only=True):
    """Without an amount, all that is left."""

    amount: Amount | None = None


@post("/api/v1/purchases")
async def create(request: Asked, sim: Sim) -> Response[bytes]:
    """Make a purchase; its payer goes to checkout_url."""
    asked = await read(request, NewPurchase)
    kept = KeptPurchase(sent=_made(sim, asked, request.client.host if request.client else ""))
    with sim.book.writing():
        purchases.create(sim, kept)
    return answer(kept.sent, 201)


@get("/api/v1/purchases/{purchase_id:str}", sync_to_thread=False)
def one(purchase_id: Id, sim: Sim) -> Response[bytes]:
    """How it stands."""
    return answer(kept_objects.load(sim.book, KeptPurchase, purchase_id).sent)


@post("/api/v1/purchases/{purchase_id:str}/refund")
async def refund(request: Asked, purchase_id: Id, sim: Sim) -> Response[bytes]:
    """The purchase in pending_refund, or a payment."""
    asked = await read(request, Refund)
    with sim.book.writing():
        return answer(refunds.request(sim, purchase_id, asked.amount))


@post("/api/v1/purchases/{purchase_id:str}/cancel", sync_to_thread=False)
def cancel(purchase_id: Id, sim: Sim) -> Response[bytes]:
    """Before it is paid."""
    with sim.book.writing():
        return answer(purchases.cancel(sim, purchase_id).sent)


routes = [create, one, refund, cancel]


def _made(sim: Simulation, asked: NewPurchase, ip: str) -> Purchase:
    check_brand(sim, asked.brand_id)
    if asked.client is None:
        raise required("client")
    check_currency("purchase.currency", asked.purchase.currency)
    redirects = {name: getattr(asked, name) for name in ("success_redirect", "failure_redirect", "cancel_redirect")}
    check_urls(**redirects)
    _check_callback(asked.success_callback)
    made, now = new_id(), sim.book.now()
    return Purchase(
        id=made,
        status="created",
        status_history=[Step("created", now)],
        created_on=now,
        updated_on=now,
        company_id=sim.company_id,
        brand_id=asked.brand_id,
        reference=asked.reference,
        reference_generated=made[:REFERENCE_GENERATED_CHARACTERS].upper(),
        client=msgspec.convert(msgspec.to_builtins(asked.client), Client),
        client_id=new_id(),
        purchase=_details(asked.purchase),
        issuer_details=IssuerDetails(),
        transaction_data=TransactionData(),
        issued=purchases.issued(now),
        due=asked.due,
        checkout_url=f"{sim.config.page_url or sim.config.url}/checkout/{made}/",
        success_callback=asked.success_callback,
        **redirects,
        payment_method_whitelist=asked.payment_method_whitelist,
        send_receipt=asked.send_receipt,
        skip_capture=asked.skip_capture,
        force_recurring=asked.force_recurring,
        creator_agent=asked.creator_agent,
        created_from_ip=ip,
    )


def _details(asked: NewDetails) -> Details:
    products = [_product(number, product) for number, product in enumerate(asked.products)]
    subtotal = sum(_line_total(product) for product in products) if asked.subtotal_override is None else asked.subtotal_override
    # a price includes its tax, so an overridden tax changes nothing; neither does tax_percent
    total = subtotal - (asked.total_discount_override or 0) + asked.debt if asked.total_override is None else asked.total_override
    if not 1 <= total <= money.MAX_AMOUNT:
        raise Refused(f"The total of {total} must be from 1 to {money.MAX_AMOUNT}.", "invalid", field="purchase.products")
    return Details(
        currency=asked.currency,
        products=products,
        total=total,
        language=asked.language,
        timezone=asked.timezone,
        notes=asked.notes,
        due_strict=asked.due_strict,
        email_message=asked.email_message,
        debt=asked.debt,
        subtotal_override=asked.subtotal_override,
        total_tax_override=asked.total_tax_override,
        total_discount_override=asked.total_discount_override,
        total_override=asked.total_override,
        request_client_details=asked.request_client_details,
        metadata=asked.metadata,
        payment_method_details=asked.payment_method_details,
    )


def _product(number: int, asked: NewProduct) -> Product:
    field = f"purchase.products[{number}]"
    return Product(
        name=asked.name,
        quantity=_decimal(f"{field}.quantity", asked.quantity, "0.0001"),
        price=asked.price,
        discount=asked.discount,
        tax_percent=_decimal(f"{field}.tax_percent", asked.tax_percent, "0.01"),
        category=asked.category,
        total_price_override=asked.total_price_override,
    )


def _line_total(product: Product) -> int:
    if product.total_price_override is not None:
        return product.total_price_override
    return int((product.price - product.discount) * Decimal(product.quantity))


def _decimal(field: str, given: str | float, step: str) -> str:
    """As the API sends it back: "1" becomes "1.0000"."""
    try:
        exact = Decimal(str(given)).quantize(Decimal(step))
        is_in_range = 0 <= exact <= money.MAX_AMOUNT
    except InvalidOperation:  # no number, too long a number, or not-a-number, which cannot be compared
        is_in_range = False
    if not is_in_range:
        raise Refused("A valid number is required.", "invalid", field=field)
    return str(exact)


def _check_callback(url: str) -> None:
    if url and not url.startswith(("http://", "https://")):
        raise Refused("Enter a valid URL.", "invalid", field="success_callback")
