"""The owner of everything that waits: one subscription per host, questions, changes, log streams, as tasks of its own.

It folds events into the fleet's state and tells the app a few times a second at most, however many come; what a
person waits for (a deployment's state, an operation, a host lost) does not wait for the next refresh. Screens never
see it: they post `Want…` messages, and get `…Came` messages back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import TYPE_CHECKING, Any

from textual.message import Message

from quarterdeck_agent.protocol import Delta, Preview
from quarterdeck_console.errors import ConsoleError, NotAllowed
from quarterdeck_console.state import FleetState, HostState, deltas
from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui.context import Context

if TYPE_CHECKING:
    from textual.message_pump import MessagePump

    from quarterdeck_console.fleet import FleetEvent
    from quarterdeck_console.tui.backend import Backend

RATES = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Seconds between two refreshes of the figures; `+` and `-` go along them."""

URGENT = 0.1
"""Seconds that news a person waits for is held back, so that a burst makes one refresh."""

SLICE = 0.002
"""Seconds of folding events before whoever presses a key has a turn."""

FLUSH = 0.25
"""Seconds between two batches of log lines."""

WAITING_LINES = 20_000
"""Log lines that may wait for a flush; the oldest beyond are dropped and counted."""

_URGENT_KINDS = frozenset({"deployment", "operation", "version", "revision", "part", "info"})

log = logging.getLogger(__name__)


class Session:
    """Lives from the first frame to the end of the app. `post` takes messages to the app."""

    def __init__(
        self, context: Context, backend: Callable[[], Backend], post: Callable[[Message], object], refresh: float
    ) -> None:
        self._context, self._make, self._post = context, backend, post
        self.refresh = refresh
        self._hosts: dict[str, HostState] = {host.name: HostState(host.name) for host in context.fleet.hosts}
        self.fleet = FleetState(dict(self._hosts))
        self._dirty: set[str] = set()
        self._waiting: dict[str, list[Delta]] = {}
        self._urgent, self._shown = asyncio.Event(), asyncio.Event()
        self._shown.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams: dict[MessagePump, asyncio.Task[None]] = {}
        self._pushes: dict[MessagePump, set[asyncio.Task[None]]] = {}

    async def start(self) -> None:
        """Begin to listen. Imports what talks to hosts, beside the keys: call it when the first frame is out."""
        self._backend = await asyncio.to_thread(self._make)
        self._spawn(self._listen())
        self._spawn(self._publish())

    async def close(self) -> None:
        """End every task."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- the fleet -------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Take events as they come. A flood of them leaves room for keys: after `SLICE` of work others have a turn."""
        from quarterdeck_console.fleet import fold

        turn = time.monotonic() + SLICE
        async with contextlib.aclosing(self._backend.events()) as events:
            async for event in events:
                self._take(event, fold)
                if time.monotonic() > turn:
                    await asyncio.sleep(0)
                    turn = time.monotonic() + SLICE

    def _take(self, event: FleetEvent, fold: Callable[[FleetState, FleetEvent, datetime], FleetState]) -> None:
        self._remember(event)
        self._dirty.add(event.host)
        if event.event is not None and event.event.delta is not None:
            self._waiting.setdefault(event.host, []).append(event.event.delta)
            if event.event.delta.kind in _URGENT_KINDS or self._hosts[event.host].connection != "live":
                self._urgent.set()
            return
        self._fold_waiting(event.host)
        old = self._hosts.get(event.host) or HostState(event.host)
        one = fold(FleetState({event.host: old}), event, self._context.now())
        self._hosts[event.host] = new = one.hosts[event.host]
        if old.connection != new.connection or (event.event is not None and event.event.status is not None):
            self._urgent.set()

    def _fold_waiting(self, host: str) -> None:
        """A host's deltas are folded in when they are about to be shown: of a gauge only its newest value counts."""
        if changes := self._waiting.pop(host, None):
            old = self._hosts.get(host) or HostState(host)
            self._hosts[host] = deltas(FleetState({host: old}), host, changes, self._context.now()).hosts[host]

    def _remember(self, event: FleetEvent) -> None:
        """Keep the points of the gauges that are drawn as sparklines."""
        if event.event is None:
            return
        history, host, delta, status = self._context.history, event.host, event.event.delta, event.event.status
        if status is not None:
            if status.gauges is not None:
                history.add(host, "cpu", "", status.gauges.cpu)
            for gpu in status.gpus:
                history.add(host, "gpu", gpu.uuid, gpu.utilisation)
            names = [(gauge, each.name) for each in status.deployments for gauge in ("rate", "p95")]
            history.keep(host, [("cpu", ""), *(("gpu", gpu.uuid) for gpu in status.gpus), *names])
        elif delta is not None and delta.value is not None:
            if delta.kind == "gauges":
                history.add(host, "cpu", "", delta.value.cpu)
            elif delta.kind == "gpu":
                history.add(host, "gpu", delta.key, delta.value.utilisation)
            elif delta.kind == "traffic" and delta.value.weight > 0:
                history.add(host, "rate", delta.value.deployment, delta.value.rate)
                history.add(host, "p95", delta.value.deployment, delta.value.p95)

    async def _publish(self) -> None:
        """Tell the app: soon after urgent news, else once a refresh, and never before it has shown the last."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.refresh):
                    await self._urgent.wait()
                    await asyncio.sleep(URGENT)
            self._urgent.clear()
            await self._shown.wait()
            self._shown.clear()
            turn = time.monotonic() + SLICE
            for host in tuple(self._waiting):
                self._fold_waiting(host)
                if time.monotonic() > turn:
                    await asyncio.sleep(0)
                    turn = time.monotonic() + SLICE
            self.fleet = FleetState(dict(self._hosts))
            changed, self._dirty = frozenset(self._dirty), set()
            self._post(m.FleetChanged(self.fleet, changed))

    def shown(self) -> None:
        """The app has shown the last news and takes the next."""
        self._shown.set()

    def change_refresh(self, direction: int) -> float:
        """The next faster (-1) or slower (+1) rate, in seconds."""
        if direction < 0:
            self.refresh = next((rate for rate in reversed(RATES) if rate < self.refresh), RATES[0])
        else:
            self.refresh = next((rate for rate in RATES if rate > self.refresh), RATES[-1])
        self._urgent.set()
        return self.refresh

    # --- questions -------------------------------------------------------------------------------------------------

    def answer(self, want: m.Want) -> None:
        """Begin whatever a screen or dialog wants; the answer is posted to it."""
        if isinstance(want, m.WantDetail):
            self._spawn(self._detail(want))
        elif isinstance(want, m.WantSeries):
            self._spawn(self._series(want))
        elif isinstance(want, m.WantPreviews):
            self._spawn(self._previews(want))
        elif isinstance(want, m.WantPush):
            self._pushes.setdefault(want.asker, set()).add(self._spawn(self._push(want)))
        elif isinstance(want, m.EndPush):
            for task in self._pushes.pop(want.asker, ()):
                task.cancel()
        elif isinstance(want, m.WantRemoveVersion):
            self._spawn(self._remove_version(want))
        elif isinstance(want, m.WantLogs):
            self._end_stream(want.asker)
            self._streams[want.asker] = self._spawn(self._logs(want))
        elif isinstance(want, m.EndLogs):
            self._end_stream(want.asker)

    async def _detail(self, want: m.WantDetail) -> None:
        try:
            came = m.DetailCame(want.target, await self._backend.detail(want.target))
        except ConsoleError as error:
            came = m.DetailCame(want.target, error=error)
        want.asker.post_message(came)

    async def _series(self, want: m.WantSeries) -> None:
        try:
            found = await self._backend.series(want.host, want.name, want.key, want.since, want.points)
            came = m.SeriesCame(want.host, want.name, want.key, want.since, found)
        except ConsoleError as error:
            came = m.SeriesCame(want.host, want.name, want.key, want.since, error=error)
        want.asker.post_message(came)

    async def _previews(self, want: m.WantPreviews) -> None:
        async def one(target: m.Target) -> Preview | ConsoleError:
            try:
                return await self._backend.preview(want.wish, target)
            except ConsoleError as error:
                return error

        found = await asyncio.gather(*(one(target) for target in want.wish.targets))
        want.asker.post_message(m.PreviewsCame(want.wish, tuple(found)))

    async def _push(self, want: m.WantPush) -> None:
        if self._context.read_only:
            refused = NotAllowed("this console is read-only: nothing is pushed")
            want.asker.post_message(m.PushCame(None, "failed", error=refused))
            return
        try:
            async with contextlib.aclosing(self._backend.push(want.hosts, want.folder, want.allow_pickle)) as steps:
                async for came in steps:
                    want.asker.post_message(came)
        except ConsoleError as error:
            want.asker.post_message(m.PushCame(None, "failed", error=error))

    async def _remove_version(self, want: m.WantRemoveVersion) -> None:
        removed = m.VersionRemoved(want.host, want.label)
        try:
            if self._context.read_only:
                raise NotAllowed("this console is read-only: nothing is removed")
            await self._backend.remove_version(want.host, want.id)
        except ConsoleError as error:
            removed = m.VersionRemoved(want.host, want.label, error)
        want.asker.post_message(removed)

    # --- logs ------------------------------------------------------------------------------------------------------

    def _end_stream(self, asker: MessagePump) -> None:
        if (task := self._streams.pop(asker, None)) is not None:
            task.cancel()

    async def _logs(self, want: m.WantLogs) -> None:
        waiting: list[m.LogEntry] = []
        reading = asyncio.create_task(self._read_logs(want.wish, waiting))
        try:
            while True:
                await asyncio.wait((reading,), timeout=FLUSH)
                ended = reading.done()
                if waiting or ended:
                    batch = tuple(waiting)
                    waiting.clear()
                    if not want.asker.post_message(m.LogsCame(batch, ended, want.wish)):
                        return
                if ended:
                    reading.result()
                    return
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read_logs(self, wish: m.LogWish, waiting: list[m.LogEntry]) -> None:
        try:
            async with contextlib.aclosing(self._backend.logs(wish)) as entries:
                async for entry in entries:
                    waiting.append(entry)
                    while not wish.follow and len(waiting) >= WAITING_LINES:  # noqa: ASYNC110 - the flush empties it
                        # Whoever reads from the beginning wants every line; hosts wait for a slow reader.
                        await asyncio.sleep(FLUSH / 4)
                    if len(waiting) > WAITING_LINES:
                        half = WAITING_LINES // 2
                        lost = m.LogEntry(entry.target, note=f"{half} lines were skipped: they came too fast to show")
                        waiting[: half + 1] = [lost]
        except ConsoleError as error:
            waiting.append(m.LogEntry(wish.targets[0], error=error))

    # --- changes ---------------------------------------------------------------------------------------------------

    def change(self, wish: m.Wish) -> None:
        """Make a wish true; how it goes is told line by line, and by the fleet's own events."""
        if self._context.read_only:
            self._post(m.Told("this console is read-only: nothing was changed", bad=True))
            return
        for target in wish.targets:
            self._spawn(self._change(wish, target))

    async def _change(self, wish: m.Wish, target: m.Target) -> None:
        what = f"{wish.kind} {target.name} on {target.host}"
        self._post(m.Told(f"{what}: asked"))
        try:
            async with contextlib.aclosing(self._backend.change(wish, target)) as states:
                async for operation in states:
                    last = operation
        except ConsoleError as error:
            self._post(m.Told(f"{what}: {error.detail}" + (f" ({error.hint})" if error.hint else ""), bad=True))
            return
        self._post(m.Told(f"{what}: {last.state.value}" + (f", {last.summary}" if last.summary else "")))

    # --- tasks -----------------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        for asker in [asker for asker, stream in self._streams.items() if stream is task]:
            del self._streams[asker]
        for pushes in self._pushes.values():
            pushes.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the session ended", exc_info=error)
            self._post(m.Told(f"the console made a mistake: {type(error).__name__}: {error}", bad=True))
