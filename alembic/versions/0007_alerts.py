"""What each minute was like for those who asked, and what is wrong with it: shares of the processes, and alerts that fire and end."""

from alembic import op

revision = "0007"
down_revision = "0006"

MINUTES = """
ALTER TABLE usage_minutes
    ADD COLUMN requests bigint,
    ADD COLUMN errors bigint,
    ADD COLUMN p95_ms double precision,
    ADD COLUMN lookup_hits bigint,
    ADD COLUMN lookup_misses bigint,
    ADD COLUMN db_cpu_ratio double precision,
    ADD COLUMN disk_free_ratio double precision,
    ADD COLUMN figures jsonb
"""

# What one process counted since its last row; gone when the minute is recorded.
SHARES = """
CREATE TABLE minute_shares (
    process uuid NOT NULL,
    at timestamptz NOT NULL,
    share jsonb NOT NULL,
    PRIMARY KEY (process, at)
)
"""

ALERTS = """
CREATE TABLE alerts (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    severity text NOT NULL CHECK (severity IN ('warning', 'critical')),
    since timestamptz NOT NULL,
    value double precision NOT NULL,
    threshold double precision NOT NULL,
    message text NOT NULL,
    resolved_at timestamptz,
    told text[] NOT NULL DEFAULT '{}',
    claimed_until timestamptz
)
"""
# Whoever comes second finds it firing.
ONCE = "CREATE UNIQUE INDEX alerts_firing ON alerts (name, severity) WHERE resolved_at IS NULL"


def upgrade() -> None:
    for statement in (MINUTES, SHARES, ALERTS, ONCE):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE alerts")
    op.execute("DROP TABLE minute_shares")
    for column in ("requests", "errors", "p95_ms", "lookup_hits", "lookup_misses", "db_cpu_ratio", "disk_free_ratio", "figures"):
        op.execute(f"ALTER TABLE usage_minutes DROP COLUMN {column}")
