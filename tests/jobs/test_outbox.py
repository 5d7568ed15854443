"""The sweep: what it mends, what it leaves, and that twice is once."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session
from redis.asyncio import Redis

from piggybank.appliance import store_files
from piggybank.cache import _FENCE, BALANCE_TTL_S, Cache, Entry
from piggybank.db import outbox as rows
from piggybank.jobs import outbox
from piggybank.jobs.work import Work

from .conftest import put, until, waiting


def _with_cache(work: Work, url: str) -> Work:
    return msgspec.structs.replace(work, cache=Cache(url))


async def cached_version(work: Work, account_id: UUID) -> int | None:
    """None: it would be read from the database (a fence says so, too). Takes no lease, unlike a reader."""
    async with Redis.from_url(work.settings.cache_url) as redis:
        stored: Any = await redis.get(work.cache._name("balance", str(account_id)))
    return None if stored in (None, _FENCE) else int(stored.split(b":")[0])


async def in_cache(work: Work, account_id: UUID, version: int) -> None:
    # a busy machine may take longer than the cache's timeout
    await until(lambda: work.cache.write("balance", [Entry(str(account_id), version, b"{}")], BALANCE_TTL_S))


async def test_what_a_missed_write_through_left_is_forgotten(work: Work, sql: asyncpg.Connection) -> None:
    one, other, third = uuid4(), uuid4(), uuid4()
    for account_id in (one, other, third):
        await in_cache(work, account_id, 3)
    await put(sql, "ledger.posted", [str(one), str(other)])
    await put(sql, "ledger.posted", [str(one)])
    young = await put(sql, "ledger.posted", [str(third)], age_s=0)
    assert await outbox.sweep(work) == 2
    assert await waiting(sql) == {young}
    assert [await cached_version(work, account_id) for account_id in (one, other, third)] == [None, None, 3]


async def test_a_sweep_puts_no_old_balance_into_a_cache_that_was_flushed(work: Work, sql: asyncpg.Connection) -> None:
    account_id = uuid4()
    await put(sql, "ledger.posted", [str(account_id)])  # of version 1; version 2 was written through, and its row is gone
    await in_cache(work, account_id, 2)
    async with Redis.from_url(work.settings.cache_url) as redis:
        await redis.flushdb()
    assert await outbox.sweep(work) == 1
    assert await cached_version(work, account_id) is None


async def test_a_reader_that_began_before_the_sweep_fills_nothing(work: Work, sql: asyncpg.Connection) -> None:
    account_id = uuid4()
    began = await work.cache.read("balance", str(account_id))
    assert began.lease
    await put(sql, "ledger.posted", [str(account_id)])
    await outbox.sweep(work)
    await work.cache.fill("balance", began, Entry(str(account_id), 1, b"{}"), BALANCE_TTL_S)
    assert await cached_version(work, account_id) is None


async def test_more_rows_than_a_slice(work: Work, sql: asyncpg.Connection) -> None:
    accounts = [uuid4() for _ in range(2 * outbox.SLICE_ROWS + 5)]
    for account_id in accounts:
        await in_cache(work, account_id, 1)
        await put(sql, "ledger.posted", [str(account_id)])

    async def none_waits() -> bool:
        await asyncio.gather(outbox.sweep(work), outbox.sweep(work), outbox.sweep(work))
        return await waiting(sql) == set()

    await until(none_waits)  # a busy machine may take longer than the cache's timeout; then the rows stay for the next sweep
    assert [await cached_version(work, account_id) for account_id in accounts] == [None] * len(accounts)


async def test_while_the_cache_is_away_rows_wait(work: Work, sql: asyncpg.Connection) -> None:
    away = _with_cache(work, f"redis://127.0.0.1:{store_files.free_ports(1)[0]}/0")
    away.cache.epoch = work.cache.epoch
    account_id = uuid4()
    await in_cache(work, account_id, 2)
    row_id = await put(sql, "ledger.posted", [str(account_id)])
    revoked = await put(sql, "token.revoked", {"key": "aa"})
    assert await outbox.sweep(away) == 0
    assert await waiting(sql) == {row_id, revoked}
    assert await sql.fetchval("SELECT count(*) FROM outbox WHERE attempts > 0 OR due_at IS NOT NULL") == 0  # nothing to wait out
    assert await outbox.sweep(work) == 2
    assert await cached_version(work, account_id) is None
    await away.cache.close()


async def test_what_has_outlived_the_cache_is_dropped_even_while_it_is_away(work: Work, sql: asyncpg.Connection) -> None:
    away = _with_cache(work, f"redis://127.0.0.1:{store_files.free_ports(1)[0]}/0")
    account_id = uuid4()
    await put(sql, "ledger.posted", [str(account_id)], age_s=outbox.KEPT_S["ledger.posted"] + 5)
    kept = await put(sql, "ledger.posted", [str(account_id)], age_s=BALANCE_TTL_S - 5)
    assert await outbox.sweep(away) == 1
    assert await waiting(sql) == {kept}
    await away.cache.close()


@pytest.mark.parametrize("broken", [{"not": "a list"}, ["x"], "text", None])
async def test_a_row_that_makes_no_sense_stays_and_blocks_nobody(work: Work, sql: asyncpg.Connection, broken: Any) -> None:
    account_id = uuid4()
    bad = await put(sql, "ledger.posted", broken, age_s=9)
    await in_cache(work, account_id, 5)
    await put(sql, "ledger.posted", [str(account_id)])
    assert await outbox.sweep(work) == 1
    assert await cached_version(work, account_id) is None
    assert await waiting(sql) == {bad}
    assert await outbox.sweep(work) == 0
    put_off = await sql.fetchrow("SELECT attempts, due_at - now() AS pause FROM outbox")
    assert put_off["attempts"] == 1  # the second sweep left it alone
    assert 0 < put_off["pause"].total_seconds() <= outbox.pause_s(0)


def test_pauses_grow_to_a_limit() -> None:
    assert [outbox.pause_s(attempts) for attempts in (0, 1, 2, 30_000)] == [5, 10, 20, outbox.FAILED_PAUSE_LONGEST_S]


async def test_a_revoked_token_is_buried(work: Work, sql: asyncpg.Connection) -> None:
    await work.cache.write("token", [Entry("feed", 0, b"{}")], 300)
    await put(sql, "token.revoked", {"key": "feed"})
    await outbox.sweep(work)
    assert await waiting(sql) == set()
    assert (await work.cache.read("token", "feed")).is_tombstone


async def test_a_row_that_somebody_else_deletes_is_left_to_them(work: Work, sql: asyncpg.Connection) -> None:
    row_id = await put(sql, "ledger.posted", [str(uuid4())])
    async with sql.transaction():
        await sql.execute("SELECT FROM outbox WHERE id = $1 FOR UPDATE", row_id)
        async with work.db.write() as write:  # waits for nobody: a wait would end at the lock timeout
            await rows.delete(write, [row_id])
    assert await waiting(sql) == {row_id}


class Postbox:
    """Takes mails, or refuses them."""

    def __init__(self, answer: str) -> None:
        self.answer = answer
        self.mails: list[str] = []

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd calls it so
        assert isinstance(envelope.content, bytes)
        self.mails.append(f"{envelope.rcpt_tos} {envelope.content.decode()}")
        return self.answer


@contextmanager
def postbox(work: Work, answer: str = "250 taken") -> Iterator[tuple[Postbox, Work]]:
    box = Postbox(answer)
    controller = Controller(box, hostname="127.0.0.1", port=store_files.free_ports(1)[0])
    controller.start()
    settings = msgspec.structs.replace(work.settings, smtp_url=f"smtp://127.0.0.1:{controller.port}", mail_from="wallet@example.com")
    try:
        yield box, Work(settings, work.db, work.cache, work.ledger, work.provider)
    finally:
        controller.stop()


RESET = {"email": "ada@example.com", "link": "http://127.0.0.1/welcome#reset=pbl_x"}


async def test_a_mail_is_sent_once_by_many_sweeps(work: Work, sql: asyncpg.Connection) -> None:
    await put(sql, "mail.reset", RESET)
    with postbox(work) as (box, sending):
        await asyncio.gather(*(outbox.send_mails(sending) for _ in range(5)))
    assert len(box.mails) == 1
    assert RESET["email"] in box.mails[0]
    assert await waiting(sql) == set()


async def test_a_refused_mail_is_put_off(work: Work, sql: asyncpg.Connection, capsys: pytest.CaptureFixture[str]) -> None:
    await put(sql, "mail.reset", RESET)
    with postbox(work, "451 later, ada@example.com") as (box, sending):
        assert await outbox.send_mails(sending) == 0
        assert await outbox.send_mails(sending) == 0
    assert len(box.mails) == 1
    assert await sql.fetchval("SELECT attempts FROM outbox WHERE due_at > now()") == 1
    logged = capsys.readouterr()
    assert "ada@" not in logged.out + logged.err
    assert "pbl_" not in logged.out + logged.err


async def test_a_mail_is_sent_again_after_a_crash_in_its_middle(work: Work, sql: asyncpg.Connection) -> None:
    await put(sql, "mail.reset", RESET)
    async with work.db.write() as write:
        assert len(await rows.claim(write, "mail.reset", older_than_s=0, limit=5, lease_s=60)) == 1
    with postbox(work) as (box, sending):
        await outbox.send_mails(sending)
        assert box.mails == []  # the lease still runs
        await sql.execute("UPDATE outbox SET due_at = now() - interval '1 second'")
        await outbox.send_mails(sending)
        assert len(box.mails) == 1


async def test_without_a_mail_server_the_link_expires_in_the_outbox(work: Work, sql: asyncpg.Connection) -> None:
    kept = await put(sql, "mail.reset", RESET)
    await put(sql, "mail.reset", RESET, age_s=outbox.KEPT_S["mail.reset"] + 5)
    await outbox.sweep(work)
    assert await waiting(sql) == {kept}
