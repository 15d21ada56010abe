"""Whether a replica could be put on a device, and if not, who has it: in the words that people are told. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from quarterdeck_agent.drivers.base import Resources
from quarterdeck_agent.gpus.devices import KEPT, OWN_SHARE, STARTING, Ask, Claim, Device
from quarterdeck_agent.protocol import GpuProcess

IN_THE_WAY = 256 << 20
"""A process with this much memory is in the way of a claim on the whole device."""

IN_THE_WAY_UNOWNED = 512 << 20
"""So is this much memory that no process accounts for."""

SHOWN_HOLDERS = 2

ONE_PROCESS, NO_PROCESS = "exclusive_process", "prohibited"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a device does not do, and how near it is to doing: larger `nearness` is nearer."""

    text: str
    nearness: tuple[int, int]
    held: bool = False


def slots_on(device: Device, ask: Ask) -> int:
    """How many replicas the device could take one beside the other."""
    if obstacle_on(device, ask) is not None:
        return 0
    alone = ask.whole or (device.mode == ONE_PROCESS and not _served_by_mps(device))
    return 1 if alone or device.free is None else device.free // ask.need


def obstacle_on(device: Device, ask: Ask) -> Obstacle | None:
    """What keeps one replica from this device."""
    if device.ailing is not None and not (ask.returning and device.takes_back):
        why = f": {device.ailing.why}" if device.ailing.why else ""
        return Obstacle(f"{device.name} is {device.ailing.health.value}{why}", (0, 0))
    owners = sorted({whose(claim, "claimed whole by", "kept for") for claim in device.claims if claim.size is None})
    if owners:
        return Obstacle(f"{device.name} is {' and '.join(owners)}", (1, 0))
    if (found := _closed(device)) is not None or (ask.whole and (found := _not_empty(device, ask)) is not None):
        return found
    if ask.whole and ask.resources.vram is None and ask.peak is None:
        return None
    if device.free is None:
        return Obstacle(f"{device.name} does not tell its memory", (1, 1))
    if device.free + _drift(device, ask) >= ask.need:
        return None
    free = max(0, device.free)
    return Obstacle(f"{device.name} has {gib(free)} free{because(device)}", (3, free), held=True)


def _closed(device: Device) -> Obstacle | None:
    """What an administrator's compute mode keeps from a device: everybody, or everybody but the first."""
    if device.mode == NO_PROCESS:
        return Obstacle(f"{device.name} lets nobody compute (nvidia-smi -c DEFAULT)", (0, 1))
    if device.mode != ONE_PROCESS or _served_by_mps(device):
        return None
    if not device.claims and all(process.kind != "compute" for process in device.processes):
        return None
    return Obstacle(
        f"{device.name} lets one process compute (nvidia-smi -c DEFAULT){because(device)}", (1, 3), held=True
    )


def _served_by_mps(device: Device) -> bool:
    """Whether CUDA MPS is the one process that computes, on behalf of all others."""
    return any((process.command or "").startswith("nvidia-cuda-mps") for process in device.processes)


def _drift(device: Device, ask: Ask) -> int:
    """How much less than its measured peak does for one that takes whatever it finds: new drivers keep more or less."""
    if ask.resources.vram is not None or device.unowned >= IN_THE_WAY_UNOWNED:
        return 0
    return int((device.gpu.memory_total or 0) * OWN_SHARE)


def _not_empty(device: Device, ask: Ask) -> Obstacle | None:
    """Who is on a device that is asked for whole."""
    if device.claims:
        owners = " and ".join(sorted({claim.deployment for claim in device.claims}))
        return Obstacle(f"{device.name} is shared by {owners}", (1, 2))
    large = sum(p.memory or 0 for p in device.processes if (p.memory or 0) >= IN_THE_WAY)
    large += device.untold if device.untold >= IN_THE_WAY else 0
    unowned = device.unowned - (device.leaked if ask.tolerant else 0)
    unowned = unowned if unowned >= IN_THE_WAY_UNOWNED else 0
    if large + unowned == 0:
        return None
    return Obstacle(f"{device.name} is not empty{because(device)}", (2, -large - unowned), held=True)


def gib(size: int) -> str:
    """A size for people, in GiB or MiB."""
    if size < 1 << 30:
        return f"{size / (1 << 20):.0f} MiB" if size else "0 GiB"
    return f"{size / (1 << 30):.1f}".removesuffix(".0") + " GiB"


def needs(asks: Resources) -> str:
    """What one replica asks for, as the beginning of a sentence."""
    what = f"MIG instance {asks.mig}" if asks.mig else f"{asks.gpu_model} GPU" if asks.gpu_model else "GPU"
    labels = f" labelled {', '.join(asks.gpu_labels)}" if asks.gpu_labels else ""
    many = asks.gpus > 1
    some = f"{asks.gpus} {what}s" if many else f"one {what}"
    if asks.vram is None:
        return f"needs {some}{labels}" + ("" if asks.mig else " for itself")
    alone = " for itself" if asks.exclusive else ""
    return f"needs {gib(asks.vram)} on {'each of ' if many else ''}{some}{labels}{alone}"


def because(device: Device) -> str:
    """Who has a device's memory, the largest share first, to follow what is said of it."""
    shares = _shares(device)
    if not shares:
        return ""
    texts = [text for _, text in shares[:SHOWN_HOLDERS]]
    if len(shares) > SHOWN_HOLDERS:
        texts.append(f"{len(shares) - SHOWN_HOLDERS} more")
    return ": " + " and ".join(texts)


def _shares(device: Device) -> list[tuple[int, str]]:
    """The shares of a device's memory, in bytes and in words."""
    shares: list[tuple[int, str]] = []
    held: dict[str, int] = {}
    names: dict[str, str] = {claim.replica: whose(claim, "taken by", "kept for") for claim in device.claims}
    for process in device.processes:
        if process.replica is None:
            if (process.memory or 0) >= IN_THE_WAY or process.memory is None:
                size = gib(process.memory) if process.memory is not None else "memory"
                shares.append((process.memory or 0, f"{size} held by unmanaged {who(process)}"))
        else:
            held[process.replica] = held.get(process.replica, 0) + (process.memory or 0)
            names.setdefault(process.replica, f"taken by {process.deployment or process.replica}")
    owned: dict[str, int] = {}
    claimed = {claim.replica: claim.size or 0 for claim in device.claims}
    for replica, how in names.items():
        owned[how] = owned.get(how, 0) + max(held.get(replica, 0), claimed.get(replica, 0))
    shares += [(size, f"{gib(size)} {how}") for how, size in owned.items()]
    if device.unowned >= IN_THE_WAY_UNOWNED:
        how = "leaked" if device.leaked >= IN_THE_WAY_UNOWNED else "not free yet, or leaked"
        shares.append((device.unowned, f"{gib(device.unowned)} held by no process: {how}"))
    return sorted(shares, key=lambda share: (-share[0], share[1]))


def whose(claim: Claim, has: str, keeps: str) -> str:
    """Whose a claim is, in words: `has` somebody, or somebody `keeps` it until a replica comes."""
    if claim.note == KEPT:
        return f"{keeps} {claim.deployment}"
    return f"{has} {claim.deployment}" + (", which is starting" if claim.note == STARTING else "")


def who(process: GpuProcess) -> str:
    """A process in words: pid 4711 (alice, python)."""
    known = ", ".join(part for part in (process.user, process.command) if part)
    return f"pid {process.pid}" + (f" ({known})" if known else "")
