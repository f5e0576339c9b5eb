from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from relay import config
from relay.config import (
    FLAGS,
    ListenAddress,
    LogFormat,
    Settings,
    SwitchChoice,
    help_text,
    load_settings,
)
from tailnet.errors import ConfigError

# What "derper -h" of tailscale v1.102.0 lists, with its defaults; those that
# depend on the home directory are left out.
DERPER = {
    "a": ":443",
    "accept-connection-burst": 9223372036854775807,
    "accept-connection-limit": math.inf,
    "ace": False,
    "acme-eab-key": "",
    "acme-eab-kid": "",
    "acme-email": "",
    "acme-ip-certs": False,
    "bootstrap-dns-names": "",
    "c": "",
    "certmode": "letsencrypt",
    "derp": True,
    "dev": False,
    "home": "",
    "hostname": "derp.tailscale.com",
    "http-port": 80,
    "mesh-psk-file": "",
    "mesh-with": "",
    "rate-config": "",
    "secrets-path-prefix": "prod/derp",
    "secrets-url": "",
    "socket": "",
    "stun": True,
    "stun-port": 3478,
    "tcp-keepalive-time": 600.0,
    "tcp-user-timeout": 15.0,
    "tcp-write-timeout": 2.0,
    "unpublished-bootstrap-dns-names": "",
    "verify-client-url": "",
    "verify-client-url-fail-open": True,
    "verify-clients": False,
    "version": False,
}


def load(*argv: str, **environ: str) -> Settings:
    return load_settings(argv, environ)


def message(*argv: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*argv, **environ)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_table_has_all_flags_of_derper_with_their_defaults() -> None:
    ours = {flag.name: flag.default for flag in FLAGS}
    assert {name: ours[name] for name in DERPER} == DERPER
    assert {"certdir", "secrets-cache-dir"} <= set(ours)
    for name in ours:
        assert f"  -{name}" in help_text()


def test_defaults() -> None:
    settings = load("-certmode", "manual")
    assert settings.listen == ListenAddress("", 443)
    assert settings.serve_tls
    assert settings.http == ListenAddress("", 80)
    assert settings.stun == ListenAddress("", 3478)
    assert (settings.queue_bytes, settings.queue_packets) == (2 << 20, 4096)
    assert 0 < settings.queue_total <= config.memory_bytes() // 4
    assert settings.switch is SwitchChoice.AUTO
    assert settings.log_format is LogFormat.TEXT
    assert settings.accept_connection_limit == math.inf
    assert settings.warnings == ()


def test_help_and_version_come_before_any_check() -> None:
    assert load("-h", "-nope").wants_help
    assert load("-version", "-home", "nonsense").wants_version
    assert load("-a", ":80", TAILNET_RELAY_VERSION="1.2.3").warnings == ()


def test_command_line_beats_environment_beats_file(tmp_path: Path) -> None:
    file = tmp_path / "relay.toml"
    file.write_text(
        'a = ":1"\nhttp-port = 2\nstun-port = 3\nstun = true\n'
        'tcp-write-timeout = "1m"\ncertmode = "manual"\n'
    )
    settings = load(
        "-config",
        str(file),
        "-a",
        ":11",
        TAILNET_RELAY_A=":12",
        TAILNET_RELAY_HTTP_PORT="22",
        TAILNET_RELAY_HOSTNAME="",
    )
    assert settings.listen.port == 11
    assert settings.http == ListenAddress("", 22)
    assert settings.stun == ListenAddress("", 3)
    assert settings.tcp_write_timeout == 60.0
    assert settings.hostname == "derp.tailscale.com"  # empty means unset
    by_environment = load(TAILNET_RELAY_CONFIG=str(file))
    assert by_environment.listen.port == 1


def test_errors_name_their_source(tmp_path: Path) -> None:
    file = tmp_path / "relay.toml"
    assert (
        message("-http-port", "x")
        == 'invalid value "x" for flag -http-port: parse error'
    )
    assert (
        message(TAILNET_RELAY_STUN="maybe")
        == 'invalid value "maybe" for TAILNET_RELAY_STUN: parse error'
    )
    file.write_text('tcp-user-timeout = "5"\n')
    assert (
        message("--config", str(file)) == 'invalid value "5" for tcp-user-timeout in '
        f"{file}: missing unit in duration"
    )
    # Also when only the whole shows the mistake.
    assert "TAILNET_RELAY_HOME" in message("-dev", TAILNET_RELAY_HOME="ftp://x")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("nope = 1\n", "there is no setting 'nope'"),
        ("http_port = 1\n", "there is no setting 'http_port'"),
        ('config = "x"\n', "there is no setting 'config'"),
        ("stun = 1\n", "invalid value 1 for stun in"),
        ("http-port = true\n", "invalid value True for http-port in"),
        ("a = 443\n", "invalid value 443 for a in"),
        ("http-port = 1.5\n", 'invalid value "1.5" for http-port in'),
        ("tcp-write-timeout = 2\n", "no duration"),
        ("[a]\n", "invalid value {} for a in"),
        ("a = \n", "is no TOML file"),
        ("\xff", "is no TOML file"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "relay.toml"
    file.write_text(text, encoding="latin-1")
    assert part in message("-config", str(file))


def test_missing_file(tmp_path: Path) -> None:
    text = message("-config", str(tmp_path / "none"))
    assert text.startswith('flag -config: cannot read "')
    assert text.endswith("No such file or directory")


@pytest.mark.parametrize(
    ("argv", "serve_tls"),
    [
        (["-a", ":443", "-certmode=manual"], True),
        (["-a", ":https", "-certmode=manual"], True),
        (["-a", ":8443", "-certmode=manual"], True),
        (["-a", ":8443"], False),
        (["-a", "127.0.0.1:80"], False),
        (["-a", ":0443"], False),  # the text decides, tsweb.IsProd443
        (["-dev"], False),
        (["-dev", "-a", ":443"], False),
        (["-dev", "-certmode=manual"], True),
    ],
)
def test_who_speaks_tls(argv: list[str], serve_tls: bool) -> None:
    settings = load(*argv)
    assert settings.serve_tls is serve_tls
    assert (settings.http is not None) is serve_tls


def test_dev_listens_on_3340() -> None:
    settings = load("-dev", "-a", "127.0.0.1:1")
    assert settings.listen == ListenAddress("", 3340)


@pytest.mark.parametrize("mode", ["letsencrypt", "gcp"])
def test_acme_is_refused_only_where_tls_needs_it(mode: str) -> None:
    assert "use -certmode manual" in message("-certmode", mode)
    assert not load("-a", ":80", "-certmode", mode).serve_tls


def test_unknown_certmode_and_empty_certdir() -> None:
    assert "-certmode" in message("-certmode", "magic")
    assert "-certdir" in message("-certmode", "manual", "-certdir", "")


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["-mesh-with", "a,b"], "mesh"),
        (["-mesh-psk-file", "/x"], "mesh"),
        (["-secrets-url", "https://x"], "mesh"),
        (["-verify-clients"], "tailscaled"),
        (["-socket", "/x"], "tailscaled"),
        (["-rate-config", "/x"], "rate limits"),
        (["-ace"], "CONNECT"),
        (["-acme-ip-certs"], "certificates"),
        (["-acme-email", "x@example.com"], "certificates"),
        (["-unpublished-bootstrap-dns-names", "x"], "DNS"),
        (["-switch", "native"], "native"),
    ],
)
def test_what_is_not_built_is_refused(argv: list[str], word: str) -> None:
    text = message("-a", ":80", *argv)
    assert word in text
    assert argv[0] in text


def test_what_is_not_built_may_stand_at_its_default() -> None:
    load("-a", ":80", "-ace=false", "-mesh-with=", "-secrets-path-prefix", "prod/derp")


def test_ports_off_and_out_of_range() -> None:
    settings = load("-certmode=manual", "-http-port=-1", "-stun=false")
    assert settings.http is None
    assert settings.stun is None
    assert "-http-port" in message("-certmode=manual", "-http-port=65536")
    assert "-stun-port" in message("-a", ":80", "-stun-port=-1")
    load("-a", ":80", "-stun=false", "-stun-port=-1")


def test_helper_ports_listen_where_the_main_one_does() -> None:
    settings = load("-certmode=manual", "-a", "[::1]:8443")
    assert str(settings.listen) == "[::1]:8443"
    assert settings.http == ListenAddress("::1", 80)
    assert settings.stun == ListenAddress("::1", 3478)


@pytest.mark.parametrize("home", ["", "blank", "https://example.com/x"])
def test_home(home: str) -> None:
    assert load("-a", ":80", "-home", home).home == home


@pytest.mark.parametrize("home", ["Blank", "example.com", "//example.com"])
def test_bad_home(home: str) -> None:
    assert "-home" in message("-a", ":80", "-home", home)


@pytest.mark.parametrize(
    "url", ["example.com/verify", "ftp://x/", "http://", "http://x:y/", "http://[/"]
)
def test_bad_admission_url_is_found_at_the_start(url: str) -> None:
    assert "-verify-client-url" in message("-a", ":80", "-verify-client-url", url)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 15.0), ("-1s", None), ("10m", 600.0), ("24h", 32767.0)],
)
def test_tcp_keepalive_time(text: str, seconds: float | None) -> None:
    assert load("-a", ":80", "-tcp-keepalive-time", text).tcp_keepalive_time == seconds


@pytest.mark.parametrize(
    "argv",
    [
        ["-tcp-user-timeout=-1s"],
        ["-tcp-write-timeout=-1s"],
        ["-drain-timeout=-1s"],
        ["-queue-bytes=0"],
        ["-queue-packets=-1"],
        ["-queue-total=-1"],
        ["-accept-connection-limit=-1"],
        ["-accept-connection-limit=NaN"],
        ["-accept-connection-burst=-1"],
        ["-log-format=xml"],
        ["-switch=magic"],
    ],
)
def test_values_out_of_range(argv: list[str]) -> None:
    assert argv[0].split("=")[0] in message("-a", ":80", *argv)


def test_queues() -> None:
    settings = load("-a", ":80", "-queue-bytes=1MiB", "-queue-total", "1GiB")
    assert (settings.queue_bytes, settings.queue_total) == (1 << 20, 1 << 30)


def test_names_are_split() -> None:
    settings = load("-a", ":80", "-bootstrap-dns-names", "a.example,,b.example")
    assert settings.bootstrap_dns_names == ("a.example", "b.example")


def test_warnings_for_what_is_probably_not_meant() -> None:
    settings = load(
        "-a",
        ":80",
        "-stun",
        "false",
        TAILNET_RELAY_HOSTNAM="x",
    )
    assert settings.stun is not None
    assert len(settings.warnings) == 2
    assert "false" in settings.warnings[0]
    assert "TAILNET_RELAY_HOSTNAM" in settings.warnings[1]
    assert (
        "TAILSCALE_DERPER_MESH_KEY"
        in (load("-dev", TAILSCALE_DERPER_MESH_KEY="x").warnings[0])
    )


@pytest.mark.parametrize("text", ["", "443", "::1:443", ":65536", ":nonsense"])
def test_bad_listen_address_is_named(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ListenAddress.from_text(text)
    assert message("-a", text) == f'invalid value "{text}" for flag -a: {caught.value}'


def test_memory_of_a_container_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def read_text(path: Path, encoding: str) -> str:
        if path.name == "memory.max":
            return "1048576\n"
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", read_text)
    assert config.memory_bytes() == 1 << 20


@given(
    argv=st.lists(
        st.one_of(
            st.sampled_from([f"-{flag.name}" for flag in FLAGS if flag.name != "h"]),
            st.text(max_size=8),
        ),
        max_size=6,
    )
)
def test_any_command_line_is_settings_or_one_line(argv: list[str]) -> None:
    try:
        load_settings(argv, {})
    except ConfigError as exc:
        assert len(str(exc).splitlines()) == 1  # noqa: PT017
