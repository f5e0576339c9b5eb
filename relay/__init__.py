"""The server programs: a drop-in for derper, and relay and coordinator in one.

``open_relay`` and ``open_server`` run one inside another program. The other
names are what one gives them.

Loaded when they are used: the commands of operators import parts of this
package, and need no server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relay.api.identity import Authenticator, Authorizer
    from relay.app import Relay, open_relay
    from relay.config import Settings, load_settings
    from relay.derp.session import Admission, Newcomer
    from relay.serve_settings import ServeSettings, load_serve_settings
    from relay.server import Server, open_server
    from relay.store.model import Agent, AgentIdentity, User, Workspace
    from relay.store.store import Store

__all__ = (
    "Admission",
    "Agent",
    "AgentIdentity",
    "Authenticator",
    "Authorizer",
    "Newcomer",
    "Relay",
    "ServeSettings",
    "Server",
    "Settings",
    "Store",
    "User",
    "Workspace",
    "load_serve_settings",
    "load_settings",
    "open_relay",
    "open_server",
)

# As above, for when the program runs; tests/test_exports.py compares them.
_HOMES = {
    "Admission": "relay.derp.session",
    "Agent": "relay.store.model",
    "AgentIdentity": "relay.store.model",
    "Authenticator": "relay.api.identity",
    "Authorizer": "relay.api.identity",
    "Newcomer": "relay.derp.session",
    "Relay": "relay.app",
    "ServeSettings": "relay.serve_settings",
    "Server": "relay.server",
    "Settings": "relay.config",
    "Store": "relay.store.store",
    "User": "relay.store.model",
    "Workspace": "relay.store.model",
    "load_serve_settings": "relay.serve_settings",
    "load_settings": "relay.config",
    "open_relay": "relay.app",
    "open_server": "relay.server",
}

# Type checkers know the names from above, and that there are no others.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Load the module that has the name (PEP 562)."""
        from importlib import import_module

        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
