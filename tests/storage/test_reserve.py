"""Below the reserve nothing is written by any door, and there is nothing to be done but to make room."""

from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import text

from piggybank import errors
from piggybank.cache import Cache
from piggybank.db import storage
from piggybank.db.engines import Database
from piggybank.db.storage import Storage
from piggybank.ledger import SYSTEM, Ledger, Submission, commands
from piggybank.settings import Settings
from tests.ledger.conftest import new_account, sql
from tests.storage.disks import fill, make_room, small_disk

__all__ = ["sql"]

DISK_MIB = 2 * storage.RESERVE_MIB


@pytest.fixture
def disk(open_path: Path) -> Iterator[Path]:
    with small_disk(open_path / "disk", DISK_MIB) as made:
        yield made


async def test_both_doors_close_and_open_again(
    disk: Path, settings: Settings, sql: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "LOOK_EVERY_S", 0.0)
    db, cache = Database(settings.database_url, storage=Storage([disk])), Cache(settings.cache_url)
    ledger = Ledger(db, cache)
    await ledger.start()
    try:
        account_id = await new_account(sql)
        deposit = Submission(commands.Deposit(account_id=account_id, amount=5), SYSTEM, "storage-1", b"one")
        await ledger.submit(deposit)
        fill(disk, storage.RESERVE_MIB - 1)
        with pytest.raises(errors.StorageFull):
            await ledger.submit(Submission(commands.Deposit(account_id=account_id, amount=5), SYSTEM, "storage-2", b"two"))
        with pytest.raises(errors.StorageFull):
            async with db.write():
                pytest.fail("it was let in")
        async with db.read() as session:
            assert await session.scalar(text("SELECT balance FROM accounts WHERE id = :id"), {"id": account_id}) == 5
        make_room(disk)
        await ledger.submit(Submission(commands.Deposit(account_id=account_id, amount=5), SYSTEM, "storage-2", b"two"))
    finally:
        await ledger.stop()
        await cache.close()
        await db.close()


def test_only_an_embedded_database_has_a_disk_that_we_see(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "stores" / "postgres").mkdir(parents=True)
    own = Settings(data_dir=tmp_path)
    assert not Storage.of(own).full
    (tmp_path / "piggybank.toml").write_text(
        f'database_url = "{settings.database_url}"\nowner_database_url = "{settings.owner_database_url}"\n', encoding="utf-8"
    )
    assert Storage.of(own)._folders == ()
