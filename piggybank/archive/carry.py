"""What is carried forward when a month goes: written with the mark that it is archived, in one transaction.

From that commit on readers and `piggybank verify` begin after the month, whether its rows are still attached or not.
"""

from uuid import UUID

import asyncpg

from piggybank import errors
from piggybank.archive.files import Manifest
from piggybank.db.partitions import Partition

_ACCOUNTS = """
INSERT INTO account_checkpoints AS carried
       (account_id, bucket, balance, clearing, fees, transfers, adjustments, count, sequence, first_id, last_id)
SELECT account_id, bucket, sum(amount),
       -coalesce(sum(amount) FILTER (WHERE system_account = 'clearing'), 0),
       -coalesce(sum(amount) FILTER (WHERE system_account = 'fees'), 0),
       -coalesce(sum(amount) FILTER (WHERE system_account = 'transfers'), 0),
       -coalesce(sum(amount) FILTER (WHERE system_account = 'adjustments'), 0),
       count(*), count(*), min(id::text)::uuid, max(id::text)::uuid
FROM transactions
WHERE id >= $1 AND id < $2
GROUP BY account_id, bucket
ON CONFLICT (account_id, bucket) DO UPDATE
SET balance = carried.balance + excluded.balance, clearing = carried.clearing + excluded.clearing, fees = carried.fees + excluded.fees,
    transfers = carried.transfers + excluded.transfers, adjustments = carried.adjustments + excluded.adjustments,
    count = carried.count + excluded.count, sequence = carried.sequence + excluded.sequence, last_id = excluded.last_id
"""

_PAYMENTS = """
INSERT INTO payment_checkpoints AS carried (payment_id, bucket, paid, refunded, charged_back, returned)
SELECT t.payment_id, t.bucket,
       abs(coalesce(sum(t.amount) FILTER (WHERE t.kind IN ('deposit', 'withdrawal')), 0)),
       coalesce(-sum(t.amount) FILTER (WHERE t.kind = 'refund'), 0),
       coalesce(-sum(t.amount) FILTER (WHERE t.kind IN ('chargeback', 'chargeback_reversal')), 0),
       coalesce(sum(t.amount) FILTER (WHERE t.kind = 'payout_return'), 0)
FROM transactions t
JOIN payments p ON p.bucket = t.bucket AND p.id = t.payment_id
WHERE t.id >= $1 AND t.id < $2 AND p.method = 'revio'
GROUP BY t.payment_id, t.bucket
ON CONFLICT (payment_id, bucket) DO UPDATE
SET paid = carried.paid + excluded.paid, refunded = carried.refunded + excluded.refunded,
    charged_back = carried.charged_back + excluded.charged_back, returned = carried.returned + excluded.returned
"""

_MONTH = """
INSERT INTO archived_months (month, partition, below, rows, amount, file, bytes, sha256, archived_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, now())
"""

# The last row of each account says by itself what the balance and the sequence have come to.
_WRONG = """
SELECT t.account_id
FROM account_checkpoints c
JOIN transactions t ON t.id = c.last_id AND t.bucket = c.bucket
WHERE t.id >= $1 AND t.id < $2 AND (t.balance_after, t.sequence) IS DISTINCT FROM (c.balance, c.sequence)
LIMIT 1
"""
_FIRST = UUID(int=0)
_SUM = "SELECT count(*), coalesce(sum(amount), 0) FROM transactions WHERE id >= $1 AND id < $2"


async def forward(connection: asyncpg.Connection, partition: Partition, manifest: Manifest) -> None:
    """Write the checkpoints and the mark. Raises CannotProceed where the rows are not those of the file, or do not add up."""
    assert partition.below is not None, "months are on"
    bounds = (manifest.lowest or _FIRST, manifest.below)
    async with connection.transaction():
        await connection.execute(_ACCOUNTS, *bounds)
        await connection.execute(_PAYMENTS, *bounds)
        wrong = await connection.fetchval(_WRONG, *bounds)
        rows, amount = await connection.fetchrow(_SUM, *bounds)
        if wrong is not None or (rows, amount) != (manifest.rows, manifest.amount):
            what = f"account {wrong} does not add up to its last row" if wrong else "the rows are not those of the file"
            raise errors.CannotProceed(what=f"{what}; nothing was removed", do="look with: piggybank verify")
        await connection.execute(
            _MONTH,
            partition.month,
            partition.name,
            manifest.below,
            manifest.rows,
            manifest.amount,
            manifest.file,
            manifest.bytes,
            manifest.sha256,
        )
