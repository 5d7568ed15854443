"""Company statements: every entry of a span of time as CSV, made a slice at a time and kept as it was made.

A row shows the status that its object has when the statement is made. The fault `statement_mismatch` spoils one row.
"""

import csv
import io
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlencode

import msgspec
from msgspec import Struct

from piggybank.simulator import timers
from piggybank.simulator.book import Book, new_id
from piggybank.simulator.refusals import Refused, not_found
from piggybank.simulator.simulation import Simulation

COLUMNS = (
    "type",
    "id",
    "related_to",
    "reference",
    "status",
    "currency",
    "amount",
    "fee_amount",
    "net_amount",
    "created_on",
    "updated_on",
)
STEP_TAKES_S = 3.0  # from queued to processing, and from there to finished
SLICE_ROWS = 2_000
WRONG_BY = 100  # minor units that an altered row is off
UNFINISHED = frozenset({"queued", "processing"})

_COUNT = "SELECT count(*) FROM entries WHERE created_on >= ? AND created_on < ? AND seq <= ?"
_LAST = "SELECT coalesce(max(seq), 0) FROM entries"
_ROWS = """
SELECT e.seq, e.type, e.id, e.related_to, e.reference, coalesce(o.status, 'success') AS status, e.currency, e.amount, e.fee_amount,
       e.net_amount, e.created_on, max(coalesce(o.updated_on, 0), e.created_on) AS updated_on
FROM entries AS e LEFT JOIN objects AS o ON o.id = e.object_id
WHERE e.seq > ? AND e.seq <= ? AND e.created_on >= ? AND e.created_on < ?
ORDER BY e.seq LIMIT ?
"""


class Statement(Struct, kw_only=True):
    """A statement as it is sent."""

    type: str = "company_statement"
    id: str
    format: str
    timezone: str
    is_test: bool = True
    company_uid: str
    query_string: str
    status: str = "queued"
    download_url: str | None = None
    created_on: int
    updated_on: int
    began_on: int | None = None
    finished_on: int | None = None


class Kept(Struct, kw_only=True):
    """`last` is the newest entry when it began; `spoilt` is the row (from 0) that the fault met, and how."""

    sent: Statement
    since: int
    until: int
    last: int = 0
    parts: int = 0
    rows: int = 0
    spoilt: int | None = None
    how: str = ""


def create(sim: Simulation, *, timezone: str, since: int, until: int) -> Statement:
    """Queue one for since <= created_on < until; inside a transaction."""
    now = sim.book.now()
    made = Statement(
        id=new_id(),
        format="csv",
        timezone=timezone,
        company_uid=sim.company_id,
        query_string=urlencode({"from": since, "to": until}),
        created_on=now,
        updated_on=now,
    )
    kept = Kept(sent=made, since=since, until=until)
    sim.book.execute("INSERT INTO statements (id, kept) VALUES (?, ?)", (made.id, msgspec.json.encode(kept)))
    timers.put(sim, "statement", made.id, sim.wait_s(STEP_TAKES_S))
    return made


def load(book: Book, statement_id: str) -> Kept:
    """One statement; refuses with a 404."""
    row = book.row("SELECT kept FROM statements WHERE id = ?", (statement_id,))
    if row is None:
        raise not_found()
    return msgspec.json.decode(row["kept"], type=Kept)


def cancel(sim: Simulation, statement_id: str) -> Statement:
    """While it is not finished; inside a transaction."""
    kept = load(sim.book, statement_id)
    if kept.sent.status not in UNFINISHED:
        raise Refused(f"A statement that is {kept.sent.status} cannot be cancelled.", "company_statement_cancel_error")
    _become(sim, kept, "cancelled")
    sim.book.execute("DELETE FROM statement_parts WHERE statement_id = ?", (statement_id,))
    return kept.sent


def begin(sim: Simulation, statement_id: str) -> None:
    """From queued to processing."""
    kept = load(sim.book, statement_id)
    if kept.sent.status != "queued":
        return
    kept.last = sim.book.value(_LAST)
    kept.sent.began_on = sim.book.now()
    if sim.faults.happens("statement_mismatch"):
        rows = sim.book.value(_COUNT, (kept.since, kept.until, kept.last))
        kept.how = sim.faults.dice.choice(("altered", "missing", "invented")) if rows else "invented"
        kept.spoilt = sim.faults.dice.randrange(rows) if rows else 0
    _become(sim, kept, "processing")
    timers.put(sim, "statement_slice", statement_id, sim.wait_s(STEP_TAKES_S), "0")


def go_on(sim: Simulation, statement_id: str, after: int) -> None:
    """The rows behind the entry `after`; the last slice finishes it."""
    kept = load(sim.book, statement_id)
    if kept.sent.status != "processing":
        return
    found = [dict(row) for row in sim.book.rows(_ROWS, (after, kept.last, kept.since, kept.until, SLICE_ROWS))]
    seqs = [row.pop("seq") for row in found]
    is_last = len(found) < SLICE_ROWS
    body = _csv(list(_spoil(kept, found, is_last=is_last)), with_header=kept.parts == 0)
    sim.book.execute("INSERT INTO statement_parts VALUES (?, ?, ?)", (statement_id, kept.parts, body))
    kept.parts += 1
    kept.rows += len(found)
    if is_last:
        kept.sent.download_url = f"{sim.config.url}/api/v1/company_statements/{statement_id}/download/"
        kept.sent.finished_on = sim.book.now()
        _become(sim, kept, "finished")
    else:
        _save(sim, kept)
        timers.put(sim, "statement_slice", statement_id, 0, str(seqs[-1]))


async def parts(book: Book, statement_id: str) -> AsyncIterator[bytes]:
    """The finished CSV; asynchronous since the book stays on its thread."""
    for part in range(load(book, statement_id).parts):
        yield book.value("SELECT body FROM statement_parts WHERE statement_id = ? AND part = ?", (statement_id, part))


def _spoil(kept: Kept, rows: list[dict[str, str | int]], *, is_last: bool) -> Iterator[dict[str, str | int]]:
    for number, row in enumerate(rows, kept.rows):
        if number != kept.spoilt or kept.how == "invented":
            yield row
        if number == kept.spoilt and kept.how == "altered":
            yield row | {"amount": int(row["amount"]) + WRONG_BY, "net_amount": int(row["net_amount"]) + WRONG_BY}
    if is_last and kept.how == "invented":
        now = kept.sent.began_on or 0
        yield {
            "type": "payout",
            "id": new_id(),
            "related_to": "",
            "reference": "invented",
            "status": "success",
            "currency": "ZAR",
            "amount": WRONG_BY,
            "fee_amount": 0,
            "net_amount": WRONG_BY,
            "created_on": min(max(now, kept.since), kept.until - 1),
            "updated_on": now,
        }


def _csv(rows: list[dict[str, str | int]], *, with_header: bool) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\r\n")
    if with_header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _become(sim: Simulation, kept: Kept, status: str) -> None:
    kept.sent.status = status
    kept.sent.updated_on = sim.book.now()
    _save(sim, kept)


def _save(sim: Simulation, kept: Kept) -> None:
    sim.book.execute("UPDATE statements SET kept = ? WHERE id = ?", (msgspec.json.encode(kept), kept.sent.id))
