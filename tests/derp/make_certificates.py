"""Certificates for tests, of every kind a relay may have."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tailnet.derp.upgrade import meta_cert_common_name
from tailnet.keys import NodePublic

NOW = datetime(2026, 1, 1, tzinfo=UTC)
_KEY = ec.derive_private_key(7, ec.SECP256R1())
KEY_PEM = _KEY.private_bytes(
    serialization.Encoding.PEM,
    serialization.PrivateFormat.TraditionalOpenSSL,
    serialization.NoEncryption(),
)


def make_certificate(
    common_name: str = "test",
    *,
    dns_names: Sequence[str] = (),
    ips: Sequence[str] = (),
    start: datetime = NOW - timedelta(days=1),
    end: datetime = NOW + timedelta(days=1),
    serial: int = 1,
) -> bytes:
    """A self-signed certificate in DER, its key is KEY_PEM."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a common name that is too long
        name = x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, common_name, _validate=False)]
        )
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in dns_names]
    names += [x509.IPAddress(ip_address(ip)) for ip in ips]
    builder = x509.CertificateBuilder(
        issuer_name=name,
        subject_name=name,
        public_key=_KEY.public_key(),
        serial_number=serial,
        not_valid_before=start,
        not_valid_after=end,
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
    certificate = builder.sign(_KEY, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.DER)


def make_meta_certificate(key: NodePublic, *, serial: int = 2) -> bytes:
    """What derper appends to its chain."""
    return make_certificate(meta_cert_common_name(key), serial=serial)
