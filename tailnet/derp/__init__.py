"""DERP: the protocol of the relay, for both ends."""
