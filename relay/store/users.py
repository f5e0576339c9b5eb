"""Users and API keys in SQL. Functions for ``Database.read`` and ``change``."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa

from relay.store.model import ApiKey, NewApiKey, User, check_name
from relay.store.schema import api_keys, users, workspaces
from relay.store.tokens import (
    generate_api_token,
    is_same_hash,
    parse_api_token,
    secret_hash,
    split_api_token,
)
from tailnet.errors import (
    AlreadyExistsError,
    InUseError,
    InvalidRecordError,
    NotFoundError,
)

__all__ = (
    "authenticate_api_key",
    "create_api_key",
    "create_user",
    "delete_api_key",
    "delete_user",
    "find_user",
    "get_user",
    "list_api_keys",
    "list_users",
    "user_from_row",
)

MAX_KEY_NAME_LEN = 64


def user_from_row(row: sa.Row[Any]) -> User:
    """The user in a row that has all columns of ``users``."""
    columns = row._mapping
    return User(
        id=columns[users.c.id],
        username=columns[users.c.username],
        is_admin=columns[users.c.is_admin],
        created_at=columns[users.c.created_at],
    )


def create_user(
    connection: sa.Connection, username: str, *, is_admin: bool, now: datetime
) -> User:
    """See Store.create_user."""
    check_name("a user", username)
    if username.lower() == "me":
        # In paths of the API it stands for whoever asks: /api/v2/users/me.
        raise InvalidRecordError(f"{username!r} is no name for a user: it is reserved")
    if (taken := find_user(connection, username)) is not None:
        raise AlreadyExistsError(f"there is a user {taken.username!r} already")
    user = User(uuid4(), username, is_admin, now)
    connection.execute(
        users.insert().values(
            id=user.id,
            username=username,
            username_key=username.lower(),
            is_admin=is_admin,
            created_at=now,
        )
    )
    return user


def get_user(connection: sa.Connection, user_id: UUID) -> User | None:
    """See Store.get_user."""
    row = connection.execute(users.select().where(users.c.id == user_id)).first()
    return None if row is None else user_from_row(row)


def find_user(connection: sa.Connection, username: str) -> User | None:
    """See Store.find_user."""
    row = connection.execute(
        users.select().where(users.c.username_key == username.lower())
    ).first()
    return None if row is None else user_from_row(row)


def list_users(connection: sa.Connection) -> list[User]:
    """See Store.list_users."""
    rows = connection.execute(users.select().order_by(users.c.username_key))
    return [user_from_row(row) for row in rows]


def delete_user(connection: sa.Connection, user_id: UUID) -> None:
    """See Store.delete_user."""
    user = get_user(connection, user_id)
    if user is None:
        raise NotFoundError(f"there is no user {user_id}")
    owned = connection.execute(
        sa.select(workspaces.c.name)
        .where(workspaces.c.owner_id == user_id)
        .order_by(workspaces.c.name_key)
    ).scalars()
    if (first := owned.first()) is not None:
        raise InUseError(
            f"{user.username!r} owns workspaces, such as {first!r}: delete those first"
        )
    connection.execute(users.delete().where(users.c.id == user_id))


def create_api_key(
    connection: sa.Connection,
    user_id: UUID,
    *,
    token: str | None,
    name: str,
    expires_at: datetime | None,
    now: datetime,
) -> NewApiKey:
    """See Store.create_api_key."""
    if token is None:
        token = generate_api_token()
    key_id, secret = parse_api_token(token)
    if len(name) > MAX_KEY_NAME_LEN:
        raise InvalidRecordError(
            f"the name of an API key has at most {MAX_KEY_NAME_LEN} characters"
        )
    user = get_user(connection, user_id)
    if user is None:
        raise NotFoundError(f"there is no user {user_id}")
    taken = sa.select(api_keys.c.id).where(api_keys.c.id == key_id)
    if connection.execute(taken).first() is not None:
        raise AlreadyExistsError(f"there is an API key {key_id} already")
    connection.execute(
        api_keys.insert().values(
            id=key_id,
            user_id=user_id,
            name=name,
            secret_hash=secret_hash(secret),
            created_at=now,
            expires_at=expires_at,
        )
    )
    key = ApiKey(key_id, user_id, user.username, name, now, expires_at)
    return NewApiKey(key, token)


def list_api_keys(connection: sa.Connection, user_id: UUID | None) -> list[ApiKey]:
    """See Store.list_api_keys."""
    query = (
        sa.select(api_keys, users.c.username)
        .join_from(api_keys, users)
        .order_by(api_keys.c.created_at, api_keys.c.id)
    )
    if user_id is not None:
        query = query.where(api_keys.c.user_id == user_id)
    return [
        ApiKey(
            id=row.id,
            user_id=row.user_id,
            username=row.username,
            name=row.name,
            created_at=row.created_at,
            expires_at=row.expires_at,
        )
        for row in connection.execute(query)
    ]


def delete_api_key(connection: sa.Connection, key_id: str) -> None:
    """See Store.delete_api_key."""
    gone = connection.execute(api_keys.delete().where(api_keys.c.id == key_id))
    if not gone.rowcount:
        raise NotFoundError(f"there is no API key {key_id!r}")


def authenticate_api_key(
    connection: sa.Connection, token: str, *, now: datetime
) -> User | None:
    """See Store.authenticate_api_key."""
    parts = split_api_token(token)
    if parts is None:
        return None
    key_id, secret = parts
    row = connection.execute(
        sa.select(users, api_keys.c.secret_hash, api_keys.c.expires_at)
        .join_from(api_keys, users)
        .where(api_keys.c.id == key_id)
    ).first()
    kept = None if row is None else row.secret_hash
    is_right = is_same_hash(kept, secret_hash(secret))
    if row is None or not is_right:
        return None
    if row.expires_at is not None and row.expires_at <= now:
        return None
    return user_from_row(row)
