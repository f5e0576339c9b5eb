"""The relay program: a drop-in for derper.

``open_relay`` runs one inside another program.
"""

from __future__ import annotations

from relay.app import Relay, open_relay

__all__ = ("Relay", "open_relay")
