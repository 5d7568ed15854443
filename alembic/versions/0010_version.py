"""Which version of piggybank was here last: a newer one asks whether it may follow that one before it migrates."""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.execute("ALTER TABLE installation ADD COLUMN version text")


def downgrade() -> None:
    op.execute("ALTER TABLE installation DROP COLUMN version")
