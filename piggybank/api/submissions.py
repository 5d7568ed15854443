"""From a request to the ledger and back: the key, the fingerprint, the answer."""

import re
from typing import Annotated, TypeVar
from uuid import UUID

from litestar import Response
from litestar.params import HeaderParameter
from msgspec import Struct

from piggybank import errors, ids, money
from piggybank.api import problems
from piggybank.identity.tokens import Principal
from piggybank.ledger import Actor, Ledger, Outcome, Submission, balances
from piggybank.ledger.balances import Balance
from piggybank.ledger.commands import Act, Command, OpenPayment
from piggybank.ledger.idempotency import MAX_KEY_LENGTH, Answer, fingerprint
from piggybank.wallet import orders
from piggybank.wallet.history import Transaction
from piggybank.wallet.payments import Payment

REPLAYED = {"Idempotency-Replayed": "true"}
Body = TypeVar("Body")
_KEY = re.compile(rf"[\x21-\x7e]{{1,{MAX_KEY_LENGTH}}}")

IdempotencyKey = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        description="Required. Any text of yours, 1 to 255 visible ASCII characters, new for each movement. Send the same key again "
        "when you do not know what became of a request: you get the same answer, and nothing happens twice. Kept for 90 days.",
    ),
]


class NoBody(Struct, frozen=True):
    """A request that says everything in its path."""


def only_user(principal: Principal) -> UUID | None:
    """Whose rows the caller may reach; None: everybody's."""
    return principal.user_id if principal.role == "user" else None


def actor(principal: Principal) -> Actor:
    """The caller, as the ledger knows them."""
    return Actor(principal.role, principal.user_id)


def submission(command: Command, principal: Principal, key: str | None, route: str, body: Struct, act: Act | None = None) -> Submission:
    """A command with its key. Raises IdempotencyKeyRequired, InvalidRequest."""
    return Submission(command, actor(principal), checked_key(key), fingerprint(route, body), act)


def checked_key(key: str | None) -> str:
    """The key as it was sent, when it is one."""
    if not key:
        raise errors.IdempotencyKeyRequired
    if not _KEY.fullmatch(key):
        raise problems.invalid("Idempotency-Key", f"takes 1 to {MAX_KEY_LENGTH} visible ASCII characters", "malformed")
    return key


async def submit(ledger: Ledger, one: Submission) -> tuple[Answer, bool]:
    """The answer, and whether it was given before. Raises the refusal."""
    outcome = await ledger.submit(one)
    return answered(outcome), outcome.replayed


def answered(outcome: Outcome) -> Answer:
    """The answer of an outcome; raises the refusal, saying so when it was given before."""
    if isinstance(outcome.decision, errors.Error):
        outcome.decision.replayed = outcome.replayed
        raise outcome.decision
    return outcome.decision


def respond(body: Body, status: int, *, replayed: bool) -> Response[Body]:
    """`body`, marked when it is the answer to an earlier request."""
    return Response(body, status_code=status, headers=REPLAYED if replayed else None)


def balance_of(account_id: UUID, answer: Answer) -> Balance:
    """The account's balance as it was right after the command."""
    return Balance(
        account_id=account_id,
        currency=answer.currency,
        minor_unit=money.MINOR_UNITS[answer.currency],
        balance=answer.balance,
        held=answer.held,
        owed=answer.owed,
        available=answer.balance - answer.held,
        version=answer.version,
        as_of=balances.moment(answer.at_ms),
    )


def transaction_of(command: Command, answer: Answer, kind: str, amount: int, *, reverses: UUID | None = None) -> Transaction:
    """The row that a command posted on its source account."""
    assert answer.transaction_id is not None
    assert answer.sequence is not None
    return Transaction(
        id=answer.transaction_id,
        account_id=command.account_id,
        kind=kind,
        amount=amount,
        currency=answer.currency,
        balance_after=answer.balance,
        sequence=answer.sequence,
        transfer_id=answer.transfer_id,
        payment_id=answer.payment_id,
        reverses=reverses,
        reference=command.reference,
        description=command.description,
        metadata=command.metadata or {},
        created_at=ids.time_of(answer.transaction_id),
    )


def opened_payment(opening: OpenPayment, answer: Answer, checkout: orders.Payment | None = None) -> Payment:
    """The payment as it was when it was opened; a deposit with its checkout. The same whenever it is answered again."""
    assert answer.payment_id is not None
    with_url = checkout is not None and checkout.provider_url is not None
    status = "pending" if with_url or opening.method == "direct" else "creating"
    return Payment(
        id=answer.payment_id,
        account_id=opening.account_id,
        kind=opening.kind,
        method=opening.method,
        status=status if checkout is None or with_url else checkout.status,
        amount=opening.amount,
        currency=answer.currency,
        held=0 if opening.kind == "deposit" else opening.amount,
        transaction_id=None,
        destination=opening.destination,
        reference=opening.reference,
        description=opening.description,
        metadata=opening.metadata or {},
        created_at=ids.time_of(answer.payment_id),
        updated_at=balances.moment(answer.at_ms),
        provider=checkout.provider if checkout else opening.provider,
        provider_id=checkout.provider_id if checkout else None,
        checkout_url=checkout.provider_url if checkout else None,
        expires_at=checkout.expires_at if checkout else opening.expires_at,
        refund_of=opening.refund_of,
    )
