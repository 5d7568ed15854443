"""Post a batch: lock, read, decide, write, commit.

READ COMMITTED gives each statement a snapshot of its own, and only the locked rows are refreshed after a wait; so what is decided
upon is never read in the statement that waited. Between BEGIN and COMMIT, whatever the size of the batch:

1. LOCK the accounts in id order (with their rows as they are under the lock);
2. KNOWN_KEYS, only after a clash (see 4);
3. REFERRED: the payments and effects that commands name, only where there are any;
4. WRITE everything at once, each row once. A key that exists already makes the count of new keys short: the batch is rolled
   back and posted again with statement 2. So the common batch, whose keys are all new, needs two statements, and a key row is
   written once, with its answer.

Only where an operator acts one more: NOTE, the rows of the audit log.

Where a commit waits for a standby, statement 1 tells whether there is one; without one nothing is written (`db/commits.py`).

Every transaction takes locks in the same order (accounts by id, then keys sorted), so two processes cannot deadlock. This module
and `db/` are the only ones that commit.
"""

import time
from collections.abc import Sequence
from itertools import chain
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from piggybank import errors, ids
from piggybank.db import commits, slow, standbys
from piggybank.db.engines import Database
from piggybank.ledger import balances, commands, idempotency, settlements
from piggybank.ledger.book import Account, Book, Effect, Payment
from piggybank.ledger.rules import Outcome, Submission, decide
from piggybank.settings import Durability

# asyncpg asks the server about array types when it first meets them: on connecting, not under the locks of the first batch.
WARM_UP = (
    "SELECT NULL::smallint[], NULL::int[], NULL::bigint[], NULL::uuid[], NULL::text[], NULL::bytea[], NULL::jsonb[], NULL::timestamptz[]"
)

# The last columns: how many standbys may confirm, and this transaction; asked once and only where commits wait for them.
LOCK = (
    """
SELECT id, user_id, currency, status, balance, held, owed, clearing, fees, transfers, adjustments, version, sequence,
       transactions_count, open_payments, last_transaction_id, CASE WHEN $3 THEN ("""
    + standbys.CONFIRMING
    + """) END, CASE WHEN $3 THEN pg_current_xact_id()::xid::text END
FROM accounts
WHERE bucket = ANY($1::smallint[]) AND id = ANY($2::uuid[])
ORDER BY id
FOR NO KEY UPDATE
"""
)

# After a lock timeout: whatever is still locked is answered "busy", the rest goes on.
LOCK_FREE_ONES = LOCK + "SKIP LOCKED"
EXISTING = "SELECT id FROM accounts WHERE bucket = ANY($1::smallint[]) AND id = ANY($2::uuid[])"

KNOWN_KEYS = """
SELECT owner, actor::text, key, fingerprint, answer
FROM idempotency_keys
WHERE bucket = ANY($1::smallint[]) AND owner = ANY($2::uuid[]) AND key = ANY($3::text[])
"""

# A refund comes with the payment that it gives back.
REFERRED = """
SELECT 'payment', p.id, p.account_id, p.kind, p.method, p.status, p.amount, p.held, p.transaction_id, p.provider_id, p.refund_of,
       p.stamp, p.paid, p.refunded, p.refunding, p.charged_back, p.failure, NULL::smallint, NULL, NULL
FROM payments p
WHERE p.bucket = ANY($1::smallint[]) AND p.id = ANY($2::uuid[])
UNION ALL
SELECT 'payment', p.id, p.account_id, p.kind, p.method, p.status, p.amount, p.held, p.transaction_id, p.provider_id, p.refund_of,
       p.stamp, p.paid, p.refunded, p.refunding, p.charged_back, p.failure, NULL, NULL, NULL
FROM payments refund
JOIN payments p ON p.bucket = refund.bucket AND p.id = refund.refund_of
WHERE refund.bucket = ANY($1::smallint[]) AND refund.id = ANY($2::uuid[])
UNION ALL
SELECT 'effect', NULL, NULL, NULL, NULL, NULL, NULL, NULL, transaction_id, NULL, NULL,
       NULL, NULL, NULL, NULL, NULL, NULL, bucket, source, effect
FROM effects
WHERE (bucket, source, effect) IN (SELECT * FROM unnest($3::smallint[], $4::text[], $5::text[]))
"""
_PAYMENT_FIELDS = 16  # of a row of REFERRED, after the first

_HEAD = """
WITH keys AS (
    INSERT INTO idempotency_keys (owner, bucket, actor, key, fingerprint, answer, created_at)
    SELECT owner, bucket, actor::"char", key, fingerprint, answer, $1
    FROM unnest($2::uuid[], $3::smallint[], $4::text[], $5::text[], $6::bytea[], $7::bytea[])
         AS new (owner, bucket, actor, key, fingerprint, answer)
    ON CONFLICT DO NOTHING
    RETURNING 1
), posted AS (
    INSERT INTO transactions (id, account_id, amount, balance_after, sequence, kind, system_account, transfer_id, payment_id,
                              reverses, reference, description, metadata, bucket)
    SELECT * FROM unnest($8::uuid[], $9::uuid[], $10::bigint[], $11::bigint[], $12::bigint[], $13::text[], $14::text[],
                         $15::uuid[], $16::uuid[], $17::uuid[], $18::text[], $19::text[], $20::jsonb[], $21::smallint[])
), changed AS (
    UPDATE accounts
    SET status = new.status, balance = new.balance, held = new.held, owed = new.owed, clearing = new.clearing, fees = new.fees,
        transfers = new.transfers, adjustments = new.adjustments, version = new.version, sequence = new.sequence,
        transactions_count = new.transactions_count, open_payments = new.open_payments,
        last_transaction_id = new.last_transaction_id
    FROM unnest($22::uuid[], $23::smallint[], $24::text[], $25::bigint[], $26::bigint[], $27::bigint[], $28::bigint[],
                $29::bigint[], $30::bigint[], $31::bigint[], $32::bigint[], $33::bigint[], $34::bigint[], $35::int[], $36::uuid[])
         AS new (id, bucket, status, balance, held, owed, clearing, fees, transfers, adjustments, version, sequence,
                 transactions_count, open_payments, last_transaction_id)
    WHERE accounts.id = new.id AND accounts.bucket = new.bucket
), told AS (
    INSERT INTO outbox (id, bucket, topic, payload)
    SELECT $37::uuid, $38::smallint, 'ledger.posted', $39::jsonb WHERE $37 IS NOT NULL
), forgotten AS (
    -- what a sweep is deleting is left to it: a batch waits for accounts and keys only
    DELETE FROM outbox
    USING (SELECT id, bucket FROM outbox WHERE bucket = ANY($40::smallint[]) AND id = ANY($41::uuid[]) FOR UPDATE SKIP LOCKED) AS done
    WHERE outbox.id = done.id AND outbox.bucket = done.bucket
)"""

_PAYMENTS = """, opened AS (
    INSERT INTO payments (id, account_id, kind, method, status, amount, held, destination, reference, description, metadata,
                          provider, refund_of, return_url, expires_at, bucket, updated_at)
    SELECT *, $1 FROM unnest($42::uuid[], $43::uuid[], $44::text[], $45::text[], $46::text[], $47::bigint[], $48::bigint[],
                             $49::jsonb[], $50::text[], $51::text[], $52::jsonb[], $53::text[], $54::uuid[], $55::text[],
                             $56::timestamptz[], $57::smallint[])
), settled AS (
    UPDATE payments
    SET status = new.status, held = new.held, transaction_id = new.transaction_id, provider_id = new.provider_id,
        stamp = new.stamp, paid = new.paid, refunded = new.refunded, refunding = new.refunding, charged_back = new.charged_back,
        failure = new.failure, provider_url = coalesce(new.provider_url, payments.provider_url), updated_at = $1
    FROM unnest($58::uuid[], $59::smallint[], $60::text[], $61::bigint[], $62::uuid[], $63::text[], $64::bigint[], $65::bigint[],
                $66::bigint[], $67::bigint[], $68::bigint[], $69::text[], $70::text[])
         AS new (id, bucket, status, held, transaction_id, provider_id, stamp, paid, refunded, refunding, charged_back, failure,
                 provider_url)
    WHERE payments.id = new.id AND payments.bucket = new.bucket
), happened AS (
    INSERT INTO effects (bucket, source, effect, transaction_id)
    SELECT * FROM unnest($71::smallint[], $72::text[], $73::text[], $74::uuid[])
)"""

_TAIL = """
SELECT count(*) FROM keys
"""

WRITE = _HEAD + _TAIL  # deposits, withdrawals, transfers: nearly everything; 33 arrays less to send
WRITE_WITH_PAYMENTS = _HEAD + _PAYMENTS + _TAIL


# Beside WRITE, not in it: hardly any batch has one.
NOTE = """
INSERT INTO audit_log (id, actor, action, target, details)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::jsonb[])
ON CONFLICT (id) DO NOTHING
"""


class KeyClash(Exception):
    """A key of the batch exists already, or was taken between reading and writing."""


class Blocked(Exception):
    """A lock could not be had in time; `on_key` when it was a key, not an account."""

    def __init__(self, *, on_key: bool) -> None:
        super().__init__(on_key)
        self.on_key = on_key


class OutcomeLost(Exception):
    """The connection broke while COMMIT was under way, or its wait for a standby was cancelled."""


class Posted(msgspec.Struct, frozen=True):
    """A committed batch: an outcome a submission, the balances that changed with the outbox row that tells of them, the
    accounts that were locked by somebody else (with `skip_locked` only), and the seconds of its COMMIT.
    """

    outcomes: list[Outcome]
    changed: list[balances.Stored]
    outbox_id: UUID | None
    busy: frozenset[UUID]
    commit_s: float


class Line:
    """A lane's connection. `committing_since`: of the COMMIT under way, on the monotonic clock; 0: there is none.

    `transaction`: PostgreSQL's number of the one that waits for a standby; empty: nobody asked.
    """

    def __init__(self, connection: asyncpg.Connection, waits_for: Durability) -> None:
        self.connection = connection
        self.waits_for = waits_for
        self.committing_since = 0.0
        self.transaction = ""

    async def commit(self) -> float:
        """COMMIT, however long a standby takes; never cancelled, only dropped. The seconds that it took. Raises OutcomeLost."""
        self.committing_since = time.monotonic()
        try:
            await commits.commit(self.connection, self.waits_for)
            return time.monotonic() - self.committing_since
        except (
            commits.Unconfirmed,
            OSError,
            asyncpg.PostgresConnectionError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
            asyncpg.OperatorInterventionError,
        ) as cause:
            raise OutcomeLost from cause
        finally:
            self.committing_since = 0.0

    async def rollback(self) -> None:
        """Undo, where there is still somebody to tell."""
        if not self.connection.is_closed():
            await self.connection.execute("ROLLBACK")


async def connect(db: Database) -> Line:
    """A connection for a lane, ready to post."""
    connection = await db.connect()
    await connection.fetchrow(WARM_UP)
    slow.listen_to(connection, db.connect)
    return Line(connection, db.waits_for)


async def post(
    line: Line,
    batch: Sequence[Submission],
    *,
    forget: Sequence[UUID] = (),
    read_keys: bool = False,
    skip_locked: bool = False,
) -> Posted:
    """Post `batch` in one transaction. `forget`: outbox rows whose news has arrived.

    Raises KeyClash (again with `read_keys`), Blocked (again with `skip_locked`, or alone), OutcomeLost (again with `read_keys`),
    `errors.NoSynchronousStandby`, `errors.StandbysNotVisible` and `errors.StorageFull` (nothing was written), or asyncpg's own errors.
    """
    connection, asks = line.connection, line.waits_for == "synchronous"
    account_ids = sorted({account_id for submission in batch for account_id in commands.accounts_of(submission.command)})
    buckets = list({ids.bucket_of(account_id) for account_id in account_ids})
    existing = await connection.fetch(EXISTING, buckets, account_ids) if skip_locked else ()
    await connection.execute("BEGIN")
    stage = "lock"
    try:
        rows = await connection.fetch(LOCK_FREE_ONES if skip_locked else LOCK, buckets, account_ids, asks)
        if asks and rows:
            commits.check_standbys(rows[0][-2])
            line.transaction = rows[0][-1]
        book = Book(time.time_ns())  # under the locks: per account, a later commit has a later time
        book.accounts = {row[0]: Account(*row[:-2]) for row in rows}
        book.busy = frozenset(row[0] for row in existing) - book.accounts.keys()
        if read_keys:
            await _read_keys(connection, book, batch)
        await _read_referred(connection, book, batch)
        outcomes = [decide(book, submission) for submission in batch]
        stage = "write"
        outbox_id = ids.new_id(account_ids[0].int & 0xFF, book.now_ns) if book.changed else None
        changed = [balances.stored(account, book.now_ns) for account in book.changed.values()]
        if book.new_keys or book.changed or forget:
            columns = _columns(book, outbox_id, changed, forget)
            if book.new_payments or book.changed_payments or book.new_effects:
                written = await connection.fetchval(WRITE_WITH_PAYMENTS, *columns, *_payment_columns(book))
            else:
                written = await connection.fetchval(WRITE, *columns)
            if written < len(book.new_keys):
                raise KeyClash
        if acts := _acts(batch, outcomes):
            await connection.execute(NOTE, *_transposed(acts, 5))
    except asyncpg.LockNotAvailableError as cause:
        await line.rollback()
        raise Blocked(on_key=stage == "write") from cause
    except asyncpg.DiskFullError as cause:  # of a database elsewhere: we do not see its disk
        await line.rollback()
        raise errors.StorageFull from cause
    except BaseException:
        await line.rollback()
        raise
    commit_s = await line.commit()
    return Posted(outcomes, changed, outbox_id, book.busy, commit_s)


async def _read_keys(connection: asyncpg.Connection, book: Book, batch: Sequence[Submission]) -> None:
    keys = list({submission.key for submission in batch if submission.key})
    owners = list({account.user_id for account in book.accounts.values()})
    for owner, actor, key, fingerprint, answer in await connection.fetch(KNOWN_KEYS, _buckets(owners), owners, keys):
        book.keys[owner, actor, key] = (fingerprint, idempotency.recalled(answer))


async def _read_referred(connection: asyncpg.Connection, book: Book, batch: Sequence[Submission]) -> None:
    payment_ids: set[UUID] = set()
    effects: set[Effect] = set()
    for command, *_ in batch:
        bucket = ids.bucket_of(command.account_id)
        match command:
            case commands.CompletePayment() | commands.CancelPayment() | commands.Advance():
                payment_ids.add(command.payment_id)
            case commands.Observe():
                payment_ids.add(command.payment_id)
                effects.add((bucket, settlements.PROVIDER, settlements.return_effect(command.payment_id)))
            case commands.OpenPayment(refund_of=UUID() as refund_of):
                payment_ids.add(refund_of)
            case commands.Settle():
                payment_ids |= {payment_id for payment_id in (command.payment_id, command.refund_id) if payment_id}
                effects.add((bucket, command.source, command.effect))
                if command.kind == "withdrawal" and command.payment_id:
                    effects.add((bucket, settlements.PROVIDER, settlements.return_effect(command.payment_id)))
            case commands.Reverse(transaction_id=transaction_id, transfer_id=transfer_id):
                subject = transfer_id or transaction_id
                effects.add((ids.bucket_of(subject), "reversal", str(subject)))
    if not (payment_ids or effects):
        return
    wanted = _transposed(sorted(effects), 3)
    for what, *row in await connection.fetch(REFERRED, _buckets(payment_ids), list(payment_ids), *wanted):
        if what == "payment":
            book.payments[row[0]] = Payment(*row[:_PAYMENT_FIELDS])
        else:
            book.effects[row[16], row[17], row[18]] = row[7]


def _columns(book: Book, outbox_id: UUID | None, changed: list[balances.Stored], forget: Sequence[UUID]) -> list[Any]:
    """The arguments of WRITE."""
    # sorted, so that two processes that insert the same keys wait for each other in one order
    keys = sorted(book.new_keys, key=lambda row: row.scope)
    accounts = book.changed.values()
    return list(
        chain(
            (
                _moment(book.now_ns),
                [row.scope[0] for row in keys],
                [ids.bucket_of(row.scope[0]) for row in keys],
                [row.scope[1] for row in keys],
                [row.scope[2] for row in keys],
                [row.fingerprint for row in keys],
                [idempotency.stored(row.decision) for row in keys],
            ),
            _with_metadata(_transposed(book.new_transactions, 13), 12),
            ([ids.bucket_of(row.id) for row in book.new_transactions],),
            ([account.id for account in accounts], [ids.bucket_of(account.id) for account in accounts]),
            ([getattr(account, field) for account in accounts] for field in Account.__struct_fields__[3:]),
            (outbox_id, outbox_id.int & 0xFF if outbox_id else None, balances.news(changed) if outbox_id else None),
            (_buckets(forget), list(forget)),
        )
    )


def _payment_columns(book: Book) -> list[Any]:
    """The rest of them, of WRITE_WITH_PAYMENTS."""
    changed = book.changed_payments.values()
    return list(
        chain(
            _with_metadata(_transposed(book.new_payments, 15), 7, 10),
            ([ids.bucket_of(row.id) for row in book.new_payments],),
            ([payment.id for payment in changed], [ids.bucket_of(payment.id) for payment in changed]),
            ([getattr(payment, field) for payment in changed] for field in _CHANGING),
            _transposed(book.new_effects, 4),
        )
    )


_CHANGING = (
    "status",
    "held",
    "transaction_id",
    "provider_id",
    "stamp",
    "paid",
    "refunded",
    "refunding",
    "charged_back",
    "failure",
    "provider_url",
)


def _acts(batch: Sequence[Submission], outcomes: Sequence[Outcome]) -> list[tuple[UUID, str, str, str, str]]:
    """Rows of the audit log: of what was done, not of what was refused or had been done before."""
    done = [
        (submission.act, outcome.decision)
        for submission, outcome in zip(batch, outcomes, strict=True)
        if submission.act is not None and isinstance(outcome.decision, idempotency.Answer) and not outcome.replayed
    ]
    return [(act.id, act.by, act.action, act.target, msgspec.json.encode(act.details | _made(answer)).decode()) for act, answer in done]


def _made(answer: idempotency.Answer) -> dict[str, UUID]:
    made = {"transaction": answer.transaction_id, "transfer": answer.transfer_id, "payment": answer.payment_id}
    return {what: row_id for what, row_id in made.items() if row_id is not None}


def _transposed(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]


def _with_metadata(columns: list[list[Any]], *positions: int) -> list[list[Any]]:
    """Dictionaries of these columns as JSON text, which is what asyncpg takes for jsonb."""
    for position in positions:
        columns[position] = [None if value is None else msgspec.json.encode(value).decode() for value in columns[position]]
    return columns


def _buckets(row_ids: Any) -> list[int]:
    return list({ids.bucket_of(row_id) for row_id in row_ids})


def _moment(now_ns: int) -> Any:
    return balances.moment(now_ns // 1_000_000)


def is_passing(cause: BaseException) -> bool:
    """True for what a retry of the batch may get over: conflicts, timeouts, shutdowns, a lost connection, a demoted primary."""
    if isinstance(cause, ValueError):  # a value that asyncpg cannot encode is an InterfaceError too, and stays one
        return False
    return isinstance(
        cause,
        OSError
        | asyncpg.SerializationError
        | asyncpg.DeadlockDetectedError
        | asyncpg.QueryCanceledError
        | asyncpg.OperatorInterventionError
        | asyncpg.CannotConnectNowError
        | asyncpg.ReadOnlySQLTransactionError
        | asyncpg.PostgresConnectionError
        | asyncpg.InterfaceError
        | asyncpg.InternalClientError  # a session that was ended between two statements
        | asyncpg.TooManyConnectionsError
        | OutcomeLost
        | errors.DatabaseUnavailable,
    )
