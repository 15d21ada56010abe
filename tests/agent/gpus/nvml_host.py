"""A fake machine with a reader of ours on it, for the tests of the NVML driver: time and nodes are the test's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from quarterdeck_agent.drivers.nvml import NvmlReader, NvmlSeen
from quarterdeck_agent.protocol import Gpu, GpuFacts
from tests.nvml.fake import FakeNvml, Machine

START = datetime(2026, 3, 1, tzinfo=UTC)


class Hands:
    """A clock that stands still until it is turned."""

    boot_id = "boot"

    def __init__(self) -> None:
        self.at = 1000.0

    def now(self) -> float:
        return self.at

    def wall(self) -> datetime:
        return START + timedelta(seconds=self.at)


class Host:
    """One machine and its reader. `nodes` is what the kernel shows of its GPUs."""

    def __init__(self, fake: FakeNvml, **options: Any) -> None:
        self.fake, self.clock = fake, Hands()
        self.nodes: object = "first"
        self.reader = NvmlReader(clock=self.clock, nodes=lambda: self.nodes, event_wait=0.05, **options)

    def write(self, machine: Machine) -> None:
        self.fake.write(machine)

    async def read(self, after: float = 1.0) -> NvmlSeen:
        self.clock.at += after
        return await self.reader.read()

    async def until(self, there: Callable[[NvmlSeen], object], within: float = 20.0) -> NvmlSeen:
        """Read every now and then until what is read is so."""
        async with asyncio.timeout(within):
            while not there(seen := await self.read()):  # noqa: ASYNC110 - the driver tells nobody
                await asyncio.sleep(0.01)
        return seen


@contextmanager
def host(fake: FakeNvml, machine: Machine | None = None, **options: Any) -> Iterator[Host]:
    """A reader on this machine; it is closed afterwards, and what hangs is let go first."""
    if machine is not None:
        fake.write(machine)
    there = Host(fake, **options)
    try:
        yield there
    finally:
        fake.write(fake.machine.failing())
        there.reader.close(10)


def gpu(seen: NvmlSeen, place: int = 0) -> Gpu:
    return seen.gpus[place]


def facts(seen: NvmlSeen, uuid: str) -> GpuFacts:
    return next(facts for facts in seen.facts if facts.uuid == uuid)
