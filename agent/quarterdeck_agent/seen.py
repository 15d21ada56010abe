"""What is, as values: what the engine, the probe, the gateway and the host last told. Pure; filled by the observer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quarterdeck_agent.drivers.base import Found, GatewaySeen, Life
from quarterdeck_agent.gpus.placement import Claim, Place, Sight, claims_of
from quarterdeck_agent.protocol import Gpu, GpuFacts, GpuUse


@dataclass(frozen=True, slots=True)
class SeenReplica:
    """A replica with what its probe said. Times are seconds on the boot clock.

    `was_ready` is whether this agent saw it ready, `routed` whether it has been given requests, or may have been
    before this agent adopted it. `unrouted_since` is when the gateway confirmed that it sends nothing new here;
    `None` while it may.
    `requests` are those in flight with it, `None` when the gateway cannot tell.
    `gpu_lost` is what it said inside when it had lost its GPUs, empty while it has not.
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
    gpu_lost: str = ""

    @property
    def running(self) -> bool:
        return self.found.life is not Life.EXITED


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that was last seen, with the boot it belongs to.

    `staged` are the ids of versions whose files lie verified in their folders, `staged_since` when this agent saw each
    get there. `memory_available` is what the host could still give, `gateway` is `None` while it does not answer.
    `gpu_trouble` says why the GPUs cannot be trusted to be as they were last seen, and is empty while they can.
    `promised` are claims of replicas that are being started right now, or are kept for somebody. `left` are, by body,
    the places of replicas that went away, the last one first. `ailing` are the devices that replicas are to leave: they
    are sick, or have been lost for a while. `needed` are the deployments whose warm revision takes memory of a GPU that
    another one waits for.
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
    gpu_uses: tuple[GpuUse, ...] = ()
    gpu_facts: tuple[GpuFacts, ...] = ()
    gpu_trouble: str = ""
    promised: tuple[Claim, ...] = ()
    left: Mapping[str, tuple[Place, ...]] = field(default_factory=dict)
    staged_since: Mapping[str, float] = field(default_factory=dict)
    ailing: frozenset[str] = frozenset()
    needed: frozenset[str] = frozenset()

    @property
    def sight(self) -> Sight:
        """The GPUs as placing takes them."""
        return Sight(self.gpus, self.gpu_uses, self.gpu_facts, self.gpu_trouble)

    def claims(self, deployment: str) -> tuple[Claim, ...]:
        """What is claimed on the GPUs as it counts for one deployment: by what runs, and by what others will start."""
        made = claims_of(replica.found for replica in self.replicas)
        known = {claim.replica for claim in made}
        return made + tuple(c for c in self.promised if c.replica not in known and c.deployment != deployment)

    def of(self, deployment: str) -> tuple[SeenReplica, ...]:
        """The replicas of one deployment, in the order of their ids."""
        return tuple(sorted((r for r in self.replicas if r.found.deployment == deployment), key=lambda r: r.found.id))
