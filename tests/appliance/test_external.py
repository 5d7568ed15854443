"""Stores that the operator runs elsewhere: each that is not what a phase needs is found, with what to do."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from redis.asyncio import Redis

from piggybank.appliance import external, processes, store_files
from piggybank.appliance.processes import Program
from piggybank.capacity import phases
from piggybank.settings import Settings
from tests.conftest import Stores, require
from tests.standbys import Replicated, replicated, until

REPLICA = 2  # the phase


@pytest.fixture(scope="module")
def cluster(open_folder: Path) -> Iterator[Replicated]:
    with replicated(open_folder / "external") as made:
        yield made


@pytest.fixture(scope="module")
def pooler(cluster: Replicated, open_folder: Path) -> Iterator[str]:
    """PgBouncer in front of the primary: the application's address on it."""
    require("pgbouncer")
    secrets, port, folder = cluster.embedded.secrets, store_files.free_ports(1)[0], open_folder / "pooler"
    folder.mkdir()
    user = cluster.embedded.user
    processes.write_file(folder / "users", f'"{store_files.APPLICATION_ROLE}" "{secrets.application_password}"\n', 0o600, user)
    lines = (
        "[databases]",
        f"piggybank = host=127.0.0.1 port={secrets.postgres_port}",
        f"lost = host=127.0.0.1 port={cluster.standbys[0].port} dbname=piggybank",
        "[pgbouncer]",
        "listen_addr = 127.0.0.1",
        f"listen_port = {port}",
        "unix_socket_dir =",
        "auth_type = scram-sha-256",
        f"auth_file = {folder / 'users'}",
        "pool_mode = transaction",
        "ignore_startup_parameters = extra_float_digits",
    )
    processes.write_file(folder / "pgbouncer.ini", "\n".join(lines) + "\n", 0o600, user)
    argv = ("pgbouncer", str(folder / "pgbouncer.ini"))
    running = processes.start(Program(name="pooler", argv=argv, run_dir=folder, log=folder / "log", user=user))
    try:
        yield f"postgresql://{store_files.APPLICATION_ROLE}:{secrets.application_password}@127.0.0.1:{port}/piggybank"
    finally:
        running.stop()


async def found(settings: Settings, phase: int = REPLICA) -> list[str]:
    findings = await external.check(settings, phase)
    assert all(finding.do for finding in findings)
    return [finding.what for finding in findings]


async def until_nothing_is_found(settings: Settings) -> None:
    async def nothing() -> bool:  # a pooler that starts
        return not await found(settings)

    await until(nothing)


async def test_replicas_that_stream_and_a_pooler_that_leads_here_are_well(cluster: Replicated, pooler: str) -> None:
    settings = msgspec.structs.replace(cluster.settings, pooler_url=pooler)
    await until_nothing_is_found(settings)
    assert await cluster.value("SELECT count(*) FROM pg_stat_replication") == 2
    marks = "SELECT count(*) FROM pg_description WHERE description LIKE 'seen %'"
    assert await cluster.value(marks.replace("FROM", "FROM pg_catalog.")) == 0, "the check leaves nothing behind"


async def test_what_is_no_replica_of_this_primary_is_found(
    cluster: Replicated, pooler: str, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = msgspec.structs.replace(cluster.settings, pooler_url=pooler)
    one, other = (standby.url for standby in cluster.standbys)

    async def with_replicas(*urls: str) -> list[str]:
        return await found(msgspec.structs.replace(settings, replica_urls=list(urls)))

    await until_nothing_is_found(settings)
    assert ["replica_urls names 1" in what for what in await with_replicas(one)] == [True]
    assert ["are one server" in what for what in await with_replicas(one, one)] == [True]
    assert ["it takes writes" in what for what in await with_replicas(one, settings.database_url)] == [True]
    assert ["does not answer" in what for what in await with_replicas(one, other.replace("piggybank_app", "nobody"))] == [True]
    stranger = stores.secrets.admin_url.rpartition("/")[0] + "/piggybank"
    assert ["is no copy of this primary" in what for what in await with_replicas(one, stranger)] == [True]

    monkeypatch.setattr(external, "SHOWN_WITHIN_S", 0.5)
    await cluster.standbys[1].pause_replay()
    assert ["does not show within" in what for what in await with_replicas(one, other)] == [True]
    await cluster.standbys[1].resume_replay()
    lost = msgspec.structs.replace(settings, pooler_url=pooler.removesuffix("piggybank") + "lost")
    assert ["leads to another server" in what for what in await found(lost)] == [True]
    nowhere = msgspec.structs.replace(settings, pooler_url="")
    assert ["pooler_url is empty" in what for what in await found(nowhere)] == [True]


async def test_somebody_must_confirm_commits_and_be_seen_by_who_commits(cluster: Replicated, pooler: str) -> None:
    """Else the flip would succeed, and every write after it would be refused."""
    settings, role = msgspec.structs.replace(cluster.settings, pooler_url=pooler), store_files.APPLICATION_ROLE
    await until_nothing_is_found(settings)
    await cluster.value(f"REVOKE pg_read_all_stats FROM {role}")
    assert [f"{role} may not see" in what for what in await found(settings)] == [True]
    await cluster.value(f"GRANT pg_read_all_stats TO {role}")
    names = await cluster.value("SHOW synchronous_standby_names")
    await cluster.synchronous("")
    await until(lambda: is_said(settings, "no standby confirms a commit"))
    assert await found(msgspec.structs.replace(settings, durability="local")) == []
    await cluster.synchronous(names)
    await until_nothing_is_found(settings)


async def is_said(settings: Settings, words: str) -> bool:
    return any(words in what for what in await found(settings))


async def test_cache_and_queue_are_two_and_the_queue_forgets_nothing(cluster: Replicated, pooler: str) -> None:
    settings = msgspec.structs.replace(cluster.settings, pooler_url=pooler)
    await until_nothing_is_found(settings)
    one = msgspec.structs.replace(settings, cache_url=settings.queue_url)
    assert ["are one server" in what for what in await found(one)] == [True]
    wrong = msgspec.structs.replace(settings, queue_url=settings.queue_url.replace("redis://:", "redis://:not"))
    assert ["the queue does not answer" in what for what in await found(wrong)] == [True]
    async with Redis.from_url(settings.queue_url) as client:
        await client.config_set("maxmemory-policy", "allkeys-lru")
        assert ["may forget jobs: allkeys-lru" in what for what in await found(settings)] == [True]
        await client.config_set("maxmemory-policy", "noeviction")
    assert ["cache_url is no cluster" in what for what in await found(settings, 3)] == [True]


async def test_a_cluster_serves_every_slot_with_the_nodes_of_the_phase(cluster: Replicated, open_path: Path) -> None:
    """Of one node: it is asked what it is, and counted."""
    port, bus_port = store_files.free_ports(2)  # 10,000 above the first, its own choice, somebody may be
    valkey = cluster.embedded.programs["cache"].argv[0]
    argv = (
        valkey,
        "--port",
        str(port),
        "--cluster-port",
        str(bus_port),
        "--bind",
        "127.0.0.1",
        "--cluster-enabled",
        "yes",
        "--save",
        "",
        "--dir",
        str(open_path),
    )
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as node:  # noqa: ASYNC220 - it is not waited for
        try:
            settings = msgspec.structs.replace(cluster.settings, cache_url=f"redis://127.0.0.1:{port}/0")
            wanted = msgspec.structs.replace(phases.of(3), cache_masters=2, cache_replicas=0)

            async def says(words: str) -> None:
                async def said() -> bool:
                    return any(words in finding.what for finding in await external._caches(settings, wanted))

                await until(said)

            await says("in state fail")
            async with Redis.from_url(settings.cache_url) as client:
                await client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)  # type: ignore[no-untyped-call] # redis-py's
            await says("has 1 masters and 0 replicas; phase 3 has 2 masters")
        finally:
            node.kill()
