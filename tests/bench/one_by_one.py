"""The other way to write a deposit, in the same app: one SERIALIZABLE transaction a request with SELECT .. FOR UPDATE.

Same route guard, same body, same rows (key with its answer, transaction, account), tried again when PostgreSQL says that it could not
serialise. It is here to be measured against, and only `make bench` serves it.
"""

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import msgspec
from litestar import Response, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import HeaderParameter

from piggybank import errors, ids, settings
from piggybank.api import guards
from piggybank.api.transactions import DepositRequest
from piggybank.identity.tokens import Principal

CONNECTIONS = 16
TRIES = 10

LOCK = "SELECT balance, clearing, version, sequence, bucket, user_id FROM accounts WHERE id = $1 AND bucket = $2 FOR UPDATE"
KEY = """
INSERT INTO idempotency_keys (owner, bucket, actor, key, fingerprint, answer, created_at) VALUES ($1, $2, 's', $3, $4, $5, $6)
ON CONFLICT DO NOTHING RETURNING 1
"""
TRANSACTION = """
INSERT INTO transactions (id, account_id, amount, balance_after, sequence, bucket, kind, system_account)
VALUES ($1, $2, $3, $4, $5, $6, 'deposit', 'clearing')
"""
ACCOUNT = """
UPDATE accounts SET balance = $3, clearing = $4, version = version + 1, sequence = $5, transactions_count = transactions_count + 1,
       last_transaction_id = $6
WHERE id = $1 AND bucket = $2
"""

_pools: dict[str, asyncpg.Pool] = {}
_opening = asyncio.Lock()


@post("/bench/accounts/{account_id:uuid}/deposits")
async def deposit_alone(
    account_id: UUID,
    data: DepositRequest,
    idempotency_key: Annotated[str, HeaderParameter(name="Idempotency-Key")],
    principal: Principal,
    settings: settings.Settings,
) -> Response[dict[str, Any]]:
    """One deposit, one transaction."""
    pool = await _pool(settings.database_url)
    for _ in range(TRIES):
        try:
            async with pool.acquire() as connection, connection.transaction(isolation="serializable"):
                return Response(await _post(connection, account_id, data.amount, idempotency_key), status_code=201)
        except (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, asyncpg.LockNotAvailableError):
            continue
    raise errors.AccountBusy(account_id=str(account_id))


async def _post(connection: Any, account_id: UUID, amount: int, key: str) -> dict[str, Any]:
    bucket = account_id.bytes[-1]
    account = await connection.fetchrow(LOCK, account_id, bucket)
    if account is None:
        raise errors.NotFound(account_id=str(account_id))
    made, balance, sequence = ids.new_id(bucket), account["balance"] + amount, account["sequence"] + 1
    answer = {"transaction": {"id": made, "account_id": account_id, "amount": amount, "sequence": sequence}, "balance": balance}
    stored = msgspec.json.encode(answer)
    if await connection.fetchval(KEY, account["user_id"], bucket, key, stored[:16], stored, datetime.now(UTC)) is None:
        raise errors.IdempotencyKeyReused
    await connection.execute(TRANSACTION, made, account_id, amount, balance, sequence, bucket)
    await connection.execute(ACCOUNT, account_id, bucket, balance, account["clearing"] - amount, sequence, made)
    return answer


async def _pool(url: str) -> asyncpg.Pool:
    async with _opening:
        if url not in _pools:
            _pools[url] = await asyncpg.create_pool(url, min_size=CONNECTIONS, max_size=CONNECTIONS)
    return _pools[url]


def add_route(routes: list[HTTPRouteHandler]) -> None:
    """Before the app is made."""
    guards.ROUTES["POST /bench/accounts/{account_id}/deposits"] = guards.Access(scope="ledger:write")
    routes.append(deposit_alone)
