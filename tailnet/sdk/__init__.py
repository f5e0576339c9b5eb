"""The control plane as seen from a client: Coder's API and coordination."""
