"""A proxy in front of the daemon that changes what a client asks: what authorization plugins and bad proxies can do.

With `retell` it changes what the daemon answers too, which can pretend a daemon that has what this one has not.
"""

from __future__ import annotations

import http.client
import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

DAEMON = "/var/run/docker.sock"
Tamper = Callable[[dict[str, Any]], None]
Retell = Callable[[str, Any], None]
"""Changes the answer, a JSON value, to the request of this path."""


class ToDaemon(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(DAEMON)


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    tamper: Tamper
    retell: Retell | None
    requests: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        return

    def address_string(self) -> str:
        return "local"

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(f"{self.command} {self.path}")
        if "/containers/create" in self.path:
            asked = json.loads(body)
            self.server.tamper(asked)
            body = json.dumps(asked).encode()
        connection = ToDaemon("localhost")
        headers = {key: value for key, value in self.headers.items() if key.lower() != "content-length"}
        connection.request(self.command, self.path, body or None, headers)
        answer = connection.getresponse()
        content = answer.read()
        if self.server.retell is not None and content.startswith((b"{", b"[")):
            told = json.loads(content)
            self.server.retell(self.path, told)
            content = json.dumps(told).encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.getheader("Content-Type") or "application/json")
        if answer.status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        connection.close()

    do_GET = do_POST = do_DELETE = do_HEAD = forward


@contextmanager
def tampering(folder: Path, tamper: Tamper, retell: Retell | None = None) -> Iterator[tuple[str, list[str]]]:
    """The proxy's address and the requests that it saw."""
    path = folder / "proxy.sock"
    server = Server(str(path), Handler)
    server.tamper, server.retell, server.requests = tamper, retell, []
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"unix://{path}", server.requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
