"""The months of `transactions`: for operators."""

from litestar import get

from piggybank.db import partitions
from piggybank.db.engines import Database
from piggybank.db.partitions import Partition


@get("/v1/ops/partitions", tags=["operations"], summary="The months, attached, detached and archived")
async def list_partitions(db: Database) -> list[Partition]:
    """Oldest first; one that takes everything where months are off. `rows` is an estimate until a month is archived."""
    async with db.read() as read:
        pooled = await (await read.connection()).get_raw_connection()
        assert pooled.driver_connection is not None
        return await partitions.known(pooled.driver_connection)


routes = [list_partitions]
