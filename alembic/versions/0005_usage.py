"""What an installation carried: a row a minute, an hour's minutes rolled into one after some days. What was not known is null."""

from alembic import op

revision = "0005"
down_revision = "0004"

USAGE = """
CREATE TABLE usage_minutes (
    at timestamptz NOT NULL,
    rolled boolean NOT NULL DEFAULT false,
    minutes smallint NOT NULL DEFAULT 1 CHECK (minutes BETWEEN 1 AND 60),
    phase smallint NOT NULL,
    transactions bigint NOT NULL CHECK (transactions >= 0),
    busiest_minute bigint NOT NULL CHECK (busiest_minute >= 0),
    connections integer,
    max_connections integer,
    replicas smallint,
    lag_ms double precision,
    cache_used_bytes bigint,
    cache_max_bytes bigint,
    cache_hits bigint,
    cache_misses bigint,
    cache_hits_total bigint,
    cache_misses_total bigint,
    database_bytes bigint,
    transactions_bytes bigint,
    users bigint,
    PRIMARY KEY (at, rolled)
)
"""


def upgrade() -> None:
    op.execute(USAGE)


def downgrade() -> None:
    op.execute("DROP TABLE usage_minutes")
