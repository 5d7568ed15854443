"""What the provider owes us, by our book: in minor units by currency."""

from sqlalchemy import text

from piggybank.db.engines import Database
from piggybank.settings import ProviderMode

_LONG_READ = text("SET LOCAL statement_timeout = '300s'")
# All that it moved for accounts, and what has no user.
_OWED = text("""
WITH moved AS (
    SELECT a.currency,
           sum(CASE p.kind WHEN 'deposit' THEN p.paid - p.refunded - p.charged_back
                           WHEN 'withdrawal' THEN CASE p.status WHEN 'returned' THEN 0 ELSE -p.paid END ELSE 0 END) AS amount
    FROM payments p
    JOIN accounts a ON a.bucket = p.bucket AND a.id = p.account_id
    WHERE p.method = 'revio' AND p.provider = :provider
    GROUP BY a.currency
), entered AS (
    SELECT currency, sum(CASE WHEN debit = 'clearing' THEN amount WHEN credit = 'clearing' THEN -amount ELSE 0 END) AS amount
    FROM system_entries
    WHERE provider = :provider
    GROUP BY currency
)
SELECT currency, CAST(sum(amount) AS bigint) AS amount FROM (SELECT * FROM moved UNION ALL SELECT * FROM entered) AS parts
GROUP BY currency
""")

_UNDER_WAY = text("""
SELECT a.currency, CAST(sum(p.amount) AS bigint) AS amount
FROM payments p
JOIN accounts a ON a.bucket = p.bucket AND a.id = p.account_id
WHERE p.status IN ('processing', 'unknown') AND p.kind <> 'deposit' AND p.method = 'revio' AND p.provider = :provider
GROUP BY a.currency
""")


async def owed(db: Database, mode: ProviderMode) -> dict[str, int]:
    """All of it, the money that is under way included."""
    async with db.write() as read:  # the primary's: it is compared with what is so now
        await read.execute(_LONG_READ)  # it sums every payment there ever was
        return {row.currency: row.amount for row in await read.execute(_OWED, {"provider": mode})}


async def under_way(db: Database, mode: ProviderMode) -> dict[str, int]:
    """What was asked to be paid out, and may have been or not."""
    async with db.write() as read:
        return {row.currency: row.amount for row in await read.execute(_UNDER_WAY, {"provider": mode})}
