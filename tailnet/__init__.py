"""A DERP relay, and the library it is made of.

How the library is layered, lowest first:

- ``errors`` and ``keys`` know nothing of any protocol; ``proxy``,
  ``tls_stream`` and ``transport`` lead to a host, whatever is spoken there.
- One folder per protocol (``derp``, ``stun``): bytes in and bytes out, no
- ``errors`` and ``keys`` know nothing of any protocol.
- One folder per protocol (``derp``, ``stun``, ``control``): bytes in and bytes out, no
  sockets, no clocks, no tasks. Both ends of each protocol live there.
- ``derp/client.py`` puts the DERP protocol on trio sockets; ``control/server.py``
  and ``control/client.py`` put the control protocol on a websocket.
- The relay program is the package ``relay`` beside this one; the library
  never imports it.

What is public is re-exported here, in ``__all__``.
"""

from __future__ import annotations

from tailnet.derp.client import DerpClient, open_derp_client
from tailnet.derp.derpmap import (
    DERPHomeParams,
    DERPMap,
    DERPNode,
    DERPRegion,
    decode_derp_map,
    encode_derp_map,
)
from tailnet.derp.events import (
    ClientDropReason,
    ClientLimits,
    ClientStatistics,
    Connected,
    ConnectFailed,
    DerpEvent,
    Disconnected,
)
from tailnet.derp.frames import (
    Health,
    PeerGone,
    PeerGoneReason,
    PeerPresent,
    PeerPresentFlags,
    RecvPacket,
    Restarting,
)
from tailnet.derp.handshake import ClientInfo, ServerInfo
from tailnet.errors import (
    AlreadyExistsError,
    ApiError,
    AuthorizationError,
    ConfigError,
    ConnectError,
    DERPMapError,
    InUseError,
    InvalidRecordError,
    KeyFormatError,
    LocalProtocolError,
    NotConnectedError,
    NotFoundError,
    ProtocolError,
    RemoteProtocolError,
    ResumeTokenError,
    RpcError,
    StoreError,
    StoreUnavailableError,
    TailnetError,
    UnknownAttributesError,
    VersionError,
)
from tailnet.headers import HeaderSource, HttpHeaders
from tailnet.keys import (
    DiscoPrivate,
    DiscoPublic,
    MeshKey,
    NodePrivate,
    NodePublic,
)
from tailnet.proxy import Proxy, ProxyRules

__all__ = (
    "AlreadyExistsError",
    "ApiError",
    "AuthorizationError",
    "ClientDropReason",
    "ClientInfo",
    "ClientLimits",
    "ClientStatistics",
    "ConfigError",
    "ConnectError",
    "ConnectFailed",
    "Connected",
    "DERPHomeParams",
    "DERPMap",
    "DERPMapError",
    "DERPNode",
    "DERPRegion",
    "DerpClient",
    "DerpEvent",
    "DiscoPrivate",
    "DiscoPublic",
    "Disconnected",
    "HeaderSource",
    "Health",
    "HttpHeaders",
    "InUseError",
    "InvalidRecordError",
    "KeyFormatError",
    "LocalProtocolError",
    "MeshKey",
    "NodePrivate",
    "NodePublic",
    "NotConnectedError",
    "NotFoundError",
    "PeerGone",
    "PeerGoneReason",
    "PeerPresent",
    "PeerPresentFlags",
    "ProtocolError",
    "Proxy",
    "ProxyRules",
    "RecvPacket",
    "RemoteProtocolError",
    "Restarting",
    "ResumeTokenError",
    "RpcError",
    "ServerInfo",
    "StoreError",
    "StoreUnavailableError",
    "TailnetError",
    "UnknownAttributesError",
    "VersionError",
    "decode_derp_map",
    "encode_derp_map",
    "open_derp_client",
)
