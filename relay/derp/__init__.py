"""The DERP half of the relay: handshake, admission, and the switch."""
