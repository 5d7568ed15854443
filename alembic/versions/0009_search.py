"""What operators search people and accounts by: how an address or an id of the team's own begins, and how a word of a name does.

The expressions are those of `piggybank/db/search.py`, letter by letter, or no index is used. Built while people pay.
"""

from alembic import op

revision = "0009"
down_revision = "0008"

WORDS = "gin (to_tsvector('simple', regexp_replace(name, '[[\\:punct\\:]]+', ' ', 'g')))"
INDEXES = {
    "users_search_name": f"users USING {WORDS}",
    "users_search_email": "users (lower(email) text_pattern_ops)",
    "users_search_external_id": "users (lower(external_id) text_pattern_ops)",
    "accounts_search_name": f"accounts USING {WORDS}",
    "accounts_search_external_id": "accounts (lower(external_id) text_pattern_ops)",
}


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for name, what in INDEXES.items():
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")  # one that was not finished
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {what}")


def downgrade() -> None:
    for name in INDEXES:
        op.execute(f"DROP INDEX {name}")
