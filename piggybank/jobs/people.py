"""Forget what has ended: sessions, links, counts of failed sign-ins."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import text

from piggybank.jobs.work import Work

SESSIONS_KEPT_DAYS = 7  # after their end
LINKS_KEPT_DAYS = 30
FAILURES_KEPT_DAYS = 7
SLICE_ROWS = 5_000
SLICES_MAX = 100  # of one run and table; the rest is for the next

_SESSIONS = text("""
DELETE FROM sessions
WHERE id = ANY (ARRAY(SELECT id FROM sessions WHERE expires_at < :before LIMIT :limit FOR UPDATE SKIP LOCKED))
RETURNING 1
""")
_LINKS = text("""
DELETE FROM links
WHERE id = ANY (ARRAY(SELECT id FROM links WHERE expires_at < :before LIMIT :limit FOR UPDATE SKIP LOCKED))
RETURNING 1
""")
_FAILURES = text("""
DELETE FROM failed_sign_ins
WHERE address_hash = ANY (ARRAY(
    SELECT address_hash
    FROM failed_sign_ins
    WHERE updated_at < :before AND (locked_until IS NULL OR locked_until < :before)
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
))
RETURNING 1
""")
_KEPT_DAYS = ((_SESSIONS, SESSIONS_KEPT_DAYS), (_LINKS, LINKS_KEPT_DAYS), (_FAILURES, FAILURES_KEPT_DAYS))


async def prune(work: Work) -> int:
    """Delete them in bounded slices; answers how many rows."""
    pruned = 0
    for statement, kept_days in _KEPT_DAYS:
        before = datetime.now(UTC) - timedelta(days=kept_days)
        for _ in range(SLICES_MAX):
            async with work.db.write() as write:
                slice_rows = len((await write.execute(statement, {"before": before, "limit": SLICE_ROWS})).all())
            pruned += slice_rows
            if slice_rows < SLICE_ROWS:
                break
    return pruned
