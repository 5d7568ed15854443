"""Each cache can be switched off: then it is neither read nor filled, what was in it is dropped, and the answers are right."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from uuid import UUID, uuid4

import msgspec
import pytest
from redis.asyncio import Redis

from piggybank import cache as kinds
from piggybank import errors
from piggybank import settings as settings_file
from piggybank.cache import SWITCHES, TOMBSTONE, Cache, Entry
from piggybank.db.engines import Database
from piggybank.identity import apikeys
from piggybank.identity.tokens import Tokens, hash_of
from piggybank.ledger import balances
from piggybank.settings import Settings
from piggybank.wallet import history

from .conftest import Past

T0_MS = 1_700_000_000_000
Without = Callable[[str], Awaitable[Cache]]


@pytest.fixture
async def without(settings: Settings, cache: Cache) -> AsyncIterator[Without]:
    """A process's cache with one kind switched off, beside the one of a process with everything on."""
    made: list[Cache] = []

    async def make(kind: str) -> Cache:
        made.append(Cache.of(msgspec.structs.replace(settings, **{SWITCHES[kind]: False})))
        made[-1].epoch = cache.epoch
        return made[-1]

    yield make
    for one in made:
        await one.close()


async def kept(settings: Settings, kind: str, part: str) -> int:
    """Keys of that kind in the cache."""
    async with Redis.from_url(settings.cache_url) as redis:
        return len(await redis.keys(f"*:{kind}:*{part}*"))


async def account(past: Past, rows: int = 3) -> UUID:
    account_id = await past.account()
    await past.post(account_id, [(T0_MS, 5)] * rows)
    return account_id


async def entry(past: Past, account_id: UUID, **other: int) -> Entry:
    row = dict(await past.sql.fetchrow("SELECT * FROM accounts WHERE id = $1", account_id)) | other
    return balances.stored(SimpleNamespace(**row), time.time_ns()).entry


async def test_balances(db: Database, cache: Cache, past: Past, settings: Settings, without: Without) -> None:
    off, account_id = await without("balance"), await account(past)
    for _ in range(2):
        assert (await balances.read(db, off, account_id)).balance == 15
        assert (await history.page(db, off, account_id)).total == 3
    assert await kept(settings, "balance", str(account_id)) == 0
    assert (off.hits, off.misses) == ({}, {})

    await cache.write("balance", [await entry(past, account_id, balance=99, clearing=-99)], kinds.BALANCE_TTL_S)
    assert (await balances.read(db, cache, account_id)).balance == 99
    assert (await balances.read(db, off, account_id)).balance == 15
    # who commits without it drops what the others have: nothing from before is left for a process that still reads
    assert await off.write("balance", [await entry(past, account_id)], kinds.BALANCE_TTL_S)
    assert (await balances.read(db, cache, account_id)).balance == 15


async def test_counts(db: Database, cache: Cache, past: Past, without: Without) -> None:
    off, account_id = await without("count"), await account(past)
    for _ in range(3):  # the first fills the balance, the second the page
        assert (await history.page(db, off, account_id)).total == 3
    assert off.hits["page"] == 1
    await cache.forget("balance", [str(account_id)])
    await cache.write("balance", [await entry(past, account_id, transactions_count=99)], kinds.BALANCE_TTL_S)
    assert (await history.page(db, cache, account_id)).total == 99
    assert (await history.page(db, off, account_id)).total == 3
    await past.post(account_id, [(T0_MS + 5, 2)])  # past the cache: the page that it knows is not of this count
    found = await history.page(db, off, account_id)
    assert (found.total, len(found.items)) == (4, 4)


async def test_pages(db: Database, cache: Cache, past: Past, settings: Settings, without: Without) -> None:
    off, account_id = await without("page"), await account(past)
    for _ in range(3):
        assert len((await history.page(db, off, account_id)).items) == 3
    assert await kept(settings, "page", str(account_id)) == 0
    wrong = msgspec.json.encode(history.TransactionPage(items=[], next_cursor=None, total=None))
    await cache.write("page", [Entry(f"{account_id}:3", 3, wrong)], kinds.PAGE_TTL_S)
    assert (await history.page(db, cache, account_id)).items == []
    assert len((await history.page(db, off, account_id)).items) == 3


async def test_sessions(db: Database, cache: Cache, settings: Settings, without: Without) -> None:
    off = await without("token")
    async with db.write() as write:
        key, token = await apikeys.create(write, name=uuid4().hex, scopes=["ops:read"], actor="test")
    for _ in range(2):  # processes that remember nothing
        assert (await Tokens(db, off).authenticate(token)).token_id == key.id
    assert await kept(settings, "token", hash_of(token).hex()) == 0
    await cache.write("token", [Entry(hash_of(token).hex(), TOMBSTONE, b"")], 60)
    assert (await Tokens(db, off).authenticate(token)).token_id == key.id
    with pytest.raises(errors.Unauthenticated):
        await Tokens(db, cache).authenticate(token)

    await cache.forget("token", [hash_of(token).hex()])
    await Tokens(db, cache).authenticate(token)
    await apikeys.revoke(db, Tokens(db, off), key.id, actor="test")
    for store in (off, cache):
        with pytest.raises(errors.Unauthenticated):
            await Tokens(db, store).authenticate(token)


def test_every_switch_is_a_setting(settings: Settings) -> None:
    assert set(SWITCHES.values()) <= {row[0].removeprefix("PIGGYBANK_").lower() for row in settings_file.described()}
    assert all(getattr(settings, name) for name in SWITCHES.values())
