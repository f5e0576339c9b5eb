"""STUN: binding requests, for both ends."""
