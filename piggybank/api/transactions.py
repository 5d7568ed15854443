"""Movements: deposits, withdrawals, transfers, reversals, and many at once."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from litestar import Response, post
from litestar.openapi import ResponseSpec
from msgspec import Meta, Struct

from piggybank import errors
from piggybank.api import acts, problems
from piggybank.api.fields import Amount, CurrencyCode, Description, Metadata, Reference
from piggybank.api.submissions import (
    IdempotencyKey,
    actor,
    answered,
    balance_of,
    checked_key,
    opened_payment,
    respond,
    submission,
    submit,
    transaction_of,
)
from piggybank.db.engines import Database
from piggybank.identity.tokens import Principal
from piggybank.ledger import Ledger, Outcome, Submission, commands
from piggybank.ledger.balances import Balance
from piggybank.ledger.idempotency import MAX_KEY_LENGTH, Answer, fingerprint
from piggybank.revio.payouts import EFT_CURRENCY
from piggybank.settings import ProviderMode
from piggybank.wallet import deposits, orders
from piggybank.wallet.history import Transaction
from piggybank.wallet.payments import Payment
from piggybank.wallet.provider import Provider
from piggybank.wallet.reversals import reversal_of

MAX_BATCH_COMMANDS = 1_000
DIRECT_SCOPE = "ledger:write"
DESTINATION_MAX_PAIRS = 20
RETURN_URL_MAX_CHARACTERS = 500

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
ReturnUrl = Annotated[
    str,
    Meta(
        pattern=r"^https?://[!-~]+$",
        max_length=RETURN_URL_MAX_CHARACTERS,
        description="With `revio`: where the checkout page sends people afterwards. It proves nothing: ask for the payment.",
        examples=["https://shop.example.com/thanks"],
    ),
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
    return_url: ReturnUrl | None = None


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


def posted(command: commands.Command, answer: Answer, kind: str, amount: int) -> Posted:
    """The answer of a movement: its row and the balance, on the source account."""
    return Posted(transaction=transaction_of(command, answer, kind, amount), balance=balance_of(command.account_id, answer))


class Opened(Struct, frozen=True, kw_only=True):
    """A payment that is under way, and the account's balance with what it reserves. Ask for the payment until it has ended."""

    payment: Payment
    balance: Balance


UNDER_WAY = ResponseSpec(Opened, generate_examples=False, description="A payment is under way.")


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


@post(
    "/v1/accounts/{account_id:uuid}/deposits",
    summary="Deposit",
    tags=["movements"],
    responses={202: UNDER_WAY},
    fast_path=True,
    queued=True,
)
async def deposit(
    account_id: UUID, data: DepositRequest, idempotency_key: IdempotencyKey, principal: Principal, ledger: Ledger, provider: Provider
) -> Response[Posted | Opened]:
    """Money comes in. 201 (`direct`): it is posted. 202 (`revio`): send the person to `checkout_url`; it is posted when they have paid."""
    route = f"deposit {account_id}"
    if data.method == "revio":
        mode = await provider.check()
        expires_at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=deposits.CHECKOUT_FOR_S)
        opening = _opening(account_id, data, "deposit", mode, return_url=data.return_url, expires_at=expires_at)
        act = acts.of(principal, "account.deposit", str(account_id), {"amount": data.amount})
        answer, replayed = await submit(ledger, submission(opening, principal, idempotency_key, route, data, act))
        assert answer.payment_id is not None
        payment = await deposits.checkout(provider.db, ledger, provider, answer.payment_id)
        if payment.provider_url is None and payment.status == "failed":
            detail = "It has failed; send it with a new Idempotency-Key."
            raise errors.ProviderRefused(payment_id=str(payment.id), reason=payment.failure, detail=detail)
        return respond(_opened(opening, answer, payment), 202, replayed=replayed)
    _allow_direct(principal)
    if data.return_url is not None:
        raise problems.invalid("return_url", "is for the method revio", "not_allowed")
    command = commands.Deposit(
        account_id=account_id,
        amount=data.amount,
        currency=data.currency,
        reference=data.reference,
        description=data.description,
        metadata=data.metadata,
    )
    one = submission(command, principal, idempotency_key, route, data)
    answer, replayed = await submit(ledger, one)
    return respond(posted(command, answer, "deposit", data.amount), 201, replayed=replayed)


@post(
    "/v1/accounts/{account_id:uuid}/withdrawals",
    summary="Withdraw, or hold for a withdrawal",
    tags=["movements"],
    responses={202: UNDER_WAY},
    fast_path=True,
    queued=True,
)
async def withdraw(
    account_id: UUID, data: WithdrawalRequest, idempotency_key: IdempotencyKey, principal: Principal, ledger: Ledger, provider: Provider
) -> Response[Posted | Opened]:
    """Money goes out. 201: it is posted. 202: it is reserved; `revio` pays it out, with `hold` you complete or cancel it later."""
    route = f"withdrawal {account_id}"
    if data.method == "revio":
        opening = _opening(account_id, data, "withdrawal", await _payable(provider, data), destination=data.destination)
    else:
        _allow_direct(principal)
        opening = _opening(account_id, data, "withdrawal", None, destination=data.destination)
    if data.hold or data.method == "revio":
        act = acts.of(principal, "account.withdraw", str(account_id), {"amount": data.amount})
        answer, replayed = await submit(ledger, submission(opening, principal, idempotency_key, route, data, act))
        return respond(_opened(opening, answer), 202, replayed=replayed)
    command = commands.Withdraw(
        account_id=account_id,
        amount=data.amount,
        currency=data.currency,
        reference=data.reference,
        description=data.description,
        metadata=data.metadata,
    )
    answer, replayed = await submit(ledger, submission(command, principal, idempotency_key, route, data))
    return respond(posted(command, answer, "withdrawal", -data.amount), 201, replayed=replayed)


@post("/v1/transfers", summary="Transfer", tags=["movements"], fast_path=True, queued=True)
async def transfer(data: TransferRequest, idempotency_key: IdempotencyKey, principal: Principal, ledger: Ledger) -> Response[Posted]:
    """From one account to another, both or none. A user sends from their own accounts; the answer shows the sender's side."""
    command = _transfer(data)
    act = acts.of(principal, "account.transfer", str(data.from_account), {"to": str(data.to_account), "amount": data.amount})
    answer, replayed = await submit(ledger, submission(command, principal, idempotency_key, "transfer", data, act))
    return respond(posted(command, answer, "transfer_out", -data.amount), 201, replayed=replayed)


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
    act = acts.of(principal, "transaction.reverse", f"transaction:{transaction_id}", {"amount": leg.amount})
    one = submission(command, principal, idempotency_key, f"reversal {transaction_id}", data, act)
    answer, replayed = await submit(ledger, one)
    row = transaction_of(command, answer, "reversal", -leg.amount, reverses=transaction_id)
    return respond(Posted(transaction=row, balance=balance_of(command.account_id, answer)), 201, replayed=replayed)


@post("/v1/transactions:batch", status_code=200, summary="Up to 1,000 movements", tags=["movements"], fast_path=True)
async def batch(
    data: BatchRequest, idempotency_key: IdempotencyKey, principal: Principal, ledger: Ledger, request_id: str
) -> BatchResponse:
    """Independent, not atomic: a status for each. Send the same body with the same key again to finish the rest."""
    header_key = checked_key(idempotency_key)
    if not all(isinstance(command, TransferCommand) for command in data.commands):
        _allow_direct(principal)
    if len(header_key) + len(str(MAX_BATCH_COMMANDS)) > MAX_KEY_LENGTH:
        limit = MAX_KEY_LENGTH - len(str(MAX_BATCH_COMMANDS))
        raise problems.invalid("Idempotency-Key", f"takes {limit} characters in a batch: each command adds its index", "too_long")
    who = actor(principal)
    many = [
        Submission(
            _command(item), who, f"{header_key}.{index}", fingerprint("batch", item), _act_of(item, principal, f"{header_key}.{index}")
        )
        for index, item in enumerate(data.commands)
    ]
    outcomes = await ledger.submit_many(many)
    return BatchResponse(
        results=[
            _result(index, item, one, outcome, request_id)
            for index, (item, one, outcome) in enumerate(zip(data.commands, many, outcomes, strict=True))
        ]
    )


def _allow_direct(principal: Principal) -> None:
    if DIRECT_SCOPE not in principal.scopes:
        raise errors.Forbidden(needs=DIRECT_SCOPE)


async def _payable(provider: Provider, data: WithdrawalRequest) -> ProviderMode:
    """Raises ProviderNotConfigured, or InvalidRequest for what the provider could not pay out."""
    mode = await provider.check()
    if data.hold:
        raise problems.invalid("hold", "is for the method direct: what the provider pays out is always reserved first", "not_allowed")
    driver = await provider.payouts()
    wrong = driver.missing(data.currency or EFT_CURRENCY, data.amount, data.destination or {})
    if wrong is not None:
        raise problems.invalid(*wrong, "required")
    return mode


def _opening(
    account_id: UUID,
    data: DepositRequest | WithdrawalRequest,
    kind: commands.PaymentKind,
    mode: ProviderMode | None,
    *,
    destination: dict[str, str] | None = None,
    return_url: str | None = None,
    expires_at: datetime | None = None,
) -> commands.OpenPayment:
    return commands.OpenPayment(
        account_id=account_id,
        kind=kind,
        amount=data.amount,
        currency=data.currency,
        method=data.method,
        provider=mode,
        destination=destination,
        return_url=return_url,
        expires_at=expires_at,
        reference=data.reference,
        description=data.description,
        metadata=data.metadata,
    )


def _opened(opening: commands.OpenPayment, answer: Answer, checkout: orders.Payment | None = None) -> Opened:
    return Opened(payment=opened_payment(opening, answer, checkout), balance=balance_of(opening.account_id, answer))


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


def _act_of(item: BatchCommand, principal: Principal, key: str) -> commands.Act | None:
    """Each transfer is a row of its own, as if it had been sent alone; the rest is for API keys only (`_allow_direct`)."""
    if not isinstance(item, TransferCommand):
        return None
    return acts.of(principal, "account.transfer", str(item.from_account), {"to": str(item.to_account), "amount": item.amount, "batch": key})


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
    made = posted(one.command, answer, kind, amount * item.amount)
    return BatchResult(index=index, status=201, replayed=outcome.replayed, transaction=made.transaction, balance=made.balance)


# what a command of a batch posts on its source account, and its sign there
_SIGNED: dict[type[BatchCommand], tuple[str, int]] = {
    DepositCommand: ("deposit", 1),
    WithdrawalCommand: ("withdrawal", -1),
    TransferCommand: ("transfer_out", -1),
}

routes = [deposit, withdraw, transfer, reverse, batch]
