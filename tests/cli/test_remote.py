from __future__ import annotations

import pytest

from tailnet.cli.login import Login
from tailnet.cli.remote import access_of, run_on_server
from tailnet.errors import ApiError, ConnectError
from tests.cli.api_server import TOKEN, serving_api

BUILD_INFO = {"/api/v2/buildinfo": '{"version":"v9"}'}


def test_a_function_runs_on_the_server_of_a_login() -> None:
    with serving_api(BUILD_INFO) as server:
        login = Login(server.url, TOKEN)
        assert run_on_server(login, lambda c: c.build_info()).version == "v9"
        server.status = 500
        with pytest.raises(ApiError, match="status 500"):
            run_on_server(login, lambda c: c.build_info())
    with pytest.raises(ConnectError):
        run_on_server(login, lambda c: c.build_info())


def test_proxies_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "proxy.test:1")
    access = access_of(Login("https://coder.test", TOKEN))
    assert access.token == TOKEN
    assert str(access.proxies.proxy_for("https", "coder.test", 443)) == (
        "http://proxy.test:1"
    )
