"""Answers without an end: server-sent events of the board and log lines as NDJSON.

A stream ends when its reader goes away, when its source ends, or at once when the agent stops. A slow reader holds up
nobody: it is one place in the board's ring, or one bounded buffer of lines.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quarterdeck_agent.api.answers import ENCODER
from quarterdeck_agent.board import HEARTBEAT, RING, Board, Event
from quarterdeck_agent.protocol import LogLine

FIRST_WITHIN = 0.25
BUFFER = 256 * 2**10


class Stream(Response):
    """Sends `chunks` as they come, until they end, the reader goes away or `stop` is set."""

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        stop: asyncio.Event,
        media_type: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._chunks = chunks
        self._stop = stop
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self.init_headers({"x-accel-buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        sending = asyncio.create_task(self._send(send))
        ends = {sending, asyncio.create_task(_gone(receive)), asyncio.create_task(self._stop.wait())}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in ends:
                task.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
            await self._chunks.aclose()
        if not sending.cancelled() and (error := sending.exception()) is not None:
            raise error
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send) -> None:
        async for chunk in self._chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def _gone(receive: Receive) -> None:
    """Return when the reader has gone; what it still sends of a body is nothing to a stream."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventText:
    """The board's events as server-sent events (WHATWG HTML, section 9.2), each encoded once for all subscribers."""

    def __init__(self) -> None:
        self._deltas: dict[str, bytes] = {}
        self._snapshot: tuple[Event, bytes] | None = None

    def of(self, event: Event) -> bytes:
        if event.event == "heartbeat":
            return _sse(event.id, "heartbeat", b"{}")
        if event.event == "snapshot":
            if self._snapshot is None or self._snapshot[0] is not event:
                self._snapshot = (event, _encoded(event))
            return self._snapshot[1]
        text = self._deltas.get(event.id)
        if text is None:
            text = self._deltas[event.id] = _encoded(event)
            if len(self._deltas) > RING:
                del self._deltas[next(iter(self._deltas))]
        return text


def _encoded(event: Event) -> bytes:
    return _sse(event.id, event.event, ENCODER.encode(event.payload))


def _sse(id: str, event: str, data: bytes) -> bytes:
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (id.encode(), event.encode(), data)


async def watch(
    board: Board, texts: EventText, last_event_id: str | None, heartbeat: float = HEARTBEAT
) -> AsyncGenerator[bytes, None]:
    """The board as bytes: what follows `last_event_id`, or a snapshot, then every delta as it comes."""
    async for events in board.follow(last_event_id, heartbeat=heartbeat):
        yield b"".join(texts.of(event) for event in events)


async def ndjson(lines: AsyncIterator[LogLine], heartbeat: float = HEARTBEAT) -> AsyncGenerator[bytes, None]:
    """Log lines, one JSON object a line; lines that came while the last chunk was sent travel together.

    After `heartbeat` seconds without one an empty line, so that a reader can tell silence from a dead network.
    """
    lot = _Lot()
    reading = asyncio.create_task(lot.fill(lines))
    try:
        while (chunk := await lot.take(heartbeat)) != b"":
            yield b"\n" if chunk is None else chunk
        await reading
    finally:
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading


async def begun(chunks: AsyncGenerator[bytes, None], within: float = FIRST_WITHIN) -> AsyncGenerator[bytes, None]:
    """The same chunks, started: what is wrong at the first step is raised here, while an error can still be told."""
    first = asyncio.ensure_future(anext(chunks, b""))
    await asyncio.wait({first}, timeout=within)
    if first.done():
        first.result()
    return _after(first, chunks)


async def _after(first: asyncio.Future[bytes], chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    try:
        if chunk := await first:
            yield chunk
            async for chunk in chunks:
                yield chunk
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await chunks.aclose()


class _Lot:
    """A bounded buffer between one that reads lines and one that sends them."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._changed = asyncio.Condition()
        self._ended = False

    async def fill(self, lines: AsyncIterator[Any]) -> None:
        try:
            async for line in lines:
                self._buffer += ENCODER.encode(line) + b"\n"
                async with self._changed:
                    self._changed.notify_all()
                    await self._changed.wait_for(lambda: len(self._buffer) < BUFFER)
        finally:
            self._ended = True
            async with self._changed:
                self._changed.notify_all()

    async def take(self, within: float) -> bytes | None:
        """All that has come since the last time, nothing when that was the end, `None` when that takes too long."""
        async with self._changed:
            try:
                async with asyncio.timeout(within):
                    await self._changed.wait_for(lambda: self._buffer or self._ended)
            except TimeoutError:
                return None
            chunk = bytes(self._buffer)
            self._buffer.clear()
            self._changed.notify_all()
        return chunk
