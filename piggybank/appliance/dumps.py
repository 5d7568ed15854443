"""A copy of the whole database in one file, made by `pg_dump` while people pay, and read again from end to end before it counts."""

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from piggybank import errors
from piggybank.appliance import binaries, system_user
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
    url, password = _parted(settings.owner_database_url)
    try:
        _run("pg_dump", "--format=custom", "--no-password", f"--file={making}", f"--dbname={url}", password=password)
        _run("pg_restore", "--file=/dev/null", str(making))  # reads and unpacks all of it
        making.chmod(0o600)
        making.rename(made)
    finally:
        making.unlink(missing_ok=True)
    for old in sorted(folder.glob("before-*.dump"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
        old.unlink()
    return made


def _parted(url: str) -> tuple[str, str]:
    """The address without its password, which no process list is to show."""
    parts = urlsplit(url)
    password = unquote(parts.password or "")
    user, _, hosts = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}@{hosts}")), password


def _run(program: str, *words: str, password: str = "") -> None:
    try:
        done = subprocess.run(  # noqa: S603 - our own binary
            [str(binaries.client(program)), *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
            env={**os.environ, "PGPASSWORD": password, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as cause:
        raise errors.CannotProceed(
            what=f"{program} did not end within {TIMEOUT_S // 3_600} h, and nothing was changed",
            do="see what holds it up (pg_stat_activity, the disk); then again",
        ) from cause
    if done.returncode != 0:
        raise errors.CannotProceed(
            what=f"the database could not be copied, and nothing was changed: {done.stderr.strip()}",
            do="look at owner_database_url and at the room on the disk",
        )
