"""Pure: everything that is known of one GPU put together, and whose its memory is, in words.

Shared by the terminal UI and the CLI; it knows no width, no colour and no terminal. A GPU and the MIG instances cut
from it stand one below another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from quarterdeck_agent.protocol import Gpu, GpuFacts, GpuHealth, GpuProcess, GpuUse, HostStatus
from quarterdeck_console.clean import clean_line
from quarterdeck_console.views import NOTHING, Severity, size

GIB = 1 << 30

HOT = 85.0
"""°C from which a GPU is called hot: data-centre GPUs slow down at 85 to 90 (NVIDIA's board specifications)."""


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU or MIG instance with its facts and its use; `label` is its index, `0.2` for instance 2 of GPU 0."""

    gpu: Gpu
    label: str
    facts: GpuFacts | None = None
    use: GpuUse | None = None

    @property
    def what(self) -> str:
        """`GPU 0`, `MIG 0.2`."""
        return f"{'GPU' if self.gpu.parent is None else 'MIG'} {self.label}"


class Owner(StrEnum):
    """Whose memory it is."""

    DEPLOYMENT = "deployment"
    UNMANAGED = "unmanaged"
    UNEXPLAINED = "unexplained"
    DRIVER = "driver"
    FREE = "free"


CLAIMED = (Owner.DEPLOYMENT, Owner.UNMANAGED, Owner.UNEXPLAINED)
"""The owners of used memory, in the order in which a bar shows them."""


@dataclass(frozen=True, slots=True)
class Share:
    """Part of a GPU's memory; `memory` in bytes, `None` where the driver does not tell how much it is."""

    owner: Owner
    words: str
    memory: int | None


# --- finding -------------------------------------------------------------------------------------------------------


def devices(status: HostStatus | None) -> tuple[Device, ...]:
    """Every GPU of a host in the host's order, each followed by its MIG instances."""
    if status is None:
        return ()
    facts = {each.uuid: each for each in status.gpu_facts}
    uses = {each.uuid: each for each in status.gpu_uses}

    def device(gpu: Gpu, label: str) -> Device:
        return Device(gpu, label, facts.get(gpu.uuid), uses.get(gpu.uuid))

    return tuple(device(gpu, label) for gpu, label in _labelled(status.gpus))


def ordered(gpus: Sequence[Gpu]) -> Iterator[Gpu]:
    """GPUs in the order in which a host lists them, each followed by its MIG instances."""
    if any(gpu.parent is not None for gpu in gpus):
        return (gpu for gpu, _ in _labelled(gpus))
    return iter(gpus)


def _labelled(gpus: Sequence[Gpu]) -> Iterator[tuple[Gpu, str]]:
    whole = {gpu.uuid for gpu in gpus if gpu.parent is None}
    instances: dict[str, list[Gpu]] = {}
    for gpu in gpus:
        if gpu.parent in whole and gpu.parent is not None:
            instances.setdefault(gpu.parent, []).append(gpu)
    for gpu in gpus:
        if gpu.parent in whole:
            continue
        yield gpu, str(gpu.index)
        for instance in instances.get(gpu.uuid, ()):
            number = instance.index if instance.instance is None else instance.instance
            yield instance, f"{gpu.index}.{number}"


def labels(status: HostStatus | None) -> dict[str, str]:
    """What each GPU and MIG instance is called, by uuid."""
    return {gpu.uuid: label for gpu, label in _labelled(status.gpus)} if status is not None else {}


def whole(gpus: Iterable[Gpu]) -> tuple[Gpu, ...]:
    """The GPUs without the MIG instances that are cut from them."""
    return tuple(gpu for gpu in gpus if gpu.parent is None)


# --- whose memory it is ----------------------------------------------------------------------------------------------


def shares(device: Device) -> tuple[Share, ...]:
    """Whose a device's memory is: deployments first, then what nobody claims, what the driver keeps, what is free."""
    use, gpu = device.use, device.gpu
    processes = use.processes if use is not None else ()
    found = [*_of_replicas(processes), *(unmanaged(each) for each in processes if each.replica is None)]
    if use is not None and use.unexplained:
        found.append(Share(Owner.UNEXPLAINED, "unexplained", use.unexplained))
    if gpu.memory_reserved:
        found.append(Share(Owner.DRIVER, "kept by the driver", gpu.memory_reserved))
    if (free := free_memory(gpu)) is not None:
        found.append(Share(Owner.FREE, "free", free))
    return tuple(found)


def free_memory(gpu: Gpu) -> int | None:
    """Bytes that NVML calls free, else what is not used."""
    if gpu.memory_free is not None:
        return gpu.memory_free
    if gpu.memory_total is None or gpu.memory_used is None:
        return None
    return max(0, gpu.memory_total - gpu.memory_used)


def _of_replicas(processes: Sequence[GpuProcess]) -> Iterator[Share]:
    """One share a replica, of all its processes."""
    names: dict[str, str] = {}
    memory: dict[str, int | None] = {}
    for each in processes:
        if each.replica is None:
            continue
        revision = "" if each.revision is None else f" r{each.revision}"
        names[each.replica] = f"{each.deployment or 'a replica'}{revision} ({each.replica})"
        known = memory.get(each.replica)
        memory[each.replica] = known if each.memory is None else (known or 0) + each.memory
    for replica, words in names.items():
        yield Share(Owner.DEPLOYMENT, clean_line(words), memory[replica])


def unmanaged(process: GpuProcess) -> Share:
    """The share of a process that belongs to no replica."""
    return Share(Owner.UNMANAGED, f"unmanaged {named(process)}", process.memory)


def named(process: GpuProcess) -> str:
    """`pid 4711 alice python`: what is known of a process."""
    known = [f"pid {process.pid}", process.user or "", process.command or ""]
    return clean_line(" ".join(part for part in known if part))


def serving(device: Device) -> tuple[str, ...]:
    """The deployments with memory on a device, the largest first."""
    processes = device.use.processes if device.use is not None else ()
    return tuple(dict.fromkeys(each.deployment for each in processes if each.deployment is not None))


# --- health --------------------------------------------------------------------------------------------------------


HEALTH = {
    GpuHealth.OK: Severity.GOOD, GpuHealth.DEGRADED: Severity.WARNING, GpuHealth.SICK: Severity.BAD,
    GpuHealth.LOST: Severity.BAD,
}  # fmt: skip


def severity(gpu: Gpu) -> Severity:
    """What a GPU's health means; one that only a newer agent knows is plain."""
    return HEALTH.get(gpu.health, Severity.PLAIN)


def health_words(device: Device) -> str:
    """Why a GPU is not well, short: `Xid 79: lost since 13:58`; empty where it is."""
    gpu = device.gpu
    if gpu.health == GpuHealth.OK:
        return ""
    code = re.match(r"Xid (\d+)\b", gpu.why)
    xids = device.facts.xids if device.facts is not None else ()
    seen = next((each for each in xids if code is not None and each.code == int(code[1])), None)
    if seen is not None:
        return f"Xid {seen.code}: {gpu.health} since {seen.at.astimezone():%H:%M}"
    return clean_line(f"{gpu.health}: {gpu.why}" if gpu.why else str(gpu.health))


# --- figures -------------------------------------------------------------------------------------------------------


def short_name(name: str) -> str:
    """A model's name without its maker's."""
    return name.removeprefix("NVIDIA ").strip() or name


def gib(count: int) -> str:
    """Bytes in GiB with as many figures as tell something: `61`, `3.9`, `0`."""
    value = count / GIB
    return f"{value:.1f}" if 0.05 <= value < 9.95 and count % GIB else f"{value:.0f}"


def memory(gpu: Gpu) -> str:
    """`61/80 GiB`."""
    if gpu.memory_used is None or gpu.memory_total is None:
        return NOTHING
    return f"{gib(gpu.memory_used)}/{gib(gpu.memory_total)} GiB"


def filled(gpu: Gpu) -> float | None:
    """How much of the memory is used, 0..1."""
    return None if gpu.memory_used is None or not gpu.memory_total else gpu.memory_used / gpu.memory_total


def temperature(gpu: Gpu) -> str:
    """`64°`."""
    return NOTHING if gpu.temperature is None else f"{gpu.temperature:.0f}°"


def power(gpu: Gpu) -> str:
    """`512/700W`."""
    if gpu.power is None:
        return NOTHING
    return f"{gpu.power:.0f}W" if gpu.power_limit is None else f"{gpu.power:.0f}/{gpu.power_limit:.0f}W"


def is_hot(gpu: Gpu) -> bool:
    """Whether it is as warm as GPUs are when they slow down."""
    return gpu.temperature is not None and gpu.temperature >= HOT


def owned(share: Share) -> str:
    """A share in a line: `llama-chat r17 (llama-chat-17-1) 58.0 GiB`."""
    return f"{share.words} {size(share.memory)}"
