"""The deployment and its signing keys in SQL."""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa

from relay.store.model import SigningKey
from relay.store.schema import deployment, signing_keys
from tailnet.errors import AlreadyExistsError

__all__ = (
    "add_signing_key",
    "delete_signing_key",
    "deployment_id",
    "list_signing_keys",
    "revision",
)


def deployment_id(connection: sa.Connection) -> UUID:
    """See Store.deployment_id."""
    found = connection.execute(sa.select(deployment.c.deployment_id)).scalar_one()
    assert isinstance(found, UUID)
    return found


def revision(connection: sa.Connection) -> int:
    """See Store.revision."""
    return int(connection.execute(sa.select(deployment.c.revision)).scalar_one())


def list_signing_keys(connection: sa.Connection, purpose: str) -> list[SigningKey]:
    """See Store.list_signing_keys."""
    query = (
        signing_keys.select()
        .where(signing_keys.c.purpose == purpose)
        .order_by(signing_keys.c.created_at.desc(), signing_keys.c.id)
    )
    return [
        SigningKey(row.id, row.purpose, row.secret, row.created_at)
        for row in connection.execute(query)
    ]


def add_signing_key(connection: sa.Connection, key: SigningKey) -> None:
    """See Store.add_signing_key."""
    taken = signing_keys.select().where(signing_keys.c.id == key.id)
    if connection.execute(taken).first() is not None:
        raise AlreadyExistsError(f"there is a signing key {key.id!r} already")
    connection.execute(
        signing_keys.insert().values(
            id=key.id,
            purpose=key.purpose,
            secret=key.secret,
            created_at=key.created_at,
        )
    )


def delete_signing_key(connection: sa.Connection, key_id: str) -> None:
    """See Store.delete_signing_key."""
    connection.execute(signing_keys.delete().where(signing_keys.c.id == key_id))
