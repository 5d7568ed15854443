"""A database to throw away: made beside the installation's own, filled with accounts, dropped at the end whatever happens.

The installation's own database is asked for nothing but to make another. The cache is shared; entries do not meet, since keys begin
with the epoch of their database.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import asyncpg
import msgspec
from msgspec import Struct

from piggybank import errors, ids
from piggybank.db import migrate, roles
from piggybank.db.engines import CONNECTION_LOST, Database
from piggybank.identity import apikeys
from piggybank.settings import Settings

PREFIX = "piggybank_bench_"
FORGOTTEN_AFTER_S = 24 * 3_600  # a bench that was killed left its database behind
DROP_WITHIN_S = 30
DROP_PAUSE_S = 0.2
FIRST_BALANCE = 1_000_000_000  # minor units on each account, so that nothing is refused
SCOPES = ["users:read", "users:write", "accounts:read", "accounts:write", "ledger:write", "ops:read"]
CURRENCY = "ZAR"

_DEPOSITS = """
INSERT INTO transactions (id, account_id, amount, balance_after, sequence, bucket, kind, system_account)
SELECT last_transaction_id, id, balance, balance, 1, bucket, 'deposit', 'clearing'
FROM accounts
WHERE id = ANY($1::uuid[])
"""


class Filled(Struct, frozen=True, kw_only=True):
    """A migrated database with accounts, and a key that may do everything with them. `settings` point to it."""

    settings: Settings
    token: str
    accounts: list[str]


@asynccontextmanager
async def throw_away(settings: Settings, accounts: int) -> AsyncIterator[Filled]:
    """Raises `errors.CannotProceed` where the owner's role may not make databases, or does not answer."""
    name = f"{PREFIX}{int(time.time())}_{secrets.token_hex(4)}"
    try:
        connection = await asyncpg.connect(settings.owner_database_url)
    except CONNECTION_LOST as cause:
        raise errors.CannotProceed(what="the database does not answer", do="start it with: piggybank up") from cause
    try:
        await _drop_forgotten(connection)
        try:
            await _create(connection, name, roles.role_of(settings.owner_database_url))
            yield await fill(_pointing_to(settings, name), accounts)
        finally:
            await _drop(connection, name)
    finally:
        await connection.close()


async def fill(settings: Settings, accounts: int) -> Filled:
    """Bring a database to the schema and put in users with an account each."""
    await migrate.upgrade(settings.owner_database_url, roles.role_of(settings.database_url))
    now_ns = time.time_ns()
    made = [(ids.new_id(bucket, now_ns), ids.new_id(bucket, now_ns), bucket) for bucket in (ids.new_bucket() for _ in range(accounts))]
    connection = await asyncpg.connect(settings.owner_database_url)
    try:
        await connection.copy_records_to_table("users", records=[(user,) for user, _, _ in made], columns=["id"])
        columns = ["id", "user_id", "bucket", "currency", "balance", "clearing", "version", "sequence", "transactions_count"]
        rows = [
            (account, user, bucket, CURRENCY, FIRST_BALANCE, -FIRST_BALANCE, 1, 1, 1, ids.new_id(bucket, now_ns))
            for user, account, bucket in made
        ]
        await connection.copy_records_to_table("accounts", records=rows, columns=[*columns, "last_transaction_id"])
        await connection.execute(_DEPOSITS, [account for _, account, _ in made])
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()
    return Filled(settings=settings, token=await _new_key(settings), accounts=[str(account) for _, account, _ in made])


async def rows(settings: Settings) -> int:
    """How many transactions are posted."""
    connection = await asyncpg.connect(settings.owner_database_url)
    try:
        count: int = await connection.fetchval("SELECT count(*) FROM transactions")
        return count
    finally:
        await connection.close()


async def _create(connection: asyncpg.Connection, name: str, role: str) -> None:
    try:
        await connection.execute(f"CREATE DATABASE {name}")
    except asyncpg.InsufficientPrivilegeError as cause:
        raise errors.CannotProceed(
            what=f"the role {role} may not make a database to throw away; nothing was measured",
            do=f'let it, as a superuser: ALTER ROLE "{role}" CREATEDB; and take it back afterwards',
        ) from cause


async def _new_key(settings: Settings) -> str:
    db = Database.of(settings)
    try:
        async with db.write() as write:
            _, token = await apikeys.create(write, name="bench", scopes=SCOPES, actor="bench")
    finally:
        await db.close()
    return token


async def _drop_forgotten(connection: asyncpg.Connection) -> None:
    names = await connection.fetch(
        "SELECT datname FROM pg_database WHERE starts_with(datname, $1) AND pg_get_userbyid(datdba) = current_user", PREFIX
    )
    for (name,) in names:
        made_at = name.removeprefix(PREFIX).partition("_")[0]
        if made_at.isdigit() and time.time() - int(made_at) > FORGOTTEN_AFTER_S:
            await _drop(connection, name)


async def _drop(connection: asyncpg.Connection, name: str) -> None:
    """Once the server's sessions have ended: the owner may not end those of the application's role."""
    until = time.monotonic() + DROP_WITHIN_S
    while True:
        try:
            await connection.execute(f'DROP DATABASE IF EXISTS "{name}"')
            return
        except asyncpg.ObjectInUseError:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(DROP_PAUSE_S)


def _pointing_to(settings: Settings, name: str) -> Settings:
    def moved(url: str) -> str:
        return urlsplit(url)._replace(path=f"/{name}").geturl()

    return msgspec.structs.replace(
        settings,
        database_url=moved(settings.database_url),
        owner_database_url=moved(settings.owner_database_url),
        pooler="none",  # which need not know a database of a few minutes
    )
