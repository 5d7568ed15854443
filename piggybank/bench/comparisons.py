"""What a deposit is compared with, in the same app behind the same guard: only the bench's server has these routes.

`constant` decodes, checks, fingerprints and encodes as the real route does, and has nothing behind it. `row-locking` is the usual way
to write a ledger, as good as we can make it: one SERIALIZABLE transaction a request, SELECT .. FOR UPDATE, one statement that
writes the same rows (key with its answer, transaction, account, outbox), tried again when PostgreSQL cannot serialise, cache written
through after the commit.
"""

import asyncio
import random
from collections import deque
from datetime import UTC, datetime
from uuid import UUID

import asyncpg
from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler

from piggybank import cache, errors, ids
from piggybank.api import guards
from piggybank.api.accounts import IfNoneMatch
from piggybank.api.submissions import IdempotencyKey, balance_of, respond, submission
from piggybank.api.transactions import DepositRequest, Posted, posted
from piggybank.cache import Cache
from piggybank.identity.tokens import Principal
from piggybank.ledger import Submission, balances, commands, idempotency
from piggybank.ledger.balances import Balance
from piggybank.ledger.book import Account
from piggybank.ledger.idempotency import Answer
from piggybank.settings import Settings

CONNECTIONS = 16  # 8 did a fifth less here, 32 no more
TRIES = 6  # the first and five more
PAUSE_S = 0.010  # before the second try; doubled each time, and random: 2 and 5 ms did less on a hot account
FORGOTTEN = 32  # outbox rows deleted at once, in a transaction of their own: in a serialisable one they conflict with every insert

LOCK = """
SELECT id, user_id, currency, status, balance, held, owed, clearing, fees, transfers, adjustments, version, sequence,
       transactions_count, open_payments, last_transaction_id
FROM accounts
WHERE id = $1 AND bucket = $2
FOR UPDATE
"""
WRITE = """
WITH key AS (
    INSERT INTO idempotency_keys (owner, bucket, actor, key, fingerprint, answer, created_at)
    VALUES ($1, $2, 's', $3, $4, $5, $6)
    ON CONFLICT DO NOTHING
    RETURNING 1
), posted AS (
    INSERT INTO transactions (id, account_id, amount, balance_after, sequence, bucket, kind, system_account)
    VALUES ($7, $8, $9, $10, $11, $2, 'deposit', 'clearing')
), changed AS (
    UPDATE accounts
    SET balance = $10, clearing = clearing - $9, version = version + 1, sequence = $11,
        transactions_count = transactions_count + 1, last_transaction_id = $7
    WHERE id = $8 AND bucket = $2
), told AS (
    INSERT INTO outbox (id, bucket, topic, payload) VALUES ($12, $2, 'ledger.posted', $13)
)
SELECT count(*) FROM key
"""
FORGET = "DELETE FROM outbox WHERE id = ANY($1::uuid[])"
_PASSING = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, asyncpg.LockNotAvailableError)
_CONSTANT = Answer("ZAR", 125_000, 0, 0, 42, 1_800_000_000_000, UUID("01900000-0000-7000-8000-0000000000ff"), 41)

_pools: dict[str, asyncpg.Pool] = {}
_opening = asyncio.Lock()
_arrived: deque[UUID] = deque()


@post("/bench/accounts/{account_id:uuid}/constant", fast_path=True)
async def constant(account_id: UUID, data: DepositRequest, idempotency_key: IdempotencyKey, principal: Principal) -> Response[Posted]:
    """All of a deposit but the ledger."""
    one = _submission(account_id, data, idempotency_key, principal)
    return respond(posted(one.command, _CONSTANT, "deposit", data.amount), 201, replayed=False)


@get("/bench/accounts/{account_id:uuid}/balance", fast_path=True)
async def constant_balance(account_id: UUID, principal: Principal, if_none_match: IfNoneMatch) -> Response[Balance | None]:  # noqa: ARG001 - the guard's work is done
    """All of a balance read but the balance."""
    balance = balance_of(account_id, _CONSTANT)
    etag = f'"{balance.version}"'
    if if_none_match == etag:
        return Response(None, status_code=304, headers={"ETag": etag})
    return Response(balance, headers={"ETag": etag})


@post("/bench/accounts/{account_id:uuid}/row-locking", fast_path=True)
async def row_locking(
    account_id: UUID, data: DepositRequest, idempotency_key: IdempotencyKey, principal: Principal, settings: Settings, cache: Cache
) -> Response[Posted]:
    """One deposit, one transaction."""
    one = _submission(account_id, data, idempotency_key, principal)
    pool = await _pool(settings.database_url)
    pause_s = PAUSE_S
    for _ in range(TRIES):
        try:
            async with pool.acquire() as connection:
                answer = await _post(connection, cache, one, data.amount)
            return respond(posted(one.command, answer, "deposit", data.amount), 201, replayed=False)
        except _PASSING:
            await asyncio.sleep(random.uniform(0, pause_s))  # noqa: S311 - no secret
            pause_s *= 2
    raise errors.AccountBusy(account_id=str(account_id))


def _submission(account_id: UUID, data: DepositRequest, key: str | None, principal: Principal) -> Submission:
    command = commands.Deposit(
        account_id=account_id,
        amount=data.amount,
        currency=data.currency,
        reference=data.reference,
        description=data.description,
        metadata=data.metadata,
    )
    return submission(command, principal, key, f"deposit {account_id}", data)


async def _post(connection: asyncpg.pool.PoolConnectionProxy, store: Cache, one: Submission, amount: int) -> Answer:
    account_id = one.command.account_id
    bucket = ids.bucket_of(account_id)
    if len(_arrived) >= FORGOTTEN:
        await connection.execute(FORGET, [_arrived.popleft() for _ in range(FORGOTTEN)])
    async with connection.transaction(isolation="serializable"):
        row = await connection.fetchrow(LOCK, account_id, bucket)
        if row is None:
            raise errors.NotFound(account_id=str(account_id))
        account, now = Account(*row), datetime.now(UTC)
        now_ns = int(now.timestamp() * 1_000_000_000)
        made, told = ids.following_id(account.last_transaction_id, bucket, now_ns), ids.new_id(bucket, now_ns)
        account.balance, account.clearing = account.balance + amount, account.clearing - amount
        account.version, account.sequence = account.version + 1, account.sequence + 1
        account.transactions_count += 1
        answer = Answer(
            account.currency,
            account.balance,
            account.held,
            account.owed,
            account.version,
            now_ns // 1_000_000,
            made,
            account.sequence,
        )
        changed = balances.stored(account, now_ns)
        key = (account.user_id, bucket, one.key, one.fingerprint, idempotency.stored(answer), now)
        rest = (made, account_id, amount, account.balance, account.sequence, told, balances.news([changed]))
        if await connection.fetchval(WRITE, *key, *rest) == 0:
            raise errors.IdempotencyKeyReused
    if await store.write(balances.KIND, [changed.entry], cache.BALANCE_TTL_S):
        _arrived.append(told)
    return answer


async def _pool(url: str) -> asyncpg.Pool:
    async with _opening:
        if url not in _pools:
            _pools[url] = await asyncpg.create_pool(url, min_size=CONNECTIONS, max_size=CONNECTIONS, reset=_keep)
    return _pools[url]


async def _keep(_: asyncpg.pool.PoolConnectionProxy) -> None:
    """asyncpg would reset a session each time that it is given back, in a round trip; nothing here sets anything to reset."""


def add_routes(routes: list[HTTPRouteHandler]) -> None:
    """Before the app is made."""
    write, read = guards.Access(scope="ledger:write"), guards.Access(scope="accounts:read")
    guards.ROUTES["POST /bench/accounts/{account_id}/constant"] = write
    guards.ROUTES["POST /bench/accounts/{account_id}/row-locking"] = write
    guards.ROUTES["GET /bench/accounts/{account_id}/balance"] = read
    routes += [constant, constant_balance, row_locking]
