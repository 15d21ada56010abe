"""The console's one importer of httpx, and its transport over a Unix socket.

httpx's own transport brings httpcore and anyio, 35 ms of imports that a `qd status` has no use for: a Unix socket needs
no pool, no TLS and no proxy. So requests to an agent go over asyncio and h11 here, one connection each, and anything
on TCP (the gateway) goes over httpx's own. Environment proxies are never used.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

# httpx imports its command line when click and rich are installed: 45 ms that nothing here needs. The entry is taken
# away again at once, so that somebody else's `import httpx._main` still works.
if "httpx" not in sys.modules:
    sys.modules["httpx._main"] = None  # type: ignore[assignment]
import h11
import httpx

if sys.modules.get("httpx._main", ...) is None:
    del sys.modules["httpx._main"]

HTTPError = httpx.HTTPError
Response = httpx.Response
ConnectError = httpx.ConnectError
ConnectTimeout = httpx.ConnectTimeout
TimeoutException = httpx.TimeoutException
Timeout = httpx.Timeout
AsyncClient = httpx.AsyncClient
InvalidURL = httpx.InvalidURL

_READ = 256 * 1024


def unix_client(path: Path, token: str, timeout: httpx.Timeout) -> httpx.AsyncClient:
    """A client for the agent behind this socket."""
    return httpx.AsyncClient(
        transport=UnixTransport(path),
        base_url="http://localhost",
        headers={"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"},
        timeout=timeout,
        trust_env=False,
    )


def gateway_client(timeout: httpx.Timeout) -> httpx.AsyncClient:
    """A client for model endpoints: over TCP, certificates verified, no environment proxies."""
    return httpx.AsyncClient(timeout=timeout, trust_env=False)


class UnixTransport(httpx.AsyncBaseTransport):
    """HTTP/1.1 over a Unix socket. A body is sent while the answer is awaited: an early refusal ends the sending."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        timeout: dict[str, float | None] = request.extensions.get("timeout", {})
        exchange = _Exchange(*await self._connect(timeout.get("connect")), timeout.get("read"))
        try:
            response = await exchange.exchange(request)
        except BaseException:
            exchange.close()
            raise
        return httpx.Response(
            response.status_code, headers=list(response.headers), stream=_Body(exchange), request=request
        )

    async def _connect(self, deadline: float | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(deadline):
                return await asyncio.open_unix_connection(self._path, limit=4 * _READ)
        except TimeoutError as error:
            raise httpx.ConnectTimeout(f"no answer on {self._path}") from error
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise httpx.ConnectError(f"{self._path}: {reason}") from error


class _Exchange:
    """One request and its response on one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, deadline: float | None) -> None:
        self._reader, self._writer, self._deadline = reader, writer, deadline
        self._wire = h11.Connection(h11.CLIENT)
        writer.transport.set_write_buffer_limits(high=4 * _READ)

    async def exchange(self, request: httpx.Request) -> h11.Response:
        """Send and await the answer at once. A body that cannot be read is an error, one that is refused is not."""
        sender = asyncio.ensure_future(self._send(request))
        answer = asyncio.ensure_future(self._response())
        try:
            await asyncio.wait((sender, answer), return_when=asyncio.FIRST_COMPLETED)
            if sender.done() and sender.exception() is not None and not isinstance(sender.exception(), OSError):
                sender.result()
            return await answer
        finally:
            for task in (sender, answer):
                task.cancel()
            await asyncio.gather(sender, answer, return_exceptions=True)

    async def _send(self, request: httpx.Request) -> None:
        headers = [(name, value) for name, value in request.headers.raw if name.lower() != b"connection"]
        headers.append((b"Connection", b"close"))
        head = h11.Request(method=request.method, target=request.url.raw_path, headers=headers)
        self._write(head)
        assert isinstance(request.stream, httpx.AsyncByteStream)
        async for chunk in request.stream:
            self._write(h11.Data(data=chunk))
            await self._writer.drain()
        self._write(h11.EndOfMessage())
        await self._writer.drain()

    def _write(self, event: h11.Event) -> None:
        for part in self._wire.send_with_data_passthrough(event) or ():
            if part:
                self._writer.write(part)

    async def _response(self) -> h11.Response:
        while True:
            event = await self.next_event()
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise httpx.RemoteProtocolError("the agent closed the connection without an answer")

    async def next_event(self) -> Any:
        while True:
            try:
                event = self._wire.next_event()
            except h11.RemoteProtocolError as error:
                raise httpx.RemoteProtocolError(str(error)) from error
            if event is not h11.NEED_DATA:
                return event
            try:
                async with asyncio.timeout(self._deadline):
                    data = await self._reader.read(_READ)
            except TimeoutError as error:
                raise httpx.ReadTimeout(f"nothing for {self._deadline} s") from error
            except OSError as error:
                raise httpx.ReadError(str(error)) from error
            self._wire.receive_data(data)

    def close(self) -> None:
        self._writer.close()


class _Body(httpx.AsyncByteStream):
    """The response's bytes as they come."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            event = await self._exchange.next_event()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            else:
                raise httpx.RemoteProtocolError("the answer was cut off")

    async def aclose(self) -> None:
        self._exchange.close()
