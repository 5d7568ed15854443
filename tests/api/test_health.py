"""When a process says that it should not be sent work."""

import time

import asyncpg
import msgspec
import pytest

from piggybank.app import Parts, open_parts
from piggybank.settings import Settings


@pytest.fixture
async def parts(fresh_settings: Settings) -> Parts:
    return open_parts(fresh_settings)


async def test_it_is_ready_when_it_knows_the_database(parts: Parts) -> None:
    assert parts.readiness.reasons == ["ledger_dead", "schema_behind"]
    await parts.ledger.start()
    await parts.readiness.look()
    assert parts.readiness.reasons == []
    assert parts.cache.epoch
    await parts.ledger.stop()
    assert parts.readiness.reasons == ["draining", "ledger_dead"]
    await parts.db.close()


async def test_an_older_schema_is_not_ready_and_a_newer_is(parts: Parts, fresh_settings: Settings) -> None:
    await parts.ledger.start()
    owner = await asyncpg.connect(fresh_settings.owner_database_url)
    for revision, reasons in (("0000", ["schema_behind"]), ("9999", [])):
        await owner.execute("UPDATE alembic_version SET version_num = $1", revision)
        await parts.readiness.look()
        assert parts.readiness.reasons == reasons
    await owner.close()
    await parts.ledger.stop()
    await parts.db.close()


async def test_a_wrong_clock_is_not_ready(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    await parts.ledger.start()
    real = time.time
    for off_s, reasons in ((5.0, ["clock_off"]), (-5.0, ["clock_off"]), (0.5, [])):
        monkeypatch.setattr(time, "time", lambda off_s=off_s: real() + off_s)
        await parts.readiness.look()
        assert parts.readiness.reasons == reasons, off_s
    monkeypatch.undo()
    await parts.ledger.stop()
    await parts.db.close()


async def test_a_lost_database_stays_ready(fresh_settings: Settings) -> None:
    parts = open_parts(fresh_settings)
    await parts.ledger.start()
    await parts.readiness.look()
    away = open_parts(msgspec.structs.replace(fresh_settings, database_url="postgresql://a:b@127.0.0.1:1/none"))
    parts.readiness._db = away.db
    await parts.readiness.look()
    assert not parts.readiness.reachable
    assert parts.readiness.reasons == []
    await parts.ledger.stop()
    await parts.db.close()
