"""The GPUs of a host as placing sees them: each device, what it has to give, and who claims and holds it. Pure.

A device is a GPU without MIG, or a MIG instance. What it has to give is what NVML says is free, less what was promised
to replicas that have not taken it yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from quarterdeck_agent.drivers.base import Found, Life, Resources
from quarterdeck_agent.gpus.xids import Action
from quarterdeck_agent.protocol import Gpu, GpuFacts, GpuHealth, GpuProcess, GpuUse

OWN_SHARE = 0.025
"""Share of a GPU's memory that drivers keep for themselves at most, where they do not tell how much it is."""

Place = tuple[str, ...]
"""The uuids of the devices of one replica."""

KEPT, STARTING = "kept", "starting"
"""Of claims that no replica has made yet: of one that will come back, and of one that is about to start."""

BARRING = frozenset({Action.RESET.value, Action.REBOOT.value})
"""What an Xid may ask for that nothing runs on the GPU before it is done."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one replica takes of one device: `size` bytes of its memory, `None` for all of it.

    `note` is `KEPT` or `STARTING` while there is no such replica yet.
    """

    uuid: str
    replica: str
    deployment: str = ""
    body: str = ""
    size: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Sight:
    """What NVML shows of this host's GPUs. `trouble` says why it cannot be trusted now, and is empty while it can."""

    gpus: tuple[Gpu, ...] = ()
    uses: tuple[GpuUse, ...] = ()
    facts: tuple[GpuFacts, ...] = ()
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """What each of some replicas of one body asks for.

    `peak` is the most that one of them was measured to hold on one device: where given, it counts instead of the claim.
    With `tolerant`, memory that belongs to no process is not in the way of a claim on a whole device. With `returning`,
    neither is the sickness of a device that still takes work.
    """

    resources: Resources
    deployment: str = ""
    body: str = ""
    peak: int | None = None
    tolerant: bool = False
    returning: bool = False

    @property
    def whole(self) -> bool:
        """Whether nobody else may be on the device."""
        return self.resources.whole_gpus

    @property
    def need(self) -> int:
        """Bytes that have to be free on each device."""
        return max(1, self.peak if self.peak is not None else self.resources.vram or 0)

    def claims(self, replica: str, place: Place, note: str = "") -> tuple[Claim, ...]:
        """What a replica with this place takes."""
        size = None if self.whole else self.need
        return tuple(Claim(uuid, replica, self.deployment, self.body, size, note) for uuid in place)


@dataclass(frozen=True, slots=True)
class Device:
    """One device as placing sees it. `free` is what it has to give, `None` where NVML does not tell.

    `untold` are bytes of processes that are nobody's here and whose share the driver does not tell. `mode` is its
    compute mode, as its facts name it. `ailing` is who is ill, it or the GPU that it is cut from; `takes_back` tells
    that a program which was there may be started there again all the same.
    """

    gpu: Gpu
    name: str
    free: int | None
    claims: tuple[Claim, ...]
    processes: tuple[GpuProcess, ...]
    unowned: int
    untold: int
    leaked: int
    labels: frozenset[str]
    mode: str
    ailing: Gpu | None
    takes_back: bool


def claims_of(replicas: Iterable[Found]) -> tuple[Claim, ...]:
    """What the replicas that the engine runs have claimed. Of older ones without a memory of it: what they hold."""
    return tuple(
        Claim(uuid, found.id, found.deployment, found.body, None if found.exclusive else found.vram or 0)
        for found in replicas
        if found.life is not Life.EXITED
        for uuid in found.gpus
    )


def devices_in(sight: Sight, claims: Sequence[Claim]) -> list[Device]:
    """All devices that can take claims, in a fixed order."""
    by_uuid = {gpu.uuid: gpu for gpu in sight.gpus}
    uses = {use.uuid: use for use in sight.uses}
    labels = {facts.uuid: frozenset(facts.labels) for facts in sight.facts}
    modes = {facts.uuid: facts.compute_mode or "" for facts in sight.facts}
    barred = {facts.uuid for facts in sight.facts if any(xid.action in BARRING for xid in facts.xids)}
    devices = []
    for gpu in sorted(sight.gpus, key=lambda g: (g.index, g.uuid)):
        if gpu.mig:
            continue
        parent = by_uuid.get(gpu.parent) if gpu.parent else None
        mine = tuple(claim for claim in claims if claim.uuid == gpu.uuid)
        use = uses.get(gpu.uuid)
        free = really_free(gpu)
        unowned, untold = _unowned(gpu, use)
        ailing = next((g for g in (gpu, parent) if g and g.health in (GpuHealth.SICK, GpuHealth.LOST)), None)
        devices.append(
            Device(
                gpu=gpu,
                name=device_name(gpu, parent),
                free=None if free is None else free - _promised(mine, use, gpu),
                claims=mine,
                processes=use.processes if use else (),
                unowned=unowned,
                untold=untold,
                leaked=(use.unexplained or 0) if use else 0,
                labels=labels.get(gpu.uuid, frozenset()) | labels.get(gpu.parent or "", frozenset()),
                mode=modes.get(gpu.parent or gpu.uuid, ""),
                ailing=ailing,
                takes_back=not any(g and (g.uuid in barred or g.health is GpuHealth.LOST) for g in (gpu, parent)),
            )
        )
    return devices


def device_name(gpu: Gpu, parent: Gpu | None = None) -> str:
    """A device in messages: `gpu0`, or `gpu0 MIG 1g.10gb` of the GPU that it is cut from."""
    if gpu.parent is None:
        return f"gpu{gpu.index}"
    number = parent.index if parent is not None else gpu.index
    return f"gpu{number} MIG {gpu.profile or gpu.uuid}"


def really_free(gpu: Gpu) -> int | None:
    """Bytes that NVML says are free, or what follows from what it says is used."""
    if gpu.memory_free is not None:
        return gpu.memory_free
    if gpu.memory_total is None or gpu.memory_used is None:
        return None
    return max(0, gpu.memory_total - gpu.memory_used - (gpu.memory_reserved or 0))


def at_best(gpu: Gpu) -> int | None:
    """Bytes that an empty device would have free."""
    return None if gpu.memory_total is None else gpu.memory_total - (gpu.memory_reserved or 0)


def _promised(claims: Sequence[Claim], use: GpuUse | None, gpu: Gpu) -> int:
    """Bytes that were claimed on a device and are not held yet by who claimed them."""
    held = _held(use)
    # What a process holds may be untold; then it is taken to hold its claim, as far as the device is used at all.
    untold = {p.replica for p in use.processes if p.memory is None and p.replica} if use else set()
    pool = max(0, (gpu.memory_used or 0) - sum(held.values()))
    promised = 0
    for claim in claims:
        has = held.get(claim.replica, 0)
        if claim.replica in untold:
            assumed = min(max(0, (claim.size or 0) - has), pool)
            has, pool = has + assumed, pool - assumed
        promised += max(0, (claim.size or 0) - has)
    return promised


def _held(use: GpuUse | None) -> dict[str, int]:
    """By replica, the bytes its processes hold."""
    held: dict[str, int] = {}
    for process in use.processes if use else ():
        if process.replica is not None:
            held[process.replica] = held.get(process.replica, 0) + (process.memory or 0)
    return held


def _unowned(gpu: Gpu, use: GpuUse | None) -> tuple[int, int]:
    """Bytes in use at this moment that no process accounts for (leaked, or about to come free), and those of strangers
    that do not tell theirs.

    A process leaves the list a little before its memory is free: what was told of leaks comes too late to start on.
    """
    free = really_free(gpu)
    processes = use.processes if use else ()
    if free is None or gpu.memory_total is None:
        return (use.unexplained or 0) if use else 0, 0
    own = gpu.memory_reserved if gpu.memory_reserved is not None else int(gpu.memory_total * OWN_SHARE)
    rest = max(0, gpu.memory_total - free - own - sum(p.memory or 0 for p in processes))
    if all(p.memory is not None for p in processes):
        return rest, 0
    strangers = any(p.memory is None and p.replica is None for p in processes)
    return (use.unexplained or 0) if use else 0, rest if strangers else 0


def matches(device: Device, asks: Resources) -> bool:
    """Whether a device is of the kind asked for, however busy."""
    if asks.mig is None and device.gpu.parent is not None:
        return False
    if asks.mig is not None and (device.gpu.profile or "").casefold() != asks.mig.casefold():
        return False
    if asks.gpu_model is not None and asks.gpu_model.casefold() not in device.gpu.name.casefold():
        return False
    return device.labels >= set(asks.gpu_labels)
