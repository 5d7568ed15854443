"""The file of a month: written in batches, proven by reading it back beside the table, described by a manifest.

Rows are in the order of their ids, which is by time. A file is complete under its name: it is written beside it and renamed. The manifest
comes after it, so a manifest means that the file was written to its end.
"""

import asyncio
import hashlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

import piggybank
from piggybank import errors
from piggybank.db.locks import Tell

BATCH_ROWS = 20_000  # in memory at once: about 30 MB
HASHED_BYTES = 1 << 20
TELL_EVERY_ROWS = 200_000

_BATCH = """
SELECT id, account_id, amount, balance_after, sequence, bucket, kind, system_account, transfer_id, payment_id, reverses, reference,
       description, metadata::text
FROM transactions
WHERE id > $1 AND id < $2
ORDER BY id
LIMIT $3
"""

_UUIDS = ("id", "account_id", "transfer_id", "payment_id", "reverses")
SCHEMA = pa.schema(
    [
        pa.field("id", pa.uuid(), nullable=False),
        pa.field("account_id", pa.uuid(), nullable=False),
        pa.field("amount", pa.int64(), nullable=False),
        pa.field("balance_after", pa.int64(), nullable=False),
        pa.field("sequence", pa.int64(), nullable=False),
        pa.field("bucket", pa.int16(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("system_account", pa.string(), nullable=False),
        pa.field("transfer_id", pa.uuid()),
        pa.field("payment_id", pa.uuid()),
        pa.field("reverses", pa.uuid()),
        pa.field("reference", pa.string()),
        pa.field("description", pa.string()),
        pa.field("metadata", pa.string()),  # JSON
    ]
)


class KindSum(Struct, frozen=True, kw_only=True):
    """What one kind of movement against one system account came to; minor units, currencies together."""

    kind: str
    system_account: str
    rows: int
    amount: int


class Manifest(Struct, frozen=True, kw_only=True):
    """What a file holds: rows whose id is from `lowest` (None: the first there is) on, before `below`."""

    month: str
    file: str
    lowest: UUID | None
    below: UUID
    rows: int
    amount: int
    first_id: UUID | None
    last_id: UUID | None
    kinds: list[KindSum]
    bytes: int
    sha256: str
    made_by: str


class _Sums:
    """Counted while rows go by."""

    def __init__(self) -> None:
        self.rows = self.amount = 0
        self.first_id: UUID | None = None
        self.last_id: UUID | None = None
        self._kinds: Counter[tuple[str, str]] = Counter()
        self._amounts: Counter[tuple[str, str]] = Counter()

    def add(self, batch: pa.RecordBatch) -> None:
        ids = batch.column("id")
        self.first_id, self.last_id = self.first_id or ids[0].as_py(), ids[-1].as_py()
        sums = pa.Table.from_batches([batch]).group_by(["kind", "system_account"]).aggregate([("amount", "count"), ("amount", "sum")])
        for row in sums.to_pylist():
            self._kinds[row["kind"], row["system_account"]] += row["amount_count"]
            self._amounts[row["kind"], row["system_account"]] += row["amount_sum"]
            self.amount += row["amount_sum"]
        self.rows += batch.num_rows

    @property
    def kinds(self) -> list[KindSum]:
        return [
            KindSum(kind=kind, system_account=system, rows=rows, amount=self._amounts[kind, system])
            for (kind, system), rows in sorted(self._kinds.items())
        ]


def names(month: str) -> tuple[str, str]:
    """The file and the manifest of a month."""
    return f"transactions-{month}.parquet", f"transactions-{month}.json"


async def write(connection: asyncpg.Connection, folder: Path, month: str, lowest: UUID | None, below: UUID, tell: Tell) -> Manifest:
    """Write the file of a month and its manifest, unless they are there."""
    file, manifest_file = names(month)
    path = folder / file
    if (there := _read_manifest(folder / manifest_file)) is not None:
        tell(f"{path} is there: it is proven again")
        return there
    _make(folder)
    sums = _Sums()
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("wb") as out:
        with pq.ParquetWriter(out, SCHEMA, compression="zstd") as writer:
            async for batch in batches(connection, lowest, below):
                await asyncio.to_thread(writer.write_batch, batch)
                sums.add(batch)
                if sums.rows % TELL_EVERY_ROWS < BATCH_ROWS:
                    tell(f"{sums.rows} rows written")
        out.flush()
        os.fsync(out.fileno())
    unfinished.rename(path)
    manifest = Manifest(
        month=month,
        file=file,
        lowest=lowest,
        below=below,
        rows=sums.rows,
        amount=sums.amount,
        first_id=sums.first_id,
        last_id=sums.last_id,
        kinds=sums.kinds,
        bytes=path.stat().st_size,
        sha256=await asyncio.to_thread(_sha256, path),
        made_by=f"piggybank {piggybank.__version__}",
    )
    _keep(folder / manifest_file, msgspec.json.format(msgspec.json.encode(manifest)))
    return manifest


async def prove(connection: asyncpg.Connection, folder: Path, manifest: Manifest, tell: Tell) -> None:
    """Read the file back beside the table, row by row. Raises CannotProceed where they differ; nothing was removed then."""
    path = folder / manifest.file
    if await asyncio.to_thread(_sha256, path) != manifest.sha256:
        raise _differs(path, "it is not what its manifest says")
    sums, reading = _Sums(), batches(connection, manifest.lowest, manifest.below)
    with pq.ParquetFile(path) as file:
        for kept in file.iter_batches(batch_size=BATCH_ROWS):
            posted = await anext(reading, None)
            if posted is None or not kept.equals(posted):
                raise _differs(path, f"it differs from the table after row {sums.rows}")
            sums.add(kept)
            if sums.rows % TELL_EVERY_ROWS < BATCH_ROWS:
                tell(f"{sums.rows} of {manifest.rows} rows proven")
    if await anext(reading, None) is not None:
        raise _differs(path, f"the table has more than its {sums.rows} rows")
    found = (sums.rows, sums.amount, sums.first_id, sums.last_id, sums.kinds)
    if found != (manifest.rows, manifest.amount, manifest.first_id, manifest.last_id, manifest.kinds):
        raise _differs(path, "its sums are not those of its manifest")


async def batches(connection: asyncpg.Connection, lowest: UUID | None, below: UUID) -> AsyncIterator[pa.RecordBatch]:
    """The rows of a month, in the order of their ids, by BATCH_ROWS. No transaction stays open: posted rows do not change."""
    after = UUID(int=lowest.int - 1) if lowest else UUID(int=0)
    while rows := await connection.fetch(_BATCH, after, below, BATCH_ROWS):
        after = rows[-1]["id"]
        yield _batch(rows)


def _batch(rows: Sequence[asyncpg.Record]) -> pa.RecordBatch:
    columns: dict[str, Any] = dict(zip(SCHEMA.names, zip(*rows, strict=True), strict=True))
    return pa.RecordBatch.from_arrays([_array(field, columns[field.name]) for field in SCHEMA], schema=SCHEMA)


def _array(field: pa.Field, values: Sequence[Any]) -> pa.Array:
    if field.name in _UUIDS:
        storage = pa.array([value and value.bytes for value in values], pa.binary(16))
        return pa.ExtensionArray.from_storage(field.type, storage)
    return pa.array(values, field.type)


def _make(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _read_manifest(path: Path) -> Manifest | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as cause:
        raise _differs(path, "it is not a manifest") from cause


def _keep(path: Path, content: bytes) -> None:
    """Written whole, or not at all, and still there after a power cut."""
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    unfinished.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _sha256(path: Path) -> str:
    """Empty for a file that is not there."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(HASHED_BYTES):
            digest.update(block)
        return digest.hexdigest()


def _differs(path: Path, why: str) -> errors.CannotProceed:
    return errors.CannotProceed(what=f"{path}: {why}; nothing was removed", do="move it and its manifest away, then run this again")
