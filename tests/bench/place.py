"""Where an experiment happens: fresh embedded stores, a filled database, the bench's server."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import httpx

from piggybank import settings as settings_file
from piggybank.appliance.embedded import Embedded
from piggybank.bench.database import Filled
from piggybank.bench.serving import Server
from piggybank.settings import Settings
from tests.conftest import command

ASK_TIMEOUT_S = 30


@contextmanager
def fresh_stores() -> Iterator[Settings]:
    """Stores of our own, migrated, in a folder that the system user may enter."""
    with tempfile.TemporaryDirectory(prefix="piggybank-bench-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        stores = Embedded(Path(folder) / "data")
        try:
            stores.start()
            settings = settings_file.load(stores.data_dir, {})
            command(settings, "migrate")
            yield settings
        finally:
            stores.stop()


def client(filled: Filled, server: Server) -> httpx.Client:
    """Signed in with the bench's key."""
    return httpx.Client(base_url=server.settings.url, headers={"Authorization": f"Bearer {filled.token}"}, timeout=ASK_TIMEOUT_S)


async def sql(filled: Filled, *statements: str) -> list[asyncpg.Record]:
    """Run statements one by one with the owner's role; the rows of the last."""
    connection = await asyncpg.connect(filled.settings.owner_database_url)
    try:
        rows: list[asyncpg.Record] = []
        for statement in statements:
            rows = await connection.fetch(statement)
        return rows
    finally:
        await connection.close()
