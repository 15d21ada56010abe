"""Serves the API on a Unix socket of the agent's user alone (0600), inside the agent's own event loop.

uvicorn speaks HTTP (with httptools: twice h11's speed on uploads); what it lacks is added on the connection: a deadline
and a size for the headers, a cap on connections, and who the peer is. It installs no signal handlers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from quarterdeck_agent.api.access import PEER, Peer
from quarterdeck_agent.api.problems import BadRequest, HeadersTooLarge, document
from quarterdeck_agent.errors import AgentError, SettingsError
from quarterdeck_agent.protocol import PROBLEM_MEDIA_TYPE

HEADERS_MAX = 64 * 2**10
BACKLOG = 128
ANSWERS_WITHIN = 1.0

log = logging.getLogger(__name__)


class TooBusy(AgentError):
    code, status, title = "too_busy", 503, "The agent has too many connections"


@dataclass(frozen=True, slots=True)
class Serving:
    """Seconds a request's headers may take, an idle connection is kept, and open answers have at the end."""

    connections: int = 512
    header_deadline: float = 10.0
    keep_alive: int = 75
    shutdown: float = 1.0


class Server:
    """The listening API. `start` returns once it answers, `close` once it is gone."""

    def __init__(self, app: ASGIApp, path: Path, stop: asyncio.Event, serving: Serving | None = None) -> None:
        self._path = path
        self._stop = stop
        serving = serving or Serving()
        config = uvicorn.Config(
            app,
            http=_connection(serving),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=serving.keep_alive,
            timeout_graceful_shutdown=cast(int, serving.shutdown),
        )
        config.load()
        self._server = uvicorn.Server(config)
        self._server.lifespan = config.lifespan_class(config)
        self._socket: socket.socket | None = None
        self._inode = 0

    async def start(self) -> None:
        """Listen. Raises `SettingsError` when another agent answers on the socket already."""
        self._socket = await asyncio.to_thread(listen, self._path)
        self._inode = self._path.stat().st_ino
        # Not `serve()`: that would take the process's signal handlers and wake up ten times a second.
        await self._server.startup(sockets=[self._socket])

    async def close(self) -> None:
        """End the streams, let other answers finish within the deadline, and take the socket away."""
        self._stop.set()
        if self._socket is None:
            return
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        # Accept nobody from here on, and let whoever was accepted a moment ago become a connection: asyncio (3.11)
        # drops his socket without closing it when the listener closes in between.
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        await asyncio.sleep(0)
        await self._server.shutdown(sockets=[self._socket])
        for connection in list(self._server.server_state.connections):
            cast(Any, connection).transport.abort()
        await asyncio.sleep(0)  # an aborted transport lets go of its socket in the loop's next turn
        self._socket = None


def listen(path: Path) -> socket.socket:
    """A listening socket at `path`, 0600 from its first moment. One that nobody answers on is replaced."""
    if _answered(path):
        hint = "Stop the other agent, or set another run_folder."
        raise SettingsError(f"Another agent answers on {path}", field="socket", hint=hint)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made = path.with_name(f".{secrets.token_hex(3)}")
    try:
        listener.setblocking(False)
        listener.bind(str(made))
        made.chmod(0o600)
        listener.listen(BACKLOG)
        made.replace(path)
    except OSError as error:
        listener.close()
        made.unlink(missing_ok=True)
        hint = "Look whether the folder is there, writable, and its path short."
        raise SettingsError(f"Cannot listen on {path}: {error.strerror}", field="socket", hint=hint) from None
    return listener


def _answered(path: Path) -> bool:
    if not path.exists():
        return False
    if not path.is_socket():
        raise SettingsError(f"{path} is not a socket", field="socket", hint="Move it away, or set another run_folder.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(ANSWERS_WITHIN)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # hung is not gone
    return True


def peer_of(connection: socket.socket) -> Peer | None:
    """Who is at the other end of a Unix socket, `None` on any other."""
    if connection.family != socket.AF_UNIX:
        return None
    size = struct.calcsize("3i")
    return Peer(*struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)))


def _connection(serving: Serving) -> type[asyncio.Protocol]:
    class Bounded(_Connection):
        bounds = serving

    return Bounded


class _Connection(HttpToolsProtocol):
    """One connection. uvicorn alone would wait for ever for headers that come a byte a second."""

    bounds = Serving()
    _deadline: asyncio.TimerHandle | None = None
    _between = True  # no request's headers are through, or the last request is whole
    _header_bytes = 0
    _peer: Peer | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._peer = peer_of(transport.get_extra_info("socket"))
        if len(self.connections) > self.bounds.connections:
            self._refuse(TooBusy(f"The agent has {self.bounds.connections} connections", hint="Try again later."))
            return
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._between:
            self._arm()
            self._header_bytes += len(data)
        super().data_received(data)
        if self._between and self._header_bytes > HEADERS_MAX and not self.transport.is_closing():
            self._refuse(HeadersTooLarge(f"The headers have more than {HEADERS_MAX} bytes", hint="Send fewer."))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._arm()
        if self._peer is not None:
            cast("dict[str, Any]", self.scope)[PEER] = self._peer

    def on_headers_complete(self) -> None:
        self._disarm()
        self._between = False
        self._header_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._between = True
        self._header_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._between:
            self._arm()  # the answer came early; what is left of the body must not trickle for ever

    def send_400_response(self, msg: str) -> None:
        self._refuse(BadRequest("That is not HTTP as it is taken here", hint="Send one well-formed HTTP/1.1 request."))

    def _refuse(self, error: AgentError) -> None:
        body = msgspec.json.encode(document(error))
        head = f"HTTP/1.1 {error.status} \r\ncontent-type: {PROBLEM_MEDIA_TYPE}\r\nconnection: close\r\n"
        self.transport.write(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
        self.transport.close()

    def _arm(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.bounds.header_deadline, self._late)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        log.info("closed a connection that sent no whole request within %g s", self.bounds.header_deadline)
        self.transport.close()
