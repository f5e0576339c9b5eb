"""Keys of the tailnet protocols: typed, redacted, compared in constant time.

Every key is 32 bytes. Their text forms are Tailscale's (Go package
``types/key``): a prefix that says the kind, then 64 hex digits. Writers emit
lower case, parsers take both cases; prefix and length are strict.

============================  ==============  =================================
class                         text            what it is
============================  ==============  =================================
:class:`NodePublic`           ``nodekey:``    WireGuard and DERP identity
:class:`NodePrivate`          ``privkey:``    its secret half
:class:`DiscoPublic`          ``discokey:``   identity of one run of a node
:class:`DiscoPrivate`         (none)          its secret half, never written
:class:`MeshKey`              bare hex        shared by the relays of a region
============================  ==============  =================================
"""

from __future__ import annotations

import base64
import hmac
from typing import ClassVar, Final, Self

from nacl import bindings
from nacl.exceptions import RuntimeError as NaClRuntimeError

from tailnet.errors import KeyFormatError, RemoteProtocolError

__all__ = (
    "KEY_LEN",
    "NONCE_LEN",
    "DiscoPrivate",
    "DiscoPublic",
    "MeshKey",
    "NodePrivate",
    "NodePublic",
)

KEY_LEN: Final = 32
NONCE_LEN: Final = 24  # of a NaCl box


class _Key:
    """32 bytes with a kind. Immutable; hashable unless it is secret."""

    __slots__ = ("_raw",)

    KIND: ClassVar[str]
    PREFIX: ClassVar[str]

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_LEN:
            raise KeyFormatError(
                f"a {self.KIND} has {KEY_LEN} bytes, this one has {len(raw)}"
            )
        self._raw = bytes(raw)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse the text form.

        Args:
            text: The prefix of this kind and 64 hex digits of either case.

        Raises:
            KeyFormatError: Wrong prefix, wrong length, or not hex.
        """
        if not text.startswith(cls.PREFIX):
            raise KeyFormatError(f"a {cls.KIND} starts with {cls.PREFIX!r}")
        return cls.from_hex(text[len(cls.PREFIX) :])

    @classmethod
    def from_hex(cls, digits: str) -> Self:
        """Parse 64 hex digits without a prefix (Go's "untyped" form).

        Raises:
            KeyFormatError: Wrong length, or not hex.
        """
        # bytes.fromhex skips white space, Go does not: look at the length
        # of the text too.
        if len(digits) == 2 * KEY_LEN and digits.isascii() and digits.isalnum():
            try:
                return cls(bytes.fromhex(digits))
            except ValueError:
                pass
        raise KeyFormatError(f"a {cls.KIND} has {2 * KEY_LEN} hex digits")

    def __bytes__(self) -> bytes:
        return self._raw

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return hmac.compare_digest(self._raw, other._raw)

    def __hash__(self) -> int:
        return hash((type(self), self._raw))

    def is_zero(self) -> bool:
        """Whether all bytes are zero, which stands for "no key" in Go."""
        return hmac.compare_digest(self._raw, bytes(KEY_LEN))


class _Public(_Key):
    """A key that may be shown."""

    __slots__ = ()

    def __str__(self) -> str:
        return self.PREFIX + self._raw.hex()

    def __repr__(self) -> str:
        return f"{type(self).__name__}.from_text({str(self)!r})"

    @property
    def hex(self) -> str:
        """64 lower-case hex digits, without prefix."""
        return self._raw.hex()


class _Secret(_Key):
    """A key that shows itself only when asked by name."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    __str__ = __repr__

    # A secret is no dictionary key: hashes of secrets end up in odd places.
    __hash__ = None  # type: ignore[assignment]

    def to_text(self) -> str:
        """The text form with the secret in it, for a file of mode 0600."""
        return self.PREFIX + self._raw.hex()


class NodePublic(_Public):
    """A node's public key: who it is to WireGuard and to a relay."""

    __slots__ = ()
    KIND = "node public key"
    PREFIX = "nodekey:"

    @property
    def short(self) -> str:
        """The short form of logs: ``[`` + 5 base64 characters + ``]``."""
        return f"[{base64.b64encode(self._raw)[:5].decode()}]"


class DiscoPublic(_Public):
    """A node's disco public key, new with each run of the node."""

    __slots__ = ()
    KIND = "disco public key"
    PREFIX = "discokey:"

    @property
    def short(self) -> str:
        """The short form of logs: ``d:`` + 16 hex digits."""
        return f"d:{self._raw[:8].hex()}"


class _BoxPrivate(_Secret):
    """A Curve25519 secret that seals and opens NaCl boxes.

    Wire form of a box everywhere (Go ``key.NodePrivate.SealTo``): 24 random
    bytes of nonce, 16 bytes of tag, the ciphertext.
    """

    __slots__ = ()

    @classmethod
    def generate(cls) -> Self:
        """A new random key, clamped as Go clamps node keys."""
        raw = bytearray(bindings.randombytes(KEY_LEN))
        raw[0] &= 248
        raw[31] = (raw[31] & 127) | 64
        return cls(bytes(raw))

    def _public_bytes(self) -> bytes:
        return bindings.crypto_scalarmult_base(self._raw)

    def _seal(self, peer: bytes, cleartext: bytes, nonce: bytes | None) -> bytes:
        if nonce is None:
            nonce = bindings.randombytes(NONCE_LEN)
        try:
            return nonce + bindings.crypto_box(cleartext, nonce, peer, self._raw)
        except NaClRuntimeError as exc:
            # Points of low order, zero among them. Anyone can send us one as
            # its key, so that is the peer's fault.
            raise RemoteProtocolError("no box can be sealed for this key") from exc

    def _open(self, peer: bytes, sealed: bytes) -> bytes:
        nonce, box = sealed[:NONCE_LEN], sealed[NONCE_LEN:]
        try:
            return bindings.crypto_box_open(box, nonce, peer, self._raw)
        except Exception as exc:
            # PyNaCl raises CryptoError, ValueError and its own TypeError for
            # short input and low-order points; they are one thing to us.
            raise RemoteProtocolError("a box does not open with this key") from exc


class NodePrivate(_BoxPrivate):
    """A node's secret key; a relay has one too."""

    __slots__ = ()
    KIND = "node private key"
    PREFIX = "privkey:"

    def public(self) -> NodePublic:
        return NodePublic(self._public_bytes())

    def seal_to(
        self, peer: NodePublic, cleartext: bytes, *, nonce: bytes | None = None
    ) -> bytes:
        """Seal ``cleartext`` in a box that only ``peer`` can open.

        Args:
            peer: Who may open it.
            cleartext: Any bytes.
            nonce: 24 bytes, for test vectors; random if None.

        Returns:
            Nonce and box, 40 bytes longer than ``cleartext``.

        Raises:
            RemoteProtocolError: ``peer`` is no key that anyone can have.
        """
        return self._seal(bytes(peer), cleartext, nonce)

    def open_from(self, peer: NodePublic, sealed: bytes) -> bytes:
        """Open a box that ``peer`` sealed for this key.

        Raises:
            RemoteProtocolError: Too short, forged, or meant for another key.
        """
        return self._open(bytes(peer), sealed)


class DiscoPrivate(_BoxPrivate):
    """A node's disco secret key. It is never written anywhere."""

    __slots__ = ()
    KIND = "disco private key"
    PREFIX = "privkey:"

    def public(self) -> DiscoPublic:
        return DiscoPublic(self._public_bytes())

    def seal_to(
        self, peer: DiscoPublic, cleartext: bytes, *, nonce: bytes | None = None
    ) -> bytes:
        """Seal ``cleartext`` for ``peer``; see :meth:`NodePrivate.seal_to`."""
        return self._seal(bytes(peer), cleartext, nonce)

    def open_from(self, peer: DiscoPublic, sealed: bytes) -> bytes:
        """Open a box from ``peer``; see :meth:`NodePrivate.open_from`."""
        return self._open(bytes(peer), sealed)


class MeshKey(_Secret):
    """The secret that the relays of one region share (Go ``key.DERPMesh``).

    Text is 64 bare hex digits; surrounding white space is cut off, since the
    key usually comes from a file.
    """

    __slots__ = ()
    KIND = "DERP mesh key"
    PREFIX = ""

    @classmethod
    def from_text(cls, text: str) -> Self:
        return cls.from_hex(text.strip())
