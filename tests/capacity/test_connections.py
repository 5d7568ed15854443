"""Connections of all processes fit into what PostgreSQL and the pooler take, in every phase, also in the middle of a rollout."""

import asyncpg
import msgspec
import pytest

from piggybank.appliance import doctor
from piggybank.appliance.check import Check
from piggybank.capacity import connections, phases
from piggybank.capacity.connections import Processes
from piggybank.db import engines, replicas
from piggybank.db.engines import Database
from piggybank.settings import Settings

BY_NUMBER = pytest.mark.parametrize("phase", phases.table(), ids=lambda phase: f"phase {phase.number}")


@BY_NUMBER
def test_every_phase_fits(phase: phases.Phase) -> None:
    assert connections.shortages(phase) == []


@BY_NUMBER
def test_every_phase_fits_on_one_machine(phase: phases.Phase) -> None:
    assert connections.shortages(phase, Processes(phase.native_web, phase.native_worker, phase.pool)) == []


@BY_NUMBER
def test_a_larger_pool_would_not_fit_where_it_is_tight(phase: phases.Phase) -> None:
    tight = (1,)  # what made the table's number; with a pooler there is room
    larger = connections.shortages(phase, connections.most(phase)._replace(pool=phase.pool + 3))
    assert bool(larger) == (phase.number in tight), larger


def test_six_web_processes_on_a_hundred_connections() -> None:
    six = Processes(6, 2, 10)
    assert six.with_surge(0) * (six.pool + connections.LANE) == 88 <= 100 - connections.RESERVED  # without a rollout
    assert connections.needed(phases.of(1), six) == 121  # which is why phase 1 has smaller pools
    assert connections.needed(phases.of(1), connections.most(phases.of(1))) == 88


@pytest.mark.parametrize(
    ("number", "processes", "pooled", "said", "do"),
    [
        (1, Processes(6, 2, 10), None, "11 processes (6 web, 2 worker, and a rollout's 25% more) may open 121", "connections to 7 or less"),
        (2, Processes(64, 64, 10), None, "the pooler takes 1000", "set pool_connections to 4 or less"),
        (2, Processes(10, 4, 5), False, "may open 126 connections; PostgreSQL takes 100, 10 of them", "pool_connections to 3 or less"),
        (1, Processes(60, 20, 5), None, "PostgreSQL takes 100", "run fewer processes"),
        (3, Processes(64, 32, 2), None, "may open 360 connections; each replica takes 300, 10 of them reserved", "run fewer processes"),
    ],
)
def test_what_does_not_fit_is_said(number: int, processes: Processes, pooled: bool | None, said: str, do: str) -> None:
    found = connections.shortages(phases.of(number), processes, pooled=pooled)
    assert [each for each in found if said in each.what and do in each.do], found


def test_the_poolers_own_connections_must_fit() -> None:
    assert "the pooler opens 50" in connections.shortages(phases.of(2), max_connections=55)[0].what


def test_pools_are_as_large_as_the_settings_say(settings: Settings) -> None:
    made = Database.of(msgspec.structs.replace(settings, pool_connections=7))
    assert (made.engine.pool.size(), made.engine.pool._max_overflow) == (5, 2)  # type: ignore[attr-defined]  # of a queue pool
    small = Database.of(msgspec.structs.replace(settings, pool_connections=3))
    assert (small.engine.pool.size(), small.engine.pool._max_overflow) == (3, 0)  # type: ignore[attr-defined]
    assert settings.pool_connections == engines.POOL_MOST == phases.of(0).pool


async def test_a_process_has_as_many_connections_to_a_replica_as_are_counted(settings: Settings) -> None:
    """All that may be open at once, the introduction too: a read that finds none free asks the primary."""
    replica = replicas.Replica(settings.database_url)
    assert (replica._engine.pool.size(), replica._engine.pool._max_overflow) == (replicas.CONNECTIONS, 0)  # type: ignore[attr-defined]
    await replica.close()
    phase = phases.of(3)
    all_of_them = connections.most(phase).with_surge(phases.limits().rollout.surge) * replicas.CONNECTIONS
    just_fits = msgspec.structs.replace(phase, replica_max_connections=all_of_them + connections.RESERVED)
    assert connections.shortages(just_fits) == []
    [short] = connections.shortages(msgspec.structs.replace(just_fits, replica_max_connections=just_fits.replica_max_connections - 1))
    assert f"{all_of_them} connections; each replica takes" in short.what


async def test_doctor_says_what_does_not_fit(settings: Settings) -> None:
    """`settings` are of an installation that nobody supervises here, so the most that the phase lets run counts."""
    connection = await asyncpg.connect(settings.database_url)

    async def asked(**changes: int) -> Check:
        return await doctor._connections(doctor._Databases(connection, msgspec.structs.replace(settings, **changes)))

    assert await asked() == Check("connections", "ok", "at most 66 in the middle of a rollout; PostgreSQL takes 100")
    assert (await asked(phase=1, pool_connections=7)).found.startswith("at most 88 ")
    wide = await asked(phase=1)
    assert wide.result == "warning"
    assert "set pool_connections to 7 or less" in wide.do
    await connection.close()
