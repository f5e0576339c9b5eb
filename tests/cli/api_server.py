"""A server of the API on loopback, for the commands that ask one."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer

__all__ = ("TOKEN", "ApiServer", "serving_api")

TOKEN = "ABCDEFGHIJ-abcdefghijklmnopqrstuv"


@dataclass
class ApiServer:
    """What it answers, and what it was asked.

    Attributes:
        url: Where it is.
        answers: Bodies by path.
        status: Of all answers.
        content_type: Of all answers.
        asked: Path, token and ``Accept`` of each request.
    """

    url: str
    answers: Mapping[str, str]
    status: int = 200
    content_type: str = "application/json; charset=utf-8"
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)

    @property
    def options(self) -> tuple[str, ...]:
        return "--url", self.url, "--token", TOKEN


@contextmanager
def serving_api(answers: Mapping[str, str]) -> Iterator[ApiServer]:
    """Serve while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            token = self.headers.get("Coder-Session-Token")
            server.asked.append((self.path, token, self.headers.get("Accept")))
            body = answers.get(self.path, '{"message":"Route not found."}').encode()
            status = server.status if self.path in answers else 404
            self.send_response(status)
            self.send_header("Content-Type", server.content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as listener:
        server = ApiServer(f"http://127.0.0.1:{listener.server_port}", answers)
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown()
            thread.join()
