"""HTTP heads of the DERP upgrade, for both ends, and the fast-start hint.

Wire format: tailscale ``derphttp/derphttp_client.go`` and
``derpserver/handler.go``. A client asks for ``/derp`` with ``Upgrade: DERP``,
the relay answers 101, and from there on the connection carries DERP frames::

    C -> S  GET /derp, Upgrade: DERP
    S -> C  101 Switching Protocols
    S -> C  ServerKey

With fast start the client already knows the relay's key, from a "meta
certificate" in the relay's TLS chain. It then sends ClientInfo behind its
request, and the relay leaves the 101 out and begins with ServerKey.

Conventions of this module:

- Header names and values are bytes, as h11 has them.
- ``decode_*`` and :class:`ResponseReader` raise RemoteProtocolError for what
  the peer sent, ``encode_*`` raise LocalProtocolError for what we were given.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import h11

from tailnet.derp.frames import PROTOCOL_VERSION
from tailnet.errors import KeyFormatError, LocalProtocolError, RemoteProtocolError
from tailnet.keys import NodePublic

__all__ = (
    "DERP_PATH",
    "FAST_START_HEADER",
    "IDEAL_NODE_HEADER",
    "MAX_HEAD_LEN",
    "PUBLIC_KEY_HEADER",
    "UPGRADE_REQUIRED",
    "VERSION_HEADER",
    "Headers",
    "ResponseHead",
    "ResponseReader",
    "UpgradeKind",
    "UpgradeRequest",
    "decode_upgrade_request",
    "encode_request_head",
    "encode_upgrade_request",
    "encode_upgrade_response",
    "first_header",
    "meta_cert_common_name",
    "server_key_from_common_name",
)

Headers: TypeAlias = Iterable[tuple[bytes, bytes]]

# derphttp_client.go urlString: the path is fixed (tailscale#14170).
DERP_PATH: Final = "/derp"

# derp.go IdealNodeHeader and FastStartHeader; handler.go for the other two.
IDEAL_NODE_HEADER: Final = b"Ideal-Node"
FAST_START_HEADER: Final = b"Derp-Fast-Start"
VERSION_HEADER: Final = b"Derp-Version"
PUBLIC_KEY_HEADER: Final = b"Derp-Public-Key"

# handler.go: the text that goes with status 426.
UPGRADE_REQUIRED: Final = "DERP requires connection upgrade"

# Ours. Go takes 1 MiB from a client and 10 MiB from a relay; a DERP head has
# some hundred bytes, and cookies of a proxy rarely more than a few thousand.
MAX_HEAD_LEN: Final = 16 << 10

# derpconst.go MetaCertCommonNamePrefix.
META_CERT_PREFIX: Final = "derpkey"


class UpgradeKind(enum.Enum):
    """What the connection is to become (handler.go, websocket.go)."""

    NONE = "none"  # to be answered with 426
    DERP = "derp"
    RAW_DERP = "raw derp"  # asks for a websocket, but means bare DERP frames
    WEBSOCKET = "websocket"


@dataclass(frozen=True, slots=True)
class UpgradeRequest:
    """What the headers of a request for ``/derp`` ask for.

    Attributes:
        kind: What the connection is to become.
        fast_start: The client does not want to see the 101.
        ideal_node: The node on which the client would rather be, or empty.
            Any text makes the connection count as not ideal.
    """

    kind: UpgradeKind
    fast_start: bool = False
    ideal_node: str = ""


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """The answer to an upgrade request.

    Attributes:
        status: 101, or a final status (never another 1xx).
        reason: The words behind it; may be empty.
        headers: Names in lower case.
        rest: Bytes that came behind the head: of the new protocol after a
            101, else the raw beginning of a body.
    """

    status: int
    reason: str
    headers: tuple[tuple[bytes, bytes], ...]
    rest: bytes


def first_header(headers: Headers, name: bytes) -> bytes:
    """The first value of a header whatever its case, like Go's Header.Get.

    Returns:
        The value, or ``b""`` if there is none.
    """
    wanted = name.lower()
    for key, value in headers:
        if key.lower() == wanted:
            return bytes(value)
    return b""


# -- the relay's end --------------------------------------------------------


def decode_upgrade_request(headers: Headers) -> UpgradeRequest:
    """Read the headers of a request for ``/derp`` as derper does.

    Neither the method nor ``Connection`` matter: tailscale-rs sends a POST,
    and proxies drop ``Connection``. Nor can this fail; a request that asks
    for nothing we know is of kind NONE.

    Args:
        headers: Of the request, in their order.
    """
    fields = list(headers)
    ideal_node = first_header(fields, IDEAL_NODE_HEADER).decode("latin-1")
    return UpgradeRequest(
        kind=_upgrade_kind(fields),
        fast_start=first_header(fields, FAST_START_HEADER) == b"1",
        ideal_node=ideal_node,
    )


def _upgrade_kind(headers: Sequence[tuple[bytes, bytes]]) -> UpgradeKind:
    match first_header(headers, b"Upgrade").lower():
        case b"derp":
            return UpgradeKind.DERP
        case b"websocket":
            # websocket.go: early Tailscale, and libtelio to this day, name
            # the websocket but speak DERP. Those that mean it offer the
            # subprotocol. A substring counts: "xderp" is refused later, by
            # the websocket's own rules.
            offered = first_header(headers, b"Sec-WebSocket-Protocol")
            return UpgradeKind.WEBSOCKET if b"derp" in offered else UpgradeKind.RAW_DERP
        case _:
            return UpgradeKind.NONE


def encode_upgrade_response(server_key: NodePublic) -> bytes:
    """The 101 that comes before DERP frames, byte for byte derper's.

    Args:
        server_key: The relay's public key; clients ignore it here.
    """
    return (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: DERP\r\n"
        b"Connection: Upgrade\r\n"
        b"%b: %d\r\n"
        b"%b: %b\r\n"
        b"\r\n"
    ) % (
        VERSION_HEADER,
        PROTOCOL_VERSION,
        PUBLIC_KEY_HEADER,
        server_key.hex.encode(),
    )


# -- the client's end -------------------------------------------------------


def encode_upgrade_request(
    host: str,
    *,
    ideal_node: str | None = None,
    fast_start: bool = False,
    headers: Iterable[tuple[str, str]] = (),
) -> bytes:
    """The request that asks a relay to speak DERP.

    Args:
        host: Value of ``Host``: the name of the node, with its port if that
            is not the scheme's own.
        ideal_node: Name of the region's first node, when connecting to
            another one of the region.
        fast_start: Tell the relay to leave the 101 out. Only after its key
            was seen in a meta certificate.
        headers: More headers, for proxies on the way.

    Raises:
        LocalProtocolError: Something has characters that HTTP forbids.
    """
    fields = [("Connection", "Upgrade"), ("Upgrade", "DERP")]
    if ideal_node:
        fields.append((IDEAL_NODE_HEADER.decode(), ideal_node))
    if fast_start:
        fields.append((FAST_START_HEADER.decode(), "1"))
    return encode_request_head(host, (*fields, *headers))


def encode_request_head(
    host: str, headers: Iterable[tuple[str, str]], *, target: str = DERP_PATH
) -> bytes:
    """A GET with the given headers behind ``Host`` and ours.

    Args:
        host: Value of ``Host``.
        headers: All others.
        target: Path and query.

    Raises:
        LocalProtocolError: Something has characters that HTTP forbids.
    """
    fields = [("Host", host), ("User-Agent", "tailnet"), *headers]
    try:
        request = h11.Request(method="GET", target=target, headers=fields)
        return h11.Connection(h11.CLIENT).send(request)
    except (h11.LocalProtocolError, UnicodeEncodeError) as exc:
        raise LocalProtocolError(f"not fit for an HTTP head: {exc}") from exc


class ResponseReader:
    """Finds the head of the answer to an upgrade request.

    Feed it with ``receive_data`` until it returns a head.
    """

    __slots__ = ("_connection", "_received")

    def __init__(self) -> None:
        self._connection = h11.Connection(
            h11.CLIENT, max_incomplete_event_size=MAX_HEAD_LEN
        )
        # h11 judges an answer by the request. Only these things matter to
        # it: the method, and that an upgrade was proposed.
        self._connection.send(
            h11.Request(
                method="GET",
                target=DERP_PATH,
                headers=[("Host", "-"), ("Connection", "Upgrade"), ("Upgrade", "DERP")],
            )
        )
        self._connection.send(h11.EndOfMessage())
        self._received = 0

    def receive_data(self, data: bytes) -> ResponseHead | None:
        """Add bytes from the network.

        Args:
            data: What was read; ``b""`` means that the peer closed.

        Returns:
            The head when it is complete, else None. Interim answers (100,
            103) are skipped.

        Raises:
            RemoteProtocolError: Not HTTP, longer than MAX_HEAD_LEN with all
                interim answers, or closed too early.
        """
        if not data:
            raise RemoteProtocolError("the relay closed without an answer")
        self._received += len(data)
        try:
            self._connection.receive_data(data)
            while True:
                event = self._connection.next_event()
                rest, _ = self._connection.trailing_data
                if self._received - len(rest) > MAX_HEAD_LEN:
                    raise _head_too_long()
                if not isinstance(event, h11.InformationalResponse):
                    break
                if event.status_code == 101:
                    return _response_head(event, rest)
        except h11.RemoteProtocolError as exc:
            if exc.error_status_hint == 431:
                raise _head_too_long() from None
            raise RemoteProtocolError(f"the answer is not HTTP: {exc}") from exc
        if event is h11.NEED_DATA:
            if len(rest) > MAX_HEAD_LEN:
                raise _head_too_long()
            return None
        if isinstance(event, h11.Response):
            return _response_head(event, rest)
        raise AssertionError(event)  # nothing else can begin an answer


def _head_too_long() -> RemoteProtocolError:
    return RemoteProtocolError(f"the answer's head has more than {MAX_HEAD_LEN} bytes")


def _response_head(
    event: h11.InformationalResponse | h11.Response, rest: bytes
) -> ResponseHead:
    return ResponseHead(
        status=event.status_code,
        reason=bytes(event.reason).decode("latin-1"),
        headers=tuple((bytes(name), bytes(value)) for name, value in event.headers),
        rest=bytes(rest),
    )


# -- fast start -------------------------------------------------------------


def meta_cert_common_name(server_key: NodePublic) -> str:
    """Common name of the meta certificate (derpserver.go initMetacert).

    The certificate is self-signed and its serial number is the protocol
    version. It is no proof of anything, only a hint: who lies here gets a
    ClientInfo that it cannot open.
    """
    return META_CERT_PREFIX + server_key.hex


def server_key_from_common_name(common_name: str, serial: int) -> NodePublic | None:
    """The relay's key, if a certificate is a meta certificate.

    derphttp_client.go parseMetaCert: the version has to fit in 8 bits, and a
    version or key of zero means no fast start.

    Args:
        common_name: Of the certificate's subject.
        serial: Of the certificate.

    Returns:
        The key, or None for any other certificate.
    """
    if not common_name.startswith(META_CERT_PREFIX) or not 0 < serial < 1 << 8:
        return None
    try:
        key = NodePublic.from_hex(common_name[len(META_CERT_PREFIX) :])
    except KeyFormatError:
        return None
    return None if key.is_zero() else key
