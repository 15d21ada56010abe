"""What should be, as values: what the store hands to the planner. Pure; nothing here reads or writes.

A revision's *body* is the digest of everything that shapes its replicas (version, runtime, env, resources, image,
restart count) and of nothing else (not the replica count, limits or timers). Replicas of one body serve any
revision with that body, which is why rolling back to a warm revision starts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from quarterdeck_agent.protocol import FailureReason, RevisionOutcome, Spec


@dataclass(frozen=True, slots=True)
class Instant:
    """A moment on the host's boot clock; in another boot it lies infinitely far back."""

    boot_id: str
    seconds: float

    def age(self, boot_id: str, now: float) -> float:
        """Seconds from this instant to `now` of boot `boot_id`."""
        return now - self.seconds if boot_id == self.boot_id else float("inf")


@dataclass(frozen=True, slots=True)
class WantedRevision:
    """One revision as the planner needs it.

    `image` is the digest reference once it has been resolved. `passed` tells that replicas of this body went through
    the gate on this host before. `crashes` are the ends nobody asked for of this body's replicas, oldest first.
    `gpu_memory_peak` is the most bytes that one replica of this body was seen to hold on one GPU of this host, once it
    passed; while that is not known, the same of any body with its version.
    """

    number: int
    spec: Spec
    body: str
    operation: str
    created: Instant
    handover: Literal["overlap", "hold"] = "overlap"
    outcome: RevisionOutcome = RevisionOutcome.PENDING
    image: str | None = None
    passed: bool = False
    crashes: tuple[Instant, ...] = ()
    reason: FailureReason | None = None
    gpu_memory_peak: int | None = None


@dataclass(frozen=True, slots=True)
class WantedDeployment:
    """One deployment: where it should go (`target`), what has the traffic (`live`), what is kept warm (`previous`).

    `live` and `target` are the same once a rollout is through. `holding` is set from the moment requests are held
    for a `hold` handover until some revision serves again. `replaced_at` is when `previous` lost the traffic.
    """

    name: str
    generation: int
    target: WantedRevision
    live: WantedRevision | None = None
    previous: WantedRevision | None = None
    replaced_at: Instant | None = None
    holding: bool = False
    holding_since: Instant | None = None
    removing: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """Everything that should be on this host."""

    deployments: tuple[WantedDeployment, ...] = ()
    sequence: int = field(default=0, compare=False)
