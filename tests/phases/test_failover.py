"""A standby takes over; a primary of the past never takes a row again."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from piggybank import errors
from piggybank.appliance import topology
from piggybank.appliance.embedded import Embedded
from tests.conftest import require

pytestmark = pytest.mark.xdist_group("phases")

LOCAL = "SET synchronous_commit = local;\n"


@pytest.fixture
def stores(open_path: Path) -> Iterator[Embedded]:
    """A primary with two standbys, one of which confirms; a table with the row 1."""
    require("pgbouncer")
    made = Embedded(open_path / "bank", topology.of(2))
    try:
        made.start()
        made.psql("CREATE TABLE kept (id int); INSERT INTO kept VALUES (1);")
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
    """With one paused, what was confirmed is on the other; naming the one that lacks it is refused."""
    stores.running["postgres-2"].stop()
    stores.psql("SET synchronous_commit = on; INSERT INTO kept VALUES (2);")
    stores.running["postgres"].signal(9)
    stores.ensure("postgres-2")
    stores.wait_ready("postgres-2")
    with pytest.raises(errors.CannotProceed, match="bytes behind postgres-3"):
        stores.failover("postgres-2")
    assert stores.failover() == "postgres-3"
    assert rows(stores) == [1, 2]
    assert stores.postgres.streaming() == {"postgres", "postgres-2"}


def test_without_a_standby_there_is_no_failover(stores: Embedded) -> None:
    for name in ("postgres-2", "postgres-3"):
        stores.running.pop(name).stop()
    with pytest.raises(errors.CannotProceed, match="no standby answers"):
        stores.failover()
    assert stores.postgres.primary == "postgres"
    assert rows(stores) == [1]
