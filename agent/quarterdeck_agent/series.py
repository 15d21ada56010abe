"""The last hour of every gauge, in memory: one ring of four-byte floats per series, one time axis for all.

Written once a tick by the sampler; it reads nothing and forgets a series once all of it is older than an hour.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from quarterdeck_agent.protocol import Gpu, ReplicaGauges, Sample, Series

LENGTH = 3600

UNITS = {
    "host.cpu": "ratio",
    "host.load1": "",
    "host.memory": "bytes",
    "host.disk": "bytes",
    "agent.cpu": "cores",
    "agent.memory": "bytes",
    "replica.cpu": "cores",
    "replica.memory": "bytes",
    "replica.gpu_memory": "bytes",
    "revision.cpu": "cores",
    "revision.memory": "bytes",
    "revision.gpu_memory": "bytes",
    "traffic.rate": "1/s",
    "traffic.errors": "1/s",
    "traffic.p50": "s",
    "traffic.p95": "s",
    "traffic.p99": "s",
    "traffic.active": "",
    "traffic.held": "",
    "gpu.utilisation": "ratio",
    "gpu.utilisation_memory": "ratio",
    "gpu.encoder": "ratio",
    "gpu.decoder": "ratio",
    "gpu.memory": "bytes",
    "gpu.temperature": "°C",
    "gpu.power": "W",
    "gpu.clock": "Hz",
    "gpu.clock_memory": "Hz",
    "gpu.fan": "ratio",
    "gpu.pcie_sent": "bytes/s",
    "gpu.pcie_received": "bytes/s",
}

Key = tuple[str, str]


def gpu_values(gpu: Gpu) -> dict[Key, float | None]:
    """The gauges of one GPU or MIG instance, by its uuid."""
    return {
        ("gpu.utilisation", gpu.uuid): gpu.utilisation,
        ("gpu.utilisation_memory", gpu.uuid): gpu.utilisation_memory,
        ("gpu.encoder", gpu.uuid): gpu.utilisation_encoder,
        ("gpu.decoder", gpu.uuid): gpu.utilisation_decoder,
        ("gpu.memory", gpu.uuid): gpu.memory_used,
        ("gpu.temperature", gpu.uuid): gpu.temperature,
        ("gpu.power", gpu.uuid): gpu.power,
        ("gpu.clock", gpu.uuid): gpu.clock_graphics,
        ("gpu.clock_memory", gpu.uuid): gpu.clock_memory,
        ("gpu.fan", gpu.uuid): gpu.fan,
        ("gpu.pcie_sent", gpu.uuid): gpu.pcie_sent,
        ("gpu.pcie_received", gpu.uuid): gpu.pcie_received,
    }


def replica_values(replicas: Iterable[ReplicaGauges]) -> dict[Key, float | None]:
    """The gauges of replicas by their ids, and per revision (`deployment/revision`) the sum of what was measured."""
    values: dict[Key, float | None] = {}
    for gauges in replicas:
        revision = f"{gauges.deployment}/{gauges.revision}"
        measured = {"cpu": gauges.cpu, "memory": gauges.memory, "gpu_memory": gauges.gpu_memory}
        for what, value in measured.items():
            values[f"replica.{what}", gauges.replica] = value
            if value is not None:
                whole = f"revision.{what}", revision
                values[whole] = (values.get(whole) or 0) + value
    return values


@dataclass(slots=True)
class _Ring:
    values: array[float]
    last: int = field(default=-1)


class History:
    """Keeps `length` ticks, `step` seconds apart. A tick in which a series got no value is a gap (`None`) in it."""

    def __init__(self, length: int = LENGTH, step: float = 1.0) -> None:
        self._length, self._step = length, step
        self._tick = -1
        self._times = array("d", [math.nan]) * length
        self._rings: dict[Key, _Ring] = {}

    def add(self, at: datetime, values: Mapping[Key, float | None]) -> None:
        """One tick: what every series by (name, key) was at `at`."""
        self._tick += 1
        self._times[self._tick % self._length] = at.timestamp()
        for key, value in values.items():
            if value is not None:
                self._set(key, value)
        if self._tick % 60 == 0:
            old = self._tick - self._length
            for key in [key for key, ring in self._rings.items() if ring.last <= old]:
                del self._rings[key]

    def _set(self, key: Key, value: float) -> None:
        ring = self._rings.get(key)
        if ring is None:
            ring = self._rings[key] = _Ring(array("f", [math.nan]) * self._length, self._tick - 1)
        for missed in range(max(ring.last + 1, self._tick - self._length + 1), self._tick):
            ring.values[missed % self._length] = math.nan
        ring.values[self._tick % self._length] = value
        ring.last = self._tick

    @property
    def began(self) -> datetime | None:
        """When the oldest tick that is kept was; `None` before the first."""
        if self._tick < 0:
            return None
        return datetime.fromtimestamp(self._times[max(0, self._tick - self._length + 1) % self._length], UTC)

    def names(self) -> frozenset[Key]:
        """Every series that had a value within the hour."""
        return frozenset(self._rings)

    def series(self, name: str, key: str, since: datetime | None = None) -> Series | None:
        """One series, oldest sample first, from its first value on; `None` where there is none of that name and key."""
        ring = self._rings.get((name, key))
        if ring is None:
            return None
        floor = -math.inf if since is None else since.timestamp()
        samples: list[Sample] = []
        for tick in range(max(0, self._tick - self._length + 1), self._tick + 1):
            at = self._times[tick % self._length]
            value = ring.values[tick % self._length] if tick <= ring.last else math.nan
            if at > floor and (samples or not math.isnan(value)):
                samples.append(Sample(datetime.fromtimestamp(at, UTC), None if math.isnan(value) else value))
        return Series(name, key, UNITS.get(name, ""), tuple(samples), self._step)
