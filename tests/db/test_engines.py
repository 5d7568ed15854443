"""Which address the application uses, and how."""

from pathlib import Path
from typing import Any

import pytest

from piggybank.appliance import pooler
from piggybank.appliance.pooler import Target
from piggybank.db.engines import Database
from piggybank.settings import Settings

DIRECT, POOLED = "postgresql://app:secret@db:5432/piggybank", "postgresql://app:secret@127.0.0.1:6432/piggybank"


@pytest.mark.parametrize(
    ("changes", "pooling", "url"),
    [
        ({}, "none", DIRECT),
        ({"phase": 1, "pooler_url": POOLED}, "none", DIRECT),
        ({"phase": 2}, "none", DIRECT),
        ({"phase": 2, "pooler_url": POOLED}, "transaction", POOLED),
        ({"phase": 2, "pooler_url": POOLED, "pooler": "none"}, "none", DIRECT),
        ({"pooler_url": POOLED, "pooler": "transaction"}, "transaction", POOLED),
        ({"pooler": "transaction"}, "transaction", DIRECT),  # the pooler is what database_url leads to
        ({"phase": 3, "pooler_url": POOLED, "pooler": "transaction+prepared"}, "transaction+prepared", POOLED),
    ],
)
async def test_the_phase_and_the_settings_choose_the_way(changes: dict[str, Any], pooling: str, url: str) -> None:
    settings = Settings(data_dir=Path("/nowhere"), database_url=DIRECT, **changes)
    database = Database.of(settings)
    assert (settings.pooling, database.url) == (pooling, url)
    await database.close()


@pytest.mark.parametrize(
    ("changes", "waits_for"),
    [
        ({}, "disk"),
        ({"phase": 1, "durability": "local"}, "disk"),
        ({"phase": 2}, "synchronous"),
        ({"phase": 3, "durability": "local"}, "local"),
    ],
)
async def test_commits_wait_for_standbys_from_phase_2_on(changes: dict[str, Any], waits_for: str) -> None:
    database = Database.of(Settings(data_dir=Path("/nowhere"), database_url=DIRECT, **changes))
    assert database.waits_for == waits_for
    await database.close()


def test_the_poolers_files_and_address() -> None:
    target = Target.of("postgresql://app:se%22cret@db:5433/piggybank", 6432, clients=1_000, servers=50)
    text = pooler.ini(target, Path("/data/stores/pooler"))
    for line in (
        "* = host=db port=5433",
        "listen_port = 6432",
        "pool_mode = transaction",
        "max_client_conn = 1000",
        "max_user_connections = 50",
    ):
        assert line in text.splitlines()
    assert "max_prepared_statements" not in text
    assert "max_prepared_statements = 200" in pooler.ini(target, Path("/data"), prepared=True)
    assert pooler.userlist(target) == '"app" "se""cret"\n'
    assert pooler.url(target, "postgresql://app:se%22cret@db:5433/piggybank") == "postgresql://app:se%22cret@127.0.0.1:6432/piggybank"


@pytest.mark.parametrize(("version", "can"), [("1.18.0", False), ("1.20.1", False), ("1.21.0", True), ("1.24.1", True), ("2.0", True)])
def test_named_statements_need_a_newer_pooler(version: str, can: bool) -> None:
    assert pooler.can_prepare(version) is can
