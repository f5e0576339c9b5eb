"""STUN: which requests a relay answers, and how."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from functools import partial
from typing import Final

import trio

from tests.interop.probe.answers import Json
from tests.interop.probe.scenario import Scenario, run_cases
from tests.interop.probe.wire import Target

_COOKIE: Final = 0x2112A442
_TX: Final = bytes(range(1, 13))
_BINDING: Final = 0x0001
_SOFTWARE: Final = 0x8022
_FINGERPRINT: Final = 0x8028
_FINGERPRINT_XOR: Final = 0x5354554E
_XOR_MAPPED_ADDRESS: Final = 0x0020

TAILNODE: Final = (_SOFTWARE, b"tailnode")

_Attributes = Sequence[tuple[int, bytes]]

# No relay thinks about a datagram for so long.
_TIMEOUT: Final = 1.5


def request(
    attributes: _Attributes = (TAILNODE,),
    *,
    fingerprint: bool = True,
    crc_change: int = 0,
    kind: int = _BINDING,
    cookie: int = _COOKIE,
    length_change: int = 0,
) -> bytes:
    """A STUN message (RFC 8489 sections 5 and 14)."""
    body = b"".join(_attribute(number, value) for number, value in attributes)
    size = len(body) + (8 if fingerprint else 0) + length_change
    message = struct.pack("!HHI", kind, size & 0xFFFF, cookie) + _TX + body
    if fingerprint:
        crc = zlib.crc32(message) ^ _FINGERPRINT_XOR ^ crc_change
        message += _attribute(_FINGERPRINT, struct.pack("!I", crc))
    return message


def _attribute(number: int, value: bytes) -> bytes:
    padding = bytes(-len(value) % 4)
    return struct.pack("!HH", number, len(value)) + value + padding


async def ask(target: Target, datagram: bytes) -> Json:
    family = trio.socket.AF_INET6 if ":" in target.host else trio.socket.AF_INET
    with trio.socket.socket(family, trio.socket.SOCK_DGRAM) as sock:
        assert target.stun_port is not None
        await sock.connect((target.host, target.stun_port))
        await sock.send(datagram)
        with trio.move_on_after(_TIMEOUT):
            try:
                answer = await sock.recv(2000)
            except OSError as exc:
                return f"refused: {exc.strerror}"
            return _describe(answer, sock.getsockname())
        return "no answer"


def _describe(answer: bytes, own: Sequence[object]) -> Json:
    kind, size, cookie = struct.unpack_from("!HHI", answer)
    attributes: list[Json] = []
    position = 20
    while position + 4 <= len(answer):
        number, length = struct.unpack_from("!HH", answer, position)
        value = answer[position + 4 : position + 4 + length]
        is_address = number == _XOR_MAPPED_ADDRESS
        attributes.append(
            f"{number:#06x}: "
            + (_describe_address(value, own) if is_address else f"{length} bytes")
        )
        position += 4 + length + -length % 4
    return {
        "type": f"{kind:#06x}",
        "cookie": cookie == _COOKIE,
        "transaction id": answer[8:20] == _TX,
        "length fits": len(answer) == 20 + size,
        "attributes": attributes,
    }


def _describe_address(value: bytes, own: Sequence[object]) -> str:
    family, port = struct.unpack_from("!xBH", value)
    pad = struct.pack("!I", _COOKIE) + _TX
    address = bytes(a ^ b for a, b in zip(value[4:], pad, strict=False))
    text = trio.socket.inet_ntop(
        trio.socket.AF_INET if len(address) == 4 else trio.socket.AF_INET6, address
    )
    is_right = (text, port ^ _COOKIE >> 16) == (own[0], own[1])
    return f"family {family}, {'my address' if is_right else 'another address'}"


async def stun(target: Target) -> dict[str, Json]:
    software = partial(request, fingerprint=True)
    ours = request()
    datagrams = {
        "as Tailscale's clients ask": ours,
        "ordinary request": request((), fingerprint=False),
        "ordinary request with a fingerprint": request(()),
        "other software": software(((_SOFTWARE, b"something"),)),
        "empty software": software(((_SOFTWARE, b""),)),
        "software tailnode and more": software(((_SOFTWARE, b"tailnode2"),)),
        "two softwares, the first right": software((TAILNODE, (_SOFTWARE, b"else"))),
        "two softwares, the last right": software(((_SOFTWARE, b"else"), TAILNODE)),
        "no fingerprint": request(fingerprint=False),
        "wrong fingerprint": request(crc_change=1),
        "wrong fingerprint, no software": request((), crc_change=1),
        "fingerprint not last": request(
            (TAILNODE, (_FINGERPRINT, bytes(4)), (0x8023, b"more"))
        ),
        "attribute behind the fingerprint": _behind_fingerprint(),
        "unknown optional attribute first": software(((0x8023, b"abc"), TAILNODE)),
        "unknown optional attribute after": software((TAILNODE, (0x8023, b"abcde"))),
        "unknown required attribute": software(((0x7FFF, b"abcd"), TAILNODE)),
        "empty attribute": software(((0x8023, b""), TAILNODE)),
        "attributes of 1,200 bytes": software((TAILNODE, (0x8023, bytes(1200)))),
        "attribute that is too long": _lying_attribute(),
        "length too long": request(length_change=4),
        "length too short": request(length_change=-4),
        "length not divisible by 4": request(length_change=1),
        "bytes behind": ours + b"abcd",
        "cut": ours[:-1],
        "19 bytes": ours[:19],
        "nothing": b"",
        "another cookie": request(cookie=_COOKIE + 1),
        "a response": request(kind=0x0101),
        "an indication": request(kind=0x0011),
        "an allocate request": request(kind=0x0003),
        "top bits set": request(kind=0x4001),
        "a WireGuard message": b"\x01\x00\x00\x00" + bytes(144),
    }
    return await run_cases(
        {name: partial(ask, target, data) for name, data in datagrams.items()},
        at_once=len(datagrams),
    )


def _behind_fingerprint() -> bytes:
    """A right message, with one more attribute than its fingerprint covers."""
    message = bytearray(request())
    message += _attribute(0x8023, b"more")
    message[2:4] = struct.pack("!H", len(message) - 20)
    return bytes(message)


def _lying_attribute() -> bytes:
    """The last attribute goes on behind the end of the message."""
    message = bytearray(request(fingerprint=False))
    message[22:24] = struct.pack("!H", 200)
    return bytes(message)


STUN = Scenario("STUN", stun, needs_stun=True)
