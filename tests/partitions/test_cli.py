"""`piggybank partitions`, the job and the doctor, as an operator meets them."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest
import structlog

from piggybank import ids
from piggybank.appliance import doctor
from piggybank.archive import places
from piggybank.cache import Cache
from piggybank.db import months, partitions
from piggybank.db.engines import Database
from piggybank.jobs import partitions as job
from piggybank.jobs.work import Work
from piggybank.ledger import Ledger
from piggybank.settings import Settings
from piggybank.wallet.provider import Provider
from tests import forks
from tests.conftest import COMMAND_TIMEOUT_S, environment, run_command
from tests.partitions.conftest import Books, at, findings, states


async def run(settings: Settings, *words: str, exit_code: int = 0) -> str:
    """What `piggybank partitions ..` says."""
    done = await asyncio.to_thread(run_command, settings, "partitions", *words)  # in this process others write to standard output, too
    assert done.returncode == exit_code, done.stdout + done.stderr
    return done.stdout + done.stderr


async def test_from_on_to_archived(fresh_settings: Settings, sql: asyncpg.Connection) -> None:
    assert (await run(fresh_settings, "list")).split()[-1] == "attached"
    assert "months are on; made transactions_2" in await run(fresh_settings, "enable")
    assert json.loads(await run(fresh_settings, "enable", "--json")) == {"made": []}
    assert json.loads(await run(fresh_settings, "ensure", "--json")) == {"made": [], "missing": []}
    written = await sql.fetch("SELECT actor, action, target, details FROM audit_log")
    assert [tuple(row)[:3] for row in written] == [("cli", "partitions.enable", "transactions")]  # once: the second changed nothing
    assert [name[:13] for name in json.loads(written[0]["details"])["made"]] == ["transactions_"] * 3
    items = json.loads(await run(fresh_settings, "list", "--json"))["items"]
    assert (
        [item["name"] for item in items]
        == list(await states(sql))
        == sorted(await states(sql), key=lambda name: name != "transactions_all")
    )
    assert items[0]["from"] is None
    assert items[0]["to"] == items[1]["from"]
    assert "is not over for 3 days yet" in await run(fresh_settings, "archive", items[0]["month"], exit_code=1)


async def test_detach_then_archive(fresh_settings: Settings, random_books: Books) -> None:
    assert "its rows are still in the table transactions_all" in await run(fresh_settings, "detach", "2026-01")
    assert (await states(random_books.sql))["transactions_all"] == "detached"
    assert await findings(fresh_settings) == []
    said = await run(fresh_settings, "archive", "2026-01")
    assert f"{fresh_settings.data_dir}/archive/transactions-2026-01.parquet" in said
    (first, *_) = json.loads(await run(fresh_settings, "list", "--json"))["items"]
    written = await random_books.sql.fetch(
        "SELECT action, details FROM audit_log WHERE actor = 'cli' AND action LIKE 'partitions.%' ORDER BY id"
    )
    assert [row["action"] for row in written][-2:] == ["partitions.detach", "partitions.archive"]
    assert {json.loads(row["details"])["file"] for row in written[-2:]} == {"transactions-2026-01.parquet"}
    assert (first["state"], first["file"], first["to"]) == ("archived", "transactions-2026-01.parquet", "2026-02-01")
    await random_books.sql.execute("UPDATE accounts SET transactions_count = transactions_count + 1")
    assert "the ledger does not verify, so nothing is archived" in await run(fresh_settings, "archive", "2026-02", exit_code=1)


@pytest.mark.parametrize(
    ("platform", "variable"),
    [("helm", "KUBERNETES_SERVICE_HOST"), ("railway", "RAILWAY_PROJECT_ID"), ("ecs", "ECS_CONTAINER_METADATA_URI_V4")],
    ids=lambda text: text,
)
@pytest.mark.parametrize("word", ["archive", "detach"])
async def test_no_month_goes_into_a_disk_that_goes_with_its_container(
    platform: str, variable: str, word: str, fresh_settings: Settings, sql: asyncpg.Connection
) -> None:
    await months.enable(fresh_settings.owner_database_url, now=at(1, 15))
    before = await states(sql)
    there = environment(fresh_settings) | {variable: "10.0.0.1"}
    for folder in ((), ("--folder", "/dev/shm")):  # in memory
        words = ("partitions", word, "2026-01", *folder)
        done = await asyncio.to_thread(forks.run, words, there, "", COMMAND_TIMEOUT_S)
        said = done.stdout + done.stderr
        assert done.returncode == 1, said
        assert f"goes with this container of {platform}" in said
        assert "run it on a machine with a disk" in said
    assert await states(sql) == before
    assert not (fresh_settings.data_dir / "archive").exists()


async def test_a_month_goes_into_the_folder_that_is_named(fresh_settings: Settings, random_books: Books, tmp_path: Path) -> None:
    folder = tmp_path / "a disk that stays"
    folder.mkdir()
    said = await run(fresh_settings, "archive", "2026-01", "--folder", str(folder))
    assert f"{folder}/transactions-2026-01.parquet" in said
    assert {path.name for path in folder.iterdir()} == {"transactions-2026-01.parquet", "transactions-2026-01.json"}
    assert (await states(random_books.sql))["transactions_all"] == "archived"
    assert not (fresh_settings.data_dir / "archive").exists()


# as the kernel lists them in a pod: its own root, memory, two emptyDirs, a claim on another device and one on the node's disk
POD_MOUNTS = """\
1 0 0:50 / / ro,relatime - overlay overlay rw,lowerdir=/a,upperdir=/b
2 1 0:51 / /dev/shm rw - tmpfs shm rw
3 1 8:1 /var/lib/kubelet/pods/6f/volumes/kubernetes.io~empty-dir/data /var/lib/piggybank rw,relatime shared:9 - ext4 /dev/sda1 rw
4 1 8:1 /var/lib/kubelet/pods/6f/volumes/kubernetes.io~empty-dir/tmp /tmp rw,relatime - ext4 /dev/sda1 rw
5 1 8:32 / /mnt/months rw,relatime - ext4 /dev/sdc rw
6 1 8:1 /opt/local-path-provisioner/pvc-1 /mnt/with\\040space rw,relatime - ext4 /dev/sda1 rw
7 5 0:52 / /mnt/months/hidden rw - tmpfs none rw
"""


@pytest.mark.parametrize(
    ("folder", "lasts"),
    [
        ("/var/lib/piggybank/archive", False),
        ("/var/lib/other", False),
        ("/tmp", False),
        ("/dev/shm", False),
        ("/mnt/months", True),
        ("/mnt/months/of/2026", True),
        ("/mnt/months/hidden", False),
        ("/mnt/monthsandmore", False),
        ("/mnt/with space/archive", True),
    ],
)
def test_what_stays_when_a_pod_goes(folder: str, lasts: bool) -> None:
    assert places.lasts(Path(folder), POD_MOUNTS) == lasts


async def test_the_job_makes_months_or_says_that_they_are_missing(fresh_settings: Settings, sql: asyncpg.Connection) -> None:
    async def ensure(settings: Settings) -> tuple[int, list[str]]:
        db, cache = Database(settings.database_url), Cache(settings.cache_url)
        work = Work(settings, db, cache, Ledger(db, cache), Provider(settings, db))
        with structlog.testing.capture_logs() as logs:
            made = await job.ensure(work)
        await work.provider.close()
        await cache.close()
        await db.close()
        return made, [log["event"] for log in logs if log["log_level"] == "critical"]

    without_owner = Settings(
        **{**{name: getattr(fresh_settings, name) for name in fresh_settings.__struct_fields__}, "owner_database_url": ""}
    )
    assert await ensure(fresh_settings) == (0, [])  # months are off
    await months.enable(fresh_settings.owner_database_url, now=at(1, 15))
    assert await _looked_at(fresh_settings) == "broken"
    assert await ensure(without_owner) == (0, ["partitions_missing"])
    async with partitions.alone(fresh_settings.owner_database_url):  # another command is at it
        assert await ensure(fresh_settings) == (0, ["partitions_missing"])
    made, alerts = await ensure(fresh_settings)
    assert made >= 10
    assert alerts == []
    assert await ensure(without_owner) == (0, [])
    assert await _looked_at(fresh_settings) == "ok"
    assert max(ids.time_of(one.below) for one in await partitions.known(sql) if one.below) > datetime.now(UTC)


async def _looked_at(settings: Settings) -> str:
    (check,) = [check for check in await doctor.examine(settings) if check.name == "partitions"]
    return check.result
