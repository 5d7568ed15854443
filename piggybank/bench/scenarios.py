"""What is measured: one row each. A scenario is a route, a mix of requests, and which accounts they name."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, cycle
from random import Random
from typing import Literal, NamedTuple

from msgspec import Struct

BATCH_COMMANDS = 500  # in one request of the batch endpoint
BATCH_CONNECTIONS = 8  # what they send together must fit the ledger's queue for bulk commands
RECEIVERS = 10_000  # of transfers from one hot account
CACHED = 10_000  # accounts whose balances are read from the cache; the balance lives there for minutes
CHOSEN_AT_ONCE = 4_096  # accounts
_AMOUNT = b'{"amount": 100, "method": "direct"}'

Kind = Literal["deposit", "withdrawal", "transfer", "batch", "read", "constant", "constant_read", "row_locking"]
Pick = Literal["spread", "hot", "zipf"]

ROWS: dict[Kind, int] = {"deposit": 1, "withdrawal": 1, "transfer": 2, "batch": 1, "row_locking": 1}  # of one command that was done


class Scenario(Struct, frozen=True, kw_only=True):
    """`mix`: what is asked for, in percent. `no_database` and `row_locking`: the scenarios that it is divided by."""

    name: str
    what: str
    mix: dict[Kind, int]
    pick: Pick = "spread"
    no_database: str | None = None
    row_locking: str | None = None
    max_connections: int | None = None
    max_accounts: int | None = None
    each_first: bool = False  # every account is asked for once before the clock runs: what is measured is warm

    @property
    def commands(self) -> int:
        """In one request."""
        return BATCH_COMMANDS if "batch" in self.mix else 1


SCENARIOS = {
    one.name: one
    for one in (
        Scenario(
            name="deposits",
            what="direct deposits, spread over all accounts",
            mix={"deposit": 100},
            no_database="constant",
            row_locking="row_locking",
        ),
        Scenario(
            name="hot",
            what="direct deposits, all on one account",
            mix={"deposit": 100},
            pick="hot",
            no_database="constant",
            row_locking="row_locking_hot",
        ),
        Scenario(
            name="mixed",
            what="40 % deposits, 20 % withdrawals, 20 % transfers, 20 % balance reads",
            mix={"deposit": 40, "withdrawal": 20, "transfer": 20, "read": 20},
        ),
        Scenario(name="transfers", what=f"transfers from one account to {RECEIVERS:,}", mix={"transfer": 100}, pick="hot"),
        Scenario(name="zipf", what="direct deposits, Zipf 1.0", mix={"deposit": 100}, pick="zipf", no_database="constant"),
        Scenario(
            name="batch",
            what=f"{BATCH_COMMANDS} deposits a request; commands a second",
            mix={"batch": 100},
            max_connections=BATCH_CONNECTIONS,
        ),
        Scenario(
            name="reads",
            what=f"balances of {CACHED:,} accounts, all in the cache",
            mix={"read": 100},
            no_database="constant_reads",
            max_accounts=CACHED,
            each_first=True,
        ),
        Scenario(
            name="reads_while_writing",
            what="balances, Zipf 1.0, with 20 % deposits",
            mix={"read": 80, "deposit": 20},
            pick="zipf",
        ),
        Scenario(name="constant", what="the deposit's route with nothing behind it", mix={"constant": 100}),
        Scenario(
            name="constant_reads",
            what="the balance's route with nothing behind it",
            mix={"constant_read": 100},
            max_accounts=CACHED,
        ),
        Scenario(name="row_locking", what="one SERIALIZABLE transaction a deposit, spread", mix={"row_locking": 100}),
        Scenario(
            name="row_locking_hot", what="one SERIALIZABLE transaction a deposit, on one account", mix={"row_locking": 100}, pick="hot"
        ),
    )
}


class Request(NamedTuple):
    """One request, ready to send; `rank`: how hot its account is, 0 the hottest."""

    kind: Kind
    rank: int
    data: bytes


def requests(scenario: Scenario, accounts: Sequence[str], token: str, mark: str, seed: int) -> Iterator[Request]:
    """Endless; every one with a key of its own that begins with `mark`."""
    chance = Random(seed)  # noqa: S311 - a load, no secret
    make = _Maker(token, mark)
    ranks = _ranks(scenario.pick, len(accounts), chance)
    kinds: Sequence[Kind] = [kind for kind, percent in scenario.mix.items() for _ in range(percent)]
    encoded = [account.encode() for account in accounts]
    while True:
        for kind in chance.sample(kinds, len(kinds)):
            rank = next(ranks)
            yield Request(kind, rank, getattr(make, kind)(encoded, rank))


def _ranks(pick: Pick, count: int, chance: Random) -> Iterator[int]:
    if pick == "hot":
        yield from cycle((0,))
    elif pick == "spread":
        start = chance.randrange(count)
        yield from cycle([(start + step) % count for step in range(count)])
    weights = list(accumulate(1 / (rank + 1) for rank in range(count)))
    while True:
        yield from chance.choices(range(count), cum_weights=weights, k=CHOSEN_AT_ONCE)


class _Maker:
    """Bytes of requests: a method for each kind."""

    def __init__(self, token: str, mark: str) -> None:
        self._head = f" HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n".encode()
        self._posted = self._head + b"Content-Type: application/json\r\nIdempotency-Key: " + mark.encode()
        self._sent = 0

    def _post(self, path: bytes, body: bytes) -> bytes:
        self._sent += 1
        return b"POST %b%b%d\r\nContent-Length: %d\r\n\r\n%b" % (path, self._posted, self._sent, len(body), body)

    def deposit(self, accounts: Sequence[bytes], rank: int) -> bytes:
        return self._post(b"/v1/accounts/" + accounts[rank] + b"/deposits", _AMOUNT)

    def withdrawal(self, accounts: Sequence[bytes], rank: int) -> bytes:
        return self._post(b"/v1/accounts/" + accounts[rank] + b"/withdrawals", _AMOUNT)

    def transfer(self, accounts: Sequence[bytes], rank: int) -> bytes:
        others = min(RECEIVERS, len(accounts) - 1)
        to = accounts[(rank + 1 + self._sent % others) % len(accounts)]
        return self._post(b"/v1/transfers", b'{"from_account": "%b", "to_account": "%b", "amount": 1}' % (accounts[rank], to))

    def batch(self, accounts: Sequence[bytes], rank: int) -> bytes:
        first = rank * BATCH_COMMANDS
        commands = (
            b'{"type": "deposit", "account_id": "%b", "amount": 100}' % accounts[(first + step) % len(accounts)]
            for step in range(BATCH_COMMANDS)
        )
        return self._post(b"/v1/transactions:batch", b'{"commands": [' + b", ".join(commands) + b"]}")

    def read(self, accounts: Sequence[bytes], rank: int) -> bytes:
        return b"GET /v1/accounts/" + accounts[rank] + b"/balance" + self._head + b"\r\n"

    def constant(self, accounts: Sequence[bytes], rank: int) -> bytes:
        return self._post(b"/bench/accounts/" + accounts[rank] + b"/constant", _AMOUNT)

    def constant_read(self, accounts: Sequence[bytes], rank: int) -> bytes:
        return b"GET /bench/accounts/" + accounts[rank] + b"/balance" + self._head + b"\r\n"

    def row_locking(self, accounts: Sequence[bytes], rank: int) -> bytes:
        return self._post(b"/bench/accounts/" + accounts[rank] + b"/row-locking", _AMOUNT)
