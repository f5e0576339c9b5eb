"""Every exception this project raises on purpose.

* :exc:`TailnetError`
    * :exc:`ProtocolError`
        * :exc:`RemoteProtocolError` -- the peer broke the protocol
            * :exc:`UnknownAttributesError` -- a STUN request asks too much
        * :exc:`LocalProtocolError` -- our caller asked for something illegal
    * :exc:`KeyFormatError` -- a text or file is not the key it should be
    * :exc:`DERPMapError` -- a DERP map names something that cannot be
    * :exc:`ConnectError` -- a relay could not be reached, or refused us
    * :exc:`ApiError` -- the server refused a request, and said why
    * :exc:`VersionError` -- a peer wants an API version that we do not speak
    * :exc:`AuthorizationError` -- a peer asks the coordinator for too much
    * :exc:`ResumeTokenError` -- a resume token is forged, expired or garbage
    * :exc:`NotConnectedError` -- there is no connection to use right now
    * :exc:`RpcError` -- the answer to a call is an error
    * :exc:`ConfigError` -- a setting is wrong; one line for the operator
    * :exc:`StoreError` -- the store did not do what it was asked to
        * :exc:`StoreUnavailableError` -- it cannot be read or written just now
        * :exc:`NotFoundError` -- there is no such user, workspace, agent or key
        * :exc:`AlreadyExistsError` -- the name, id or token is taken
        * :exc:`InUseError` -- it cannot go while something belongs to it
        * :exc:`InvalidRecordError` -- a name or value breaks a rule
"""

from __future__ import annotations

__all__ = (
    "AlreadyExistsError",
    "ApiError",
    "AuthorizationError",
    "ConfigError",
    "ConnectError",
    "DERPMapError",
    "InUseError",
    "InvalidRecordError",
    "KeyFormatError",
    "LocalProtocolError",
    "NotConnectedError",
    "NotFoundError",
    "ProtocolError",
    "RemoteProtocolError",
    "ResumeTokenError",
    "RpcError",
    "StoreError",
    "StoreUnavailableError",
    "TailnetError",
    "UnknownAttributesError",
    "VersionError",
)


class TailnetError(Exception):
    """Base class of the exceptions defined by this project."""


class ProtocolError(TailnetError):
    """A protocol rule was broken. Only the two subclasses are raised."""


class RemoteProtocolError(ProtocolError):
    """The peer sent bytes that break the protocol; drop the connection."""


class UnknownAttributesError(RemoteProtocolError):
    """A STUN request has attributes that its receiver must understand.

    RFC 8489 6.3.1 wants it answered with an error response that names them.

    Attributes:
        tx_id: The request's transaction id.
        types: Numbers of the attributes, each once.
    """

    def __init__(self, tx_id: bytes, types: tuple[int, ...]) -> None:
        names = ", ".join(f"{number:#06x}" for number in types)
        super().__init__(f"a STUN request needs the attributes {names}")
        self.tx_id = tx_id
        self.types = types


class LocalProtocolError(ProtocolError):
    """The caller tried to send something the protocol forbids; a bug here."""


class KeyFormatError(TailnetError, ValueError):
    """A text or file does not hold a key of the wanted kind.

    The message never quotes the text: it may be most of a private key.
    """


class DERPMapError(TailnetError, ValueError):
    """A DERP map is not usable; the message names the region and field."""


class ConnectError(TailnetError):
    """A relay could not be reached, or turned us away."""


class ApiError(TailnetError):
    """The server refused a request. The text is one line for people.

    Attributes:
        status: HTTP status.
        message: What is wrong.
        detail: More of it; may be empty.
        validations: Fields that are wrong, each with what is wrong with it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        detail: str = "",
        validations: tuple[tuple[str, str], ...] = (),
    ) -> None:
        parts = [message or "the server gave no reason", detail]
        parts += [f"{field}: {wrong}" for field, wrong in validations]
        text = "; ".join(" ".join(part.split()) for part in parts if part)
        super().__init__(f"{text} (status {status})")
        self.status = status
        self.message = message
        self.detail = detail
        self.validations = validations

    def rejects(self, field: str) -> bool:
        """Whether it was a certain field that was wrong."""
        return any(name == field for name, _ in self.validations)


class VersionError(TailnetError):
    """A peer wants an API version that we do not speak.

    The message is Coder's, for the peer to show.
    """


class AuthorizationError(TailnetError):
    """A peer asks the coordinator for what it may not have.

    The message is Coder's and goes to the peer, whose session ends.
    """


class ResumeTokenError(TailnetError):
    """A resume token is forged, expired or garbage. The message quotes none."""


class NotConnectedError(TailnetError):
    """The operation needs a connection, and there is none at the moment."""


class RpcError(TailnetError):
    """A call was answered with an error, or is to be.

    Attributes:
        text: For people, and for some peers to match.
        code: 0 for most; 12 is Unimplemented.
    """

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.text = text
        self.code = code


class ConfigError(TailnetError):
    """A setting is wrong. The message is one line and says what to do."""


class StoreError(TailnetError):
    """The store did not do what it was asked to; the message is one line."""


class StoreUnavailableError(StoreError):
    """The database cannot be reached, read or written; nothing was changed."""


class NotFoundError(StoreError):
    """There is no such user, workspace, agent or key."""


class AlreadyExistsError(StoreError):
    """The name, id or token is taken."""


class InUseError(StoreError):
    """It cannot be deleted while something belongs to it."""


class InvalidRecordError(StoreError, ValueError):
    """A name or value breaks a rule; the message says which."""
