"""The steps from an empty database to ``relay.store.schema``, for alembic."""
