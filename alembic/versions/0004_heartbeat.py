"""A heartbeat: one row that the worker writes each second, and that a replica of this primary shows a moment later."""

from alembic import op

revision = "0004"
down_revision = "0003"

HEARTBEAT = """
CREATE TABLE heartbeat (
    one_row boolean PRIMARY KEY DEFAULT true CHECK (one_row),
    beat timestamptz NOT NULL
) WITH (fillfactor = 20);
INSERT INTO heartbeat (beat) VALUES ('-infinity');
"""


def upgrade() -> None:
    for statement in HEARTBEAT.split(";\n"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE heartbeat")
