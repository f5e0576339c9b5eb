"""The token by which a peer keeps its id at the coordinator; no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from google.protobuf.message import DecodeError

from tailnet.control.proto import tailnet_pb2
from tailnet.errors import RemoteProtocolError

__all__ = ("REFRESH_INTERVAL", "ResumeToken", "decode_resume_token")

# controllers.go refreshResumeToken, if the server names no time. Seconds.
REFRESH_INTERVAL: Final = 30 * 60.0


@dataclass(frozen=True, slots=True)
class ResumeToken:
    """Lets a peer keep its id over a reconnect.

    Attributes:
        token: Opaque.
        expires_at: With a zone.
        refresh_in: Seconds after which to ask for another one.
    """

    token: str
    expires_at: datetime
    refresh_in: float = REFRESH_INTERVAL


def decode_resume_token(data: bytes) -> ResumeToken:
    """Read a RefreshResumeTokenResponse.

    Raises:
        RemoteProtocolError: It is none, or speaks of times that are none.
    """
    answer = tailnet_pb2.RefreshResumeTokenResponse()
    try:
        answer.ParseFromString(data)
        expires_at = answer.expires_at.ToDatetime(UTC)
        refresh_in = answer.refresh_in.ToTimedelta().total_seconds()
    except (DecodeError, ValueError, OverflowError) as exc:
        raise RemoteProtocolError("the server sent a broken resume token") from exc
    return ResumeToken(
        token=answer.token,
        expires_at=expires_at,
        refresh_in=refresh_in if refresh_in > 0 else REFRESH_INTERVAL,
    )
