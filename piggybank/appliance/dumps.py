"""A copy of the whole database in one file, made by `pg_dump` while people pay, and read again from end to end before it counts."""

import asyncio
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import asyncpg

from piggybank import errors
from piggybank.appliance import system_user
from piggybank.appliance.backups.making import CONNECT_TIMEOUT_S, client_address, client_program
from piggybank.settings import Settings

FOLDER = "upgrades"
KEPT = 2
TIMEOUT_S = 12 * 3_600
UNFINISHED = ".part"


def dump(settings: Settings, mark: str) -> Path:
    """Into `upgrades/` of the data folder; the file. Raises `errors.CannotProceed`."""
    folder = settings.data_dir / FOLDER
    system_user.make_folder(folder, None, 0o700)
    made = folder / f"before-{mark}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.dump"
    making = made.with_name(made.name + UNFINISHED)
    for left in folder.glob(f"*{UNFINISHED}"):  # by one that was killed
        left.unlink()
    url = settings.owner_database_url
    major = asyncio.run(_major(url))
    place, environment = client_address(url)
    try:
        _run(
            client_program("pg_dump", url, major),
            *("--format=custom", "--no-password", f"--file={making}", f"--dbname={place}"),
            **environment,
        )
        _run(client_program("pg_restore", url, major), "--file=/dev/null", str(making))  # reads and unpacks all of it
        making.chmod(0o600)
        making.rename(made)
    finally:
        making.unlink(missing_ok=True)
    for old in sorted(folder.glob("before-*.dump"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
        old.unlink()
    return made


async def _major(url: str) -> int:
    try:
        connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S)
    except (OSError, TimeoutError, asyncpg.PostgresError) as cause:
        raise errors.CannotProceed(what=f"the database does not answer: {cause}", do="look at owner_database_url") from cause
    try:
        return int(await connection.fetchval("SELECT current_setting('server_version_num')::int / 10000"))
    finally:
        await connection.close()


def _run(program: Path, *words: str, **environment: str) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - PostgreSQL's own program
            [str(program), *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
            env={**os.environ, **environment, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as cause:
        raise errors.CannotProceed(
            what=f"{program.name} did not end within {TIMEOUT_S // 3_600} h, and nothing was changed",
            do="see what holds it up (pg_stat_activity, the disk); then again",
        ) from cause
    if done.returncode != 0:
        raise errors.CannotProceed(
            what=f"the database could not be copied, and nothing was changed: {done.stderr.strip()}",
            do="look at owner_database_url and at the room on the disk",
        )
