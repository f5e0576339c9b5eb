"""Every exception this project raises on purpose.

* :exc:`TailnetError`
    * :exc:`ProtocolError`
        * :exc:`RemoteProtocolError` -- the peer broke the protocol
        * :exc:`LocalProtocolError` -- our caller asked for something illegal
    * :exc:`KeyFormatError` -- a text or file is not the key it should be
    * :exc:`DERPMapError` -- a DERP map names something that cannot be
    * :exc:`ConnectError` -- a relay could not be reached, or refused us
    * :exc:`NotConnectedError` -- there is no connection to use right now
    * :exc:`ConfigError` -- a setting is wrong; one line for the operator
"""

from __future__ import annotations

__all__ = (
    "ConfigError",
    "ConnectError",
    "DERPMapError",
    "KeyFormatError",
    "LocalProtocolError",
    "NotConnectedError",
    "ProtocolError",
    "RemoteProtocolError",
    "TailnetError",
)


class TailnetError(Exception):
    """Base class of the exceptions defined by this project."""


class ProtocolError(TailnetError):
    """A protocol rule was broken. Only the two subclasses are raised."""


class RemoteProtocolError(ProtocolError):
    """The peer sent bytes that break the protocol; drop the connection."""


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


class NotConnectedError(TailnetError):
    """The operation needs a connection, and there is none at the moment."""


class ConfigError(TailnetError):
    """A setting is wrong. The message is one line and says what to do."""
