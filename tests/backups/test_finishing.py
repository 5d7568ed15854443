"""What `restore finish` learns, and what it refuses: real payments of the simulator, made after the backup was, and lost with the rest."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar
from uuid import UUID, uuid4

import asyncpg
import httpx
import msgspec
import pytest

from piggybank import errors
from piggybank.appliance import store_files
from piggybank.appliance.backups import databases, finishing, making, manifests, targets
from piggybank.appliance.backups.finishing import Finished
from piggybank.appliance.backups.manifests import Owner
from piggybank.db import months, partitions, recovery
from piggybank.settings import Settings
from tests.conftest import Stores, _on_database, start_simulator
from tests.provider.conftest import TIME_SCALE, Desk, Object, running_desk
from tests.provider.test_refunds import ended, refund
from tests.provider.test_withdrawals import ACCEPTED, eft_destination

pytestmark = pytest.mark.deep

T = TypeVar("T")


@pytest.fixture
def bank(fresh_settings: Settings, tmp_path: Path) -> Settings:
    (tmp_path / "backups").mkdir()
    made = msgspec.structs.replace(fresh_settings, backup_target=str(tmp_path / "backups"), worker_processes=1)
    return msgspec.structs.replace(made, simulator_time_scale=TIME_SCALE)


class Loss:
    """A bank that was backed up, goes on, and is lost."""

    def __init__(self, bank: Settings, stores: Stores) -> None:
        self.bank = bank
        self.stores = stores

    async def back_up(self) -> None:
        with targets.opened(self.bank) as target:
            await in_thread(lambda: making.create(self.bank, target, "logical", lambda _: None))

    @asynccontextmanager
    async def restored(self) -> AsyncIterator[Settings]:
        """The backup in a database of its own, in recovery, with the same provider."""
        name = f"again_{uuid4().hex[:8]}"
        await sql(self.stores.admin_url, f"CREATE DATABASE {name} OWNER {store_files.OWNER_ROLE}")
        there = msgspec.structs.replace(
            self.bank,
            database_url=_on_database(self.bank.database_url, name),
            owner_database_url=_on_database(self.bank.owner_database_url, name),
        )
        try:
            with targets.opened(self.bank) as target:
                manifest = manifests.choose(target, "latest")
                url, role = there.owner_database_url, store_files.APPLICATION_ROLE
                await in_thread(lambda: databases.into_database(target, manifest, url, role, lambda _: None))
            yield there
        finally:
            await sql(self.stores.admin_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def loss(bank: Settings, stores: Stores) -> Loss:
    return Loss(bank, stores)


async def in_thread(work: Callable[[], T]) -> T:
    return await asyncio.to_thread(work)


async def sql(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def finish(there: Settings, *, accept: bool = False) -> Finished:
    done = await in_thread(lambda: finishing.run(there, lambda _: None, accept_unexplained=accept))
    assert done is not None
    return done


async def withdraw(desk: Desk, account: UUID, amount: int, key: str, **more: object) -> Object:
    body = {"amount": amount, "method": "revio", "destination": {"phone": "+27821234567"}, **more}
    answer = await desk.post(f"/v1/accounts/{account}/withdrawals", body, key)
    assert answer.status_code == 202, answer.text
    payment: Object = answer.json()["payment"]
    return payment


async def payouts(desk: Desk) -> list[tuple[int, int]]:
    """(amount, how often it was executed) of every payout that the provider has executed."""
    objects = (await desk.sim.get("/_sim/book")).json()["objects"]
    return sorted((one["amount"], one["executions"]) for one in objects if one["type"] == "payout" and one["executions"])


async def test_each_kind_of_payment_of_the_lost_time_counts_once(loss: Loss) -> None:
    async with running_desk(loss.bank) as desk:
        account, rich = await desk.account(), await desk.account(100_000)
        deposit = await desk.paid_deposit(account, 10_000)
        open_then = await desk.deposit(account, 2_000)  # its checkout is open at the restore point, and paid in the lost time
        await loss.back_up()
        await desk.act(f"purchases/{open_then['provider_id']}/pay")
        asked = (await refund(desk, deposit, 3_000, "refund")).json()["payment"]
        assert (await ended(desk, asked))["status"] == "completed"
        paid_in = await desk.deposit(account, 4_000, "paid-in")
        await desk.act(f"purchases/{paid_in['provider_id']}/pay")
        lost_with_its_account = await desk.account(9_000)
        for whose, amount, key in ((rich, 5_000, "out"), (lost_with_its_account, 7_000, "lost")):
            assert (await ended(desk, await withdraw(desk, whose, amount, key)))["status"] == "completed"
        assert await payouts(desk) == [(5_000, 1), (7_000, 1)]
    async with loss.restored() as there:
        simulator = await in_thread(lambda: start_simulator(there))
        found = (await finish(there)).found
        simulator.stop()
        assert found is not None
        assert sorted((one.kind, one.amount) for one in found.lost) == [
            ("deposit", 4_000),
            ("refund", 3_000),
            ("withdrawal", 5_000),
            ("withdrawal", 7_000),
        ]
        async with running_desk(there) as again:
            assert await again.balance(account) == (9_000, 0, 0)  # 10,000 + 2,000 - 3,000: what the statement says of what is known
            # the same requests once more
            repeated = (await refund(again, deposit, 3_000, "refund")).json()["payment"]
            repeated = await ended(again, repeated)
            assert (repeated["status"], repeated["failure"]) == ("failed", "refunded_before_the_restore")
            assert (await again.payment(deposit["id"]))["refunded"] == 3_000
            assert (await ended(again, await again.deposit(account, 4_000, "paid-in")))["status"] == "completed"
            assert (await ended(again, await withdraw(again, rich, 5_000, "out")))["status"] == "completed"
            # the account that was lost is made again, and its request is sent for the new one
            account_again = await again.account(9_000)
            held = await withdraw(again, account_again, 7_000, "lost")
            await again.work_through()
            held = await again.payment(held["id"])
            assert (held["status"], held["failure"]) == ("unknown", "like_one_paid_before_the_restore")
            assert await payouts(again) == [(5_000, 1), (7_000, 1)]
            assert await again.balance(account) == (13_000, 0, 0)
            # what is new goes out
            assert (await ended(again, (await refund(again, deposit, 3_000)).json()["payment"]))["status"] == "completed"
            assert (await again.payment(deposit["id"]))["refunded"] == 6_000
            assert (await ended(again, await withdraw(again, account_again, 100, "new")))["status"] == "completed"
            assert await again.differences() == []


async def test_a_payout_that_is_under_way_and_unknown_here_keeps_it_closed(loss: Loss) -> None:
    loss.bank = msgspec.structs.replace(loss.bank, simulator_time_scale=1.0)  # a minute until it ends by itself
    async with running_desk(loss.bank) as desk:
        rich = await desk.account(100_000)
        await loss.back_up()
        await desk.faults(payout_pending=1.0)
        sent = await withdraw(desk, rich, 5_000, "out")
        await desk.work_through()
        sent = await desk.payment(sent["id"])
        assert sent["status"] == "processing"
        await desk.faults()
    async with loss.restored() as there:
        simulator = await in_thread(lambda: start_simulator(there))
        with pytest.raises(errors.CannotProceed, match="still paying out 5000 ZAR"):
            await finish(there)
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {there.simulator_key}"}) as sim:
            (await sim.post(f"{there.simulator_address}/_sim/payouts/{sent['provider_id']}/succeed", json={})).raise_for_status()
        found = (await finish(there)).found
        simulator.stop()
        assert found is not None
        assert [(one.kind, one.amount) for one in found.lost] == [("withdrawal", 5_000)]


async def test_the_old_copy_goes_on_while_the_provider_cannot_be_asked(loss: Loss) -> None:
    def owner() -> Owner | None:
        with targets.opened(loss.bank) as target:
            return manifests.owner(target)

    async with running_desk(loss.bank):
        await loss.back_up()
    before = owner()
    assert before is not None
    async with loss.restored() as there:
        with pytest.raises(errors.CannotProceed, match="provider does not answer"):
            await finish(there)
        assert owner() == before
        simulator = await in_thread(lambda: start_simulator(there))
        await finish(there)
        simulator.stop()
        after = owner()
        assert after is not None
        assert (after.installation, after.restore != before.restore) == (before.installation, True)


async def test_a_payout_that_the_statement_does_not_list_yet_keeps_it_closed(loss: Loss) -> None:
    async with running_desk(loss.bank) as desk:
        rich = await desk.account(100_000)
        await desk.paid_deposit(rich, 50_000)
        await loss.back_up()
        assert (await ended(desk, await withdraw(desk, rich, 5_000, "out")))["status"] == "completed"
    async with loss.restored() as there:
        simulator = await in_thread(lambda: start_simulator(there))
        connection = await asyncpg.connect(there.owner_database_url, server_settings={"default_transaction_read_only": "off"})
        was = await connection.fetchval("SELECT point FROM restores")
        await connection.execute("UPDATE restores SET point = now() + interval '2 hours 30 seconds'")  # a statement that begins after it
        with pytest.raises(errors.CannotProceed, match="owes us 5000 ZAR less"):
            await finish(there)
        await connection.execute("UPDATE restores SET point = $1", was)
        await connection.close()
        found = (await finish(there)).found
        simulator.stop()
        assert found is not None
        assert [one.amount for one in found.lost] == [5_000]
        assert found.missing == {}


async def test_months_that_began_since_the_backup_take_rows_when_writes_go_on(bank: Settings) -> None:
    """It was made half a year ago, with months on: what is posted by `finish` has nowhere to go else, and deposits have not for an hour."""
    half_a_year_ago = datetime.now(UTC) - timedelta(days=180)
    await months.enable(bank.owner_database_url, now=half_a_year_ago)
    await recovery.begin(bank.owner_database_url, "a snapshot", half_a_year_ago)
    simulator = await in_thread(lambda: start_simulator(bank))
    await finish(bank)
    simulator.stop()
    async with partitions.looking(bank.database_url) as connection:
        assert await partitions.missing(connection, datetime.now(UTC)) == []
        noted = await connection.fetch("SELECT actor, action, target FROM audit_log WHERE action LIKE 'restore.%' ORDER BY id")
    assert [tuple(row) for row in noted] == [("cli", f"restore.{verb}", "backup:a snapshot") for verb in ("begin", "finish")]


async def test_eft_credits_of_the_lost_time_are_not_sent_again(loss: Loss) -> None:
    """The rail without idempotency: the same reference twice is paid twice."""
    loss.bank = msgspec.structs.replace(loss.bank, revio_payouts="eft")
    where = {"destination": eft_destination(ACCEPTED)}
    async with running_desk(loss.bank) as desk:
        rich = await desk.account(100_000)
        before = await withdraw(desk, rich, 1_000, "before", **where)
        await desk.work_through()
        assert (await desk.payment(before["id"]))["status"] == "processing"
        unsent = await withdraw(desk, rich, 2_000, "unsent", **where)  # `creating` at the restore point, sent afterwards
        await loss.back_up()
        after = await withdraw(desk, rich, 3_000, "after", **where)
        await desk.work_through()
        assert await eft_credits(desk) == [1_000, 2_000, 3_000]
    async with loss.restored() as there:
        simulator = await in_thread(lambda: start_simulator(there))
        found = (await finish(there)).found
        simulator.stop()
        assert found is not None
        assert [one.amount for one in found.lost] == [3_000]
        async with running_desk(there) as again:
            assert {(await again.payment(one["id"]))["status"] for one in (before, unsent)} <= {"processing", "completed", "unknown"}
            same = await withdraw(again, rich, 3_000, "after", **where)
            assert same["id"] != after["id"]
            await again.hurry()
            await again.work_through()
            assert (await again.payment(same["id"]))["status"] in ("processing", "completed")
            assert await eft_credits(again) == [1_000, 2_000, 3_000]
            assert await again.differences() == []


async def eft_credits(desk: Desk) -> list[int]:
    objects = (await desk.sim.get("/_sim/book")).json()["objects"]
    return sorted(one["amount"] for one in objects if one["type"] == "eft_credit")
