"""Events of one payment in every order and with duplicates: the same end, the same balance, the same rows."""

import random
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, NamedTuple, TypeVar
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from piggybank.cache import Cache
from piggybank.db.engines import Database
from piggybank.ledger import SYSTEM, Ledger, Submission, commands
from piggybank.ledger.idempotency import Answer
from piggybank.revio.objects import Change, Money, Related, Snapshot
from piggybank.settings import Settings
from piggybank.wallet import settlement
from tests.ledger.conftest import new_account
from tests.prove.conftest import _in_background

T = TypeVar("T")
AMOUNT = 10_000
FUNDS = 25_000
START = 1_795_000_000  # seconds since 1970, by the provider's clock

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Bank(NamedTuple):
    """What the property is tried on."""

    run: Run
    db: Database
    ledger: Ledger
    sql: asyncpg.Connection


class End(NamedTuple):
    """Everything that must not depend on the order."""

    balance: int
    held: int
    owed: int
    open_payments: int
    payments: list[tuple[Any, ...]]
    rows: list[tuple[str, int]]
    entries: list[tuple[str, int]]


class Life:
    """One object of the provider's, as it goes through its states: each step is an event with the whole object."""

    def __init__(self, kind: str, object_id: str, reference: str, *, with_history: bool) -> None:
        self._kind = kind
        self._id = object_id
        self._reference = reference
        self._with_history = with_history
        self._at = START
        self._history: list[Change] = []
        self.events: list[Snapshot] = []

    def step(self, status: str, event_type: str, *, seconds: int = 1, paid: Money | None = None, error: str | None = None) -> None:
        self._at += seconds
        self._history.append(Change(status=status, timestamp=self._at))
        attempts = {"attempts": [{"error": {"code": error}}]} if error else None
        self.events.append(
            Snapshot(
                id=self._id,
                type=self._kind,
                event_type=event_type,
                status=status,
                status_history=list(self._history) if self._with_history else [],
                updated_on=self._at,
                reference=self._reference,
                is_test=True,
                payment=paid,
                transaction_data=attempts,
            )
        )

    def money_back(self, event_type: str, amount: int, *, number: int) -> None:
        """A refund or chargeback: an object of its own, about this one."""
        self._at += 1
        kind = settlement.MONEY_BACK[event_type]
        self.events.append(
            Snapshot(
                id=f"{self._id}-{kind}-{number}",
                type="payment",
                event_type=event_type,
                status="success",
                updated_on=self._at,
                reference=self._reference,
                is_test=True,
                payment=Money(amount=amount, currency="ZAR", payment_type=kind, fee_amount=number),
                related_to=Related(type="purchase", id=self._id),
            )
        )


# What can happen to a payment, in the provider's order ---------------------------------------------------------------------


def a_deposit(life: Life, chance: random.Random, *, asked_for_refund: bool) -> None:
    life.step("created", "purchase.created")
    for _ in range(chance.randrange(3)):
        life.step("error", "purchase.payment_failure", error=chance.choice(["declined", "expired_card"]))
    if chance.random() < 0.3:
        life.step("pending_execute", "purchase.pending_execute")
    end = "paid" if asked_for_refund else chance.choice(["paid", "paid", "paid", "cancelled", "expired", "expired, then paid"])
    if end == "cancelled":
        life.step("cancelled", "purchase.cancelled")
        return
    if end.startswith("expired"):
        life.step("expired", "purchase.expired")
    if end == "expired":
        return
    paid = Money(amount=AMOUNT - chance.choice([0, 0, 1, 500]), currency="ZAR", payment_type="purchase", fee_amount=390)
    life.step("paid", "purchase.paid", seconds=chance.randrange(2), paid=paid)
    for number in range(1, chance.randrange(1, 5)):
        match chance.choice(["refund", "chargeback", "reversal", "settled"]):
            case "refund":
                life.step("pending_refund", "purchase.pending_refund", paid=paid)
                life.money_back("payment.refunded", chance.choice([3_000, 1_000]), number=number)
            case "chargeback":
                life.money_back("payment.charged_back", 4_000, number=number)
            case "reversal":
                life.money_back("payment.chargeback_reversed", 4_000, number=number)
            case _:
                life.step("settled", "purchase.settled", paid=paid)
    if asked_for_refund and chance.random() < 0.5:
        life.step("paid", "purchase.refund_failure", paid=paid)


def a_payout(life: Life, chance: random.Random) -> None:
    paid = Money(amount=AMOUNT, currency="ZAR", fee_amount=0)
    life.step("initialized", "payout.created", paid=paid)
    if chance.random() < 0.5:
        life.step("pending", "payout.pending", paid=paid)
    for status in chance.choice([["success"], ["error"], ["error", "success"], ["success", "error"], []]):
        life.step(status, "payout.success" if status == "success" else "payout.failed", paid=paid, error="x" if status == "error" else None)


# Trying it -----------------------------------------------------------------------------------------------------------------


async def submit(bank: Bank, command: commands.Command) -> UUID:
    decision = (await bank.ledger.submit(Submission(command, SYSTEM, uuid4().hex, b"x"))).decision
    assert isinstance(decision, Answer), decision
    assert decision.payment_id is not None
    return decision.payment_id


async def opened(bank: Bank, kind: str, *, asked_for_refund: bool) -> tuple[UUID, UUID, UUID | None, str]:
    """(account, payment, our refund of it, the provider's id): as after our own part is done."""
    account = await new_account(bank.sql, "ZAR")
    await bank.ledger.submit(Submission(commands.Deposit(account_id=account, amount=FUNDS), SYSTEM))
    opening = commands.OpenPayment(account_id=account, kind=kind, amount=AMOUNT, method="revio", provider="simulator")  # type: ignore[arg-type]
    payment = await submit(bank, opening)
    object_id = uuid4().hex
    status: Any = "pending" if kind == "deposit" else "processing"
    advance = commands.Advance(account_id=account, payment_id=payment, was=frozenset({"creating"}), status=status, provider_id=object_id)
    await bank.ledger.submit(Submission(advance, SYSTEM))
    refund = None
    if asked_for_refund:  # of what its first events, which are all that came so far, have paid
        fact = commands.Settle(
            account_id=account, kind="deposit", amount=AMOUNT, source="revio", effect=f"purchase:{object_id}:paid", payment_id=payment
        )
        await bank.ledger.submit(Submission(fact, SYSTEM))
        asking = commands.OpenPayment(
            account_id=account, kind="refund", amount=3_000, method="revio", provider="simulator", refund_of=payment
        )
        refund = await submit(bank, asking)
        sent = commands.Advance(account_id=account, payment_id=refund, was=frozenset({"creating"}), status="processing", stamp=START << 20)
        await bank.ledger.submit(Submission(sent, SYSTEM))
    return account, payment, refund, object_id


async def end_of(bank: Bank, account: UUID) -> End:
    row = await bank.sql.fetchrow("SELECT balance, held, owed, open_payments FROM accounts WHERE id = $1", account)
    payments = await bank.sql.fetch(
        "SELECT kind, status, held, paid, refunded, refunding, charged_back, failure FROM payments WHERE account_id = $1 ORDER BY id",
        account,
    )
    rows = await bank.sql.fetch("SELECT kind, amount FROM transactions WHERE account_id = $1 ORDER BY kind, amount", account)
    entries = await bank.sql.fetch(
        "SELECT e.debit, e.amount FROM system_entries e JOIN payments p ON p.id = e.payment_id WHERE p.account_id = $1 ORDER BY 1, 2",
        account,
    )
    return End(
        row["balance"],
        row["held"],
        row["owed"],
        row["open_payments"],
        [tuple(one) for one in payments],
        [tuple(one) for one in rows],
        [tuple(one) for one in entries],
    )


async def lived(bank: Bank, kind: str, seed: int, order: random.Random | None, *, with_history: bool, asked_for_refund: bool) -> End:
    """A life of `kind` made up from `seed`, told in the provider's order, or in any other with repetitions."""
    account, payment, _, object_id = await opened(bank, kind, asked_for_refund=asked_for_refund)
    chance = random.Random(seed)
    life = Life("purchase" if kind == "deposit" else "payout", object_id, str(payment), with_history=with_history)
    if kind == "deposit":
        a_deposit(life, chance, asked_for_refund=asked_for_refund)
    else:
        a_payout(life, chance)
    events = list(life.events)
    if order is not None:
        events += order.choices(events, k=order.randrange(2 * len(events)))
        order.shuffle(events)
    for event in events:
        await settlement.apply(bank.db, bank.ledger, "simulator", event)
    return await end_of(bank, account)


@pytest.fixture(scope="module")
def bank(own_settings: Settings) -> Iterator[Bank]:
    with _in_background() as run:
        db, cache = Database.of(own_settings), Cache(own_settings.cache_url)
        ledger = Ledger(db, cache)

        async def open_all() -> asyncpg.Connection:
            await ledger.start()
            return await asyncpg.connect(own_settings.owner_database_url)

        async def close_all() -> None:
            await ledger.stop()
            await made.sql.close()
            await cache.close()
            await db.close()

        made = Bank(run, db, ledger, run(open_all()))
        yield made
        run(close_all())


def the_order_does_not_matter(bank: Bank, kind: str, seed: int, order: int, *, with_history: bool, asked_for_refund: bool) -> None:
    def live(chance: random.Random | None) -> End:
        told: End = bank.run(lived(bank, kind, seed, chance, with_history=with_history, asked_for_refund=asked_for_refund))
        return told

    straight = live(None)
    assert live(random.Random(order)) == straight
    assert straight.open_payments == sum(status in ("creating", "pending", "processing", "unknown") for _, status, *_ in straight.payments)


QUICK = settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)
LONG = settings(QUICK, max_examples=1_500)
seeds = st.integers(0, 2**32)


@given(seed=seeds, order=seeds, with_history=st.booleans(), asked_for_refund=st.booleans())
@example(seed=1, order=1, with_history=True, asked_for_refund=False)
@QUICK
def test_deposits_end_the_same_in_every_order(bank: Bank, seed: int, order: int, with_history: bool, asked_for_refund: bool) -> None:
    the_order_does_not_matter(bank, "deposit", seed, order, with_history=with_history, asked_for_refund=asked_for_refund)


@given(seed=seeds, order=seeds, with_history=st.booleans())
@QUICK
def test_payouts_end_the_same_in_every_order(bank: Bank, seed: int, order: int, with_history: bool) -> None:
    the_order_does_not_matter(bank, "withdrawal", seed, order, with_history=with_history, asked_for_refund=False)


@pytest.mark.deep
@given(seed=seeds, order=seeds, with_history=st.booleans(), asked_for_refund=st.booleans())
@LONG
def test_deposits_in_many_more_orders(bank: Bank, seed: int, order: int, with_history: bool, asked_for_refund: bool) -> None:
    the_order_does_not_matter(bank, "deposit", seed, order, with_history=with_history, asked_for_refund=asked_for_refund)


@pytest.mark.deep
@given(seed=seeds, order=seeds, with_history=st.booleans())
@LONG
def test_payouts_in_many_more_orders(bank: Bank, seed: int, order: int, with_history: bool) -> None:
    the_order_does_not_matter(bank, "withdrawal", seed, order, with_history=with_history, asked_for_refund=False)
