"""Programs of requests, made up by Hypothesis, sent to two servers in turn, and compared with a model after every step."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, multiple, precondition, rule, run_state_machine_as_test

from piggybank.ledger import SYSTEM, Submission, commands
from piggybank.money import MAX_AMOUNT
from piggybank.settings import Settings
from tests.conftest import Server
from tests.prove import model
from tests.prove.conftest import Settle, findings
from tests.prove.model import Account, Change, Payment, Refused, Row
from tests.prove.wire import REPLAYED, Sent, Wire, as_object, assert_shows, lasting

T = TypeVar("T")
CURRENCIES = ("EUR", "USD")
MAX_ACCOUNTS = 5
PAGE = 7  # rows: small, so that there are several pages
NEVER = 987_654  # minor units that no other request moves: a body that a key was never used with

# boundaries are where the mistakes are: all of it, and one cent more
amounts: st.SearchStrategy[int | str] = st.one_of(
    st.integers(1, 100), st.sampled_from([1, 2, 10, 25, 50, 99, "half", "half", "all", "one too many", 9_999])
)
currencies = st.sampled_from([None, None, None, None, None, *CURRENCIES])
nth = st.integers(0, 40)  # counted from the newest, and round again


def meant(amount: int | str, account: Account) -> int:
    """A number for what was drawn: at least 1, and no more than one movement may have."""
    if isinstance(amount, int):
        return amount
    part = {"half": account.available // 2, "all": account.available, "one too many": account.available + 1}[amount]
    return min(max(1, part), MAX_AMOUNT)


class Wallet(RuleBasedStateMachine):
    """The state: a model of every account, and every request that was sent."""

    accounts: Bundle[Account] = Bundle("accounts")

    def __init__(self, wire: Wire, settle: Settle, own_settings: Settings) -> None:
        super().__init__()
        self.wire = wire
        self.provider = settle
        self.own_settings = own_settings
        self.all: list[Account] = []
        self.sent: list[Sent] = []
        self.settled: list[tuple[commands.Settle, Account]] = []
        self.users = [wire.new_user(), wire.new_user()]

    # Accounts -------------------------------------------------------------------------------------------------------

    @initialize(target=accounts)
    def first_accounts(self) -> Any:
        self.all = [self.wire.open_account(user, currency) for user, currency in zip(self.users * 2, ("EUR", "EUR", "USD"), strict=False)]
        for account in self.all:
            self.deposit(account, 5_000, None)
        return multiple(*self.all)

    @precondition(lambda self: len(self.all) < MAX_ACCOUNTS)
    @rule(target=accounts, user=st.integers(0, 1), currency=st.sampled_from(CURRENCIES))
    def open(self, user: int, currency: str) -> Account:
        self.all.append(self.wire.open_account(self.users[user], currency))
        return self.all[-1]

    @rule(account=accounts, verb=st.sampled_from(["freeze", "unfreeze", "close"]))
    def change_status(self, account: Account, verb: str) -> None:
        """Commands without a key: sending them again changes nothing. One account is frozen at a time: the rest is to move."""
        if verb == "freeze" and any(one.status == "frozen" for one in self.all):
            verb = "unfreeze"
        change: Callable[[Account], Change] = getattr(model, verb)
        for _ in range(2):
            made = _foretold(partial(change, account))
            answer = self.wire.post(f"/v1/accounts/{account.id}/{verb}")
            if isinstance(made, str):
                assert (answer.status_code, answer.json()["code"]) == (409, made)
            else:
                assert (answer.status_code, answer.json()["status"]) == (200, account.status), answer.text
                assert_shows(answer.json()["balance"], account.shown())

    # Movements ------------------------------------------------------------------------------------------------------

    @rule(account=accounts, amount=amounts, currency=currencies)
    def deposit(self, account: Account, amount: int | str, currency: str | None) -> None:
        number = meant(amount, account)
        body = {"amount": number, "method": "direct", "currency": currency}
        self._move(account, f"/v1/accounts/{account.id}/deposits", body, 201, partial(model.deposit, account, number, currency))

    @rule(account=accounts, amount=amounts, currency=currencies)
    def withdraw(self, account: Account, amount: int | str, currency: str | None) -> None:
        number = meant(amount, account)
        body = {"amount": number, "method": "direct", "currency": currency}
        self._move(account, f"/v1/accounts/{account.id}/withdrawals", body, 201, partial(model.withdraw, account, number, currency))

    @rule(account=accounts, amount=amounts, currency=currencies)
    def hold(self, account: Account, amount: int | str, currency: str | None) -> None:
        number = meant(amount, account)
        body = {"amount": number, "method": "direct", "currency": currency, "hold": True}
        self._move(account, f"/v1/accounts/{account.id}/withdrawals", body, 202, partial(model.hold, account, number, currency))

    @rule(sender=accounts, receiver=accounts, amount=amounts, currency=currencies)
    def transfer(self, sender: Account, receiver: Account, amount: int | str, currency: str | None) -> None:
        number = meant(amount, sender)
        body = {"from_account": sender.id, "to_account": receiver.id, "amount": number, "currency": currency}
        self._move(sender, "/v1/transfers", body, 201, partial(model.transfer, sender, receiver, number, currency))

    @rule(sender=accounts, n=nth, amount=amounts)
    def transfer_in_one_currency(self, sender: Account, n: int, amount: int | str) -> None:
        alike = [account for account in self.all if account.currency == sender.currency and account is not sender]
        if alike:
            self.transfer(sender, _newest(alike, n), amount, None)

    @precondition(lambda self: any(account.payments for account in self.all))
    @rule(n=nth, verb=st.sampled_from(["complete", "cancel"]))
    def end_payment(self, n: int, verb: str) -> None:
        payment = _newest([payment for account in self.all for payment in account.payments], n)
        end: Callable[[Payment], Change] = getattr(model, verb)
        self._move(payment.account, f"/v1/payments/{payment.id}/{verb}", {}, 200, partial(end, payment))

    @rule(account=accounts, n=nth)
    def reverse(self, account: Account, n: int) -> None:
        if account.rows:
            row = _newest(account.rows, n)
            self._move(account, f"/v1/transactions/{row.id}/reversal", {}, 201, partial(model.reverse, row))

    @rule(
        items=st.lists(
            st.tuples(st.sampled_from(["deposit", "withdrawal", "transfer"]), accounts, accounts, amounts), min_size=1, max_size=8
        )
    )
    def batch(self, items: list[tuple[str, Account, Account, int | str]]) -> None:
        listed: list[dict[str, Any]] = []
        foretold: list[tuple[Account, Change | str, dict[str, object]]] = []
        for kind, account, other, amount in items:
            number = meant(amount, account)
            if kind == "transfer":
                listed.append({"type": kind, "from_account": account.id, "to_account": other.id, "amount": number})
                change = partial(model.transfer, account, other, number)
            else:
                listed.append({"type": kind, "account_id": account.id, "amount": number})
                change = partial(model.deposit if kind == "deposit" else model.withdraw, account, number)
            foretold.append((account, _foretold(change), account.shown()))
        key = uuid4().hex
        response = self.wire.post("/v1/transactions:batch", {"commands": listed}, key)
        assert response.status_code == 200, response.text
        for (_, made, balance), result in zip(foretold, response.json()["results"], strict=True):
            assert not result.get("replayed"), result
            if isinstance(made, str):
                assert (result["status"], result["problem"]["code"]) == (409, made), result
            else:
                assert result["status"] == 201, result
                assert_shows(result["balance"], balance)
                self._learn(made, result)
        self.sent.append(Sent(items[0][1], "/v1/transactions:batch", {"commands": listed}, key, 200, as_object(response)))

    # Facts from outside ---------------------------------------------------------------------------------------------

    @rule(
        account=accounts,
        kind=st.sampled_from(
            ["deposit", "refund", "chargeback", "chargeback", "chargeback_reversal", "payout_return", "fee", "adjustment"]
        ),
        amount=st.integers(1, 300),
    )
    def settlement(self, account: Account, kind: commands.SettlementKind, amount: int) -> None:
        self._settle(account, kind, amount)

    @rule(account=accounts, beyond=st.integers(0, 5))
    def chargeback_after_withdrawal(self, account: Account, beyond: int) -> None:
        """What was paid in is taken back when it has been paid out."""
        if account.available > 0:
            self.withdraw(account, "all", None)
            self._settle(account, "chargeback", max(1, account.balance) + beyond)

    @rule(account=accounts, sign=st.sampled_from([1, -1]), beyond=st.sampled_from([-9_999, -100, 0, 100]))
    def near_the_limit(self, account: Account, sign: int, beyond: int) -> None:
        """There is no other way to reach it with movements of at most 10^12."""
        if abs(account.balance) < model.MAX_BALANCE // 2:
            self._settle(account, "adjustment", sign * (model.MAX_BALANCE + beyond))

    @precondition(lambda self: self.settled)
    @rule(n=nth)
    def settlement_again(self, n: int) -> None:
        command, account = _newest(self.settled, n)
        outcome = self.provider(Submission(command, SYSTEM))
        assert outcome.replayed
        self._look(account)

    # The same again -------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.sent)
    @rule(n=nth)
    def replay(self, n: int) -> None:
        """Whatever happened since: the answer as it was then."""
        sent = _newest(self.sent, n)
        again = self.wire.post(sent.path, sent.body, sent.key)
        assert again.status_code == sent.status, again.text
        assert lasting(again.json()) == lasting(sent.answer)
        if "results" in sent.answer:
            assert all(result["replayed"] for result in again.json()["results"])
        else:
            assert again.headers[REPLAYED] == "true"
        self._look(sent.source)

    @precondition(lambda self: self.sent)
    @rule(n=nth)
    def key_with_another_body(self, n: int) -> None:
        sent = _newest(self.sent, n)
        key = f"{sent.key}.0" if "results" in sent.answer else sent.key
        again = self.wire.post(f"/v1/accounts/{sent.source.id}/deposits", {"amount": NEVER, "method": "direct"}, key)
        assert (again.status_code, again.json()["code"]) == (422, "idempotency_key_reused")
        self._look(sent.source)

    # Looking --------------------------------------------------------------------------------------------------------

    @rule(account=accounts)
    def look(self, account: Account) -> None:
        self._look(account)
        self._read_history(account)

    def teardown(self) -> None:
        for account in self.all:
            self.look(account)
        assert findings(self.own_settings) == []

    # How ------------------------------------------------------------------------------------------------------------

    def _move(self, account: Account, path: str, body: dict[str, Any], status: int, change: Callable[[], Change]) -> None:
        """Send a movement; it must do in the server what it does in the model."""
        key = uuid4().hex
        made = _foretold(change)
        response = self.wire.post(path, body, key)
        answer = as_object(response)
        assert REPLAYED not in response.headers
        if isinstance(made, str):
            status = 409
            assert (response.status_code, answer.get("code")) == (409, made), answer
            self._look(account)
        else:
            assert response.status_code == status, answer
            assert_shows(answer["balance"], account.shown())
            self._learn(made, answer)
        self.sent.append(Sent(account, path, body, key, status, answer))

    def _learn(self, made: Change, answer: dict[str, Any]) -> None:
        """What the answer shows is what was foretold; its ids are kept."""
        if made.payment is not None:
            made.payment.id = answer["payment"]["id"]
            assert_shows(answer["payment"], made.payment.shown())
        if made.rows:
            own = made.rows[0]
            assert_shows(answer["transaction"], own.shown())
            own.id, own.transfer_id = answer["transaction"]["id"], answer["transaction"]["transfer_id"]
            if own.twin is not None:
                self._learn_legs(own, own.twin)

    def _learn_legs(self, *legs: Row) -> None:
        """An answer shows its own side; the other one is asked for."""
        shown = self.wire.get(f"/v1/transfers/{legs[0].transfer_id}")["legs"]
        for leg, found in zip(sorted(legs, key=lambda leg: leg.amount), shown, strict=True):
            assert_shows(found, leg.shown())
            leg.id, leg.transfer_id = found["id"], found["transfer_id"]

    def _settle(self, account: Account, kind: commands.SettlementKind, amount: int) -> None:
        command = commands.Settle(account_id=UUID(account.id), kind=kind, amount=amount, source="test", effect=uuid4().hex)
        change = model.settle(account, kind, amount)
        outcome = self.provider(Submission(command, SYSTEM))
        assert not isinstance(outcome.decision, Exception), outcome
        assert not outcome.replayed
        change.rows[0].id = str(outcome.decision.transaction_id)
        self.settled.append((command, account))
        self._look(account)

    def _look(self, account: Account) -> None:
        assert_shows(self.wire.get(f"/v1/accounts/{account.id}/balance", min_version=account.version), account.shown())

    def _read_history(self, account: Account) -> None:
        """Every page, from the newest row to the first; then the page that is cached."""
        expected = list(reversed(account.rows))
        path = f"/v1/accounts/{account.id}/transactions"
        found: list[dict[str, Any]] = []
        query: dict[str, Any] = {"limit": PAGE, "min_version": account.version}
        while True:
            page = self.wire.get(path, **query)
            assert page["total"] == len(expected)
            found += page["items"]
            if page["next_cursor"] is None:
                break
            query["cursor"] = page["next_cursor"]
        cached = self.wire.get(path, min_version=account.version)
        assert (cached["total"], cached["items"]) == (len(expected), found[:25])
        assert [row["id"] for row in found] == [row.id for row in expected]
        running = account.balance
        for row, kept in zip(found, expected, strict=True):
            assert_shows(row, kept.shown())
            assert row["balance_after"] == running
            running -= row["amount"]
        assert running == 0
        held = self.wire.get(f"/v1/accounts/{account.id}/payments", limit=100)["items"]
        for one, payment in zip(held, reversed(account.payments), strict=True):
            assert_shows(one, {"id": payment.id, **payment.shown()})
            assert one["transaction_id"] == (payment.transaction.id if payment.transaction else None)


def _foretold(change: Callable[[], Change]) -> Change | str:
    """What the model does, or the code that it refuses with."""
    try:
        return change()
    except Refused as refused:
        note(f"to be refused: {refused.code}")
        return refused.code


def _newest(things: list[T], n: int) -> T:
    return things[-1 - n % len(things)]


@pytest.fixture(scope="module")
def wire(pair: tuple[Server, Server]) -> Iterator[Wire]:
    made = Wire(pair)
    yield made
    made.close()


def run(wire: Wire, settle: Settle, own_settings: Settings, *, examples: int, steps: int) -> None:
    machine: Any = partial(Wallet, wire, settle, own_settings)  # anything that makes one will do
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        ),
    )


def test_two_servers_do_what_the_model_does(wire: Wire, settle: Settle, own_settings: Settings) -> None:
    run(wire, settle, own_settings, examples=25, steps=40)


@pytest.mark.deep
def test_two_servers_do_what_the_model_does_for_longer(wire: Wire, settle: Settle, own_settings: Settings) -> None:
    run(wire, settle, own_settings, examples=300, steps=100)
