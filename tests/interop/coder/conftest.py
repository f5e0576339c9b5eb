from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.interop.coder.servers import ServerKind
from tests.interop.network import Network, open_network
from tests.interop.tools import find_coder_program, needs


@pytest.fixture(
    params=[ServerKind.OURS, ServerKind.REFERENCE],
    ids=["ours", "reference"],
)
def kind(request: pytest.FixtureRequest) -> ServerKind:
    """Whose server; every scenario runs against both."""
    kind: ServerKind = request.param
    needs(find_coder_program, "coderclient")
    return kind


@pytest.fixture
def network() -> Iterator[Network]:
    """Namespaces in which the agent (A) and the client (B) reach each other."""
    with open_network() as network:
        network.forward_packets()
        yield network
