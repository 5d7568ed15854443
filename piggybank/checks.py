"""`piggybank verify`: derive every balance again from the rows, and name what differs.

Accounts are checked in slices, each one statement in REPEATABLE READ, so postings go on meanwhile and a slice is of one moment.
What concerns all accounts at once (transfers cancel out, no row without an account) comes at the end, of one moment, too. Runs with the
owner's role: the application's has a statement timeout.

Where months are archived, an account begins with what it carries forward (`account_checkpoints`), a payment likewise, and rows count from
the first month on that is not. So a checkpoint that was tampered with is found as a row would be.
"""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
from msgspec import Struct

from piggybank import ids

SLICE = 5_000  # accounts in one statement


class Finding(Struct, frozen=True, kw_only=True):
    """Something that the rows do not bear out."""

    account_id: UUID | None
    what: str
    stored: str
    derived: str


class Progress(Struct, frozen=True, kw_only=True):
    """After each slice."""

    accounts: int
    transactions: int
    findings: list[Finding]


_RANGE = "SELECT id FROM (SELECT id FROM accounts WHERE id > $1 ORDER BY id LIMIT $2) slice ORDER BY id DESC LIMIT 1"

# For each account: what its row says, and what its transactions (after what it carries forward) and payments say.
_SLICE = """
WITH edge AS (
    SELECT coalesce((SELECT below FROM archived_months ORDER BY month DESC LIMIT 1), '00000000-0000-0000-0000-000000000000') AS id
), slice AS (
    SELECT * FROM accounts WHERE id > $1 AND id <= $2
), carried AS (
    SELECT * FROM account_checkpoints WHERE account_id > $1 AND account_id <= $2
), numbered AS (
    SELECT t.*, coalesce(c.balance, 0) + sum(t.amount) OVER account AS running,
           coalesce(c.sequence, 0) + row_number() OVER account AS number
    FROM transactions t
    LEFT JOIN carried c ON c.account_id = t.account_id
    WHERE t.account_id IN (SELECT id FROM slice) AND t.id >= (SELECT id FROM edge)
    WINDOW account AS (PARTITION BY t.account_id ORDER BY t.id)
), posted AS (
    SELECT account_id, count(*) AS count, max(sequence) AS sequence, sum(amount) AS balance, max(id::text)::uuid AS last_id,
           -sum(amount) FILTER (WHERE system_account = 'clearing') AS clearing,
           -sum(amount) FILTER (WHERE system_account = 'fees') AS fees,
           -sum(amount) FILTER (WHERE system_account = 'transfers') AS transfers,
           -sum(amount) FILTER (WHERE system_account = 'adjustments') AS adjustments,
           count(*) FILTER (WHERE running <> balance_after) AS wrong_balances_after,
           count(*) FILTER (WHERE number <> sequence) AS wrong_sequences,
           count(*) FILTER (WHERE bucket <> get_byte(uuid_send(id), 15) OR bucket <> get_byte(uuid_send(account_id), 15)) AS wrong_buckets
    FROM numbered
    GROUP BY account_id
), reserved AS (
    SELECT account_id, sum(held) AS held,
           count(*) FILTER (WHERE status IN ('creating', 'pending', 'processing', 'unknown')) AS open_payments,
           count(*) FILTER (WHERE held > 0 AND status NOT IN ('creating', 'pending', 'processing', 'unknown')) AS held_after_the_end
    FROM payments
    WHERE account_id IN (SELECT id FROM slice)
    GROUP BY account_id
)
SELECT s.id, coalesce(p.count, 0) AS posted_rows, difference.what, difference.stored::text, difference.derived::text
FROM slice s
LEFT JOIN posted p ON p.account_id = s.id
LEFT JOIN carried c ON c.account_id = s.id
LEFT JOIN reserved r ON r.account_id = s.id
LEFT JOIN LATERAL (VALUES
    ('balance', s.balance, coalesce(c.balance, 0) + coalesce(p.balance, 0)),
    ('held', s.held, coalesce(r.held, 0)),
    ('owed', s.owed, greatest(0, s.held - s.balance)),
    ('clearing', s.clearing, coalesce(c.clearing, 0) + coalesce(p.clearing, 0)),
    ('fees', s.fees, coalesce(c.fees, 0) + coalesce(p.fees, 0)),
    ('transfers', s.transfers, coalesce(c.transfers, 0) + coalesce(p.transfers, 0)),
    ('adjustments', s.adjustments, coalesce(c.adjustments, 0) + coalesce(p.adjustments, 0)),
    ('transactions_count', s.transactions_count, coalesce(c.count, 0) + coalesce(p.count, 0)),
    ('sequence', s.sequence, coalesce(p.sequence, c.sequence, 0)),
    ('open_payments', s.open_payments, coalesce(r.open_payments, 0)),
    ('rows out of sequence', 0, coalesce(p.wrong_sequences, 0)),
    ('rows with a wrong balance_after', 0, coalesce(p.wrong_balances_after, 0)),
    ('rows in a wrong bucket', 0, coalesce(p.wrong_buckets, 0)),
    ('ended payments that still hold', 0, coalesce(r.held_after_the_end, 0)),
    ('last transaction is not the newest row', 0, (s.last_transaction_id IS DISTINCT FROM coalesce(p.last_id, c.last_id))::int)
) AS difference (what, stored, derived) ON difference.stored <> difference.derived
"""

_TRANSFERS = "SELECT currency, sum(transfers) AS sum FROM accounts GROUP BY currency HAVING sum(transfers) <> 0"

# Legs are not older than their transfer's id; of an older one than the edge a leg may be archived. (`archive` has looked at those.)
_TORN_TRANSFERS = """
SELECT transfer_id, count(*) AS legs, sum(amount) AS sum
FROM transactions
WHERE transfer_id >= $1
GROUP BY transfer_id
HAVING count(*) <> 2 OR sum(amount) <> 0
LIMIT 100
"""

_ORPHANS = """
SELECT account_id, sum(rows)::bigint AS rows
FROM (
    SELECT account_id, bucket, count(*) AS rows FROM transactions GROUP BY account_id, bucket
    UNION ALL
    SELECT account_id, bucket, count FROM account_checkpoints
) AS posted
WHERE NOT EXISTS (SELECT FROM accounts a WHERE a.id = posted.account_id AND a.bucket = posted.bucket)
GROUP BY account_id
LIMIT 100
"""

_REVERSALS_WITHOUT_EFFECT = """
SELECT t.account_id, t.id
FROM transactions t
WHERE t.kind = 'reversal' AND t.transfer_id IS NULL
  AND NOT EXISTS (SELECT FROM effects e WHERE e.bucket = t.bucket AND e.source = 'reversal' AND e.effect = t.reverses::text)
LIMIT 100
"""


# Reports are sums of days that are over (installation.reports_through); an id begins with its milliseconds.
_WRONG_REPORTS = """
WITH dated AS (
    SELECT account_id, kind, amount,
           (to_timestamp(('x' || left(replace(id::text, '-', ''), 12))::bit(48)::bigint / 1000.0) AT TIME ZONE 'UTC')::date AS day
    FROM transactions
    WHERE id >= $1
), derived AS (
    SELECT account_id, day, kind, count(*) AS count, sum(amount) AS net
    FROM dated
    WHERE day <= (SELECT reports_through FROM installation)
    GROUP BY account_id, day, kind
)
SELECT account_id, day, kind, r.count || ' rows, net ' || (r.credit - r.debit) AS stored, d.count || ' rows, net ' || d.net AS derived
FROM derived d
FULL JOIN (SELECT * FROM reports WHERE day >= $2) r USING (account_id, day, kind)
WHERE (r.count, r.credit - r.debit) IS DISTINCT FROM (d.count, d.net)
LIMIT 100
"""


# What a payment says was paid, given back and charged back, and what its rows (and what it carries forward of archived ones) say.
_WRONG_PAYMENTS = """
WITH moved AS (
    SELECT t.payment_id,
           abs(coalesce(sum(t.amount) FILTER (WHERE t.kind IN ('deposit', 'withdrawal')), 0)) AS paid,
           coalesce(-sum(t.amount) FILTER (WHERE t.kind = 'refund'), 0) AS refunded,
           coalesce(-sum(t.amount) FILTER (WHERE t.kind IN ('chargeback', 'chargeback_reversal')), 0) AS charged_back,
           coalesce(sum(t.amount) FILTER (WHERE t.kind = 'payout_return'), 0) AS returned
    FROM transactions t
    WHERE t.payment_id IS NOT NULL AND t.id >= $1
    GROUP BY t.payment_id
), asked AS (
    SELECT refund_of, sum(amount) AS refunding
    FROM payments
    WHERE refund_of IS NOT NULL AND status IN ('creating', 'pending', 'processing', 'unknown')
    GROUP BY refund_of
)
SELECT p.account_id, p.id, difference.what, difference.stored, difference.derived
FROM payments p
LEFT JOIN moved m ON m.payment_id = p.id
LEFT JOIN asked a ON a.refund_of = p.id
LEFT JOIN payment_checkpoints c ON c.bucket = p.bucket AND c.payment_id = p.id
CROSS JOIN LATERAL (VALUES
    ('paid', p.paid, coalesce(m.paid, 0) + coalesce(c.paid, 0)),
    ('refunded', p.refunded, coalesce(m.refunded, 0) + coalesce(c.refunded, 0)),
    ('charged back', p.charged_back, coalesce(m.charged_back, 0) + coalesce(c.charged_back, 0)),
    ('being refunded', p.refunding, coalesce(a.refunding, 0)),
    ('returned', CASE p.status WHEN 'returned' THEN p.paid ELSE 0 END, coalesce(m.returned, 0) + coalesce(c.returned, 0))
) AS difference (what, stored, derived)
WHERE p.method = 'revio' AND p.kind <> 'refund' AND difference.stored <> difference.derived
LIMIT 100
"""

# Each row that a provider moved has its effect, or it could happen twice.
_WITHOUT_EFFECT = """
SELECT t.account_id, t.id, t.kind
FROM transactions t
JOIN payments p ON p.bucket = t.bucket AND p.id = t.payment_id
WHERE p.method = 'revio' AND NOT EXISTS (SELECT FROM effects e WHERE e.bucket = t.bucket AND e.transaction_id = t.id)
LIMIT 100
"""

_EFFECTS_WITHOUT_ROW = """
SELECT e.source, e.effect
FROM effects e
WHERE e.transaction_id >= $1 AND NOT EXISTS (SELECT FROM transactions t WHERE t.id = e.transaction_id)
LIMIT 100
"""

# Before the snapshot: a month that is being archived stays until we have seen it, or is seen to be archived.
_KEEP_MONTHS = "LOCK TABLE transactions IN ACCESS SHARE MODE"

_EDGE = "SELECT below FROM archived_months ORDER BY month DESC LIMIT 1"

# What accounts carry forward is what was archived.
_CARRIED = """
SELECT carried.rows AS carried_rows, archived.rows AS archived_rows, carried.amount AS carried_amount, archived.amount AS archived_amount
FROM (SELECT coalesce(sum(count), 0) AS rows, coalesce(sum(balance), 0) AS amount FROM account_checkpoints) AS carried,
     (SELECT coalesce(sum(rows), 0) AS rows, coalesce(sum(amount), 0) AS amount FROM archived_months) AS archived
WHERE (carried.rows, carried.amount) IS DISTINCT FROM (archived.rows, archived.amount)
"""


async def verify(owner_url: str) -> AsyncIterator[Progress]:
    """Check everything, slice by slice; the last progress has what concerns all accounts at once."""
    connection = await asyncpg.connect(owner_url)
    try:
        low = UUID(int=0)
        while (high := await connection.fetchval(_RANGE, low, SLICE)) is not None:
            yield await _slice(connection, low, high)
            low = high
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.execute(_KEEP_MONTHS)
            yield Progress(accounts=0, transactions=0, findings=await _overall(connection))
    finally:
        await connection.close()


async def _slice(connection: asyncpg.Connection, low: UUID, high: UUID) -> Progress:
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        await connection.execute(_KEEP_MONTHS)
        rows = await connection.fetch(_SLICE, low, high)
    seen = {row["id"]: row["posted_rows"] for row in rows}
    findings = [
        Finding(account_id=row["id"], what=row["what"], stored=row["stored"], derived=row["derived"]) for row in rows if row["what"]
    ]
    return Progress(accounts=len(seen), transactions=sum(seen.values()), findings=findings)


async def _overall(connection: asyncpg.Connection) -> list[Finding]:
    """What no slice can see, of one moment."""
    edge: UUID = await connection.fetchval(_EDGE) or UUID(int=0)

    def finding(account_id: Any, what: str, derived: str, stored: str = "") -> Finding:
        return Finding(account_id=account_id, what=what, stored=stored, derived=derived)

    found = [
        finding(None, f"transfers in {row['currency']} do not cancel out", str(row["sum"]), "0")
        for row in await connection.fetch(_TRANSFERS)
    ]
    found += [
        finding(None, f"transfer {row['transfer_id']} is torn", f"{row['legs']} legs, sum {row['sum']}", "2 legs, sum 0")
        for row in await connection.fetch(_TORN_TRANSFERS, edge)
    ]
    found += [
        finding(row["account_id"], "transactions without an account", f"{row['rows']} rows") for row in await connection.fetch(_ORPHANS)
    ]
    found += [
        finding(row["account_id"], f"the report of {row['day']}, {row['kind']}", row["derived"] or "nothing", row["stored"] or "nothing")
        for row in await connection.fetch(_WRONG_REPORTS, edge, ids.time_of(edge).date())
    ]
    found += [
        finding(row["account_id"], "a reversal without its effect", str(row["id"]))
        for row in await connection.fetch(_REVERSALS_WITHOUT_EFFECT)
    ]
    found += [
        finding(row["account_id"], f"payment {row['id']}: {row['what']}", str(row["derived"]), str(row["stored"]))
        for row in await connection.fetch(_WRONG_PAYMENTS, edge)
    ]
    found += [
        finding(row["account_id"], f"a {row['kind']} of the provider without its effect", str(row["id"]))
        for row in await connection.fetch(_WITHOUT_EFFECT)
    ]
    found += [
        finding(None, f"the effect {row['source']} {row['effect']}", "no row", "a row")
        for row in await connection.fetch(_EFFECTS_WITHOUT_ROW, edge)
    ]
    found += [
        finding(
            None,
            "what accounts carry forward from archived months",
            f"{row['archived_rows']} rows, sum {row['archived_amount']}",
            f"{row['carried_rows']} rows, sum {row['carried_amount']}",
        )
        for row in await connection.fetch(_CARRIED)
    ]
    return found
