"""What was last seen on this host, as frozen values, and everyone who watches it.

Published to from the event loop's own thread only; read and followed from the same loop, so there is no lock. A
subscriber holds nothing but its place in one shared ring: it can fall behind, get a fresh snapshot and never delay
anybody. The board never asks the engine, the store or the gateway anything.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from itertools import islice
from typing import Any, Literal, NamedTuple, cast, get_args

from quarterdeck_agent.protocol import Delta, DeltaKind, HostInfo, HostStatus

RING = 1_000
HEARTBEAT = 5.0

EventName = Literal["snapshot", "delta", "heartbeat"]


class Event(NamedTuple):
    """One event of `/v1/watch`. The same object goes to every subscriber, so it need be encoded only once."""

    id: str
    event: EventName
    payload: HostStatus | Delta | None


class Board:
    """The latest of everything. Event ids are `{run}-{sequence}`; `run` differs each time the agent starts."""

    def __init__(self, info: HostInfo, *, ring: int = RING) -> None:
        self._run = secrets.token_hex(8)
        self._sequence = 0
        self._ring: deque[Event] = deque(maxlen=ring)
        self._values: dict[str, dict[str, Any]] = {kind: {} for kind in get_args(DeltaKind)}
        self._values["info"][""] = info
        self._status: HostStatus | None = None
        self._snapshot: Event | None = None
        self._waiting: set[asyncio.Future[None]] = set()

    def publish(self, kind: DeltaKind, key: str, value: Any | None) -> None:
        """Set the value of `kind`/`key`, or end it with `None`. Publishing what is there already does nothing."""
        values = self._values[kind]
        if (value is None and key not in values) or values.get(key) == value:
            return
        if value is None:
            del values[key]
        else:
            values[key] = value
        self._sequence += 1
        self._status = self._snapshot = None
        self._ring.append(Event(self._id(), "delta", Delta(kind, key, value)))
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._waiting.clear()

    def publish_all(self, kind: DeltaKind, values: Mapping[str, Any]) -> None:
        """Make `values` all there is of `kind`: keys that are not in it end."""
        for key in [key for key in self._values[kind] if key not in values]:
            self.publish(kind, key, None)
        for key, value in values.items():
            self.publish(kind, key, value)

    def get(self, kind: DeltaKind, key: str = "") -> Any | None:
        """The value of `kind`/`key`, `None` where there is none."""
        return self._values[kind].get(key)

    def all(self, kind: DeltaKind) -> dict[str, Any]:
        """A copy of everything of `kind` by its key."""
        return dict(self._values[kind])

    def status(self) -> HostStatus:
        """Everything last seen, frozen and in a steady order; built again only after something changed."""
        if self._status is None:
            self._status = self._build_status()
        return self._status

    async def subscribe(
        self, last_event_id: str | None = None, *, heartbeat: float = HEARTBEAT
    ) -> AsyncIterator[Event]:
        """Follow the board, one event at a time; see `follow`."""
        async for events in self.follow(last_event_id, heartbeat=heartbeat):
            for event in events:
                yield event

    async def follow(
        self, last_event_id: str | None = None, *, heartbeat: float = HEARTBEAT
    ) -> AsyncIterator[tuple[Event, ...]]:
        """Follow the board in batches, without end: what came after `last_event_id` where the ring still has it,
        otherwise a snapshot first; then every delta, and a heartbeat after `heartbeat` seconds without one. A
        subscriber that falls behind by more than the ring gets a fresh snapshot instead of what it missed.
        """
        place = self._place(last_event_id)
        while True:
            if place is None or self._sequence - place > len(self._ring):
                place = self._sequence
                yield (self._snapshot_event(),)
            elif place < self._sequence:
                news = tuple(islice(self._ring, len(self._ring) - (self._sequence - place), None))
                place = self._sequence
                yield news
            elif not await self._changed(heartbeat):
                yield (Event(self._id(), "heartbeat", None),)

    async def _changed(self, within: float) -> bool:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            async with asyncio.timeout(within):
                await waiter
        except TimeoutError:
            return False
        finally:
            self._waiting.discard(waiter)
        return True

    def _id(self) -> str:
        return f"{self._run}-{self._sequence}"

    def _place(self, last_event_id: str | None) -> int | None:
        """The sequence number that `last_event_id` stands for, `None` when it is not one of this run's."""
        run, _, number = (last_event_id or "").rpartition("-")
        if run != self._run or not (number.isascii() and number.isdecimal()) or len(number) > 18:
            return None
        place = int(number)
        return place if place <= self._sequence else None

    def _snapshot_event(self) -> Event:
        if self._snapshot is None:
            self._snapshot = Event(self._id(), "snapshot", self.status())
        return self._snapshot

    def _build_status(self) -> HostStatus:
        def ordered(kind: DeltaKind, by: Callable[[Any], Any], *, newest_first: bool = False) -> tuple[Any, ...]:
            return tuple(sorted(self._values[kind].values(), key=by, reverse=newest_first))

        return HostStatus(
            info=cast(HostInfo, self._values["info"][""]),
            gauges=self._values["gauges"].get(""),
            parts=ordered("part", lambda part: part.name),
            gpus=ordered("gpu", lambda gpu: (gpu.index, gpu.uuid)),
            gpu_facts=ordered("gpu_facts", lambda facts: facts.uuid),
            gpu_uses=ordered("gpu_use", lambda use: use.uuid),
            deployments=ordered("deployment", lambda deployment: deployment.name),
            traffic=ordered("traffic", lambda traffic: (traffic.deployment, traffic.revision)),
            replica_gauges=ordered(
                "replica_gauges", lambda gauges: (gauges.deployment, gauges.revision, gauges.replica)
            ),
            operations=ordered("operation", lambda operation: (operation.at, operation.id), newest_first=True),
            versions=ordered("version", lambda version: (version.created_at, version.id), newest_first=True),
        )
