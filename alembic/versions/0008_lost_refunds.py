"""Refunds are among what the provider did in the time that a restored database lost; what people have dealt with is marked so."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.execute("ALTER TABLE lost_payments DROP CONSTRAINT lost_payments_kind_check")
    op.execute(
        "ALTER TABLE lost_payments ADD CONSTRAINT lost_payments_kind_check CHECK (kind IN ('deposit', 'withdrawal', 'refund')),"
        " ADD COLUMN settled_at timestamptz, ADD COLUMN settled_by text"
    )


def downgrade() -> None:
    op.execute("DELETE FROM lost_payments WHERE kind = 'refund'")
    op.execute("ALTER TABLE lost_payments DROP CONSTRAINT lost_payments_kind_check, DROP COLUMN settled_at, DROP COLUMN settled_by")
    op.execute("ALTER TABLE lost_payments ADD CONSTRAINT lost_payments_kind_check CHECK (kind IN ('deposit', 'withdrawal'))")
