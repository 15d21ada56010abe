"""How one revision replaces another on this host: beside it, or after it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quarterdeck_agent.drivers.base import Resources
from quarterdeck_agent.plan import free_vram, gib
from quarterdeck_agent.protocol import Gpu, Spec
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
class Choice:
    """The handover chosen and why. `replaces` is the label that serves now."""

    handover: Literal["overlap", "hold"]
    why: str
    expected_pause: float | None = 0.0
    replaces: str | None = None
    warnings: tuple[str, ...] = ()


def choose(spec: Spec, asks: Resources, live: WantedRevision | None, capacity: Capacity) -> Choice:
    """`overlap` where old and new fit side by side, `hold` where they do not; what was asked for by name wins."""
    if live is None or live.spec.stopped:
        return Choice("overlap", "nothing serves yet", None)
    label = live.spec.label
    lacking = lacking_beside(spec, asks, capacity)
    if spec.handover == "hold":
        return Choice("hold", "asked for by name", None, label)
    if spec.handover == "overlap":
        note = (f"asked for by name, although it {lacking}",) if lacking else ()
        return Choice("overlap", "asked for by name", 0.0, label, note)
    if lacking:
        return Choice("hold", lacking, None, label)
    return Choice("overlap", fits_because(asks, capacity), 0.0, label)


def lacking_beside(spec: Spec, asks: Resources, capacity: Capacity) -> str | None:
    """Why the new replicas do not fit beside the running ones, in words; `None` when they do."""
    if asks.memory is not None and capacity.memory_available is not None:
        need = asks.memory * spec.replicas
        spare = capacity.memory_available - int((capacity.memory_total or 0) * HEADROOM)
        if need > spare:
            return f"needs {gib(need)} of memory, {gib(max(0, spare))} are free beside the running revision"
    if asks.gpus and asks.vram is not None and capacity.gpus:
        need_gpus = asks.gpus * spec.replicas
        slots = sum((free_vram(g) or 0) // asks.vram if asks.vram else 0 for g in capacity.gpus)
        if slots < need_gpus:
            best = max((free_vram(g) or 0 for g in capacity.gpus), default=0)
            return f"needs {gib(asks.vram)} on {need_gpus} GPU(s), the emptiest has {gib(best)} free"
    return None


def fits_because(asks: Resources, capacity: Capacity) -> str:
    """Why both fit, in words."""
    if asks.memory is None and not asks.gpus:
        return "the version claims neither memory nor GPUs, so both run side by side"
    if asks.gpus and not capacity.gpus:
        return "no GPU can be seen on this host"
    return "both fit side by side"
