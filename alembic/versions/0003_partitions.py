"""Archived months: which there are, and what each account and payment carries forward from them.

Months are archived in order, so one id, the newest `below`, parts what is archived from what is in `transactions`. A checkpoint is the
sum of all rows of its account before that id.
"""

from alembic import op

revision = "0003"
down_revision = "0002"

ARCHIVE = """
CREATE TABLE archived_months (
    month date PRIMARY KEY CHECK (extract(day FROM month) = 1),
    partition text NOT NULL UNIQUE,
    below uuid NOT NULL UNIQUE,
    rows bigint NOT NULL,
    amount numeric NOT NULL,
    file text NOT NULL,
    bytes bigint NOT NULL,
    sha256 text NOT NULL,
    archived_at timestamptz NOT NULL
);

CREATE TABLE account_checkpoints (
    account_id uuid NOT NULL,
    bucket smallint NOT NULL,
    balance bigint NOT NULL,
    clearing bigint NOT NULL,
    fees bigint NOT NULL,
    transfers bigint NOT NULL,
    adjustments bigint NOT NULL,
    count bigint NOT NULL,
    sequence bigint NOT NULL,
    first_id uuid NOT NULL,
    last_id uuid NOT NULL,
    PRIMARY KEY (account_id, bucket),
    CONSTRAINT account_checkpoints_double_entry CHECK (balance + clearing + fees + transfers + adjustments = 0),
    CONSTRAINT account_checkpoints_gapless CHECK (count = sequence)
);

-- Payments are not archived, but rows that moved their money are.
CREATE TABLE payment_checkpoints (
    payment_id uuid NOT NULL,
    bucket smallint NOT NULL,
    paid bigint NOT NULL,
    refunded bigint NOT NULL,
    charged_back bigint NOT NULL,
    returned bigint NOT NULL,
    PRIMARY KEY (payment_id, bucket)
);
"""


def upgrade() -> None:
    for statement in ARCHIVE.split(";\n"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    raise RuntimeError("what was archived cannot be brought back by a migration: restore a backup instead")
