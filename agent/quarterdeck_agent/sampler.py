"""The other loop: reads the gauges of host, replicas and gateway, publishes them, and keeps an hour of them.

Each source fails on its own: what cannot be read is `None` or gone, the rest goes on. It changes nothing on the host
but the size of the gateway's access log, and asks no engine. GPUs are read beside it, see `gpus.sampler`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from quarterdeck_agent.board import Board
from quarterdeck_agent.clock import Clock
from quarterdeck_agent.drivers.base import Found
from quarterdeck_agent.drivers.cgroup import CgroupReader, Usage
from quarterdeck_agent.drivers.host import HostReader
from quarterdeck_agent.errors import AgentError
from quarterdeck_agent.gauges import Gauges
from quarterdeck_agent.protocol import (
    DeploymentState,
    DeploymentStatus,
    HostGauges,
    ReplicaGauges,
    Series,
    Traffic,
)
from quarterdeck_agent.series import Key, gpu_values, replica_values

log = logging.getLogger(__name__)

ROTATE_EVERY = 10.0
ACCESS_LOG_SIZE = 50 << 20
GATEWAY_DEADLINE = 2.0


class ClusterFigures(Protocol):
    """Counters and gauges of one cluster, as the gateway's driver tells them."""

    @property
    def total(self) -> int: ...
    @property
    def errors(self) -> int: ...
    @property
    def active(self) -> int: ...
    @property
    def held(self) -> int: ...
    @property
    def p50(self) -> float | None: ...
    @property
    def p95(self) -> float | None: ...
    @property
    def p99(self) -> float | None: ...


class GatewaySource(Protocol):
    """The gateway as the sampler needs it."""

    async def stats(self) -> Mapping[str, ClusterFigures]:
        """Figures by cluster (`deployment.revision`)."""

    async def rotate_access_log(self, largest: int) -> bool:
        """Begin a new access log once it has `largest` bytes."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the gauges come from. `replicas` gives the last inventory and must not block.

    `gpu_memory` gives what each replica held on all its GPUs when they were read last.
    """

    host: HostReader
    cgroups: CgroupReader
    gateway: GatewaySource
    replicas: Callable[[], Sequence[Found]]
    gpu_memory: Callable[[], Mapping[str, int | None]] = dict


class Sampler:
    """Samples every `interval` seconds until cancelled."""

    def __init__(
        self,
        board: Board,
        sources: Sources,
        clock: Clock,
        *,
        interval: float = 1.0,
        access_log_size: int = ACCESS_LOG_SIZE,
        gauges: Gauges | None = None,
    ) -> None:
        self._board, self._sources, self._clock = board, sources, clock
        self._interval, self._access_log_size = interval, access_log_size
        self._gauges = gauges or Gauges(clock)
        self._cpu: dict[str, tuple[float, float]] = {}
        self._counted: dict[str, tuple[int, int, float]] = {}
        self._rotate_next = 0.0
        self._failing: dict[str, str] = {}

    def series(self, name: str, key: str, since: datetime | None = None) -> Series | None:
        """The last hour of one gauge; `None` where nothing of that name and key was ever seen."""
        return self._gauges.hour.series(name, key, since)

    async def run(self) -> None:
        """Sample until cancelled. A pass that takes long is followed by the next one at its proper time."""
        next_at = self._clock.now()
        try:
            while True:
                await self.sample()
                next_at = max(next_at + self._interval, self._clock.now())
                await asyncio.sleep(max(0.0, next_at - self._clock.now()) or 0.001)
        finally:
            self._sources.cgroups.close()

    async def sample(self) -> None:
        """One pass over all sources."""
        values: dict[Key, float | None] = {}
        at = self._clock.wall()
        await self._guard("host", self._sample_machine(values))
        await self._guard("gateway", self._sample_gateway(values))
        for gpu in self._board.all("gpu").values():
            values.update(gpu_values(gpu))
        self._gauges.add(at, values)

    async def _guard(self, source: str, work: Awaitable[None]) -> None:
        """A source that fails is told about once, and once more when it is well again."""
        try:
            await work
        except (AgentError, OSError, TimeoutError) as error:
            said = getattr(error, "detail", None) or repr(error)
            if self._failing.get(source) != said:
                log.info("no gauges from the %s: %s", source, said)
                self._failing[source] = said
        except Exception:
            if source not in self._failing:
                log.exception("no gauges from the %s", source)
                self._failing[source] = "a fault of ours"
        else:
            if self._failing.pop(source, None) is not None:
                log.info("gauges from the %s again", source)

    # --- host and replicas -------------------------------------------------------------------------------------

    async def _sample_machine(self, values: dict[Key, float | None]) -> None:
        replicas = tuple(self._sources.replicas())
        gauges, usage, now = await asyncio.to_thread(self._read_machine, replicas)
        self._board.publish("gauges", "", gauges)
        values.update(_host_values(gauges))
        owners = {found.id: found for found in replicas}
        gpu_memory = self._sources.gpu_memory()
        shown = {}
        for replica, used in usage.items():
            cpu = self._cores(replica, used, now)
            found = owners[replica]
            shown[replica] = ReplicaGauges(
                replica,
                found.deployment,
                found.revision,
                cpu,
                used.memory,
                used.memory_limit,
                used.processes,
                gpu_memory.get(replica),
            )
        self._cpu = {replica: seen for replica, seen in self._cpu.items() if replica in usage}
        values.update(replica_values(shown.values()))
        self._board.publish_all("replica_gauges", shown)

    def _read_machine(self, replicas: Sequence[Found]) -> tuple[HostGauges, dict[str, Usage], float]:
        return self._sources.host.read(), self._sources.cgroups.read(replicas), self._clock.now()

    def _cores(self, replica: str, used: Usage, now: float) -> float | None:
        """Cores used since the last pass, to a thousandth: less is noise that would wake every console."""
        if used.cpu_seconds is None:
            return None
        before = self._cpu.get(replica)
        self._cpu[replica] = (used.cpu_seconds, now)
        if before is None or now <= before[1] or used.cpu_seconds < before[0]:
            return None
        return round((used.cpu_seconds - before[0]) / (now - before[1]), 3)

    # --- the gateway -------------------------------------------------------------------------------------------

    async def _sample_gateway(self, values: dict[Key, float | None]) -> None:
        try:
            async with asyncio.timeout(GATEWAY_DEADLINE):
                stats = await self._sources.gateway.stats()
        except (AgentError, OSError, TimeoutError):
            self._board.publish_all("traffic", {})
            self._counted.clear()
            raise
        now = self._clock.now()
        shown = {}
        for cluster, figures in stats.items():
            traffic = self._traffic(cluster, figures, now)
            if traffic is not None:
                key = f"{traffic.deployment}/{traffic.revision}"
                shown[key] = traffic
                values.update(_traffic_values(key, traffic))
        self._counted = {cluster: seen for cluster, seen in self._counted.items() if cluster in stats}
        self._board.publish_all("traffic", shown)
        if now >= self._rotate_next:
            self._rotate_next = now + ROTATE_EVERY
            await self._sources.gateway.rotate_access_log(self._access_log_size)

    def _traffic(self, cluster: str, figures: ClusterFigures, now: float) -> Traffic | None:
        deployment, _, number = cluster.rpartition(".")
        if not deployment or not number.isdecimal():
            return None
        rate, errors = self._rates(cluster, figures, now)
        revision = int(number)
        return Traffic(
            deployment=deployment,
            revision=revision,
            weight=_weight(self._board.get("deployment", deployment), revision),
            rate=rate,
            errors=errors,
            p50=figures.p50,
            p95=figures.p95,
            p99=figures.p99,
            active=figures.active,
            held=figures.held,
        )

    def _rates(self, cluster: str, figures: ClusterFigures, now: float) -> tuple[float | None, float | None]:
        before = self._counted.get(cluster)
        self._counted[cluster] = (figures.total, figures.errors, now)
        if before is None or now <= before[2]:
            return None, None
        # A counter that went back belongs to a cluster that was made anew: it began at zero.
        total, errors = (before[0], before[1]) if figures.total >= before[0] else (0, 0)
        elapsed = now - before[2]
        return round((figures.total - total) / elapsed, 2), round(max(0, figures.errors - errors) / elapsed, 2)


def _weight(status: DeploymentStatus | None, revision: int) -> float:
    """The share of new requests that this revision is given."""
    if status is None:
        return 0.0
    holding = status.state is DeploymentState.HOLDING or status.live_revision is None
    return 1.0 if revision == (status.wanted_revision if holding else status.live_revision) else 0.0


def _host_values(gauges: HostGauges) -> dict[Key, float | None]:
    return {
        ("host.cpu", ""): gauges.cpu,
        ("host.load1", ""): gauges.load1,
        ("host.memory", ""): gauges.memory_used,
        ("host.disk", ""): gauges.disk_used,
        ("agent.cpu", ""): gauges.agent_cpu,
        ("agent.memory", ""): gauges.agent_memory,
    }


def _traffic_values(key: str, traffic: Traffic) -> dict[Key, float | None]:
    return {
        ("traffic.rate", key): traffic.rate,
        ("traffic.errors", key): traffic.errors,
        ("traffic.p50", key): traffic.p50,
        ("traffic.p95", key): traffic.p95,
        ("traffic.p99", key): traffic.p99,
        ("traffic.active", key): traffic.active,
        ("traffic.held", key): traffic.held,
    }
