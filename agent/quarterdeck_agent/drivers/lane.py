"""A thread that does one thing at a time and may be left behind: so calls that can hang are kept off the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue


class Lane:
    """One daemon thread, begun with the first work: one that hangs in a driver must not keep the agent from ending."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: SimpleQueue[tuple[Callable[[], object], Future[None]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def do(self, work: Callable[[], object]) -> Future[None]:
        """Have `work` done after what was asked for before."""
        done: Future[None] = Future()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._work.put((work, done))
        return done

    def end(self) -> None:
        """End the thread once it has done what was asked for."""
        self._work.put(None)

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            work, done = item
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - handed on to whoever waits
                done.set_exception(error)
            else:
                done.set_result(None)


async def finished(work: Future[None], within: float) -> bool:
    """Wait for `work`, at most `within` seconds; it goes on where it takes longer."""
    if work.done() or within <= 0:
        return work.done()
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake(_: Future[None]) -> None:
        # The loop may be closed by the time that a driver answers.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(lambda: None if waiter.done() else waiter.set_result(None))

    work.add_done_callback(wake)
    with suppress(TimeoutError):
        async with asyncio.timeout(within):
            await waiter
    return work.done()
