"""What accounts do, in plain Python: written from the promises, not from the ledger's code.

Each movement returns what changed, or raises `Refused` with the code that a client must see. `None` in an id means that the server
has not told it yet.
"""

from dataclasses import dataclass, field

MAX_BALANCE = 2**53 - 1
SETTLEMENT_SIGNS = {"deposit": 1, "refund": -1, "chargeback": -1, "chargeback_reversal": 1, "payout_return": 1, "fee": -1, "adjustment": 1}
REVERSIBLE = {"deposit", "withdrawal", "transfer_in", "transfer_out"}


class Refused(Exception):
    """The code of the refusal."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(eq=False)
class Account:
    id: str
    currency: str
    status: str = "active"
    balance: int = 0
    held: int = 0
    version: int = 0
    rows: list["Row"] = field(default_factory=list)
    payments: list["Payment"] = field(default_factory=list)

    @property
    def owed(self) -> int:
        return max(0, self.held - self.balance)

    @property
    def available(self) -> int:
        return self.balance - self.held

    def shown(self) -> dict[str, object]:
        """The balance object of an answer, but for the time."""
        return {
            "account_id": self.id,
            "currency": self.currency,
            "minor_unit": 2,
            "balance": self.balance,
            "held": self.held,
            "owed": self.owed,
            "available": self.available,
            "version": self.version,
        }

    def __repr__(self) -> str:
        return f"<{self.currency} {self.id[-4:]}>"


@dataclass(eq=False)
class Row:
    """A posted row; `twin` is the other leg of a transfer."""

    account: Account
    kind: str
    amount: int
    balance_after: int
    sequence: int
    payment: "Payment | None" = None
    reverses: "Row | None" = None
    id: str | None = None
    transfer_id: str | None = None
    twin: "Row | None" = None
    reversed: bool = False

    def shown(self) -> dict[str, object]:
        """The transaction of an answer, as far as it can be foretold."""
        return {
            "account_id": self.account.id,
            "kind": self.kind,
            "amount": self.amount,
            "currency": self.account.currency,
            "balance_after": self.balance_after,
            "sequence": self.sequence,
            "payment_id": self.payment.id if self.payment else None,
            "reverses": self.reverses.id if self.reverses else None,
        }


@dataclass(eq=False)
class Payment:
    account: Account
    amount: int
    status: str = "pending"
    id: str | None = None
    transaction: Row | None = None

    def shown(self) -> dict[str, object]:
        return {
            "account_id": self.account.id,
            "kind": "withdrawal",
            "method": "direct",
            "status": self.status,
            "amount": self.amount,
            "currency": self.account.currency,
            "held": self.amount if self.status == "pending" else 0,
        }


@dataclass(frozen=True)
class Change:
    """The account that an answer is about, the rows posted (its own first), and the payment."""

    account: Account
    rows: tuple[Row, ...] = ()
    payment: Payment | None = None


def deposit(account: Account, amount: int, currency: str | None = None) -> Change:
    _takes_requests(account, currency)
    _has_room(account, amount)
    return Change(account, (_post(account, "deposit", amount),))


def withdraw(account: Account, amount: int, currency: str | None = None) -> Change:
    _takes_requests(account, currency)
    _has(account, amount)
    _has_room(account, -amount)
    return Change(account, (_post(account, "withdrawal", -amount),))


def hold(account: Account, amount: int, currency: str | None = None) -> Change:
    _takes_requests(account, currency)
    _has(account, amount)
    payment = Payment(account, amount)
    account.held += amount
    account.version += 1
    account.payments.append(payment)
    return Change(account, payment=payment)


def complete(payment: Payment) -> Change:
    _end(payment, "completed")
    payment.transaction = _post(payment.account, "withdrawal", -payment.amount, payment=payment)
    return Change(payment.account, (payment.transaction,), payment)


def cancel(payment: Payment) -> Change:
    _end(payment, "cancelled")
    payment.account.version += 1
    return Change(payment.account, payment=payment)


def transfer(source: Account, target: Account, amount: int, currency: str | None = None) -> Change:
    if source is target:
        raise Refused("same_account")
    _takes_requests(source, currency)
    _takes_requests(target, source.currency)
    _has(source, amount)
    _has_room(source, -amount)
    _has_room(target, amount)
    out, into = _post(source, "transfer_out", -amount), _post(target, "transfer_in", amount)
    out.twin, into.twin = into, out
    return Change(source, (out, into))


def reverse(row: Row) -> Change:
    """Both legs or none; a transfer's sender is looked at first."""
    if row.reversed:
        raise Refused("already_reversed")
    if row.kind not in REVERSIBLE:
        raise Refused("not_reversible")
    legs = sorted([row, *([row.twin] if row.twin else [])], key=lambda leg: leg.amount)
    for leg in legs:
        _takes_requests(leg.account, None)
        if leg.amount > 0:
            _has(leg.account, leg.amount)
        _has_room(leg.account, -leg.amount)
    made = {leg: _post(leg.account, "reversal", -leg.amount, reverses=leg) for leg in legs}
    for leg in legs:
        leg.reversed = True
    if row.twin:
        made[row].twin, made[row.twin].twin = made[row.twin], made[row]
        return Change(row.account, (made[row], made[row.twin]))
    return Change(row.account, (made[row],))


def freeze(account: Account) -> Change:
    return _set_status(account, "frozen")


def unfreeze(account: Account) -> Change:
    return _set_status(account, "active")


def close(account: Account) -> Change:
    if account.status == "frozen":
        raise Refused("account_frozen")
    if account.status != "closed" and (account.balance or account.held or any(one.status == "pending" for one in account.payments)):
        raise Refused("account_not_empty")
    if account.status != "closed":
        account.status = "closed"
        account.version += 1
    return Change(account)


def settle(account: Account, kind: str, amount: int) -> Change:
    """A fact: no state of the account refuses it."""
    return Change(account, (_post(account, kind, SETTLEMENT_SIGNS[kind] * amount),))


def _post(account: Account, kind: str, amount: int, *, payment: Payment | None = None, reverses: Row | None = None) -> Row:
    account.balance += amount
    account.version += 1
    row = Row(account, kind, amount, account.balance, len(account.rows) + 1, payment, reverses)
    account.rows.append(row)
    return row


def _set_status(account: Account, status: str) -> Change:
    if account.status == "closed":
        raise Refused("account_closed")
    if account.status != status:
        account.status = status
        account.version += 1
    return Change(account)


def _end(payment: Payment, status: str) -> None:
    if payment.status != "pending":
        raise Refused("payment_not_open")
    payment.status = status
    payment.account.held -= payment.amount


def _takes_requests(account: Account, currency: str | None) -> None:
    if account.status != "active":
        raise Refused(f"account_{account.status}")
    if currency not in (None, account.currency):
        raise Refused("currency_mismatch")


def _has(account: Account, amount: int) -> None:
    if account.owed:
        raise Refused("account_owes")
    if account.available < amount:
        raise Refused("insufficient_funds")


def _has_room(account: Account, amount: int) -> None:
    """A balance beyond the limit (a settlement's doing) may still come down."""
    after = account.balance + amount
    if abs(after) > MAX_BALANCE and abs(after) > abs(account.balance):
        raise Refused("balance_limit")
