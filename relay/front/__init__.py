"""From a socket to the room that serves it: listeners, TLS, HTTP, router."""
