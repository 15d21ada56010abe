"""Speaks to Docker's Engine API over a plain socket, where the SDK would be too heavy or could not be interrupted."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

DEADLINE = 5.0
ANSWER_LIMIT = 4 << 20


def dialer(base_url: str) -> Callable[[], socket.socket]:
    """Opens sockets to `unix:///path` or `tcp://host:port`."""
    parts = urlsplit(base_url)
    if parts.scheme in ("unix", "http+unix"):
        path = parts.netloc + parts.path

        def dial() -> socket.socket:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(DEADLINE)
            try:
                sock.connect(path)
            except OSError:
                sock.close()
                raise
            return sock

        return dial
    address = (parts.hostname or "127.0.0.1", parts.port or 2375)
    return lambda: socket.create_connection(address, timeout=DEADLINE)


def get(base_url: str, path: str) -> dict[str, Any]:
    """One JSON object from the Engine API. Raises OSError, `http.client.HTTPException` or ValueError. Blocking."""
    with dialer(base_url)() as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n".encode())
        response = http.client.HTTPResponse(sock, method="GET")
        response.begin()
        body = response.read(ANSWER_LIMIT)
        response.close()
    if response.status != 200:
        raise OSError(f"Docker answered {response.status} to {path}")
    found = json.loads(body)
    if not isinstance(found, dict):
        raise ValueError(f"Docker's answer to {path} is not an object")
    return found
