"""Pretend GPUs for tests of placing: built from who holds and who claims what, in GiB."""

from __future__ import annotations

from dataclasses import dataclass, replace

from quarterdeck_agent.drivers.base import Resources
from quarterdeck_agent.gpus.placement import Ask, Claim, Sight
from quarterdeck_agent.protocol import Gpu, GpuFacts, GpuHealth, GpuProcess, GpuUse, NvLink

GIB = 2**30


@dataclass(frozen=True)
class Card:
    """One GPU: `held` are (replica or None, GiB) of its processes, `leaked` GiB nobody holds, `links` its peers."""

    total: float = 80
    held: tuple[tuple[str | None, float], ...] = ()
    leaked: float = 0
    name: str = "NVIDIA A100-SXM4-80GB"
    health: GpuHealth = GpuHealth.OK
    why: str = ""
    labels: tuple[str, ...] = ()
    links: tuple[str | None, ...] = ()
    slices: tuple[str, ...] = ()


def sight(*cards: Card, trouble: str = "") -> Sight:
    """The cards as gpu-0, gpu-1 … ; the MIG instances of number 0 are mig-0-0, mig-0-1 …"""
    gpus: list[Gpu] = []
    uses: list[GpuUse] = []
    facts: list[GpuFacts] = []
    for index, card in enumerate(cards):
        uuid = f"gpu-{index}"
        gpus.append(replace(_gpu(card, index, uuid), mig=bool(card.slices)))
        uses.append(_use(card, uuid))
        links = tuple(NvLink(n, active=True, peer=peer) for n, peer in enumerate(card.links))
        facts.append(GpuFacts(uuid, labels=card.labels, nvlinks=links))
        for number, profile in enumerate(card.slices):
            slice_ = replace(_gpu(Card(total=10), index, f"mig-{index}-{number}"), parent=uuid, profile=profile)
            gpus.append(slice_)
    return Sight(tuple(gpus), tuple(uses), tuple(facts), trouble)


def _gpu(card: Card, index: int, uuid: str) -> Gpu:
    used = int((sum(size for _, size in card.held) + card.leaked) * GIB)
    total = int(card.total * GIB)
    return Gpu(
        index,
        uuid,
        card.name,
        memory_total=total,
        memory_used=used,
        memory_free=total - used,
        memory_reserved=0,
        health=card.health,
        why=card.why,
    )


def _use(card: Card, uuid: str) -> GpuUse:
    processes = tuple(
        GpuProcess(
            4711 + n,
            int(size * GIB),
            user=None if replica else "alice",
            command="python",
            replica=replica,
            deployment=replica and replica.partition("-")[0],
        )
        for n, (replica, size) in enumerate(card.held)
    )
    return GpuUse(uuid, processes, int(card.leaked * GIB))


def asks(vram: float | None = None, gpus: int = 1, **more: object) -> Resources:
    size = None if vram is None else int(vram * GIB)
    return Resources(gpus=gpus, vram=size, **more)  # type: ignore[arg-type]


def ask(vram: float | None = None, gpus: int = 1, body: str = "new", **more: object) -> Ask:
    own = {key: more.pop(key) for key in ("peak", "tolerant") if key in more}
    return Ask(asks(vram, gpus, **more), "mine", body, **own)  # type: ignore[arg-type]


def claim(index: int, size: float | None, replica: str = "other-1-0", body: str = "other") -> Claim:
    bytes_ = None if size is None else int(size * GIB)
    return Claim(f"gpu-{index}", replica, replica.partition("-")[0], body, bytes_)
