"""Movements: deposits, withdrawals, transfers, reversals, and many at once."""

from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from litestar import Request, Response, post
from msgspec import Meta, Struct

from piggybank import errors, ids
from piggybank.api import problems
from piggybank.api.fields import Amount, CurrencyCode, Description, Metadata, Reference
from piggybank.api.submissions import (
    IdempotencyKey,
    actor,
    answered,
    balance_of,
    checked_key,
    respond,
    submission,
    submit,
    transaction_of,
)
from piggybank.db.engines import Database
from piggybank.identity.tokens import Principal
from piggybank.ledger import Ledger, Outcome, Submission, commands
from piggybank.ledger.balances import Balance, moment
from piggybank.ledger.idempotency import MAX_KEY_LENGTH, Answer, fingerprint
from piggybank.wallet.history import Transaction
from piggybank.wallet.payments import Payment
from piggybank.wallet.reversals import reversal_of

MAX_BATCH_COMMANDS = 1_000
DIRECT_SCOPE = "ledger:write"
DESTINATION_MAX_PAIRS = 20

Destination = Annotated[
    dict[Annotated[str, Meta(min_length=1, max_length=40)], Annotated[str, Meta(max_length=500)]],
    Meta(
        max_length=DESTINATION_MAX_PAIRS, description="Where the money goes, in your words.", examples=[{"iban": "DE02120300000000202051"}]
    ),
]
Method = Annotated[
    Literal["direct", "revio"],
    Meta(description="`direct`: your backend has the money already (scope ledger:write). `revio`: through the payment provider."),
]


class Movement(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What every movement takes. Defaults are left out of a fingerprint: a field that comes later changes no earlier key."""

    amount: Amount
    currency: CurrencyCode | None = None
    reference: Reference | None = None
    description: Description | None = None
    metadata: Metadata | None = None


class DepositRequest(Movement, frozen=True, kw_only=True, forbid_unknown_fields=True):
    method: Method


class WithdrawalRequest(Movement, frozen=True, kw_only=True, forbid_unknown_fields=True):
    method: Method
    hold: Annotated[bool, Meta(description="Reserve now, complete or cancel the payment later (direct only).")] = False
    destination: Destination | None = None


class TransferRequest(Movement, frozen=True, kw_only=True, forbid_unknown_fields=True):
    from_account: UUID
    to_account: UUID


class ReversalRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    reference: Reference | None = None
    description: Description | None = None
    metadata: Metadata | None = None


class DepositCommand(Movement, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="deposit"):
    account_id: UUID


class WithdrawalCommand(Movement, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="withdrawal"):
    account_id: UUID


class TransferCommand(Movement, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="transfer"):
    from_account: UUID
    to_account: UUID


BatchCommand = DepositCommand | WithdrawalCommand | TransferCommand


class BatchRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Each command is for itself: some may be posted while others are refused. Item N has the key `<Idempotency-Key>.<N>`."""

    commands: Annotated[list[BatchCommand], Meta(min_length=1, max_length=MAX_BATCH_COMMANDS)]


class Posted(Struct, frozen=True, kw_only=True):
    """A posted row and the account's balance right after it."""

    transaction: Transaction
    balance: Balance


class Held(Struct, frozen=True, kw_only=True):
    """An open payment and the account's balance with the hold."""

    payment: Payment
    balance: Balance


class BatchResult(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one command: `status` as if it had been sent alone."""

    index: int
    status: int
    replayed: bool = False
    transaction: Transaction | None = None
    balance: Balance | None = None
    problem: Annotated[dict[str, Any] | None, Meta(description="As the body of the error answer would be.")] = None


class BatchResponse(Struct, frozen=True, kw_only=True):
    results: list[BatchResult]


@post("/v1/accounts/{account_id:uuid}/deposits", summary="Deposit", tags=["movements"])
async def deposit(
    account_id: UUID, data: DepositRequest, idempotency_key: IdempotencyKey, principal: Principal, ledger: Ledger
) -> Response[Posted]:
    """Money came in. 201: it is posted."""
    _allow(principal, data.method)
    command = commands.Deposit(
        account_id=account_id,
        amount=data.amount,
        currency=data.currency,
        reference=data.reference,
        description=data.description,
        metadata=data.metadata,
    )
    one = submission(command, principal, idempotency_key, f"deposit {account_id}", data)
    answer, replayed = await submit(ledger, one)
    return respond(_posted(command, answer, "deposit", data.amount), 201, replayed=replayed)


@post("/v1/accounts/{account_id:uuid}/withdrawals", summary="Withdraw, or hold for a withdrawal", tags=["movements"])
async def withdraw(
    account_id: UUID, data: WithdrawalRequest, idempotency_key: IdempotencyKey, principal: Principal, ledger: Ledger
) -> Response[Posted | Held]:
    """Money goes out. 201: it is posted. 202 (with `hold`): it is reserved; complete or cancel the payment later."""
    _allow(principal, data.method)
    route = f"withdrawal {account_id}"
    if data.hold:
        hold = commands.Hold(
            account_id=account_id,
            amount=data.amount,
            currency=data.currency,
            destination=data.destination,
            reference=data.reference,
            description=data.description,
            metadata=data.metadata,
        )
        answer, replayed = await submit(ledger, submission(hold, principal, idempotency_key, route, data))
        held = Held(payment=_opened(hold, answer), balance=balance_of(account_id, answer))
        return respond(held, 202, replayed=replayed)
    command = commands.Withdraw(
        account_id=account_id,
        amount=data.amount,
        currency=data.currency,
        reference=data.reference,
        description=data.description,
        metadata=data.metadata,
    )
    answer, replayed = await submit(ledger, submission(command, principal, idempotency_key, route, data))
    return respond(_posted(command, answer, "withdrawal", -data.amount), 201, replayed=replayed)


@post("/v1/transfers", summary="Transfer", tags=["movements"])
async def transfer(data: TransferRequest, idempotency_key: IdempotencyKey, principal: Principal, ledger: Ledger) -> Response[Posted]:
    """From one account to another, both or none. A user sends from their own accounts; the answer shows the sender's side."""
    command = _transfer(data)
    answer, replayed = await submit(ledger, submission(command, principal, idempotency_key, "transfer", data))
    return respond(_posted(command, answer, "transfer_out", -data.amount), 201, replayed=replayed)


@post("/v1/transactions/{transaction_id:uuid}/reversal", summary="Reverse a transaction", tags=["movements"])
async def reverse(
    transaction_id: UUID,
    data: ReversalRequest,
    idempotency_key: IdempotencyKey,
    principal: Principal,
    ledger: Ledger,
    db: Database,
) -> Response[Posted]:
    """Undo a deposit, a withdrawal or a transfer (both legs or none), once. Refused when the money is spent."""
    checked_key(idempotency_key)
    async with db.read() as read:
        command = await reversal_of(read, transaction_id, reference=data.reference, description=data.description, metadata=data.metadata)
    leg = next(leg for leg in command.legs if leg.transaction_id == transaction_id)
    one = submission(command, principal, idempotency_key, f"reversal {transaction_id}", data)
    answer, replayed = await submit(ledger, one)
    row = transaction_of(command, answer, "reversal", -leg.amount, reverses=transaction_id)
    return respond(Posted(transaction=row, balance=balance_of(command.account_id, answer)), 201, replayed=replayed)


@post("/v1/transactions:batch", status_code=200, summary="Up to 1,000 movements", tags=["movements"])
async def batch(
    data: BatchRequest, idempotency_key: IdempotencyKey, principal: Principal, ledger: Ledger, request: Request[Any, Any, Any]
) -> BatchResponse:
    """Independent, not atomic: a status for each. Send the same body with the same key again to finish the rest."""
    header_key = checked_key(idempotency_key)
    if not all(isinstance(command, TransferCommand) for command in data.commands):
        _allow(principal, "direct")
    if len(header_key) + len(str(MAX_BATCH_COMMANDS)) > MAX_KEY_LENGTH:
        limit = MAX_KEY_LENGTH - len(str(MAX_BATCH_COMMANDS))
        raise problems.invalid("Idempotency-Key", f"takes {limit} characters in a batch: each command adds its index", "too_long")
    who = actor(principal)
    many = [
        Submission(_command(item), who, f"{header_key}.{index}", fingerprint("batch", item)) for index, item in enumerate(data.commands)
    ]
    outcomes = await ledger.submit_many(many)
    return BatchResponse(
        results=[
            _result(index, item, one, outcome, request.scope["state"]["request_id"])
            for index, (item, one, outcome) in enumerate(zip(data.commands, many, outcomes, strict=True))
        ]
    )


def _allow(principal: Principal, method: str) -> None:
    if method == "revio":
        raise errors.ProviderNotConfigured
    if DIRECT_SCOPE not in principal.scopes:
        raise errors.Forbidden(needs=DIRECT_SCOPE)


def _posted(command: commands.Command, answer: Answer, kind: str, amount: int) -> Posted:
    return Posted(transaction=transaction_of(command, answer, kind, amount), balance=balance_of(command.account_id, answer))


def _opened(hold: commands.Hold, answer: Answer) -> Payment:
    assert answer.payment_id is not None
    return Payment(
        id=answer.payment_id,
        account_id=hold.account_id,
        kind="withdrawal",
        method="direct",
        status="pending",
        amount=hold.amount,
        currency=answer.currency,
        held=hold.amount,
        transaction_id=None,
        destination=hold.destination,
        reference=hold.reference,
        description=hold.description,
        metadata=hold.metadata or {},
        created_at=ids.time_of(answer.payment_id),
        updated_at=moment(answer.at_ms),
    )


def _transfer(data: TransferRequest | TransferCommand) -> commands.Transfer:
    return commands.Transfer(
        account_id=data.from_account,
        to_account=data.to_account,
        amount=data.amount,
        currency=data.currency,
        reference=data.reference,
        description=data.description,
        metadata=data.metadata,
    )


def _command(item: BatchCommand) -> commands.Command:
    if isinstance(item, TransferCommand):
        return _transfer(item)
    make = commands.Deposit if isinstance(item, DepositCommand) else commands.Withdraw
    return make(**msgspec.structs.asdict(item))


def _result(index: int, item: BatchCommand, one: Submission, outcome: Outcome | errors.Error, request_id: str) -> BatchResult:
    try:
        if isinstance(outcome, errors.Error):
            raise outcome
        answer = answered(outcome)
    except errors.Error as error:
        status = problems.status_of(type(error))
        problem = msgspec.json.decode(problems.body(error, status, request_id))
        return BatchResult(index=index, status=status, replayed=error.replayed, problem=problem)
    kind, amount = _SIGNED[type(item)]
    posted = _posted(one.command, answer, kind, amount * item.amount)
    return BatchResult(index=index, status=201, replayed=outcome.replayed, transaction=posted.transaction, balance=posted.balance)


# what a command of a batch posts on its source account, and its sign there
_SIGNED: dict[type[BatchCommand], tuple[str, int]] = {
    DepositCommand: ("deposit", 1),
    WithdrawalCommand: ("withdrawal", -1),
    TransferCommand: ("transfer_out", -1),
}

routes = [deposit, withdraw, transfer, reverse, batch]
