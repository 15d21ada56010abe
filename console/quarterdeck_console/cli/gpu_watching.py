"""Showing the fleet's GPUs as they change: on a terminal one table in its place, else a line for each change."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime

from quarterdeck_console import fleet, gpus
from quarterdeck_console.cli import envelope, gpu_table
from quarterdeck_console.cli.call import Call
from quarterdeck_console.cli.watching import tell_lost
from quarterdeck_console.config import Host
from quarterdeck_console.fleet import FleetEvent
from quarterdeck_console.gpus import Device
from quarterdeck_console.state import FleetState

KIND = "GpuEvent"
KINDS = ("gpu", "gpu_facts", "gpu_use")

REDRAWN = 0.5
"""Seconds between two drawings of the table."""


class Watch:
    """What was seen and what was shown of it."""

    def __init__(self, call: Call, hosts: Sequence[Host]) -> None:
        self._call = call
        self._seen = FleetState.of(tuple(host.name for host in hosts))
        self._shown: dict[tuple[str, str], str] = {}
        self._news = asyncio.Event()

    def take(self, event: FleetEvent) -> None:
        """Fold one event in; where there is no table, say what it changed."""
        was_lost = self._seen.hosts[event.host].connection == "lost"
        self._seen = fleet.fold(self._seen, event, datetime.now(UTC))
        self._news.set()
        if self._call.out.redraws:
            return
        if event.error is not None:
            if not was_lost:
                tell_lost(self._call, KIND, event)
        else:
            self._tell(event)

    def _tell(self, event: FleetEvent) -> None:
        assert event.event is not None
        status, delta = event.event.status, event.event.delta
        if status is not None:
            for device in gpus.devices(status):
                self._print(event.host, "snapshot", device)
        elif delta is None:
            if self._call.out.json:
                self._call.out.event(KIND, "heartbeat", {"host": event.host})
        elif delta.kind == "gpu" and delta.value is None:
            self._gone(event.host, delta.key)
        elif delta.kind in KINDS:
            found = (each for each in gpus.devices(self._seen.hosts[event.host].status) if each.gpu.uuid == delta.key)
            for device in found:
                self._print(event.host, "changed", device)

    def _gone(self, host: str, uuid: str) -> None:
        self._shown.pop((host, uuid), None)
        if self._call.out.json:
            self._call.out.event(KIND, "removed", {"host": host, "key": uuid})
        else:
            self._call.out.line(f"{_now()}  {host}  {uuid} is gone")
            self._call.out.lines_now()

    def _print(self, host: str, type_: str, device: Device) -> None:
        if self._call.out.json:
            self._call.out.event(KIND, type_, envelope.plain(envelope.gpu(device), host))
            return
        words, key = gpu_table.in_a_line(device), (host, device.gpu.uuid)
        if self._shown.get(key) != words:
            self._shown[key] = words
            self._call.out.line(f"{_now()}  {host}  {words}")
            self._call.out.lines_now()

    async def draw(self, empty: str) -> None:
        """Show the table again and again, soon after there is news."""
        while True:
            await self._news.wait()
            self._news.clear()
            self._call.out.table_again(gpu_table.table(self._seen, datetime.now(UTC)), empty)
            await asyncio.sleep(REDRAWN)


async def watch(call: Call, hosts: Sequence[Host], empty: str) -> None:
    """Show every GPU and what becomes of it, until interrupted."""
    watching = Watch(call, hosts)
    drawing = asyncio.create_task(watching.draw(empty)) if call.out.redraws else None
    try:
        async with contextlib.aclosing(fleet.subscribe_all(hosts, call.deadline)) as events:
            async for event in events:
                watching.take(event)
                if drawing is not None and drawing.done():
                    drawing.result()
    finally:
        if drawing is not None:
            drawing.cancel()
            await asyncio.gather(drawing, return_exceptions=True)


def _now() -> str:
    return datetime.now(UTC).astimezone().strftime("%H:%M:%S")
