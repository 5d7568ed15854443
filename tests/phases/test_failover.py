"""A standby takes over; a primary of the past never takes a row again."""

import asyncio
import json
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil
import pytest

from piggybank import errors
from piggybank.appliance import store_files, succession, topology
from piggybank.appliance.embedded import Embedded
from piggybank.appliance.failover import fail_over
from piggybank.db import installation
from piggybank.settings import Settings
from tests.appliance.bank import Bank, wait_until
from tests.conftest import require
from tests.phases.load import loaded

LOCAL = "SET synchronous_commit = local;\n"
OPENED_WITHIN_S = 15.0  # of which the processes get three to look


@pytest.fixture
def stores(open_path: Path, request: pytest.FixtureRequest) -> Iterator[Embedded]:
    """A primary with two standbys, one of which confirms; a table with the row 1."""
    require("pgbouncer")
    made = Embedded(open_path / "bank", topology.of(2, getattr(request, "param", {})))
    try:
        made.start()
        made.psql("CREATE TABLE kept (id int); INSERT INTO kept VALUES (1);")
        wait_until(lambda: all(made.postgres.psql("SELECT to_regclass('kept')", name).strip() for name in made.postgres.streaming()))
        wait_until(lambda: all(rows(made, name) == [1] for name in ("postgres-2", "postgres-3")))
        yield made
    finally:
        made.stop()


def rows(stores: Embedded, name: str = "") -> list[int]:
    return [int(line) for line in stores.postgres.psql("SELECT id FROM kept ORDER BY id", name).split()]


def test_an_old_primary_comes_back_as_a_standby_without_what_it_alone_had(stores: Embedded) -> None:
    """It was cut off, went on by itself, and is started again after the failover: by pg_rewind, or not at all."""
    for name in ("postgres-2", "postgres-3"):
        stores.running.pop(name).stop()
    stores.postgres.psql(f"{LOCAL}INSERT INTO kept VALUES (2);")  # nobody confirmed it: no client was told
    stores.running.pop("postgres").stop()
    stores.postgres.name_primary("postgres-2")  # what a failover writes first; it was interrupted there

    again = Embedded(stores.data_dir, topology.of(2))
    again.start()
    try:
        assert again.postgres.primary == "postgres-2"
        assert rows(again) == [1]
        assert again.postgres.streaming() == {"postgres", "postgres-3"}
        with pytest.raises(errors.StoreFailed, match="read-only transaction"):
            again.postgres.psql("INSERT INTO kept VALUES (3);", "postgres")
        again.psql("INSERT INTO kept VALUES (4);")
        assert again.addresses()["database_url"].endswith(f":{again.secrets.port_of('postgres-2')}/piggybank")
        assert (again.dir / "postgres" / "standby.signal").exists()
    finally:
        again.stop()


def test_the_standby_that_goes_furthest_takes_over(stores: Embedded) -> None:
    """One was away while the other confirmed: until both answer nobody takes over, and then not the one that lacks it."""
    stores.running["postgres-3"].stop()
    stores.psql("SET synchronous_commit = on; INSERT INTO kept VALUES (2);")
    stores.running["postgres"].signal(signal.SIGKILL)
    with pytest.raises(errors.CannotProceed, match="postgres-3 does not answer"):
        fail_over(stores)
    assert stores.postgres.primary == "postgres"
    stores.ensure("postgres-3")
    stores.wait_ready("postgres-3")
    with pytest.raises(errors.CannotProceed, match="bytes behind postgres-2"):
        fail_over(stores, "postgres-3")
    assert fail_over(stores) == "postgres-2"
    assert rows(stores) == [1, 2]
    assert stores.postgres.streaming() == {"postgres", "postgres-3"}


def cut_off(stores: Embedded, name: str) -> None:
    """It answers, and gets nothing from its primary any more."""
    stores.postgres.psql("ALTER SYSTEM SET primary_conninfo = '';\nSELECT pg_reload_conf();\n", name)
    wait_until(lambda: name not in stores.postgres.streaming())


@pytest.mark.deep
@pytest.mark.parametrize("stores", [{"durability": "local"}], indirect=True)
def test_without_a_confirmation_the_old_primary_is_asked_for_what_it_has(stores: Embedded) -> None:
    """`durability = "local"`: a commit is answered that no standby has. One that lacks it takes over only where loss is accepted."""
    cut_off(stores, "postgres-3")
    was = stores.running["postgres"].pid
    stores.psql("SET synchronous_commit = on; INSERT INTO kept VALUES (2);")
    with pytest.raises(errors.CannotProceed, match="postgres-3 gets nothing from it"):
        fail_over(stores, "postgres-3")
    assert (stores.postgres.primary, stores.running["postgres"].pid) == ("postgres", was)
    stores.running["postgres"].stop()  # in order: its log says how far it goes
    with pytest.raises(errors.CannotProceed, match="did not get all"):
        fail_over(stores, "postgres-3")
    stores.wait_ready("postgres")
    assert fail_over(stores) == "postgres-2"
    assert rows(stores) == [1, 2]
    stores.running["postgres-2"].signal(signal.SIGKILL)
    with pytest.raises(errors.CannotProceed, match="durability is local") as refused:
        fail_over(stores)
    assert "--accept-loss" in str(refused.value.details["do"])
    assert stores.postgres.primary == "postgres-2"
    assert fail_over(stores, "postgres", accept_loss=True) == "postgres"


@pytest.mark.deep
def test_more_bytes_of_another_history_are_no_merit(stores: Embedded) -> None:
    """After an earlier failover one went on in the old history, further than the new one has come: it must not take over."""
    stores.running.pop("postgres-2").stop()
    for number in (2, 3):
        stores.psql(f"{LOCAL}INSERT INTO kept VALUES ({number}); SELECT pg_switch_wal();")  # a whole segment of the log
    wait_until(lambda: rows(stores, "postgres-3") == [1, 2, 3])
    stores.running.pop("postgres").stop()
    stores.ensure("postgres-2")
    stores.wait_ready("postgres-2")
    stores.postgres.name_primary("postgres-2")
    stores.take_over("postgres-2")
    stores.postgres.make_slot("postgres-3")
    for name in ("postgres-2", "postgres-3"):
        stores.write_configuration(name)
        stores.postgres.reload(name)
    stores.add_standby("postgres", print)
    stores.psql("SET synchronous_commit = on; INSERT INTO kept VALUES (4);")
    assert stores.postgres.look("postgres-3").received > stores.postgres.look("postgres-2").received
    with pytest.raises(errors.CannotProceed, match="postgres-3 is of another history"):
        fail_over(stores, "postgres-3")
    stores.running["postgres-2"].signal(signal.SIGKILL)
    with pytest.raises(errors.CannotProceed, match="postgres-3 is of another history"):
        fail_over(stores, "postgres-3")
    assert fail_over(stores) == "postgres"
    assert rows(stores) == [1, 4]
    assert stores.postgres.streaming() == {"postgres-2", "postgres-3"}


@pytest.mark.deep
def test_what_one_standby_confirmed_is_found_after_both_were_restarted(stores: Embedded) -> None:
    """A receiver that begins again says that it is at the beginning of a segment; what was replayed counts."""
    stores.running["postgres-2"].stop()
    stores.psql("SET synchronous_commit = on; INSERT INTO kept VALUES (2);")
    stores.running["postgres"].signal(signal.SIGKILL)
    stores.running["postgres-3"].stop()
    for name in ("postgres-2", "postgres-3"):
        stores.ensure(name)
        stores.wait_ready(name)
    assert fail_over(stores) == "postgres-3"
    assert rows(stores) == [1, 2]


@pytest.mark.deep
def test_a_primary_whose_disk_is_away_is_not_made_anew_and_a_copy_takes_its_place(stores: Embedded) -> None:
    """The copies hold the book: they stay, and the one that goes furthest is the primary of the next start."""
    stores.running["postgres-3"].stop()
    stores.psql("SET synchronous_commit = on; INSERT INTO kept VALUES (2);")
    stores.stop()
    (stores.dir / "postgres").rename(stores.dir / "away")
    with pytest.raises(errors.CannotProceed, match="postgres is missing, and its copies are there: postgres-2, postgres-3"):
        Embedded(stores.data_dir, topology.of(2)).start()
    assert not (stores.dir / "postgres").exists()

    settings = Settings(data_dir=stores.data_dir, phase=2)
    assert succession.has_copies(settings)
    with pytest.raises(errors.CannotProceed, match="bytes behind postgres-2"):
        succession.name_heir(settings, "postgres-3", lambda _: None, accept_loss=False)
    assert succession.name_heir(settings, "", lambda _: None, accept_loss=False) == "postgres-2"
    again = Embedded(stores.data_dir, topology.of(2))
    again.start()
    try:
        assert rows(again) == [1, 2]
        assert again.postgres.streaming() == {"postgres", "postgres-3"}
    finally:
        again.stop()


@pytest.mark.deep
def test_a_primary_that_does_not_start_gives_its_place_to_a_copy(stores: Embedded) -> None:
    """`up` says how; one that starts keeps its place. What it alone had, nobody was told: a commit waits for a standby."""
    settings = Settings(data_dir=stores.data_dir, phase=2)
    stores.psql("SET synchronous_commit = on; INSERT INTO kept VALUES (2);")
    for name in ("postgres-2", "postgres-3"):
        stores.running.pop(name).stop()
    stores.postgres.psql(f"{LOCAL}INSERT INTO kept VALUES (3);")
    stores.stop()
    with pytest.raises(errors.CannotProceed, match="postgres starts, and nothing supervises it"):
        succession.name_heir(settings, "", lambda _: None, accept_loss=False)

    missing = stores.dir / "postgres" / "pg_xact"  # its log still says how far it went
    missing.rename(stores.dir / "pg_xact.away")
    with pytest.raises(errors.CannotProceed, match="postgres does not start") as refused:
        Embedded(stores.data_dir, topology.of(2)).open()
    assert "piggybank failover" in str(refused.value.details["do"])
    Embedded(stores.data_dir, topology.of(2)).stop()
    heir = succession.name_heir(settings, "", lambda _: None, accept_loss=False)
    again = Embedded(stores.data_dir, topology.of(2))
    again.start()
    try:
        assert again.postgres.primary == heir != "postgres"
        assert rows(again) == [1, 2]
        assert again.postgres.streaming() == set(topology.NODES) - {heir}
    finally:
        again.stop()


@pytest.mark.deep
@pytest.mark.parametrize("stores", [{"durability": "local"}], indirect=True)
def test_a_primary_that_had_more_than_its_copies_is_not_given_up(stores: Embedded) -> None:
    """It ended in order, so it says how far it went; then it does not start any more. Whoever accepts the loss goes on."""
    settings = Settings(data_dir=stores.data_dir, phase=2)  # who asks need not have the variables of the service
    for name in ("postgres-2", "postgres-3"):
        stores.running.pop(name).stop()
    stores.postgres.psql("INSERT INTO kept VALUES (2);")
    stores.stop()
    (stores.dir / "postgres" / "pg_xact").rename(stores.dir / "pg_xact.away")
    with pytest.raises(errors.CannotProceed, match="not known to have all that postgres answered"):
        succession.name_heir(settings, "", lambda _: None, accept_loss=False)
    assert topology.primary_of(stores.dir) == "postgres"
    assert succession.name_heir(settings, "postgres-3", lambda _: None, accept_loss=True) == "postgres-3"
    assert topology.primary_of(stores.dir) == "postgres-3"


@pytest.mark.deep
def test_a_standby_that_still_reads_its_log_is_not_taken_for_one_that_has_less(stores: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """It alone confirmed a commit, and says how far it has replayed, not what is on its disk: nobody is chosen before it has said that."""
    monkeypatch.setattr(succession, "READ_WITHIN_S", 1.0)
    settings = Settings(data_dir=stores.data_dir, phase=2)
    own = stores.dir / "postgres-3" / "postgresql.auto.conf"
    as_it_was = own.read_text()
    own.write_text(f"{as_it_was}recovery_min_apply_delay = '1h'\n")
    stores.running.pop("postgres-3").stop()
    stores.ensure("postgres-3")
    wait_until(lambda: stores.postgres.streaming() == {"postgres-2", "postgres-3"})
    stores.running.pop("postgres-2").stop()
    stores.psql("SET synchronous_commit = on; INSERT INTO kept VALUES (2);")
    stores.stop()
    (stores.dir / "postgres" / "pg_xact").rename(stores.dir / "pg_xact.away")
    with pytest.raises(errors.CannotProceed, match="not known to have all"):
        succession.name_heir(settings, "", lambda _: None, accept_loss=False)
    own.write_text(as_it_was)
    assert succession.name_heir(settings, "", lambda _: None, accept_loss=False) == "postgres-3"


@pytest.mark.deep
def test_an_empty_database_does_not_take_the_place_of_the_copies(stores: Embedded) -> None:
    """However it came there: the standbys stay as they are."""
    stores.stop()
    for name in topology.NODES:
        (stores.dir / name).rename(stores.dir / f"{name}.away")
    empty = Embedded(stores.data_dir, topology.of(0))
    empty.start()
    empty.stop()
    for name in topology.NODES[1:]:
        (stores.dir / f"{name}.away").rename(stores.dir / name)
    again = Embedded(stores.data_dir, topology.of(2))
    try:
        with pytest.raises(errors.CannotProceed, match="postgres-2 is no copy of the primary postgres, but another database"):
            again.start()
    finally:
        again.stop()
    assert all((stores.dir / name / "standby.signal").exists() for name in topology.NODES[1:])
    (stores.dir / "postgres").rename(stores.dir / "empty")
    (stores.dir / "postgres").mkdir()  # where a disk is mounted, and is not
    with pytest.raises(errors.CannotProceed, match="mount its disk"):
        Embedded(stores.data_dir, topology.of(2)).start()


def receivers(stores: Embedded, name: str) -> list[psutil.Process]:
    """The processes that a standby receives the log with; its other children come and go."""
    found = []
    for child in psutil.Process(stores.running[name].pid).children():
        with suppress(psutil.Error):
            found += [child] if "walreceiver" in " ".join(child.cmdline()) else []
    return found


@pytest.mark.deep
def test_a_standby_that_has_stalled_does_not_take_over(stores: Embedded) -> None:
    """It is connected and gets nothing: the old primary goes on, with all that was answered."""
    wait_until(lambda: receivers(stores, "postgres-3"))
    [receiver] = receivers(stores, "postgres-3")
    receiver.suspend()
    try:
        stores.psql("SET synchronous_commit = on; INSERT INTO kept VALUES (2);")
        with pytest.raises(errors.CannotProceed, match="did not get all"):
            fail_over(stores, "postgres-3")
    finally:
        receiver.resume()
    stores.wait_ready("postgres")
    assert stores.postgres.primary == "postgres"
    assert rows(stores) == [1, 2]


@pytest.mark.deep
def test_a_primary_of_the_past_that_still_runs_is_stopped_before_another_is_promoted(stores: Embedded) -> None:
    """The supervisor was killed in the middle of a failover: the old one lives, and must not take a row more."""
    stores.postgres.name_primary("postgres-2")
    again = Embedded(stores.data_dir, topology.of(2))
    again.start()
    try:
        assert again.postgres.streaming() == {"postgres", "postgres-3"}
        with pytest.raises(errors.StoreFailed, match="read-only transaction"):
            again.postgres.psql("INSERT INTO kept VALUES (3);", "postgres")
    finally:
        again.stop()


@pytest.mark.deep
def test_a_loss_that_is_accepted(stores: Embedded) -> None:
    """The primary and the one that confirmed are gone: the other takes over when the operator says so."""
    stores.running["postgres-3"].stop()
    stores.psql("SET synchronous_commit = on; INSERT INTO kept VALUES (2);")
    for name in ("postgres", "postgres-2"):
        stores.running[name].signal(signal.SIGKILL)
    stores.ensure("postgres-3")
    stores.wait_ready("postgres-3")
    with pytest.raises(errors.CannotProceed, match="--accept-loss"):
        fail_over(stores)
    assert fail_over(stores, accept_loss=True) == "postgres-3"
    assert rows(stores) == [1]


@pytest.mark.deep
def test_no_two_timelines_have_one_number(stores: Embedded) -> None:
    """One takes over that never heard of the timeline before it: both may be at the backup target, under names that say the number."""
    stores.running.pop("postgres-3").stop()
    stores.running.pop("postgres").stop()
    stores.postgres.name_primary("postgres-2")
    stores.take_over("postgres-2")
    assert stores.postgres.look("postgres-2").timeline == 2
    stores.running["postgres-2"].signal(signal.SIGKILL)
    stores.ensure("postgres-3")
    stores.wait_ready("postgres-3")
    assert fail_over(stores, "postgres-3", accept_loss=True) == "postgres-3"
    assert stores.postgres.look("postgres-3").timeline == 3


@pytest.mark.deep
def test_a_primary_that_does_not_end_in_order_is_given_up(stores: Embedded) -> None:
    """It answers, and its disk, say, does not let it end: every standby answers, and what was confirmed is on the one that takes over."""
    stores.psql("SET synchronous_commit = on; INSERT INTO kept VALUES (2);")
    old = stores.running["postgres"]
    old.program = msgspec.structs.replace(old.program, stop_timeout_s=2.0)
    for child in psutil.Process(old.pid).children():
        if child.status() != psutil.STATUS_ZOMBIE and "checkpointer" in " ".join(child.cmdline()):
            child.suspend()  # no checkpoint, no end
    assert fail_over(stores) in ("postgres-2", "postgres-3")
    assert rows(stores) == [1, 2]


@pytest.mark.deep
def test_without_a_standby_there_is_no_failover(stores: Embedded) -> None:
    for name in ("postgres-2", "postgres-3"):
        stores.running.pop(name).stop()
    with pytest.raises(errors.CannotProceed, match="no standby answers"):
        fail_over(stores)
    assert stores.postgres.primary == "postgres"
    assert rows(stores) == [1]


@pytest.mark.deep
async def test_the_cache_is_opened_while_no_standby_confirms(stores: Embedded) -> None:
    """After a failover the old primary may be the only one that could, and it comes back last."""
    for name in ("postgres-2", "postgres-3"):
        stores.running.pop(name).stop()
    script = f"{LOCAL}CREATE TABLE installation AS SELECT '{installation.CLOSED}past' AS epoch; GRANT ALL ON installation TO PUBLIC;"
    stores.postgres.psql(script, database=store_files.DATABASE)
    await asyncio.wait_for(installation.open_cache(str(stores.addresses()["owner_database_url"])), OPENED_WITHIN_S)
    epoch = stores.postgres.psql("SELECT epoch FROM installation", database=store_files.DATABASE).strip()
    assert epoch
    assert "past" not in epoch
    assert not epoch.startswith(installation.CLOSED)


@pytest.fixture
def bank(open_path: Path) -> Iterator[Bank]:
    """In phase 2."""
    require("pgbouncer")
    made = Bank(open_path / "bank", PIGGYBANK_PORT=str(store_files.free_ports(1)[0]), PIGGYBANK_RATE_SERVICE_PER_MINUTE="0")
    made.do("phase", "apply", "2")
    try:
        made.do("up", "--detach")
        yield made
    finally:
        made.run("down")


@pytest.mark.deep
async def test_an_old_primary_that_cannot_come_back_is_in_nobodys_way(bank: Bank) -> None:
    """Its disk is broken and no copy can be made: people pay, the cache is read, and the operator is told what is so."""
    stores = bank.data_dir / "stores"
    (stores / "postgres" / "pg_wal").rename(stores / "lost")  # neither a start nor a rewind
    obstacle = stores / "postgres.new"  # nor a copy
    obstacle.touch()
    was = bank.pids()
    bank.kill("postgres")
    said = bank.run("failover")
    assert said.returncode != 0
    new = topology.primary_of(stores)
    assert new != "postgres"
    assert f"{new} takes writes, and every process knows it; but postgres does not follow" in said.stderr
    assert "piggybank phase apply 2" in said.stderr
    assert all(pid != was[name] for name, pid in bank.pids().items() if name.startswith("web-"))
    found = {check["name"]: check["result"] for check in json.loads(bank.ask("doctor", "--json").stdout)["checks"]}
    assert found["caching"] == "ok"
    async with loaded(bank):
        pass
    await asyncio.to_thread(bank.do, "down")
    await asyncio.to_thread(bank.do, "up", "--detach")  # without it, again
    assert bank.is_ready()
    obstacle.unlink()
    assert "phase 2 (" in await asyncio.to_thread(bank.do, "phase", "apply", "2")
    assert topology.primary_of(stores) == new
    assert (stores / "postgres" / "standby.signal").exists()
