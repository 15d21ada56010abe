"""A Unix socket before another that can go silent: bytes are taken and go nowhere, as when a network dies unnoticed."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class SilentProxy:
    """Passes everything on until `silence()`; connections made after that pass again. Use as a context."""

    path: Path
    behind: Path
    connections: int = 0
    _dead: list[threading.Event] = field(default_factory=list)
    _tasks: set[asyncio.Task[None] | None] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def __enter__(self) -> SilentProxy:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def silence(self) -> None:
        """No connection that is open now passes a byte any more, and none is closed."""
        for dead in self._dead:
            dead.set()

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_unix_server(self._connection, self.path)
        ready.set()
        await self._stop.wait()
        server.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dead = threading.Event()
        # The loop itself holds a task of a connection that nobody writes to by a weak reference only.
        self._tasks.add(asyncio.current_task())
        self.connections += 1
        self._dead.append(dead)
        inner, outer = await asyncio.open_unix_connection(self.behind)
        try:
            with contextlib.suppress(ConnectionError):
                await asyncio.gather(_pass(reader, outer, dead), _pass(inner, writer, dead))
        finally:
            outer.close()
            writer.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dead: threading.Event) -> None:
    while data := await reader.read(1 << 16):
        if not dead.is_set():
            writer.write(data)
            await writer.drain()
    if not dead.is_set():
        writer.close()
