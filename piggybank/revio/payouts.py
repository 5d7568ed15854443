"""Paying out: one port, two drivers.

The orchestration API takes two steps: a payout is created, which may be repeated, and executed, which may not. An EFT credit is one
call that does both, so it is sent once and has no id until it is answered. What became of it, without an id, only an event or the
statement can tell.
"""

import time
from datetime import UTC, date, datetime
from typing import Any, NamedTuple, Protocol

import msgspec
from msgspec import Struct

from piggybank.revio import http
from piggybank.revio.client import Client, Person
from piggybank.revio.http import Refused, Unclear, Unsent
from piggybank.revio.objects import Snapshot

TOKEN_MARGIN_S = 300  # a token is not used to its last second
TOKEN_SHORTEST_S = 60
EFT_MAX_AMOUNT = 5_000_000 * 100 - 1  # cents: below R 5,000,000 a payment
EFT_CURRENCY = "ZAR"
EFT_SERVICE = "SAMEDAY"
EFT_REFERENCE_MAX_CHARACTERS = 36
EFT_FIELDS = ("account_number", "branch_code", "account_type", "name")  # what a destination must have
EFT_OPTIONAL = {"id_number": "idNumber", "phone_number": "phoneNumber"}


class Order(Struct, frozen=True, kw_only=True):
    """What is to be paid: `reference` is our payment's id."""

    reference: str
    amount: int
    currency: str
    description: str
    person: Person
    destination: dict[str, str]


class Created(NamedTuple):
    """A payout that waits to be executed."""

    id: str
    execution_url: str


class Payouts(Protocol):
    """How money goes out."""

    two_steps: bool  # there is something to create, and an id to ask by

    def missing(self, currency: str, amount: int, destination: dict[str, str]) -> tuple[str, str] | None:
        """(field, what is wrong) of an order that this driver cannot carry out."""
        ...

    async def create(self, order: Order) -> Created:
        """The first step; may be repeated. Raises Refused, Unsent, Unclear."""
        ...

    async def execute(self, order: Order, execution_url: str | None) -> Snapshot:
        """Move the money; sent once. Raises Refused, Unsent, Unclear."""
        ...

    async def close(self) -> None:
        """Close its own connections."""
        ...


class OrchestrationPayouts:
    """Two-step payouts; the destination is handed on as the details of the method (a card, a phone)."""

    two_steps = True

    def __init__(self, client: Client) -> None:
        self._client = client

    def missing(self, currency: str, amount: int, destination: dict[str, str]) -> tuple[str, str] | None:  # noqa: ARG002 - the port's
        return None if destination else ("destination", "is required: the details of the payout method")

    async def create(self, order: Order) -> Created:
        made = await self._client.create_payout(
            reference=order.reference, amount=order.amount, currency=order.currency, description=order.description, person=order.person
        )
        if not made.execution_url:
            raise Unclear("a payout without an execution_url")
        return Created(made.id, made.execution_url)

    async def execute(self, order: Order, execution_url: str | None) -> Snapshot:
        if execution_url is None:
            raise Unsent("the payout was not created")
        return await self._client.execute_payout(execution_url, order.destination)

    async def close(self) -> None:
        """The client is closed by whoever opened it."""


class EftAccount(Struct, frozen=True, kw_only=True):
    """The contract for EFT credits; `debtor` is the account that they are paid from."""

    url: str
    token_url: str
    client_id: str
    client_secret: str
    profile_code: str
    abbreviated_name: str
    debtor: dict[str, Any]
    timeout_s: float = 10.0
    proxy: str | None = None

    def __repr__(self) -> str:
        return f"EftAccount({self.url})"


class _Token(Struct, frozen=True):
    access_token: str
    expires_in: int = TOKEN_SHORTEST_S


class _Eft(Struct, frozen=True, rename="camel"):
    status: str
    id: str | int | None = None


_STATUS = {"COMPLETED": "success", "UNPAID": "error"}


class EftPayouts:
    """EFT credits with OAuth2: one call creates and executes."""

    two_steps = False

    def __init__(self, account: EftAccount) -> None:
        self._account = account
        self._http = http.Connections(account.timeout_s, account.proxy)
        self._token = ""
        self._token_until = 0.0

    def missing(self, currency: str, amount: int, destination: dict[str, str]) -> tuple[str, str] | None:
        if currency != EFT_CURRENCY:
            return "currency", f"must be {EFT_CURRENCY}: EFT credits know no other"
        if amount > EFT_MAX_AMOUNT:
            return "amount", f"must be at most {EFT_MAX_AMOUNT} for an EFT credit"
        absent = [field for field in EFT_FIELDS if not destination.get(field)]
        return (f"destination.{absent[0]}", "is required for an EFT credit") if absent else None

    async def create(self, order: Order) -> Created:
        raise AssertionError(f"an EFT credit is created by executing it: {order.reference}")

    async def execute(self, order: Order, execution_url: str | None) -> Snapshot:  # noqa: ARG002 - the port's
        token = await self._bearer()
        account, to = self._account, order.destination
        creditor = {
            "accountNumber": to["account_number"],
            "branchCode": to["branch_code"],
            "accountType": to["account_type"],
            "name": to["name"],
        } | {theirs: to[ours] for ours, theirs in EFT_OPTIONAL.items() if ours in to}
        body = {
            "paymentDate": _today().isoformat(),
            "profileCode": account.profile_code,
            "abbreviatedName": account.abbreviated_name,
            "contractReference": order.reference,
            "amountCents": order.amount,
            "serviceType": EFT_SERVICE,
            "debtor": account.debtor,
            "creditor": creditor,
        }
        headers = {"Authorization": f"Bearer {token}"}
        try:
            said = await self._http.call("POST", account.url.rstrip("/") + "/payment/eft", headers=headers, body=body)
        except Refused as refused:
            if refused.passing:
                self._token = ""
            raise
        try:
            answer = msgspec.json.decode(said, type=_Eft)
        except (msgspec.MsgspecError, UnicodeDecodeError) as cause:
            raise Unclear("an answer that cannot be read") from cause
        # the answer promises nothing: only the statement has a time to order news by
        return Snapshot(
            id=str(answer.id or ""), type="payout", status=_STATUS.get(answer.status, "pending"), reference=order.reference, is_test=False
        )

    async def close(self) -> None:
        await self._http.close()

    async def _bearer(self) -> str:
        """A token, kept until shortly before its end. Asking for one moves nothing: every failure is Unsent."""
        if self._token and time.monotonic() < self._token_until:
            return self._token
        account = self._account
        try:
            said = await self._http.call(
                "POST",
                account.token_url,
                auth=(account.client_id, account.client_secret),
                form={"grant_type": "client_credentials"},
                repeatable=True,
            )
            token = msgspec.json.decode(said, type=_Token)
        except (Refused, Unclear, msgspec.MsgspecError, UnicodeDecodeError) as cause:
            raise Unsent(f"no token: {cause if isinstance(cause, Refused) else type(cause).__name__}") from cause
        self._token = token.access_token
        self._token_until = time.monotonic() + max(TOKEN_SHORTEST_S, token.expires_in - TOKEN_MARGIN_S)
        return self._token


def _today() -> date:
    return datetime.now(UTC).date()
