"""Whether a row is in an archive by now: an id carries its time, and months are archived in order, so one comparison tells.

Ask after the rows: a month is written down here before its rows go.
"""

from uuid import UUID

from sqlalchemy import text

from piggybank import errors
from piggybank.db.engines import Database, Read

FOLDER = "archive"  # below the data folder: the files

_MONTH = text("SELECT month, file FROM archived_months WHERE below > :id ORDER BY below LIMIT 1")


async def check(read: Read, row_id: UUID, *, below: UUID | None = None) -> None:
    """Raises Archived when a row of this id would be in an archive; with `below`: the newest row that is not after it, and before that."""
    newest = row_id if below is None else min(row_id, UUID(int=below.int - 1))
    found = (await read.execute(_MONTH, {"id": newest})).one_or_none()
    if found is not None:
        raise errors.Archived(month=f"{found.month:%Y-%m}", file=found.file)


async def ask(db: Database, row_id: UUID, *, below: UUID | None = None) -> None:
    """The same, of the primary: whichever replica the rows were missing on, the month was written down before they went."""
    async with db.read() as read:
        await check(read, row_id, below=below)
