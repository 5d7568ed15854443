"""A copy of the database is begun where there is room for it, and one that fails or is cut short leaves nothing behind."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from piggybank import errors
from piggybank import settings as settings_file
from piggybank.appliance import change, store_files, system_user, topology
from piggybank.appliance.embedded import Embedded
from tests.appliance.bank import wait_until
from tests.conftest import require
from tests.storage.disks import fill, make_room, small_disk

DISK_MIB = 1_024
LEFT_MIB = 300  # more than the reserve, less than that and a copy


@pytest.fixture
def stores(open_path: Path) -> Iterator[Embedded]:
    """Those of phase 0, on a disk of their own."""
    require("pgbouncer")
    with small_disk(open_path / "disk", DISK_MIB) as disk:
        made = Embedded(disk / "bank", topology.of(0))
        try:
            made.start()
            yield made
        finally:
            made.stop()


def left(stores: Embedded) -> tuple[str, list[str]]:
    """The slots on the primary, and the folders of other servers."""
    slots = stores.psql("SELECT slot_name FROM pg_replication_slots").strip()
    return slots, sorted(path.name for path in stores.dir.glob("postgres-*"))


async def test_a_copy_that_the_disk_cannot_take_is_not_begun(stores: Embedded) -> None:
    settings = settings_file.load(stores.data_dir, {})
    assert (await change.plan(settings, 2)).plan.possible
    fill(stores.data_dir.parent, LEFT_MIB)
    [refused] = (await change.plan(settings, 2)).plan.refused
    assert "MiB are free, 2 more of the database" in refused.what
    with pytest.raises(errors.CannotProceed, match="MiB are free, postgres-2, copied, needs"):
        stores.grow(topology.of(2))
    assert left(stores) == ("", [])
    make_room(stores.data_dir.parent)
    stores.grow(topology.of(2))
    assert stores.postgres.streaming() == {"postgres-2", "postgres-3"}
    fill(stores.data_dir.parent, LEFT_MIB)
    assert (await change.plan(settings, 2)).plan.possible  # nothing is missing


def test_a_copy_that_fails_leaves_no_slot(stores: Embedded) -> None:
    """The slot would keep the log on the primary's disk for nobody."""
    unreadable = stores.dir / "postgres" / "base" / "1" / "999999"
    unreadable.touch(mode=0o000)  # root's: the server reads it for the copy, and may not
    with pytest.raises(errors.StoreFailed, match="pg_basebackup"):
        stores.grow(topology.of(2))
    assert left(stores) == ("", [])


@pytest.mark.deep
def test_a_copy_of_a_supervisor_that_was_killed_is_ended_first(stores: Embedded) -> None:
    """It works on by itself, into the same folder and with the same slot."""
    orphan = subprocess.Popen(
        [
            stores.postgres.bin / "pg_basebackup",
            f"--pgdata={stores.dir / 'postgres-2.new'}",
            "--host=127.0.0.1",
            f"--port={stores.secrets.port_of('postgres')}",
            f"--username={store_files.REPLICATION_ROLE}",
            "--checkpoint=fast",
            "--max-rate=32k",  # minutes
            "--create-slot",
            "--slot=postgres_2",
        ],
        cwd="/",
        env={**os.environ, "PGPASSWORD": stores.secrets.replication_password},
        **_in_a_folder_of(stores),
    )
    try:
        wait_until(lambda: left(stores) == ("postgres_2", ["postgres-2.new"]) and any((stores.dir / "postgres-2.new").rglob("PG_VERSION")))
        for process in (*psutil.Process(orphan.pid).children(), psutil.Process(orphan.pid)):
            process.suspend()  # it is slow: that its folder was taken away under it it would notice hours later
        stores.grow(topology.of(2))
        assert orphan.wait(0) != 0
        assert stores.postgres.streaming() == {"postgres-2", "postgres-3"}
    finally:
        orphan.kill()
        orphan.wait()


@pytest.mark.deep
def test_a_standby_that_was_half_taken_away_is_no_reason_not_to_start(open_path: Path) -> None:
    """A folder without what makes it a database would else be a disk that is not mounted (`Postgres.check_majors`)."""
    require("pgbouncer")
    require("mount (as root)", os.geteuid() == 0)
    stores = Embedded(open_path / "bank", topology.of(2))
    try:
        stores.start()
        (stores.dir / "postgres-2" / "stays").mkdir()  # whatever is done to it
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", stores.dir / "postgres-2" / "stays"], check=True)
        stores.grow(topology.of(0))
        stores.shrink()
        stores.stop()
        again = Embedded(open_path / "bank", topology.of(0))
        again.start()
        again.stop()
    finally:
        stores.stop()
        for place in stores.dir.glob("postgres-2*/stays"):
            subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.deep
def test_what_a_killed_pg_rewind_left_is_not_started(open_path: Path) -> None:
    """It may have taken the log away by which a second one would find what the first had not done: the server is copied anew."""
    require("pgbouncer")
    stores = Embedded(open_path / "bank", topology.of(2))
    try:
        stores.start()
        stores.postgres.name_primary("postgres-2")  # of a failover that was interrupted, and so was the next start:
        stores.stop()
        stores.postgres.folders.begin_rewind("postgres")
        told: list[str] = []
        again = Embedded(open_path / "bank", topology.of(2))
        again.start(told.append)
        assert "postgres: copied anew" in told
        assert again.postgres.streaming() == {"postgres", "postgres-3"}
        assert not list(again.dir.glob("postgres.*"))
        again.stop()
    finally:
        stores.stop()


def _in_a_folder_of(stores: Embedded) -> dict[str, Any]:
    system_user.make_folder(stores.dir / "postgres-2.new", stores.user)
    return system_user.as_user(stores.user)
