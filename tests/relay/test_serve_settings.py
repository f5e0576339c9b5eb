from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from relay.addresses import ListenAddress
from relay.config import LogFormat, SwitchChoice
from relay.derpmaps.build import AccessUrl, MapOptions, build_derp_map
from relay.serve_flags import SERVE_FLAGS
from relay.serve_settings import (
    DerpAdmission,
    ServeSettings,
    load_serve_settings,
    read_verify_token,
)
from tailnet.errors import ConfigError


# Networking flags of "coder server", their variables and defaults.
@pytest.fixture(autouse=True)
def data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data-home"))


def load(environ: Mapping[str, str] | None = None, /, **flags: object) -> ServeSettings:
    texts = {name.replace("_", "-"): str(value) for name, value in flags.items()}
    return load_serve_settings(texts, environ or {})


def message(environ: Mapping[str, str] | None = None, /, **flags: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load(environ, **flags)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_defaults(tmp_path: Path) -> None:
    settings = load()
    address = ListenAddress("127.0.0.1", 3000)
    assert settings == ServeSettings(
        http=address,
        stun=address,
        stun_follows_http=True,
        data_dir=tmp_path / "data-home" / "tailnet",
        queue_total=settings.queue_total,
    )
    assert settings.derp_map == MapOptions()
    assert not settings.block_direct
    assert settings.queue_total > 0


def test_all_flags(tmp_path: Path) -> None:
    for name, content in (("cert", "c"), ("key", "k"), ("token", " secret\n")):
        (tmp_path / name).write_text(content)
    settings = load(
        http_address=":8080",
        access_url="https://coder.example.com/",
        tls_enable="true",
        tls_address="[::]:8443",
        tls_cert_file=tmp_path / "cert",
        tls_key_file=tmp_path / "key",
        stun_address="127.0.0.1:3478",
        data_dir=tmp_path / "data",
        derp_server_region_id=5,
        derp_server_region_code="own",
        derp_server_region_name="Own",
        derp_server_stun_addresses="a:1, [::1]:2",
        derp_force_websockets="1",
        derp_config_path=tmp_path / "map.yaml",
        workspace_hostname_suffix="dev.example",
        browser_only="t",
        derp_admission="coordinator",
        verify_token_file=tmp_path / "token",
        api_rate_limit=7,
        log_format="json",
        switch="python",
        queue_bytes="1MiB",
        queue_packets=9,
        queue_total=1000,
        drain_timeout="1m",
    )
    assert settings == ServeSettings(
        http=ListenAddress("", 8080),
        tls=ListenAddress("::", 8443),
        tls_cert_file=tmp_path / "cert",
        tls_key_file=tmp_path / "key",
        access_url=AccessUrl("https", "coder.example.com", 443),
        stun=ListenAddress("127.0.0.1", 3478),
        data_dir=tmp_path / "data",
        derp_map=MapOptions(
            region_id=5,
            region_code="own",
            region_name="Own",
            stun_servers=(("a", 1), ("::1", 2)),
            config_path=str(tmp_path / "map.yaml"),
        ),
        derp_force_websockets=True,
        workspace_hostname_suffix="dev.example",
        browser_only=True,
        derp_admission=DerpAdmission.COORDINATOR,
        verify_token="secret",
        verify_token_file=tmp_path / "token",
        api_rate_limit=7,
        log_format=LogFormat.JSON,
        switch=SwitchChoice.PYTHON,
        queue_bytes=1 << 20,
        queue_packets=9,
        queue_total=1000,
        drain_timeout=60.0,
    )
    assert "secret" not in repr(settings)


# -- sources ----------------------------------------------------------------


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('derp-server-region-code = "file"\nqueue-packets = 1\n')
    sources: list[dict[str, str]] = [
        {},
        {"TAILNET_CONFIG": str(file)},
        {"CODER_DERP_SERVER_REGION_CODE": "coders"},
        {"TAILNET_DERP_SERVER_REGION_CODE": "ours"},
    ]
    environ: dict[str, str] = {}
    codes = []
    for source in sources:
        environ |= source
        codes.append(load(environ).derp_map.region_code)
    codes.append(load(environ, derp_server_region_code="flag").derp_map.region_code)
    assert codes == ["coder", "file", "coders", "ours", "flag"]
    assert load(environ).queue_packets == 1
    assert load(environ | {"TAILNET_CONFIG": ""}).queue_packets == 4096


@pytest.mark.parametrize(
    ("variable", "text", "attribute", "value"),
    [
        ("CODER_BLOCK_DIRECT", "true", "block_direct", True),
        ("TAILNET_BLOCK_DIRECT_CONNECTIONS", "1", "block_direct", True),
        ("CODER_BROWSER_ONLY", "true", "browser_only", True),
        ("CODER_DERP_FORCE_WEBSOCKETS", "true", "derp_force_websockets", True),
        ("CODER_HTTP_ADDRESS", ":1", "http", ListenAddress("", 1)),
        ("CODER_API_RATE_LIMIT", "-1", "api_rate_limit", None),
        ("CODER_DANGEROUS_DISABLE_RATE_LIMITS", "true", "api_rate_limit", None),
        ("TAILNET_API_RATE_LIMIT", "0", "api_rate_limit", None),
        ("CODER_HTTP_ADDRESS", "", "http", ListenAddress("127.0.0.1", 3000)),
    ],
)
def test_environment(variable: str, text: str, attribute: str, value: object) -> None:
    assert getattr(load({variable: text}), attribute) == value


def test_list_in_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('derp-server-stun-addresses = ["a:1", "b:2"]\n')
    assert load(config=file).derp_map.stun_servers == (("a", 1), ("b", 2))


# -- addresses --------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "ports", "url"),
    [
        ({}, {"http_port": 3000}, "http://127.0.0.1:3000"),
        ({"http_address": "127.0.0.1:0"}, {"http_port": 41}, "http://127.0.0.1:41"),
        ({"http_address": "localhost:80"}, {"http_port": 80}, "http://localhost"),
        ({"http_address": ":80"}, {"http_port": 80}, "http://127.0.0.1"),
        ({"http_address": "0.0.0.0:1"}, {"http_port": 1}, "http://127.0.0.1:1"),
        ({"http_address": "[::]:1"}, {"http_port": 1}, "http://[::1]:1"),
        ({"http_address": "[::1]:1"}, {"http_port": 1}, "http://[::1]:1"),
        ({"access_url": "https://a:5"}, {"http_port": 3000}, "https://a:5"),
        (
            {"tls_enable": "true"},
            {"http_port": 3000, "tls_port": 3443},
            "https://127.0.0.1:3443",
        ),
        ({"tls_enable": "true", "http_address": ""}, {"tls_port": 443}, "https://127.0.0.1"),
    ],
)  # fmt: skip
def test_access_url(
    tmp_path: Path, flags: dict[str, str], ports: dict[str, int], url: str
) -> None:
    (tmp_path / "pem").touch()
    files = dict.fromkeys(("tls_cert_file", "tls_key_file"), str(tmp_path / "pem"))
    settings = load(**flags, **(files if "tls_enable" in flags else {}))
    assert str(settings.access_url_at(**ports)) == url


@pytest.mark.parametrize(
    ("flags", "stun", "follows"),
    [
        ({"http_address": "[::1]:0"}, ListenAddress("::1", 0), True),
        ({"stun_address": ":3478"}, ListenAddress("", 3478), False),
        ({"stun_address": "disable"}, None, False),
        ({"block_direct_connections": "true"}, None, False),
        ({"block_direct_connections": "1", "stun_address": ":1"}, None, False),
    ],
)
def test_stun(
    flags: dict[str, str], stun: ListenAddress | None, *, follows: bool
) -> None:
    settings = load(**flags)
    assert (settings.stun, settings.stun_follows_http) == (stun, follows)


def test_https_alone(tmp_path: Path) -> None:
    (tmp_path / "pem").touch()
    settings = load(
        http_address="disable",
        tls_enable="true",
        tls_cert_file=tmp_path / "pem",
        tls_key_file=tmp_path / "pem",
    )
    assert settings.http is None
    assert settings.tls == settings.stun == ListenAddress("127.0.0.1", 3443)


# -- what cannot work -------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            {"derp_config_url": "http://a/", "derp_config_path": "x"},
            ["--derp-config-path", "--derp-config-url"],
        ),
        (
            {"derp_server_enable": "false", "stun_address": "disable"},
            ["no DERP node", "--derp-server-enable"],
        ),
        (
            {"derp_server_enable": "false", "derp_server_stun_addresses": "disable"},
            ["no DERP node"],
        ),
        ({"access_url": "coder.example.com"}, ["--access-url", "http://"]),
        ({"access_url": "https://"}, ["--access-url", "host"]),
        ({"access_url": "https://a/b"}, ["--access-url", "follow"]),
        ({"tls_enable": "true"}, ["--tls-cert-file"]),
        ({"tls_enable": "true", "tls_cert_file": "/dev/null"}, ["--tls-key-file"]),
        (
            {"tls_enable": "1", "tls_cert_file": "/no/x", "tls_key_file": "/no/y"},
            ["/no/x", "--tls-cert-file", "No such file"],
        ),
        (
            {"tls_enable": "1", "tls_cert_file": "/dev/null", "tls_key_file": "/no/y"},
            ["/no/y", "--tls-key-file", "No such file"],
        ),
        (
            {
                "tls_enable": "1",
                "tls_cert_file": "/dev/null",
                "tls_key_file": "/dev/null",
                "tls_address": "127.0.0.1:3000",
            },
            ["--tls-address", "HTTP too"],
        ),
        (
            {
                "tls_enable": "1",
                "tls_cert_file": "/dev/null",
                "tls_key_file": "/dev/null",
                "tls_address": "disable",
            },
            ["--tls-address"],
        ),
        ({"http_address": ""}, ["--http-address", "--tls-enable"]),
        ({"http_address": "nowhere"}, ["--http-address", "port"]),
        ({"http_address": "127.0.0.1:99999"}, ["--http-address", "port"]),
        ({"stun_address": "nowhere"}, ["--stun-address", "port"]),
        ({"data_dir": "/dev/null"}, ["--data-dir", "no directory"]),
        ({"data_dir": "\0"}, ["--data-dir"]),
        ({"derp_server_enable": "maybe"}, ["--derp-server-enable", "maybe"]),
        ({"derp_server_region_id": "0"}, ["--derp-server-region-id"]),
        ({"derp_server_region_id": str(1 << 53)}, ["--derp-server-region-id"]),
        (
            {
                "derp_server_region_id": str((1 << 53) - 1),
                "derp_server_stun_addresses": "a:1",
            },
            ["RegionID"],
        ),
        (
            {"derp_server_stun_addresses": "a:1,b"},
            ["--derp-server-stun-addresses", "'b'", "port"],
        ),
        ({"derp_server_relay_url": "a:1"}, ["--derp-server-relay-url", "URL"]),
        ({"derp_config_url": "ftp://a"}, ["--derp-config-url", "URL"]),
        ({"derp_config_url": "http://a:x"}, ["--derp-config-url", "URL"]),
        ({"workspace_hostname_suffix": ".coder"}, ["--workspace-hostname", "dot"]),
        ({"workspace_hostname_suffix": "a b"}, ["--workspace-hostname", "DNS"]),
        ({"workspace_hostname_suffix": ""}, ["--workspace-hostname", "DNS"]),
        ({"derp_admission": "closed"}, ["--derp-admission", "open, coordinator"]),
        ({"verify_token_file": "/no/x"}, ["--verify-token-file", "No such file"]),
        ({"verify_token_file": "/dev/null"}, ["--verify-token-file", "no token"]),
        ({"api_rate_limit": "many"}, ["--api-rate-limit", "many"]),
        ({"log_format": "xml"}, ["--log-format", "text, json"]),
        ({"switch": "native"}, ["--switch", "native"]),
        ({"queue_bytes": "0"}, ["--queue-bytes"]),
        ({"drain_timeout": "-1s"}, ["--drain-timeout"]),
        ({"drain_timeout": "5"}, ["--drain-timeout", "unit"]),
        ({"config": "/no/x"}, ["--config", "/no/x"]),
    ],
)
def test_what_cannot_work(flags: dict[str, str], words: list[str]) -> None:
    text = message(**flags)
    assert all(word in text for word in words), text


def test_wrong_value_names_its_variable() -> None:
    assert "CODER_BLOCK_DIRECT" in message({"CODER_BLOCK_DIRECT": "maybe"})
    assert "TAILNET_QUEUE_BYTES" in message({"TAILNET_QUEUE_BYTES": "maybe"})


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ({"http_address": ":3000"}, "--access-url"),
        ({"http_address": "[::]:3000"}, "--access-url"),
        ({"tls_address": ":443"}, "--tls-address"),
        ({"tls_cert_file": "x"}, "--tls-cert-file"),
        ({"derp_server_relay_url": "http://10.0.0.1:80"}, "--derp-server-relay-url"),
        ({"derp_server_stun_addresses": "a:1,disable"}, "disable"),
        ({"block_direct_connections": "1", "stun_address": ":1"}, "--stun-address"),
    ],
)
def test_what_is_probably_not_meant(flags: dict[str, str], word: str) -> None:
    [warning] = load(**flags).warnings
    assert word in warning
    assert "\n" not in warning


def test_nothing_odd_no_warnings() -> None:
    assert load(http_address=":3000", access_url="http://a").warnings == ()
    assert load(derp_server_stun_addresses="disable").warnings == ()


# -- the token of /derp/verify ----------------------------------------------


@pytest.mark.parametrize("content", [b"token", b" token\r\n", b"\ntoken"])
def test_token(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    assert read_verify_token(tmp_path / "token") == "token"


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"two words", b"two\nlines", b"\xe9", b"x" * 5000, b"\0"]
)
def test_no_token(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_verify_token(tmp_path / "token")
    assert "two" not in str(caught.value)


# -- properties -------------------------------------------------------------

FLAG_TEXTS = st.dictionaries(
    st.sampled_from(
        [f.name for f in SERVE_FLAGS if f.name not in ("config", "data-dir")]
    ),
    st.sampled_from(
        ["", "true", "0", "5", "1000", ":1", "a:1", "disable", "http://a", "1s", "text",
         "/dev/null", "open", "\0", "a,b", "é\n"]
    ),
    max_size=4,
)  # fmt: skip


@given(flags=FLAG_TEXTS)
def test_any_texts_make_settings_or_one_line(flags: dict[str, str]) -> None:
    try:
        settings = load_serve_settings(flags, {})
    except ConfigError as exc:
        reason: str | None = str(exc)
    else:
        reason = None
        url = settings.access_url_at(http_port=1, tls_port=2)
        if not (settings.derp_map.config_path or settings.derp_map.config_url):
            build_derp_map(settings.derp_map, access_url=url, stun_port=3).validate()
    assert reason is None or (reason and "\n" not in reason)
