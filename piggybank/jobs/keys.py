"""Forget idempotency keys that nobody will send again. Effects, which make a settlement happen once, are kept for ever."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import text

from piggybank.jobs.work import Work

KEPT_DAYS = 90
SLICE_ROWS = 5_000
SLICES_MAX = 200  # of one run; the rest is for the next

# Found by the BRIN index, which is why a plan without it is ruled out: with a LIMIT the planner would read the whole table,
# hoping to be done soon. Of two that prune at once one waits for the other's slice: the role may not lock rows that it may not update.
_BY_INDEX = text("SET LOCAL enable_seqscan = off")
_PRUNE = text("""
DELETE FROM idempotency_keys
WHERE ctid = ANY (ARRAY(SELECT ctid FROM idempotency_keys WHERE created_at < :before LIMIT :limit))
RETURNING 1
""")


async def prune(work: Work) -> int:
    """Delete keys older than KEPT_DAYS in bounded slices; answers how many."""
    before = datetime.now(UTC) - timedelta(days=KEPT_DAYS)
    pruned = 0
    for _ in range(SLICES_MAX):
        async with work.db.write() as write:
            await write.execute(_BY_INDEX)
            slice_rows = len((await write.execute(_PRUNE, {"before": before, "limit": SLICE_ROWS})).all())
        pruned += slice_rows
        if slice_rows < SLICE_ROWS:
            break
    return pruned
