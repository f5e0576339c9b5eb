"""The relay's certificates: manual mode, and the meta certificate.

Manual mode is derper's ``-certmode manual`` (tailscale ``cmd/derper/cert.go``,
``NewManualCertManager``): ``<certdir>/<name>.crt`` and ``.key``. If the host
name is an IP address and the files are missing, a self-signed certificate is
made, which clients pin by its hash.

The meta certificate (``derpserver.go``, ``initMetacert``) goes at the end of
every chain. It is signed by nobody who matters: its common name tells clients
the relay's key before the first byte of HTTP, which saves them a round trip.

API: :meth:`Certificates.load` or ``from_files`` at start,
:meth:`Certificates.current` for each connection, :meth:`Certificates.reload`
when told that the files have changed.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import os
import re
import ssl
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import msgspec
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from relay.keyfile import write_atomically
from tailnet.derp.frames import PROTOCOL_VERSION
from tailnet.derp.upgrade import meta_cert_common_name
from tailnet.errors import ConfigError
from tailnet.keys import NodePublic

__all__ = (
    "Certificates",
    "make_meta_certificate",
    "make_self_signed_certificate",
)

log = structlog.get_logger("relay")

# A client looks at the name alone, never at these dates; Windows wants some.
META_LIFETIME: Final = dt.timedelta(days=30)

# cert.go unsafeHostnameCharacters: an IPv6 address loses its colons.
_UNSAFE: Final = re.compile(r"[^a-zA-Z0-9-.]")


@dataclass(frozen=True, slots=True)
class _Loaded:
    context: ssl.SSLContext
    leaf: x509.Certificate


class Certificates:
    """What the TLS port presents, kept up to date with its files."""

    def __init__(
        self, certificate: Path, key: Path, hostname: str | None, relay_key: NodePublic
    ) -> None:
        self._certificate = certificate
        self._key = key
        self._hostname = hostname
        self._relay_key = relay_key
        self._loaded = _load(certificate, key, hostname, relay_key)

    @classmethod
    def load(cls, cert_dir: Path, hostname: str, relay_key: NodePublic) -> Self:
        """Read the files, or make them for an IP address.

        Args:
            cert_dir: The directory; made if there is something to write.
            hostname: What the certificate must be valid for.
            relay_key: What the meta certificate tells.

        Raises:
            ConfigError: The files are missing, broken, or for another name.
        """
        certificate, key = _paths(cert_dir, hostname)
        if _ip(hostname) is not None and not (certificate.exists() and key.exists()):
            _write_self_signed(certificate, key, hostname)
        return cls(certificate, key, hostname, relay_key)

    @classmethod
    def from_files(cls, certificate: Path, key: Path, relay_key: NodePublic) -> Self:
        """Read a certificate that is for whatever names it says.

        Args:
            certificate: PEM, the chain in it.
            key: PEM.
            relay_key: What the meta certificate tells.

        Raises:
            ConfigError: The files are missing or broken.
        """
        return cls(certificate, key, None, relay_key)

    def current(self) -> ssl.SSLContext:
        """The context for a connection that is accepted now."""
        return self._loaded.context

    def reload(self) -> None:
        """Read the files again, for the connections to come.

        Raises:
            ConfigError: They are missing, broken, or for another name. The
                certificate in use stays.
        """
        self._loaded = _load(
            self._certificate, self._key, self._hostname, self._relay_key
        )

    def reload_or_log(self) -> None:
        """The same for a program that goes on whatever the files are."""
        try:
            self.reload()
        except (ConfigError, OSError) as exc:
            log.error("the old certificate stays in use", reason=str(exc))
        else:
            log.info("certificate reloaded", expires=self.expires)

    @property
    def expires(self) -> dt.datetime:
        """When the certificate in use expires."""
        return self._loaded.leaf.not_valid_after_utc

    @property
    def pin_snippet(self) -> str | None:
        """A DERP node for the DERP map, for clients to pin the certificate.

        None unless the host name is an IP address: derper logs this JSON in
        that case alone.
        """
        if self._hostname is None or _ip(self._hostname) is None:
            return None
        der = self._loaded.leaf.public_bytes(serialization.Encoding.DER)
        node = {
            "Name": "custom",
            "RegionID": 900,
            "HostName": self._hostname,
            "CertName": f"sha256-raw:{hashlib.sha256(der).hexdigest()}",
        }
        return msgspec.json.encode(node).decode()


def make_meta_certificate(relay_key: NodePublic, now: dt.datetime) -> x509.Certificate:
    """Make the certificate whose name is the relay's key.

    Args:
        relay_key: The relay's public key.
        now: The time, with a time zone.
    """
    private = ed25519.Ed25519PrivateKey.generate()
    with warnings.catch_warnings():
        # X.520 allows a common name 64 characters, and this one has 71: the
        # library warns about it, and refuses it unless told not to look.
        warnings.simplefilter("ignore", UserWarning)
        name = x509.Name(
            [
                x509.NameAttribute(
                    NameOID.COMMON_NAME,
                    meta_cert_common_name(relay_key),
                    _validate=False,
                )
            ]
        )
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(private.public_key())
            # The serial number is how clients learn the protocol version.
            .serial_number(PROTOCOL_VERSION)
            .not_valid_before(now - META_LIFETIME)
            .not_valid_after(now + META_LIFETIME)
            # macOS wants it when subject and issuer are the same. No key
            # identifiers: derpprobe takes a certificate without them for no
            # concern of its expiry check.
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
            .sign(private, None)
        )


def make_self_signed_certificate(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
    name: str,
    now: dt.datetime,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Make a certificate for an address, valid for a year.

    Args:
        ip: The address that it is valid for.
        name: Its common name, the address as the operator wrote it.
        now: The time, with a time zone.
    """
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usages = dict.fromkeys(
        (
            "content_commitment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        # macOS refuses certificates that live much longer than a year.
        .not_valid_after(now + dt.timedelta(days=365))
        .add_extension(
            x509.KeyUsage(digital_signature=True, key_encipherment=True, **usages),
            critical=True,
        )
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip)]), critical=False
        )
        .sign(private, hashes.SHA256())
    )
    return certificate, private


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address as Go's net.ParseIP takes it: without zone."""
    try:
        return None if "%" in text else ipaddress.ip_address(text)
    except ValueError:
        return None


def _paths(cert_dir: Path, hostname: str) -> tuple[Path, Path]:
    name = _UNSAFE.sub("", hostname)
    return cert_dir / f"{name}.crt", cert_dir / f"{name}.key"


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _write_self_signed(certificate: Path, key: Path, hostname: str) -> None:
    if key.exists():
        # derper would overwrite it, and it may be somebody's only copy.
        raise ConfigError(f"{key} is there, but {certificate} is not")
    ip = _ip(hostname)
    assert ip is not None
    leaf, private = make_self_signed_certificate(ip, hostname, _now())
    try:
        certificate.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # In this order: a certificate without its key is simply replaced at
        # the next start, should this one end in between.
        write_atomically(
            certificate, leaf.public_bytes(serialization.Encoding.PEM), mode=0o644
        )
        write_atomically(
            key,
            private.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            ),
            mode=0o600,
        )
    except OSError as exc:
        raise ConfigError(
            f"cannot write a certificate to {certificate.parent}: {exc.strerror}"
        ) from exc


def _load(
    certificate: Path, key: Path, hostname: str | None, relay_key: NodePublic
) -> _Loaded:
    try:
        chain = certificate.read_bytes()
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"cannot read the certificate {certificate}: "
            f"{getattr(exc, 'strerror', None) or exc}"
        ) from exc
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
        names = _names(leaf)
    except Exception as exc:
        # cryptography has an exception for each way of being broken, and few
        # of them are ValueErrors.
        raise ConfigError(
            f"{certificate} holds no certificate that can be used: "
            f"{str(exc) or type(exc).__name__}"
        ) from exc
    if hostname is not None and not _is_valid_for(names, hostname):
        raise ConfigError(
            f"the certificate {certificate} is not valid for {hostname!r}: "
            "the name is not among its subject alternative names"
        )
    context = _make_context(hostname)
    meta = make_meta_certificate(relay_key, _now())
    pem = chain.rstrip() + b"\n" + meta.public_bytes(serialization.Encoding.PEM)
    with _file_with(pem) as chain_file:
        try:
            # Never prompt for a passphrase: nobody sits at a server.
            context.load_cert_chain(chain_file, key, password=lambda: b"")
        except FileNotFoundError as exc:
            raise ConfigError(f"cannot read the key {key}: no such file") from exc
        except (OSError, ValueError) as exc:  # SSLError is an OSError
            reason = getattr(exc, "reason", None) or getattr(exc, "strerror", exc)
            raise ConfigError(
                f"the key {key} does not go with {certificate}: {reason}"
            ) from exc
    return _Loaded(context, leaf)


@contextmanager
def _file_with(content: bytes) -> Iterator[str]:
    """A path to read ``content`` from: OpenSSL takes chains as files alone."""
    if hasattr(os, "memfd_create"):
        # Needs no place to write, which a container may not have.
        descriptor = os.memfd_create("relay-chain")
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            yield f"/proc/self/fd/{descriptor}"
    else:
        with tempfile.NamedTemporaryFile() as named:
            named.write(content)
            named.flush()
            yield named.name


def _names(leaf: x509.Certificate) -> list[x509.GeneralName]:
    try:
        extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return list(extension.value)


def _is_valid_for(names: list[x509.GeneralName], hostname: str) -> bool:
    """The rule of Go's ``Certificate.VerifyHostname``: no common names."""
    ip = _ip(hostname.removeprefix("[").removesuffix("]"))
    if ip is not None:
        return any(
            isinstance(name, x509.IPAddress) and name.value == ip for name in names
        )
    labels = hostname.lower().removesuffix(".").split(".")
    for name in names:
        if isinstance(name, x509.DNSName):
            pattern = name.value.lower().split(".")
            if len(pattern) == len(labels) and all(labels):
                first_fits = pattern[0] in ("*", labels[0])
                if first_fits and pattern[1:] == labels[1:]:
                    return True
    return False


def _make_context(hostname: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # derper's HTTP server offers h2 too; on h2 there is no Upgrade.
    context.set_alpn_protocols(["http/1.1"])
    # DERP clients connect seldom and resume never: Go's has no session
    # cache. Without tickets each handshake saves sealing and sending two. This
    # is about TLS 1.3 alone: for 1.2, tickets are what keeps OpenSSL from
    # holding thousands of sessions in memory.
    context.num_tickets = 0
    # The client knows what its processor is good at: Go's puts AES-128 first
    # where there is hardware for it and ChaCha20 where there is none, while
    # OpenSSL's own order would make all of them do AES-256.
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    context.options |= ssl.OP_NO_RENEGOTIATION
    if hostname is not None and _ip(hostname) is None:
        wanted = hostname.lower()

        def check_name(
            connection: ssl.SSLSocket | ssl.SSLObject,
            name: str | None,
            context: ssl.SSLContext,
        ) -> int | None:
            # cert.go getCertificate. Go's server turns its error into this
            # alert. Case is ours to ignore (RFC 6066 section 3).
            if name is None or name.lower() != wanted:
                return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
            return None

        context.sni_callback = check_name
    return context
