"""The provider's side of the books, for operators: its events, what nobody knows, refunds, and the nightly comparisons."""

from typing import Annotated, Literal
from uuid import UUID

from litestar import Response, get, post
from litestar.openapi import ResponseSpec
from litestar.params import QueryParameter
from msgspec import Meta, Struct, structs

from piggybank import errors
from piggybank.api import acts
from piggybank.api.accounts import Limit
from piggybank.api.fields import Amount, Description, Metadata, Reference
from piggybank.api.history import Cursor
from piggybank.api.submissions import IdempotencyKey, balance_of, opened_payment, respond, submission, submit
from piggybank.api.transactions import Opened
from piggybank.db.engines import Database, Write
from piggybank.identity import audit
from piggybank.identity.tokens import Principal
from piggybank.ledger import Ledger, commands
from piggybank.wallet import inbox, pages, payments, reconciliation, resolutions
from piggybank.wallet.inbox import Event, EventPage, EventStatus
from piggybank.wallet.payments import PaymentPage
from piggybank.wallet.provider import Provider
from piggybank.wallet.reconciliation import ReconciliationPage, ReconciliationWithItems
from piggybank.wallet.resolutions import Outcome, Resolution

NOTE_MAX_CHARACTERS = 500

WhichStatus = Annotated[
    Literal["new", "applied", "ignored", "unmatched", "hint"] | None,
    QueryParameter(description="Only events in this state; `unmatched` are those that name nothing of ours."),
]
ObjectId = Annotated[str | None, QueryParameter(max_length=200, description="Only events of this object of the provider's.")]
PaymentId = Annotated[UUID | None, QueryParameter(description="Only events of this payment.")]
Which = Annotated[
    Literal["unknown", "open", "differing"],
    QueryParameter(description="`unknown`: nobody can tell; `open`: under way; `differing`: another amount was paid than was asked for."),
]


class RefundRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    amount: Amount
    reference: Reference | None = None
    description: Description | None = None
    metadata: Metadata | None = None


class ResolveRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What became of it, and how you know."""

    outcome: Annotated[Outcome, Meta(description="`completed`: the money has moved. `failed`: it has not, and will not.")]
    note: Annotated[
        str,
        Meta(min_length=1, max_length=NOTE_MAX_CHARACTERS, description="How you know.", examples=["Confirmed by Revio, case 2041"]),
    ]


@get("/v1/ops/payments", tags=["operations"], summary="Payments of the provider that need a look")
async def list_payments(db: Database, which: Which = "unknown", cursor: Cursor = None, limit: Limit = pages.LIMIT_DEFAULT) -> PaymentPage:
    """Newest first, of everybody."""
    async with db.read() as read:
        return await payments.listed(read, which, cursor=cursor, limit=limit)


@post("/v1/ops/payments/{payment_id:uuid}/refund", status_code=202, tags=["operations"], summary="Give a deposit back")
async def refund(
    payment_id: UUID, data: RefundRequest, idempotency_key: IdempotencyKey, principal: Principal, ledger: Ledger, provider: Provider
) -> Response[Opened]:
    """All of it or a part, as often as something is left. It is reserved now, and posted when the provider has done it."""
    mode = await provider.check()
    async with provider.db.read() as read:
        refunded = await payments.current(read, payment_id)
    opening = commands.OpenPayment(
        account_id=refunded.account_id,
        kind="refund",
        method="revio",
        provider=mode,
        refund_of=payment_id,
        amount=data.amount,
        reference=data.reference,
        description=data.description,
        metadata=data.metadata,
    )
    act = acts.of(principal, "payment.refund", f"payment:{payment_id}", {"amount": data.amount})
    answer, replayed = await submit(ledger, submission(opening, principal, idempotency_key, f"refund {payment_id}", data, act))
    return respond(Opened(payment=opened_payment(opening, answer), balance=balance_of(refunded.account_id, answer)), 202, replayed=replayed)


@post(
    "/v1/ops/payments/{payment_id:uuid}/resolve",
    status_code=200,
    tags=["operations"],
    summary="Say what became of an unknown payment",
    responses={202: ResponseSpec(Resolution, generate_examples=False, description="Proposed; another operator must confirm.")},
)
async def resolve(payment_id: UUID, data: ResolveRequest, principal: Principal, ledger: Ledger, db: Database) -> Response[Resolution]:
    """Takes two operators. 202: you have proposed it, another one must confirm. 200: it is confirmed, and posted."""
    if principal.user_id is None:
        raise errors.Forbidden(detail="Only an operator may do that.")

    def note(write: Write, verb: resolutions.Verb) -> None:
        details = {"outcome": data.outcome, "note": data.note}
        audit.record(write, principal.actor, f"payment.resolve.{verb}", f"payment:{payment_id}", details)

    found = await resolutions.resolve(db, ledger, payment_id, data.outcome, data.note, principal.user_id, note)
    return Response(found, status_code=202 if found.confirmed_by is None else 200)


class DismissRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why it is no concern of ours."""

    note: Annotated[
        str,
        Meta(min_length=1, max_length=NOTE_MAX_CHARACTERS, description="Why.", examples=["Of another shop, paid back in the dashboard"]),
    ]


@get("/v1/ops/provider-events", tags=["operations"], summary="The provider's events")
async def list_events(
    db: Database,
    principal: Principal,
    status: WhichStatus = None,
    object_id: ObjectId = None,
    payment_id: PaymentId = None,
    cursor: Cursor = None,
    limit: Limit = pages.LIMIT_DEFAULT,
) -> EventPage:
    """Newest first, with what became of them; for operators as they came."""
    async with db.read() as read:
        page = await inbox.page(read, status=status, object_id=object_id, payment_id=payment_id, cursor=cursor, limit=limit)
    return EventPage(items=[_for(principal, event) for event in page.items], next_cursor=page.next_cursor)


@get("/v1/ops/provider-events/{event_id:uuid}", tags=["operations"], summary="One event")
async def get_event(event_id: UUID, principal: Principal, db: Database) -> Event:
    """For operators with its body."""
    async with db.read() as read:
        return _for(principal, await inbox.one(read, event_id))


@post("/v1/ops/provider-events/{event_id:uuid}/replay", status_code=200, tags=["operations"], summary="Apply an event again")
async def replay(event_id: UUID, principal: Principal, ledger: Ledger, provider: Provider) -> Event:
    """At any age: nothing of it happens twice. Answers the event with what became of it now."""

    def note(write: Write, status: EventStatus) -> None:
        audit.record(write, principal.actor, "provider_event.replay", f"provider_event:{event_id}", {"status": status})

    return await inbox.replay(provider.db, ledger, await provider.mode(), event_id, note)


@post("/v1/ops/provider-events/{event_id:uuid}/dismiss", status_code=200, tags=["operations"], summary="Dismiss an unmatched event")
async def dismiss(event_id: UUID, data: DismissRequest, principal: Principal, db: Database) -> Event:
    """It names nothing of ours and never will: `ignored`, and no alert counts it. It posts nothing, and can still be replayed."""

    def note(write: Write, was: str) -> None:
        audit.record(write, principal.actor, "provider_event.dismiss", f"provider_event:{event_id}", {"note": data.note, "was": was})

    return await inbox.dismiss(db, event_id, data.note, note)


@get("/v1/ops/reconciliations", tags=["operations"], summary="Comparisons with the provider's statement")
async def list_reconciliations(db: Database, cursor: Cursor = None, limit: Limit = pages.LIMIT_DEFAULT) -> ReconciliationPage:
    """Newest first; one is made each night, and by `piggybank provider reconcile`."""
    async with db.read() as read:
        return await reconciliation.page(read, cursor=cursor, limit=limit)


@get("/v1/ops/reconciliations/{reconciliation_id:uuid}", tags=["operations"], summary="One comparison")
async def get_reconciliation(reconciliation_id: UUID, db: Database) -> ReconciliationWithItems:
    """With everything that differs, and what to do about it."""
    async with db.read() as read:
        return await reconciliation.one(read, reconciliation_id)


def _for(principal: Principal, event: Event) -> Event:
    """A key that watches has no need of who paid with what card."""
    return structs.replace(event, body=None) if principal.role == "service" else event


routes = [
    list_payments,
    refund,
    resolve,
    list_events,
    get_event,
    replay,
    dismiss,
    list_reconciliations,
    get_reconciliation,
]
