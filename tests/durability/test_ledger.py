"""What the ledger answers while standbys confirm, wait, or are away."""

import asyncio
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from piggybank import errors
from piggybank.db import roles
from piggybank.ledger import SYSTEM, Ledger, Outcome, Submission, batcher, commands
from piggybank.settings import Settings
from tests.durability.conftest import CANCEL_WAITERS, WAITERS, nobody_is_synchronous, swallowing, waits
from tests.ledger.conftest import running_ledger
from tests.poolers import pooled
from tests.standbys import Replicated, until

DEPOSITED = "SELECT balance FROM accounts WHERE id = $1"
A_WHILE_S = 0.6  # long enough for an answer that must not come


def deposit(account: UUID, key: str | None = None, amount: int = 5) -> Submission:
    return Submission(commands.Deposit(account_id=account, amount=amount), SYSTEM, key or uuid4().hex, b"deposit")


async def unanswered(task: asyncio.Future[Outcome]) -> bool:
    _, late = await asyncio.wait([task], timeout=A_WHILE_S)
    return bool(late)


async def is_replayed(ledger: Ledger, submission: Submission) -> bool:
    """Posted before; False while nothing is taken."""
    try:
        return (await ledger.submit(submission)).replayed
    except errors.NoSynchronousStandby:
        return False


async def test_a_commit_is_answered_when_a_standby_has_it(cluster: Replicated, account: UUID) -> None:
    cluster.standbys[0].pause()  # any one of the two is enough
    try:
        async with running_ledger(cluster.settings) as ledger:
            await ledger.submit(deposit(account))
        other = await asyncpg.connect(cluster.standbys[1].owner_url)

        async def shown() -> bool:
            return bool(await other.fetchval(DEPOSITED, account) == 5)

        await until(shown)
        await other.close()
    finally:
        cluster.standbys[0].resume()


async def test_without_a_synchronous_standby_every_command_of_the_batch_is_refused_and_nothing_written(
    cluster: Replicated, account: UUID, sql: asyncpg.Connection
) -> None:
    keys = "SELECT count(*) FROM idempotency_keys WHERE owner = (SELECT user_id FROM accounts WHERE id = $1)"
    async with running_ledger(cluster.settings) as ledger:
        async with nobody_is_synchronous(cluster):
            answers = await ledger.submit_many([deposit(account) for _ in range(5)])
            assert [type(answer) for answer in answers] == [errors.NoSynchronousStandby] * 5
            assert await sql.fetchval(DEPOSITED, account) == await sql.fetchval(keys, account) == 0
        await ledger.submit(deposit(account))
    assert await sql.fetchval(DEPOSITED, account) == 5


async def test_a_role_that_may_not_see_the_standbys_says_so(cluster: Replicated, account: UUID, sql: asyncpg.Connection) -> None:
    role = roles.role_of(cluster.settings.database_url)
    await sql.execute(f"REVOKE {roles.SEES_STANDBYS} FROM {role}")
    try:
        async with running_ledger(cluster.settings) as ledger:
            with pytest.raises(errors.StandbysNotVisible):
                await ledger.submit(deposit(account))
    finally:
        await sql.execute(f"GRANT {roles.SEES_STANDBYS} TO {role}")
    assert await sql.fetchval(DEPOSITED, account) == 0


async def test_what_may_be_committed_is_never_called_busy(cluster: Replicated, account: UUID, sql: asyncpg.Connection) -> None:
    """The connection is lost while COMMIT waits: the earlier try itself holds the account, and it is going to count."""
    for standby in cluster.standbys:
        standby.pause()
    try:
        async with running_ledger(cluster.settings) as ledger:
            answer = asyncio.ensure_future(ledger.submit(deposit(account, "lost")))
            await waits(cluster)
            assert ledger._line is not None
            ledger._line.connection.terminate()
            with pytest.raises(errors.OutcomeUnknown):
                await answer
    finally:
        for standby in cluster.standbys:
            standby.resume()
    async with running_ledger(cluster.settings) as ledger:
        await until(partial(is_replayed, ledger, deposit(account, "lost")))
    assert await sql.fetchval(DEPOSITED, account) == 5


async def test_nothing_cancels_the_wait(
    cluster: Replicated, account: UUID, sql: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the role's timeouts nor an end of the process; and whoever cancels it by hand gets no success out of it."""
    role = roles.role_of(cluster.settings.database_url)
    monkeypatch.setattr(batcher, "RETRY_FOR_S", 2)
    await sql.execute(f"ALTER ROLE {role} SET statement_timeout = '300ms'")
    for standby in cluster.standbys:
        standby.pause()
    try:
        async with running_ledger(cluster.settings) as ledger:
            answer = asyncio.ensure_future(ledger.submit(deposit(account, "waits")))
            await waits(cluster)
            assert await unanswered(answer)
            assert await cluster.value(WAITERS) == 1  # still, long after statement_timeout
            assert await sql.fetchval(CANCEL_WAITERS) == 1
            await waits(cluster)  # it was tried again by its key, and waits again
            assert await unanswered(answer)
            with pytest.raises(errors.OutcomeUnknown):
                await answer
        # the ledger has stopped, its session still waits on the server
        assert await cluster.value(WAITERS) == 1
        assert await sql.fetchval(DEPOSITED, account) == 5
    finally:
        for standby in cluster.standbys:
            standby.resume()
        await sql.execute(f"ALTER ROLE {role} SET statement_timeout = '{roles.ROLE_SETTINGS['statement_timeout']}'")
    async with running_ledger(cluster.settings) as ledger:
        assert (await ledger.submit(deposit(account, "waits"))).replayed
    assert await sql.fetchval(DEPOSITED, account) == 5


async def test_a_replay_waits_for_a_standby_too(cluster: Replicated, account: UUID) -> None:
    async with running_ledger(cluster.settings) as ledger:
        first = await ledger.submit(deposit(account, "again"))
        for standby in cluster.standbys:
            standby.pause()
        try:
            replay = asyncio.ensure_future(ledger.submit(deposit(account, "again")))
            await waits(cluster)
            assert await unanswered(replay)
        finally:
            for standby in cluster.standbys:
                standby.resume()
        again = await replay
    assert again.replayed
    assert again.decision == first.decision


async def test_a_long_wait_refuses_newcomers_keeps_the_process_and_goes_on(
    cluster: Replicated, account: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher, "RETRY_FOR_S", 1)
    monkeypatch.setattr(batcher, "STANDBY_LATE_S", 0.5)
    monkeypatch.setattr(batcher, "STUCK_AFTER_S", 1.5)  # a process whose lane is dead kills itself: this one
    monkeypatch.setattr(batcher, "ASK_PRIMARY_S", 0.5)
    async with running_ledger(cluster.settings) as ledger:
        for standby in cluster.standbys:
            standby.pause()
        try:
            first = asyncio.ensure_future(ledger.submit(deposit(account, "long")))
            await waits(cluster)
            queued = asyncio.ensure_future(ledger.submit(deposit(account)))
            with pytest.raises(errors.OutcomeUnknown):
                await first
            with pytest.raises(errors.NoSynchronousStandby):
                await queued
            with pytest.raises(errors.NoSynchronousStandby):
                await ledger.submit(deposit(account))
            await asyncio.sleep(2 * batcher.STUCK_AFTER_S)
            assert ledger.alive
            assert await cluster.value(WAITERS) == 1  # the same one: nothing piles up on the server
        finally:
            for standby in cluster.standbys:
                standby.resume()
        await until(partial(is_replayed, ledger, deposit(account, "long")))
    assert await cluster.value(DEPOSITED, account) == 5


async def test_a_commit_that_the_primary_has_lost_is_left(cluster: Replicated, account: UUID, monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a network that swallows everything: the connection looks open, and nobody is at the other end."""
    monkeypatch.setattr(batcher, "RETRY_FOR_S", 1)
    monkeypatch.setattr(batcher, "STANDBY_LATE_S", 0.5)
    monkeypatch.setattr(batcher, "ASK_PRIMARY_S", 0.5)
    async with swallowing(cluster.settings.database_url) as network:
        settings = msgspec.structs.replace(cluster.settings, database_url=network.url)
        async with running_ledger(settings) as ledger:
            for standby in cluster.standbys:
                standby.pause()
            try:
                waiting = asyncio.ensure_future(ledger.submit(deposit(account, "lost")))
                await waits(cluster)
                network.swallow()  # the connections of now; new ones are well
            finally:
                for standby in cluster.standbys:
                    standby.resume()
            with pytest.raises(errors.OutcomeUnknown):
                await waiting
            await until(partial(is_replayed, ledger, deposit(account, "lost")))
    assert await cluster.value(DEPOSITED, account) == 5


async def test_through_the_pooler_a_commit_waits_just_so(
    cluster: Replicated, account: UUID, open_path: Path, sql: asyncpg.Connection
) -> None:
    with pooled(cluster.settings, open_path / "pooler", clients=20, servers=5) as settings:
        async with running_ledger(settings) as ledger:
            await ledger.submit(deposit(account, "before"))
            for standby in cluster.standbys:
                standby.pause()
            try:
                answer = asyncio.ensure_future(ledger.submit(deposit(account, "pooled")))
                await waits(cluster)
                await sql.fetchval(CANCEL_WAITERS)
                await waits(cluster)  # tried again by its key: the warning came through
                assert await unanswered(answer)
            finally:
                for standby in cluster.standbys:
                    standby.resume()
            assert (await answer).replayed
    assert await sql.fetchval(DEPOSITED, account) == 10


async def test_local_durability_posts_while_no_standby_confirms(cluster: Replicated, account: UUID, local: Settings) -> None:
    for standby in cluster.standbys:
        standby.pause()
    try:
        async with running_ledger(local) as ledger:
            assert not (await ledger.submit(deposit(account))).replayed
        assert await cluster.value(DEPOSITED, account) == 5
    finally:
        for standby in cluster.standbys:
            standby.resume()
