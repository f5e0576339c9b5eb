"""Tokens: their shapes, how they are made, and what is kept of them.

- An API key is Coder's: 10 characters that name it, a hyphen, 22 secret ones
  (``coderd/httpmw/apikey.go``, ``SplitAPIToken``).
- An agent token is a UUID as text.

Both have more than 120 random bits, so a plain SHA-256 keeps them: there is
nothing to guess, and no salt or stretching would add to that.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
from typing import Final
from uuid import UUID

from tailnet.errors import InvalidRecordError

__all__ = (
    "agent_token_hash",
    "generate_api_token",
    "is_same_hash",
    "parse_agent_token",
    "parse_api_token",
    "secret_hash",
    "split_api_token",
)

KEY_ID_LEN: Final = 10
KEY_SECRET_LEN: Final = 22

_ALPHABET: Final = string.ascii_letters + string.digits
_API_TOKEN: Final = re.compile(
    rf"([a-zA-Z0-9]{{{KEY_ID_LEN}}})-([a-zA-Z0-9]{{{KEY_SECRET_LEN}}})"
)
# No other form that a UUID may be written in.
_AGENT_TOKEN: Final = re.compile(
    r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
)


def generate_api_token() -> str:
    """A new API key."""
    letters = [secrets.choice(_ALPHABET) for _ in range(KEY_ID_LEN + KEY_SECRET_LEN)]
    return "".join((*letters[:KEY_ID_LEN], "-", *letters[KEY_ID_LEN:]))


def split_api_token(token: str) -> tuple[str, str] | None:
    """Its id and its secret; None if it has not the shape of an API key."""
    found = _API_TOKEN.fullmatch(token)
    return None if found is None else (found[1], found[2])


def parse_api_token(token: str) -> tuple[str, str]:
    """The id and the secret of a token that an operator chose.

    Raises:
        InvalidRecordError: It has not the shape of an API key. The message does
            not show it.
    """
    parts = split_api_token(token)
    if parts is None:
        raise InvalidRecordError(
            f"an API key is {KEY_ID_LEN} letters and digits, a hyphen, and "
            f"{KEY_SECRET_LEN} more; leave the token out to have one made"
        )
    return parts


def parse_agent_token(token: str) -> UUID | None:
    """The agent token in a text; None if it has not the shape of one."""
    return UUID(token) if _AGENT_TOKEN.fullmatch(token) else None


def secret_hash(secret: str) -> bytes:
    """What the store keeps of the secret half of an API key: 32 bytes."""
    return hashlib.sha256(secret.encode()).digest()


def agent_token_hash(token: UUID) -> bytes:
    """What the store keeps of an agent token: 32 bytes."""
    return hashlib.sha256(str(token).encode()).digest()


def is_same_hash(kept: bytes | None, given: bytes) -> bool:
    """Compare in constant time; None, for "no such key", takes as long."""
    return hmac.compare_digest(kept or bytes(len(given)), given) and kept is not None
