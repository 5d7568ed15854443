"""Backups, drills and restores: what was done, and whether this database is in recovery.

A database is in recovery while a row of `restores` has no end. `lost_payments` are those that the provider carried out and that this
database knew nothing of when it was restored (wallet/recovery.py).
"""

from alembic import op

revision = "0006"
down_revision = "0005"

BACKUPS = """
CREATE TABLE backups (
    id text PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('base', 'logical')),
    target text NOT NULL,
    started_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    size_bytes bigint NOT NULL CHECK (size_bytes >= 0)
);
CREATE TABLE archived_wal (
    one_row boolean PRIMARY KEY DEFAULT true CHECK (one_row),
    name text NOT NULL,
    written_at timestamptz NOT NULL,
    archived_at timestamptz NOT NULL
);
CREATE TABLE drills (
    id uuid PRIMARY KEY,
    backup_id text NOT NULL,
    at timestamptz NOT NULL,
    seconds double precision NOT NULL,
    passed boolean NOT NULL,
    said text NOT NULL
);
CREATE TABLE restores (
    id uuid PRIMARY KEY,
    backup_id text NOT NULL,
    point timestamptz NOT NULL,
    restored_at timestamptz NOT NULL,
    finished_at timestamptz,
    report jsonb
);
CREATE TABLE lost_payments (
    reference uuid PRIMARY KEY,
    mark bigint NOT NULL,
    provider text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('deposit', 'withdrawal')),
    provider_id text NOT NULL,
    amount bigint NOT NULL,
    currency text NOT NULL,
    found_at timestamptz NOT NULL,
    payment_id uuid
);
CREATE INDEX lost_payments_mark ON lost_payments (mark);
"""


def upgrade() -> None:
    for statement in BACKUPS.split(";\n"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE lost_payments, restores, drills, archived_wal, backups")
