"""The keys that resume tokens are signed with, kept and replaced in time.

A key signs for :data:`SIGNING_TIME`; what it signed is believed for as long
as such a token lives. Coder has the same clock (``coderd/cryptokeys``), and
keeps the keys over restarts for the same reason: without them every client
that reconnects gets a new peer id, and its tunnels start anew.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import structlog

from relay.store.model import SigningKey
from relay.store.store import Store

__all__ = ("RESUME_TOKEN", "SECRET_LEN", "SIGNING_TIME", "load_signing_keys")

log = structlog.get_logger("relay")

# coder codersdk: the feature's name.
RESUME_TOKEN: Final = "tailnet_resume"  # noqa: S105

# Bytes; HS512 wants as many as its hash has.
SECRET_LEN: Final = 64

# coder coderd/cryptokeys/rotate.go DefaultKeyDuration.
SIGNING_TIME: Final = timedelta(days=30)


async def load_signing_keys(
    store: Store,
    purpose: str,
    now: datetime,
    *,
    token_lifetime: timedelta,
    make_secret: Callable[[int], bytes] = secrets.token_bytes,
) -> list[SigningKey]:
    """The keys to use from now on; makes and forgets as it is time.

    Args:
        store: Keeps them.
        purpose: What they are for.
        now: The time, with a time zone.
        token_lifetime: How long a key is believed after it has stopped signing.
        make_secret: Random bytes of a length.

    Returns:
        Newest first: the first one signs, all are believed.

    Raises:
        StoreUnavailableError: The store does not answer.
    """
    keys = await store.list_signing_keys(purpose)
    if not keys or now - keys[0].created_at >= SIGNING_TIME:
        new = SigningKey(
            id=make_secret(8).hex(),
            purpose=purpose,
            secret=make_secret(SECRET_LEN),
            created_at=now,
        )
        await store.add_signing_key(new)
        log.info("a new signing key", purpose=purpose, kid=new.id)
        keys.insert(0, new)
    kept: list[SigningKey] = []
    for key in keys:
        if now - key.created_at >= SIGNING_TIME + token_lifetime and kept:
            await store.delete_signing_key(key.id)
        else:
            kept.append(key)
    return kept
