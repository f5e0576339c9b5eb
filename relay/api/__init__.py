"""The HTTP API of the coordinator, one file a family of routes."""
