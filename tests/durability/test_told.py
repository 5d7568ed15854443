"""Whoever looks is told what a commit waits for."""

import asyncpg
import msgspec

from piggybank.appliance import doctor, overview
from piggybank.db import roles
from piggybank.settings import Settings
from tests.conftest import run_command, start_server
from tests.durability.conftest import nobody_is_synchronous
from tests.standbys import Replicated


async def standbys(settings: Settings) -> tuple[str, str]:
    """What doctor finds, and what it says to do."""
    [check] = [check for check in await doctor.examine(settings) if check.name == "standbys"]
    return check.result, check.found + check.do


async def test_doctor_tells_who_may_confirm(cluster: Replicated, local: Settings, sql: asyncpg.Connection) -> None:
    assert await standbys(cluster.settings) == ("ok", "2 may confirm a commit")
    assert (await standbys(msgspec.structs.replace(cluster.settings, phase=1)))[0] == "ok"
    result, words = await standbys(local)
    assert result == "warning"
    assert "durability = local" in words

    async with nobody_is_synchronous(cluster):
        assert (await standbys(cluster.settings))[0] == "broken"

    role = roles.role_of(cluster.settings.database_url)
    await sql.execute(f"REVOKE {roles.SEES_STANDBYS} FROM {role}")
    try:
        result, words = await standbys(cluster.settings)
    finally:
        await sql.execute(f"GRANT {roles.SEES_STANDBYS} TO {role}")
    assert result == "broken"
    assert f"GRANT pg_read_all_stats TO {role}" in words


def test_status_shows_local_durability(local: Settings) -> None:
    assert "durability: LOCAL" in run_command(local, "status").stdout


async def test_local_durability_is_in_the_json(local: Settings) -> None:
    assert (await overview.look(local))["durability"] == "local"


def test_local_durability_is_in_the_log(local: Settings) -> None:
    server = start_server(local)
    server.stop()
    assert "durability = local" in server.log.read_text()
