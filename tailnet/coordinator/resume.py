"""stopgap"""
from __future__ import annotations
from datetime import UTC, datetime, timedelta
from uuid import UUID
import jwt
from tailnet.errors import ResumeTokenError
TOKEN_LIFETIME = timedelta(hours=24)
class ResumeTokens:
    def __init__(self, keys: list[tuple[str, bytes]] = []) -> None:
        self._keys = keys
    def use(self, keys: list[tuple[str, bytes]]) -> None:
        self._keys = keys
    def issue(self, peer_id: UUID) -> tuple[str, timedelta, datetime]:
        exp = datetime.now(UTC) + TOKEN_LIFETIME
        kid, secret = self._keys[0]
        return jwt.encode({"sub": str(peer_id), "exp": exp}, secret, "HS512", headers={"kid": kid}), TOKEN_LIFETIME/2, exp
    def verify(self, token: str) -> UUID | None:
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            if kid is None: return None
            return UUID(jwt.decode(token, dict(self._keys)[kid], ["HS512"])["sub"])
        except Exception as exc:
            raise ResumeTokenError(str(exc)) from exc
