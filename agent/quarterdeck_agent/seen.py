"""What is, as values: what the engine, the probe, the gateway and the host last told. Pure; filled by the observer."""

from __future__ import annotations

from dataclasses import dataclass, field

from quarterdeck_agent.drivers.base import Found, GatewaySeen, Life
from quarterdeck_agent.protocol import Gpu


@dataclass(frozen=True, slots=True)
class SeenReplica:
    """A replica with what its probe said. Times are seconds on the boot clock.

    `was_ready` is whether this agent saw it ready, `routed` whether it has been given requests, or may have been
    before this agent adopted it. `unrouted_since` is when the gateway confirmed that it sends nothing new here;
    `None` while it may.
    `requests` are those in flight with it, `None` when the gateway cannot tell.
    """

    found: Found
    ready: bool = False
    ready_since: float | None = None
    unready_since: float | None = None
    was_ready: bool = False
    detail: str = ""
    routed: bool = False
    unrouted_since: float | None = None
    requests: int | None = None

    @property
    def running(self) -> bool:
        return self.found.life is not Life.EXITED


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that was last seen, with the boot it belongs to.

    `staged` are the ids of versions whose files lie verified in their folders. `memory_available` is what the host
    could still give, `gateway` is `None` while it does not answer.
    """

    boot_id: str
    replicas: tuple[SeenReplica, ...] = ()
    engine_ok: bool = True
    gateway: GatewaySeen | None = None
    staged: frozenset[str] = frozenset()
    gpus: tuple[Gpu, ...] = ()
    memory_total: int | None = None
    memory_available: int | None = None
    applied_clusters: frozenset[str] = field(default_factory=frozenset)

    def of(self, deployment: str) -> tuple[SeenReplica, ...]:
        """The replicas of one deployment, in the order of their ids."""
        return tuple(sorted((r for r in self.replicas if r.found.deployment == deployment), key=lambda r: r.found.id))
