"""Runs the migrations on the connection that `piggybank/db/migrate.py` hands over: it holds the lock and the owner's role."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
