"""How one revision replaces another on this host: beside it, or after it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Literal

from quarterdeck_agent.drivers.base import Resources
from quarterdeck_agent.plan import free_vram, gib
from quarterdeck_agent.protocol import Gpu, Revision, Spec
from quarterdeck_agent.wanted import WantedRevision

HEADROOM = 0.05
"""Share of the host's memory that both revisions together must leave free."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the host could give right now, in bytes; `None` where it cannot be told."""

    memory_total: int | None = None
    memory_available: int | None = None
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """What some replicas of one revision claim together."""

    asks: Resources = field(default_factory=Resources)
    replicas: int = 0

    @property
    def memory(self) -> int:
        return (self.asks.memory or 0) * self.replicas

    @property
    def slots(self) -> int:
        """How many places on GPUs, each of `asks.vram`."""
        return self.asks.gpus * self.replicas


@dataclass(frozen=True, slots=True)
class Choice:
    """The handover chosen and why. `replaces` is the label that serves now; with `cools` the warm revision must go."""

    handover: Literal["overlap", "hold"]
    why: str
    expected_pause: float | None = 0.0
    replaces: str | None = None
    warnings: tuple[str, ...] = ()
    cools: bool = False


def choose(
    spec: Spec, asks: Resources, live: WantedRevision | None, capacity: Capacity, warm: Claim | None = None
) -> Choice:
    """`overlap` where old and new fit side by side, `hold` where they do not; what was asked for by name wins.

    `warm` is what the revision kept for a rollback claims: it makes room before anybody has to wait.
    """
    if live is None or live.spec.stopped:
        return Choice("overlap", "nothing serves yet", None)
    label = live.spec.label
    new = Claim(asks, spec.replicas)
    beside_warm = lacking_beside(new, capacity, Claim())
    lacking = lacking_beside(new, capacity, warm) if warm and beside_warm else beside_warm
    cools = warm is not None and beside_warm is not None
    if spec.handover == "hold":
        return Choice("hold", "asked for by name", None, label)
    if spec.handover == "overlap":
        note = (f"asked for by name, although it {lacking}",) if lacking else ()
        return Choice("overlap", "asked for by name", 0.0, label, note, cools)
    if lacking:
        return Choice("hold", lacking, None, label)
    if cools:
        return Choice("overlap", "both fit side by side once the warm revision is let go", 0.0, label, (), cools)
    return Choice("overlap", fits_because(asks, capacity), 0.0, label)


START_STEPS = ("start", "ready", "dwell", "golden")
"""What happens while requests are held; draining the old revision comes before it and is not known beforehand."""


def start_times(history: Iterable[Revision], most: int = 3) -> tuple[float, ...]:
    """How long the last rollouts that went through took from start to switch, in seconds, the newest first."""
    taken = []
    for revision in history:
        steps = {step.name: step.elapsed for step in revision.steps if step.state == "done"}
        if revision.served_at is not None and "ready" in steps:
            taken.append(sum(steps.get(name, 0.0) for name in START_STEPS))
    return tuple(taken[:most])


def with_pause(choice: Choice, starts: tuple[float, ...], waiting: int) -> Choice:
    """A hold with the pause that is to be expected from earlier starts; other choices as they are."""
    if choice.handover != "hold":
        return choice
    if not starts:
        note = f"how long requests wait is not known yet: nothing was started before; up to {waiting} may wait"
        return replace(choice, warnings=(*choice.warnings, note))
    pause = round(median(starts), 1)
    seen = ", ".join(f"{each:.1f}" for each in starts)
    note = f"requests wait about {pause:g} s (last starts: {seen} s), up to {waiting} of them"
    return replace(choice, expected_pause=pause, warnings=(*choice.warnings, note))


def lacking_beside(new: Claim, capacity: Capacity, given_back: Claim) -> str | None:
    """Why the new replicas do not fit beside the running ones, in words; `None` when they do.

    `given_back` is what would come free if the warm revision went.
    """
    if new.asks.memory is not None and capacity.memory_available is not None:
        spare = capacity.memory_available + given_back.memory - int((capacity.memory_total or 0) * HEADROOM)
        if new.memory > spare:
            return f"needs {gib(new.memory)} of memory, {gib(max(0, spare))} are free beside the running revision"
    if not new.asks.gpus or not capacity.gpus:
        return None
    if new.asks.vram is None:
        return "takes whole GPUs and does not say how much of their memory it needs (resources.vram)"
    return _lacking_vram(new, new.asks.vram, capacity, given_back)


def _lacking_vram(new: Claim, vram: int, capacity: Capacity, given_back: Claim) -> str | None:
    slots = sum((free_vram(g) or 0) // vram for g in capacity.gpus)
    if (given_back.asks.vram or 0) >= vram:
        slots += given_back.slots
    if slots >= new.slots:
        return None
    best = max((free_vram(g) or 0 for g in capacity.gpus), default=0)
    return f"needs {gib(vram)} on {new.slots} GPU(s), the emptiest has {gib(best)} free"


def fits_because(asks: Resources, capacity: Capacity) -> str:
    """Why both fit, in words."""
    if asks.memory is None and not asks.gpus:
        return "the version claims neither memory nor GPUs, so both run side by side"
    if asks.gpus and not capacity.gpus:
        return "no GPU can be seen on this host"
    return "both fit side by side"
