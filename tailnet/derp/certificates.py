"""What a DERP client reads in a relay's certificates.

Rules: tailscale ``net/tlsdial/tlsdial.go`` SetConfigExpectedCertHash and
SetConfigExpectedCert, ``derphttp/derphttp_client.go`` parseMetaCert, and Go's
``crypto/x509`` VerifyHostname.

Certificates come as DER bytes in the order in which the relay sent them, leaf
first. Trust in a chain is OpenSSL's business; here is only what it cannot do:
pins, a name other than the one asked for, and the meta certificate, which
tells the relay's key ahead of the handshake and proves nothing.

Every function here raises RemoteProtocolError, and nothing else, for bytes
that are no certificate.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import warnings
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from tailnet.derp.upgrade import META_CERT_PREFIX, server_key_from_common_name
from tailnet.errors import RemoteProtocolError
from tailnet.keys import NodePublic

__all__ = (
    "check_certificate_name",
    "check_pinned_certificate",
    "find_meta_key",
)


def check_pinned_certificate(
    chain: Sequence[bytes], pin: str, *, server_name: str, now: datetime
) -> None:
    """Accept a chain whose only certificate has the hash that the map names.

    Meta certificates do not count. The pinned certificate stands for itself:
    no chain, no roots, but its dates hold.

    Args:
        chain: What the relay sent.
        pin: Lower-case hex SHA-256 of the DER bytes. Compared as text, as Go
            does: upper case never matches.
        server_name: What was asked for in SNI, for which the certificate must
            be valid. Empty for an IP address, as nothing is asked for then.
        now: Wall time, with a zone.

    Raises:
        RemoteProtocolError: Another certificate, more than one, none, or not
            valid for this name or time.
    """
    seen = False
    for der in chain:
        certificate = _load(der)
        if _common_name(certificate).startswith(META_CERT_PREFIX):
            continue
        if seen:
            raise RemoteProtocolError(
                "the relay sent more than one certificate beside the pinned one"
            )
        digest = hashlib.sha256(der).hexdigest()
        if digest != pin:
            raise RemoteProtocolError(
                f"the relay's certificate has the hash {digest}, not the pinned one"
            )
        if server_name:
            _check_name(certificate, server_name)
        if now > certificate.not_valid_after_utc:
            raise RemoteProtocolError(
                f"the pinned certificate ended {certificate.not_valid_after_utc}"
            )
        if now < certificate.not_valid_before_utc:
            raise RemoteProtocolError(
                "the pinned certificate is valid from "
                f"{certificate.not_valid_before_utc} only; is the clock right?"
            )
        seen = True
    if not seen:
        raise RemoteProtocolError("the relay sent no certificate to compare")


def check_certificate_name(leaf: bytes, name: str) -> None:
    """Accept a certificate that is valid for ``name``.

    Args:
        leaf: The certificate.
        name: A DNS name, or an IP address with or without brackets.

    Raises:
        RemoteProtocolError: It is for other names.
    """
    _check_name(_load(leaf), name)


def find_meta_key(chain: Sequence[bytes]) -> NodePublic | None:
    """The relay's key from the meta certificate, if the chain has one.

    A hint for fast start. Only to be asked for under TLS 1.3, where no one on
    the way could read or change the certificates in passing.

    Args:
        chain: What the relay sent.

    Returns:
        The key of the first meta certificate that is whole, or None.
    """
    for der in chain:
        certificate = _load(der)
        key = server_key_from_common_name(
            _common_name(certificate), certificate.serial_number
        )
        if key is not None:
            return key
    return None


# What the parser raises; it parses most things on first use only. TypeError is
# for a name whose type of string is not that of the attribute.
_BROKEN: Final = (
    TypeError,
    ValueError,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


def _load(der: bytes) -> x509.Certificate:
    with warnings.catch_warnings():
        # Serial numbers of zero and the like: Go does not mind them.
        warnings.simplefilter("ignore")
        try:
            certificate = x509.load_der_x509_certificate(der)
            # Have these parsed here, where it can be told from our own bugs.
            _ = certificate.not_valid_after_utc, certificate.not_valid_before_utc
        except _BROKEN as exc:
            raise RemoteProtocolError("the relay sent a broken certificate") from exc
    return certificate


def _common_name(certificate: x509.Certificate) -> str:
    with warnings.catch_warnings():
        # A meta certificate's name is longer than X.520's 64 characters.
        warnings.simplefilter("ignore")
        try:
            attributes = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        except _BROKEN as exc:
            raise RemoteProtocolError("the relay sent a broken certificate") from exc
    # Go takes the last of several.
    return str(attributes[-1].value) if attributes else ""


def _check_name(certificate: x509.Certificate, name: str) -> None:
    """crypto/x509 VerifyHostname: alternative names only, no common name."""
    try:
        names = certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        ).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    except _BROKEN as exc:
        raise RemoteProtocolError("the relay sent a broken certificate") from exc
    dns_names = names.get_values_for_type(x509.DNSName)
    ip_names = names.get_values_for_type(x509.IPAddress)
    try:
        address = ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        if any(_matches(pattern, name) for pattern in dns_names):
            return
    else:
        if address in ip_names:
            return
    valid_for = ", ".join([*dns_names, *(str(ip) for ip in ip_names)]) or "no name"
    raise RemoteProtocolError(
        f"the relay's certificate is valid for {valid_for}, not for {name}"
    )


_LABEL: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*)\Z")


def _matches(pattern: str, host: str) -> bool:
    """Go's matchHostnames: ``*`` stands for the whole first label, only."""
    wanted = pattern.lower().split(".")
    got = host.lower().removesuffix(".").split(".")
    if len(wanted) != len(got) or not all(map(_LABEL.match, got)):
        return False
    return wanted[1:] == got[1:] and wanted[0] in ("*", got[0])
