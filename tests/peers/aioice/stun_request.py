"""Ask a STUN server for our address with aioice's own codec, and print it.

Runs in the peers' environment, which has nothing of this project.
Arguments: host, port, and optionally the word ``fingerprint``.
"""

from __future__ import annotations

import socket
import sys

from aioice import stun  # type: ignore[import-not-found,unused-ignore]


def main(host: str, port: str, *options: str) -> None:
    """Send one binding request; print what the answer says, one fact a line."""
    request = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
    request.attributes["SOFTWARE"] = "aioice"
    if "fingerprint" in options:
        request.add_fingerprint()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        sock.connect((host, int(port)))
        sock.send(bytes(request))
        answer = stun.parse_message(sock.recv(2048))
        assert answer.transaction_id == request.transaction_id
        assert answer.message_method is stun.Method.BINDING
        assert answer.message_class is stun.Class.RESPONSE
        mapped = answer.attributes["XOR-MAPPED-ADDRESS"]
        assert mapped[:2] == sock.getsockname()[:2], mapped
        sys.stdout.write(f"{mapped[0]} {mapped[1]}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
