"""Containers wait for their schema: they change nothing, and say what is missing."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import asyncpg
import msgspec
import pytest

from piggybank import errors
from piggybank.appliance import data_folder, migrating, store_files
from piggybank.db import revisions, schema
from piggybank.settings import Settings
from tests.conftest import ROOT, Stores, _on_database, command, environment

NOBODY = "postgresql://nobody:secret-word@127.0.0.1:1/none"


def waiting(settings: Settings, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "piggybank", "migrate", "--wait", *words],
        env=environment(settings),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def test_what_is_missing_is_said(fresh_settings: Settings, stores: Stores) -> None:
    url = fresh_settings.database_url
    assert await schema.missing(url) == ""
    owner = await asyncpg.connect(fresh_settings.owner_database_url)
    try:
        await owner.execute("UPDATE alembic_version SET version_num = '9999'")
        assert await schema.missing(url) == "", "a newer one has all that this one needs"
        await owner.execute("UPDATE alembic_version SET version_num = '0001'")
        assert await schema.missing(url) == f"the schema is at 0001, and this version needs {revisions.head()}"
        await owner.execute(f"REVOKE ALL ON alembic_version FROM {store_files.APPLICATION_ROLE}")
        assert "no rights" in await schema.missing(url)
    finally:
        await owner.close()
    assert await schema.missing(stores.admin_url.rpartition("/")[0] + "/postgres") == "the database has no schema yet"
    said = await schema.missing(NOBODY)
    assert "does not answer" in said
    assert "secret-word" not in said


async def test_it_gives_up_with_the_reason(fresh_settings: Settings) -> None:
    told: list[str] = []
    with pytest.raises(errors.CannotProceed, match="waited 0 s for the schema: the database does not answer"):
        await schema.wait(NOBODY, 0, told.append)
    with pytest.raises(errors.CannotProceed, match="waited 0 s for the database"):
        await schema.wait_for_database(NOBODY, 0, told.append)
    await schema.wait_for_database(fresh_settings.owner_database_url, 0, told.append)
    assert told == []


async def test_the_command_waits_and_never_migrates(fresh_settings: Settings) -> None:
    owner = await asyncpg.connect(fresh_settings.owner_database_url)
    await owner.execute("UPDATE alembic_version SET version_num = '0001'")
    process = waiting(fresh_settings, "--within", "60")
    try:
        assert process.stderr is not None
        line = await asyncio.to_thread(process.stderr.readline)
        assert "the schema is at 0001" in line
        assert await owner.fetchval("SELECT version_num FROM alembic_version") == "0001"
        await owner.execute("UPDATE alembic_version SET version_num = $1", revisions.head())
        output, _ = await asyncio.to_thread(process.communicate, timeout=60)
        assert (process.returncode, output.strip()) == (0, "the schema is there")
    finally:
        process.kill()
        await owner.close()


def test_migrate_waits_for_its_database(fresh_settings: Settings) -> None:
    began = time.monotonic()
    away = msgspec.structs.replace(fresh_settings, owner_database_url=NOBODY)
    with subprocess.Popen(
        [sys.executable, "-m", "piggybank", "migrate", "--within", "1"],
        env=environment(away),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "waited 1 s for the database" in said
    assert time.monotonic() - began >= 1
    assert "nothing to do" in command(fresh_settings, "migrate", "--within", "60")


async def test_an_empty_database_is_not_put_in_the_place_of_the_one_that_was(
    fresh_settings: Settings, stores: Stores, tmp_path: Path
) -> None:
    """A volume that is not mounted, or an address that is wrong: no empty bank, unless it is meant."""
    settings = msgspec.structs.replace(fresh_settings, data_dir=tmp_path / "ours")
    settings.data_dir.mkdir()
    await migrating.bring_schema(settings)
    name = f"empty_{uuid4().hex[:8]}"
    admin = await asyncpg.connect(stores.admin_url)
    try:
        await admin.execute(f"CREATE DATABASE {name} OWNER {store_files.OWNER_ROLE}")
        there = msgspec.structs.replace(settings, owner_database_url=_on_database(settings.owner_database_url, name))
        with pytest.raises(errors.CannotProceed, match="is empty, and was not"):
            await migrating.bring_schema(there)
        (settings.data_dir / data_folder.MARK).write_text("")
        assert await migrating.bring_schema(there)
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()
