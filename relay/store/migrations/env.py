"""What alembic runs for every command: on the caller's connection."""

from __future__ import annotations

from alembic import context

from relay.store.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    # SQLite changes a column by copying its table.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
