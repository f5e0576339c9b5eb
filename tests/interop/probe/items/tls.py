"""The TLS side: versions, ALPN, and the certificates with the meta certificate."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import warnings
from functools import partial
from typing import Any, Final, cast

import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from tests.interop.probe.answers import Json, closed
from tests.interop.probe.cast import open_cast
from tests.interop.probe.http import exchange, head
from tests.interop.probe.scenario import Scenario, run_cases
from tests.interop.probe.wire import Target, client_context, open_wire

_ENCODING_DER: Final = 2  # _ssl.ENCODING_DER


async def certificates(target: Target) -> dict[str, Json]:
    async def chain(version: ssl.TLSVersion) -> list[x509.Certificate]:
        raw = await trio.to_thread.run_sync(partial(_peer_chain, target, version))
        return [x509.load_der_x509_certificate(der) for der in raw]

    async def kinds(version: ssl.TLSVersion) -> Json:
        return [
            "meta" if _common_name(cert).startswith("derpkey") else "leaf"
            for cert in await chain(version)
        ]

    async def meta() -> Json:
        async with open_cast(target) as clients:
            peer = await clients.upgrade()
            assert peer.server is not None
            key = peer.server.hex
        cert = (await chain(ssl.TLSVersion.TLSv1_3))[-1]
        return {
            "name is derpkey + the relay's key": _common_name(cert) == f"derpkey{key}",
            "self-signed": _is_self_signed(cert),
            "signed by its key": _signed_by_itself(cert),
            "Ed25519": isinstance(cert.public_key(), ed25519.Ed25519PublicKey),
            **_describe(cert),
            "serial": cert.serial_number,
        }

    async def leaf() -> Json:
        cert = (await chain(ssl.TLSVersion.TLSv1_3))[0]
        public = cert.public_key()
        return {
            "name": target.mask(_common_name(cert)),
            "self-signed": _is_self_signed(cert),
            "key": public.curve.name
            if isinstance(public, ec.EllipticCurvePublicKey)
            else type(public).__name__,
            **_describe(cert),
            "serial cannot be guessed": cert.serial_number.bit_length() >= 64,
        }

    return await run_cases(
        {
            "chain in TLS 1.3": partial(kinds, ssl.TLSVersion.TLSv1_3),
            "chain in TLS 1.2": partial(kinds, ssl.TLSVersion.TLSv1_2),
            "meta certificate": meta,
            "self-signed leaf": leaf,
        }
    )


async def handshakes(target: Target) -> dict[str, Json]:
    async def ask(**options: Any) -> Json:
        return await trio.to_thread.run_sync(partial(_handshake, target, **options))

    async def garbage(data: bytes) -> Json:
        async with open_wire(target, tls=False) as wire:
            start = trio.current_time()
            await wire.send(data)
            if await wire.closes_within(40):
                return closed(trio.current_time() - start)
            return "open"

    hello_of_another_kind = bytes.fromhex("16030100050900000100")
    return await run_cases(
        {
            "TLS 1.3": partial(ask, version=ssl.TLSVersion.TLSv1_3),
            "TLS 1.2": partial(ask, version=ssl.TLSVersion.TLSv1_2),
            "TLS 1.1": partial(ask, version=ssl.TLSVersion.TLSv1_1),
            "no SNI": partial(ask, sni=None),
            "SNI of another name": partial(ask, sni="relay.example.com"),
            "ALPN http/1.1": partial(ask, alpn=["http/1.1"]),
            "ALPN h2, http/1.1": partial(ask, alpn=["h2", "http/1.1"]),
            "ALPN h2": partial(ask, alpn=["h2"]),
            "ALPN derp": partial(ask, alpn=["derp"]),
            "plain HTTP": partial(exchange, target, head(target), tls=False),
            "random bytes": partial(garbage, b"\x00\xff" * 40),
            "no client hello": partial(garbage, hello_of_another_kind),
        }
    )


async def silence(target: Target) -> dict[str, Json]:
    async def quiet(first: bytes) -> Json:
        async with open_wire(target, tls=False) as wire:
            start = trio.current_time()
            await wire.send(first)
            if await wire.closes_within(60):
                return closed(trio.current_time() - start)
            return "open"

    return await run_cases(
        {
            "nothing": partial(quiet, b""),
            "half a record": partial(quiet, bytes.fromhex("1603010200010001fc03")),
        }
    )


def _connect(target: Target) -> socket.socket:
    return socket.create_connection((target.host, target.port), timeout=20)


def _peer_chain(target: Target, version: ssl.TLSVersion) -> list[bytes]:
    context = client_context()
    context.minimum_version = context.maximum_version = version
    with (
        _connect(target) as sock,
        context.wrap_socket(sock, server_hostname=target.host) as secured,
    ):
        # Public from Python 3.13 on.
        chain = cast("Any", secured)._sslobj.get_unverified_chain()
        return [bytes(cert.public_bytes(_ENCODING_DER)) for cert in chain]


def _handshake(
    target: Target,
    *,
    version: ssl.TLSVersion | None = None,
    sni: str | None = "",
    alpn: list[str] | None = None,
) -> Json:
    context = client_context()
    # The old versions need the old algorithms, or the client itself refuses.
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        if version is not None:
            context.minimum_version = context.maximum_version = version
    if alpn is not None:
        context.set_alpn_protocols(alpn)
    name = target.host if sni == "" else sni
    with _connect(target) as sock:
        try:
            with context.wrap_socket(sock, server_hostname=name) as secured:
                return {
                    "version": secured.version(),
                    "ALPN": secured.selected_alpn_protocol(),
                }
        except ssl.SSLError as exc:
            reason = str(exc.reason or exc.args[-1]).partition(" (_ssl")[0]
            return f"refused: {reason}"
        except ConnectionError:
            return "refused without an alert"


def _common_name(cert: x509.Certificate) -> str:
    with warnings.catch_warnings():
        # The meta certificate's name is longer than X.520 allows.
        warnings.simplefilter("ignore", UserWarning)
        names = cert.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _is_self_signed(cert: x509.Certificate) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return cert.issuer == cert.subject


def _signed_by_itself(cert: x509.Certificate) -> bool:
    try:
        cert.verify_directly_issued_by(cert)
    except Exception:
        return False
    return True


def _describe(cert: x509.Certificate) -> dict[str, Json]:
    """Dates in days from now, and the extensions."""
    now = dt.datetime.now(dt.UTC)
    extensions: dict[str, Json] = {}
    shown: Json
    for extension in cert.extensions:
        value = extension.value
        match value:
            case x509.BasicConstraints():
                shown = f"CA: {value.ca}"
            case x509.SubjectAlternativeName():
                shown = [type(name).__name__ for name in value]
            case x509.KeyUsage():
                shown = sorted(
                    name.lstrip("_")
                    for name, is_set in vars(value).items()
                    if is_set is True
                )
            case x509.ExtendedKeyUsage():
                shown = [usage._name for usage in value]
            case _:
                shown = "there"
        name = extension.oid._name
        extensions[name] = [shown, "critical"] if extension.critical else shown
    return {
        "version": cert.version.name,
        "valid from, days": round(
            (cert.not_valid_before_utc - now).total_seconds() / 86400
        ),
        "valid to, days": round(
            (cert.not_valid_after_utc - now).total_seconds() / 86400
        ),
        "extensions": extensions,
    }


TLS_CERTIFICATES = Scenario("TLS certificates", certificates, needs_tls=True)
TLS_HANDSHAKES = Scenario("TLS handshakes", handshakes, needs_tls=True)
TLS_SILENCE = Scenario("TLS silence", silence, needs_tls=True, slow=True)
