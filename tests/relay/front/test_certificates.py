from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import json
import os
import ssl
import stat
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtensionOID

from relay.front.certificates import (
    Certificates,
    make_meta_certificate,
    make_self_signed_certificate,
)
from relay.front.tls import PureTls, TlsError
from tailnet.errors import ConfigError
from tailnet.keys import NodePrivate, NodePublic

KEY = NodePrivate.generate().public()
META_NAME = "derpkey" + KEY.hex
NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


class Client:
    """A client of ours, joined to a context of the relay."""

    def __init__(
        self,
        server: ssl.SSLContext,
        name: str | None,
        *,
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        alpn: tuple[str, ...] = (),
        ca: trustme.CA | None = None,
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = context.maximum_version = version
        if ca is None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        else:
            ca.configure_trust(context)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
        self.server = PureTls(server)
        self.after_handshake = b""
        for _ in range(4):
            try:
                self.tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                done = False
            self.server.feed(outgoing.read())
            self.after_handshake = self.server.take()
            incoming.write(self.after_handshake)
            if done:
                return

    def chain(self) -> list[x509.Certificate]:
        """What the relay presented, leaf first."""
        inner = self.tls._sslobj  # type: ignore[attr-defined]
        return [
            x509.load_pem_x509_certificate(certificate.public_bytes().encode())
            for certificate in inner.get_unverified_chain()
        ]


def write(cert_dir: Path, name: str, leaf: trustme.LeafCert) -> None:
    (cert_dir / f"{name}.crt").write_bytes(
        b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
    )
    (cert_dir / f"{name}.key").write_bytes(leaf.private_key_pem.bytes())


def common_name(certificate: x509.Certificate) -> str:
    with pytest.warns(UserWarning, match="but it was 71"):
        return certificate.subject.rfc4514_string().removeprefix("CN=")


def message(cert_dir: Path, hostname: str) -> str:
    with pytest.raises(ConfigError) as caught:
        Certificates.load(cert_dir, hostname, KEY)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def test_meta_certificate_tells_key_and_version() -> None:
    certificate = make_meta_certificate(KEY, NOW)
    assert common_name(certificate) == META_NAME
    with pytest.warns(UserWarning, match="but it was 71"):
        assert certificate.issuer == certificate.subject
    assert certificate.serial_number == 2
    assert certificate.not_valid_before_utc == NOW - dt.timedelta(days=30)
    assert certificate.not_valid_after_utc == NOW + dt.timedelta(days=30)
    assert isinstance(certificate.public_key(), ed25519.Ed25519PublicKey)
    extension, *others = certificate.extensions
    assert extension.value == x509.BasicConstraints(ca=False, path_length=None)
    assert extension.critical
    assert others == []
    certificate.verify_directly_issued_by(certificate)


def test_self_signed_certificate_is_as_derper_makes_it() -> None:
    ip = ipaddress.ip_address("192.0.2.1")
    certificate, private = make_self_signed_certificate(ip, "192.0.2.1", NOW)
    assert certificate.subject.rfc4514_string() == "CN=192.0.2.1"
    assert certificate.not_valid_before_utc == NOW
    assert certificate.not_valid_after_utc == NOW + dt.timedelta(days=365)
    assert isinstance(private.curve, ec.SECP256R1)
    kinds = [(type(e.value).__name__, e.critical) for e in certificate.extensions]
    assert kinds == [
        ("KeyUsage", True),
        ("ExtendedKeyUsage", False),
        ("BasicConstraints", True),
        ("SubjectAlternativeName", False),
    ]
    assert certificate.extensions[3].value == x509.SubjectAlternativeName(
        [x509.IPAddress(ip)]
    )


@pytest.mark.parametrize(
    ("hostname", "stem"), [("127.0.0.1", "127.0.0.1"), ("2001:db8::1", "2001db81")]
)
def test_ip_address_gets_a_certificate(
    tmp_path: Path, hostname: str, stem: str
) -> None:
    cert_dir = tmp_path / "new" / "certs"
    certificates = Certificates.load(cert_dir, hostname, KEY)
    assert sorted(os.listdir(cert_dir)) == [f"{stem}.crt", f"{stem}.key"]
    modes = [
        stat.S_IMODE(path.stat().st_mode)
        for path in (cert_dir, cert_dir / f"{stem}.crt", cert_dir / f"{stem}.key")
    ]
    assert modes == [0o700, 0o644, 0o600]
    pem = (cert_dir / f"{stem}.key").read_text()
    assert pem.startswith("-----BEGIN EC PRIVATE KEY-----\n")

    leaf, meta = Client(certificates.current(), None).chain()
    assert common_name(meta) == META_NAME
    der = leaf.public_bytes(serialization.Encoding.DER)
    snippet = certificates.pin_snippet
    assert snippet is not None
    assert json.loads(snippet) == {
        "Name": "custom",
        "RegionID": 900,
        "HostName": hostname,
        "CertName": f"sha256-raw:{hashlib.sha256(der).hexdigest()}",
    }
    # The same again: clients have pinned it.
    assert Certificates.load(cert_dir, hostname, KEY).pin_snippet == snippet


@pytest.mark.parametrize("name", [None, "whatever.example", "127.0.0.1"])
def test_ip_address_is_served_under_any_name(tmp_path: Path, name: str | None) -> None:
    certificates = Certificates.load(tmp_path, "127.0.0.1", KEY)
    assert len(Client(certificates.current(), name).chain()) == 2


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_strict_client_takes_the_chain(tmp_path: Path, version: ssl.TLSVersion) -> None:
    root = trustme.CA()
    intermediate = root.create_child_ca()
    write(tmp_path, "relay.example", intermediate.issue_cert("relay.example"))
    certificates = Certificates.load(tmp_path, "relay.example", KEY)
    client = Client(certificates.current(), "relay.example", version=version, ca=root)
    chain = client.chain()
    assert len(chain) == 3  # leaf, intermediate, meta
    assert common_name(chain[-1]) == META_NAME
    assert client.tls.version() == version.name.replace("_", ".")
    assert certificates.pin_snippet is None
    assert certificates.expires == chain[0].not_valid_after_utc


def test_old_tls_is_refused(tmp_path: Path) -> None:
    context = Certificates.load(tmp_path, "127.0.0.1", KEY).current()
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("name", [None, "other.example", "xrelay.example"])
def test_other_name_fails_the_handshake(
    tmp_path: Path, ca: trustme.CA, name: str | None
) -> None:
    write(tmp_path, "relay.example", ca.issue_cert("relay.example"))
    context = Certificates.load(tmp_path, "relay.example", KEY).current()
    with pytest.raises((TlsError, ssl.SSLError)) as caught:
        Client(context, name)
    assert not isinstance(caught.value, ssl.SSLWantReadError)
    # derper's client sees alert 80; ours leaves it in take().
    server = PureTls(context)
    hello, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client = client_context.wrap_bio(hello, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    with pytest.raises(TlsError):
        server.feed(outgoing.read())
    assert server.take()[-2:] == bytes([2, ssl.ALERT_DESCRIPTION_INTERNAL_ERROR])


def test_case_of_the_name_does_not_matter(tmp_path: Path, ca: trustme.CA) -> None:
    write(tmp_path, "Relay.example", ca.issue_cert("relay.example"))
    context = Certificates.load(tmp_path, "Relay.example", KEY).current()
    Client(context, "rElay.example")


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ((), None),
        (("http/1.1",), "http/1.1"),
        (("h2", "http/1.1"), "http/1.1"),
        (("h2",), None),
    ],
)
def test_http_1_is_all_there_is(
    tmp_path: Path, offered: tuple[str, ...], chosen: str | None
) -> None:
    context = Certificates.load(tmp_path, "127.0.0.1", KEY).current()
    client = Client(context, None, alpn=offered)
    assert client.tls.selected_alpn_protocol() == chosen


def test_no_tickets_are_sent(tmp_path: Path) -> None:
    context = Certificates.load(tmp_path, "127.0.0.1", KEY).current()
    assert Client(context, None).after_handshake == b""


@pytest.mark.parametrize(
    ("san", "hostname", "fits"),
    [
        ("relay.example", "relay.example", True),
        ("relay.example", "relay.example.", True),
        ("*.example", "relay.example", True),
        ("*.example", "a.relay.example", False),
        ("*.example", "example", False),
        ("relay.example", "127.0.0.1", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.2", "127.0.0.1", False),
    ],
)
def test_certificate_must_be_valid_for_the_name(
    tmp_path: Path, ca: trustme.CA, san: str, hostname: str, fits: bool
) -> None:
    write(tmp_path, hostname, ca.issue_cert(san))
    if fits:
        Certificates.load(tmp_path, hostname, KEY)
    else:
        assert "is not valid for" in message(tmp_path, hostname)


def test_common_name_does_not_count(tmp_path: Path) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name.from_rfc4514_string("CN=relay.example")
    leaf = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + dt.timedelta(days=9999))
        .sign(private, hashes.SHA256())
    )
    (tmp_path / "relay.example.crt").write_bytes(
        leaf.public_bytes(serialization.Encoding.PEM)
    )
    assert "is not valid for" in message(tmp_path, "relay.example")


def test_missing_and_broken_files(tmp_path: Path, ca: trustme.CA) -> None:
    assert "No such file" in message(tmp_path, "relay.example")
    certificate, key = tmp_path / "relay.example.crt", tmp_path / "relay.example.key"
    certificate.write_text("nonsense")
    assert "holds no certificate" in message(tmp_path, "relay.example")
    write(tmp_path, "relay.example", ca.issue_cert("relay.example"))
    key.unlink()
    assert "cannot read the key" in message(tmp_path, "relay.example")
    key.write_text("nonsense")
    assert "does not go with" in message(tmp_path, "relay.example")
    key.write_bytes(ca.issue_cert("relay.example").private_key_pem.bytes())
    assert "does not go with" in message(tmp_path, "relay.example")
    private = ec.generate_private_key(ec.SECP256R1())
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    assert "does not go with" in message(tmp_path, "relay.example")


def test_half_of_a_pair_for_an_ip_address(tmp_path: Path) -> None:
    first = Certificates.load(tmp_path, "127.0.0.1", KEY).pin_snippet
    key = tmp_path / "127.0.0.1.key"
    (tmp_path / "127.0.0.1.crt").rename(tmp_path / "saved")
    before = key.read_bytes()
    assert "is there, but" in message(tmp_path, "127.0.0.1")
    assert key.read_bytes() == before
    (tmp_path / "saved").rename(tmp_path / "127.0.0.1.crt")
    key.unlink()
    assert Certificates.load(tmp_path, "127.0.0.1", KEY).pin_snippet != first


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "Not a directory" in message(tmp_path / "file" / "x", "127.0.0.1")


def test_reload_is_for_the_connections_to_come(tmp_path: Path, ca: trustme.CA) -> None:
    write(tmp_path, "relay.example", ca.issue_cert("relay.example"))
    certificates = Certificates.load(tmp_path, "relay.example", KEY)
    old = certificates.current()
    first = Client(old, "relay.example").chain()[0]

    write(tmp_path, "relay.example", ca.issue_cert("relay.example", "more.example"))
    certificates.reload()
    second = Client(certificates.current(), "relay.example").chain()[0]
    assert second != first
    assert Client(old, "relay.example").chain()[0] == first

    (tmp_path / "relay.example.key").write_text("nonsense")
    with pytest.raises(ConfigError):
        certificates.reload()
    assert Client(certificates.current(), "relay.example").chain()[0] == second


def test_meta_certificate_is_of_this_relay(tmp_path: Path) -> None:
    other = NodePublic(bytes(31) + b"\x01")
    context = Certificates.load(tmp_path, "127.0.0.1", other).current()
    assert common_name(Client(context, None).chain()[-1]) == "derpkey" + other.hex


def test_every_way_of_being_broken_is_a_config_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not all are ValueErrors; one of the others ended the relay at SIGHUP."""
    certificates = Certificates.load(
        tmp_path, "127.0.0.1", NodePrivate.generate().public()
    )
    before = certificates.current()

    def broken(_leaf: object) -> None:
        raise x509.DuplicateExtension("twice", ExtensionOID.KEY_USAGE)

    monkeypatch.setattr("relay.front.certificates._names", broken)
    with pytest.raises(ConfigError, match="twice"):
        certificates.reload()
    assert certificates.current() is before


def test_files_for_whatever_name(tmp_path: Path) -> None:
    certificate, key = tmp_path / "any.pem", tmp_path / "any.key"
    authority = trustme.CA()
    issued = authority.issue_cert("a.example.com", "b.example.com")
    issued.private_key_pem.write_to_path(key)
    for index, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(certificate, append=index > 0)
    certificates = Certificates.from_files(certificate, key, KEY)
    assert certificates.pin_snippet is None
    first = certificates.current()
    certificates.reload()
    assert certificates.current() is not first
    with pytest.raises(ConfigError, match="cannot read the certificate"):
        Certificates.from_files(tmp_path / "none", key, KEY)
