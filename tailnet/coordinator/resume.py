"""Resume tokens: a peer that returns proves that its id was given by us.

Coder ``tailnet/resume.go``: a compact JWS with HS512, the key's id in its
header, the peer's UUID as ``sub``. Keys rotate: the first signs, all verify.

Ours is that a token is of use to one user alone: with another's, a client would
inherit the tunnels that the peer has open, and cut it off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

import jwt

from tailnet.errors import LocalProtocolError, ResumeTokenError

__all__ = (
    "MIN_SECRET_LEN",
    "REFRESH_IN",
    "TOKEN_LIFETIME",
    "IssuedToken",
    "ResumeKey",
    "ResumeTokens",
)

# A client asks for a new one when half of the time is over.
TOKEN_LIFETIME: Final = timedelta(hours=24)
REFRESH_IN: Final = TOKEN_LIFETIME / 2

# RFC 7518 3.2: at least as long as the hash.
MIN_SECRET_LEN: Final = 64

_ALGORITHM: Final = "HS512"

# Ours: the claim that names the user.
_USER: Final = "user"


@dataclass(frozen=True, slots=True)
class ResumeKey:
    """A key that signs tokens.

    Attributes:
        kid: Its name, which is in the token.
        secret: At least MIN_SECRET_LEN bytes.
    """

    kid: str
    secret: bytes = field(repr=False)


class IssuedToken(NamedTuple):
    """A token, and its times.

    Attributes:
        token: The text.
        refresh_in: After this a new one should be asked for.
        expires_at: In UTC, a whole second.
    """

    token: str
    refresh_in: timedelta
    expires_at: datetime


class ResumeTokens:
    """Issues and verifies tokens."""

    def __init__(
        self, now: Callable[[], float], keys: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        """Make one.

        Args:
            now: Tells the seconds since 1970.
            keys: See :meth:`use`; without them nothing can be issued, and
                nothing is valid.
        """
        self._now = now
        self._signing: ResumeKey | None = None
        self._keys: dict[str, ResumeKey] = {}
        if keys:
            self.use(keys)

    def use(self, keys: Sequence[tuple[str, bytes]]) -> None:
        """Use these keys from now on, and no others.

        Args:
            keys: Id and secret of each. The first one signs. To rotate, put a
                new one in front and keep the old one for TOKEN_LIFETIME.

        Raises:
            LocalProtocolError: There is none, a secret is too short, or two
                have one id.
        """
        checked = [ResumeKey(kid, secret) for kid, secret in keys]
        by_kid = {key.kid: key for key in checked}
        if not checked or len(by_kid) < len(checked):
            raise LocalProtocolError("resume tokens need keys, each with its own id")
        for key in checked:
            if not key.kid or len(key.secret) < MIN_SECRET_LEN:
                raise LocalProtocolError(
                    f"key {key.kid!r} of resume tokens has {len(key.secret)} bytes, "
                    f"it needs {MIN_SECRET_LEN}, and an id"
                )
        self._signing = checked[0]
        self._keys = by_kid

    def issue(self, peer_id: UUID, user_id: UUID | None = None) -> IssuedToken:
        """Make a token for a peer.

        Args:
            peer_id: Whose.
            user_id: Whose client it is; nobody else can use the token.

        Raises:
            LocalProtocolError: There is no key.
        """
        key = self._signing
        if key is None:
            raise LocalProtocolError("no key to sign resume tokens with")
        expires_at = datetime.fromtimestamp(int(self._now()), UTC) + TOKEN_LIFETIME
        claims = {"sub": str(peer_id), "exp": int(expires_at.timestamp())}
        if user_id is not None:
            claims[_USER] = str(user_id)
        token = jwt.encode(
            claims,
            key.secret,
            algorithm=_ALGORITHM,
            # Like Go's: no typ.
            headers={"kid": key.kid, "typ": None},
        )
        return IssuedToken(token, REFRESH_IN, expires_at)

    def verify(self, token: str, user_id: UUID | None = None) -> UUID | None:
        """The peer that a token was issued for.

        Args:
            token: The text.
            user_id: Whose client brings it.

        Returns:
            Its id; None if the token names no key. Coder issued such ones
            once, and ignores them: the peer gets a new id.

        Raises:
            ResumeTokenError: Forged, expired, garbage, or another user's.
        """
        try:
            kid = jwt.get_unverified_header(token).get("kid")
        except jwt.PyJWTError as exc:
            raise ResumeTokenError(f"not a token: {exc}") from exc
        if kid is None:
            return None
        key = self._keys.get(kid)
        if key is None:
            raise ResumeTokenError("signed with an unknown key")
        try:
            claims = jwt.decode(
                token,
                key.secret,
                algorithms=[_ALGORITHM],
                # Its own check would look at a clock of its own.
                options={"verify_exp": False, "require": ["exp", "sub"]},
            )
        except jwt.PyJWTError as exc:
            raise ResumeTokenError(f"not valid: {exc}") from exc
        # It may hold any JSON, though it was signed by us.
        expires_at = claims["exp"]
        if not isinstance(expires_at, int | float) or expires_at <= self._now():
            raise ResumeTokenError("expired")
        if claims.get(_USER) != (None if user_id is None else str(user_id)):
            raise ResumeTokenError("issued for another user")
        try:
            return UUID(claims["sub"])
        except ValueError as exc:
            raise ResumeTokenError("its subject is no UUID") from exc
