"""Undo a posted transaction: what is to be reversed is looked up here (posted rows never change), decided in the ledger."""

from uuid import UUID

from sqlalchemy import text

from piggybank import errors, ids
from piggybank.db import archived
from piggybank.db.engines import Read
from piggybank.ledger.commands import TRANSFER_LEGS, Leg, Reverse

_NAMED = text("""
SELECT t.id, t.account_id, t.kind, t.system_account, t.amount, t.transfer_id, coalesce(p.method, 'direct') AS method
FROM transactions t
LEFT JOIN payments p ON p.bucket = t.bucket AND p.id = t.payment_id
WHERE t.id = :id AND t.bucket = :bucket
""")

# The leg that took first, so that of two reasons to refuse always the same is named.
_LEGS = text("""
SELECT id, account_id, kind, system_account, amount, transfer_id, 'direct' AS method
FROM transactions
WHERE transfer_id = :transfer_id
ORDER BY amount
""")


async def reversal_of(
    read: Read, transaction_id: UUID, *, reference: str | None, description: str | None, metadata: dict[str, str] | None
) -> Reverse:
    """The command that reverses a transaction, with the other leg when it is of a transfer. Raises NotFound, or Archived."""
    named = (await read.execute(_NAMED, {"id": transaction_id, "bucket": ids.bucket_of(transaction_id)})).one_or_none()
    if named is None:
        await archived.check(read, transaction_id)
        raise errors.NotFound(transaction_id=str(transaction_id))
    rows = [named]
    if named.transfer_id is not None:
        rows = list(await read.execute(_LEGS, {"transfer_id": named.transfer_id}))
        if len(rows) < TRANSFER_LEGS:
            await archived.check(read, named.transfer_id)
        assert len(rows) == TRANSFER_LEGS, "a transfer has two legs"
    return Reverse(
        account_id=named.account_id,
        transaction_id=transaction_id,
        transfer_id=named.transfer_id,
        legs=tuple(Leg(row.id, row.account_id, row.kind, row.system_account, row.amount, row.method) for row in rows),
        reference=reference,
        description=description,
        metadata=metadata,
    )
