"""Pure: everything that is known of one GPU put together, and whose its memory is, in words.

Shared by the terminal UI and the CLI; it knows no width, no colour and no terminal. A GPU and the MIG instances cut
from it stand one below another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from quarterdeck_agent.protocol import Gpu, GpuFacts, GpuHealth, GpuProcess, GpuUse, HostStatus, Sample
from quarterdeck_console.clean import clean_line
from quarterdeck_console.state import FleetState, HostState
from quarterdeck_console.views import NOTHING, Cell, Row, Severity, Table, age, ratio, size

GIB = 1 << 30

HOT = 85.0
"""°C from which a GPU is called hot: data-centre GPUs slow down at 85 to 90 (NVIDIA's board specifications)."""

FULL = 0.97
"""Of all memory used from which a GPU is called full."""


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


# --- a table for the CLI ---------------------------------------------------------------------------------------------


def table(fleet: FleetState, now: datetime) -> Table:
    """Every GPU and MIG instance of every host; under each why it is not well, and whose its memory is."""
    rows: list[Row] = []
    for host in fleet.hosts.values():
        rows += _host_rows(host, now)
    return Table(("HOST", "GPU", "LOAD", "MEMORY", "TEMP", "POWER", "HEALTH", "NAME"), tuple(rows))


def _host_rows(host: HostState, now: datetime) -> Iterator[Row]:
    if host.connection == "lost":
        yield _blank(host.name, "unreachable", f"for {age(host.since, now)}: {host.error}")
    for part in host.status.parts if host.status is not None else ():
        if part.name == "nvml" and str(part.state) not in ("ok", "absent"):
            yield _blank(host.name, f"nvml {part.state}", part.detail)
    for device in devices(host.status):
        yield row(host.name, device)


def _blank(host: str, state: str, detail: str) -> Row:
    blank = Cell(NOTHING, number=True)
    told = Cell(clean_line(state), Severity.BAD), Cell(clean_line(detail), Severity.BAD)
    return Row((host, ""), (Cell(clean_line(host)), *[blank] * 5, *told))


def row(host: str, device: Device) -> Row:
    """One GPU or MIG instance."""
    gpu = device.gpu
    full = (filled(gpu) or 0.0) >= FULL
    cells = (
        Cell(clean_line(host)),
        Cell(device.label, number=True),
        Cell(ratio(gpu.utilisation), number=True),
        Cell(memory(gpu), Severity.WARNING if full else Severity.PLAIN, number=True),
        Cell(temperature(gpu), Severity.WARNING if is_hot(gpu) else Severity.PLAIN, number=True),
        Cell(power(gpu), number=True),
        Cell(clean_line(str(gpu.health)), severity(gpu)),
        Cell(clean_line(short_name(gpu.name) if gpu.profile is None else f"MIG {gpu.profile}")),
    )
    return Row((host, gpu.uuid), cells, tuple(_below(device)))


def _below(device: Device) -> Iterator[Cell]:
    gpu = device.gpu
    if gpu.health != GpuHealth.OK:
        yield Cell(clean_line(f"⚠ {gpu.why or 'the host does not say why'}"), severity(gpu))
    if gpu.throttle:
        yield Cell(clean_line(f"▲ slowed down: {', '.join(gpu.throttle)}"), Severity.WARNING)
    for share in shares(device):
        if share.owner in CLAIMED:
            meaning = Severity.PLAIN if share.owner == Owner.DEPLOYMENT else Severity.WARNING
            yield Cell(f"{size(share.memory):>9}  {share.words}", meaning)


def in_a_line(device: Device) -> str:
    """Everything that `row` tells, as one line."""
    gpu = device.gpu
    figures = (ratio(gpu.utilisation), memory(gpu), temperature(gpu), power(gpu), health_words(device) or gpu.health)
    owned_by = ", ".join(owned(share) for share in shares(device) if share.owner in CLAIMED)
    return clean_line("  ".join(part for part in (device.what, *figures, owned_by) if part))


# --- history -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Metric:
    """One gauge of a GPU: the name of its series, and how its scale looks."""

    series: str
    title: str
    unit: Callable[[float], str]
    top: Callable[[Gpu], float | None]
    scale: float = 1.0


METRICS = (
    Metric("gpu.utilisation", "load", lambda value: f"{value * 100:.0f}%", lambda _: 1.0),
    Metric(
        "gpu.memory", "memory", lambda value: f"{value:.3g}G", lambda gpu: (gpu.memory_total or 0) / GIB or None,
        1 / GIB,
    ),
    Metric("gpu.temperature", "temperature", lambda value: f"{value:.0f}°", lambda _: 100.0),
    Metric("gpu.power", "power", lambda value: f"{value:.0f}W", lambda gpu: gpu.power_limit),
)  # fmt: skip

SPANS = tuple(timedelta(minutes=minutes) for minutes in (5, 15, 60, 1440, 7 * 1440, 30 * 1440))
"""How far back a chart may look: the agent keeps an hour by the second, thirty days by the minute."""


def drawn(samples: Iterable[Sample], metric: Metric) -> list[Sample]:
    """The points of a gauge in the unit of its scale."""

    def scaled(value: float | None) -> float | None:
        return None if value is None else value * metric.scale

    return [Sample(each.at, scaled(each.value), scaled(each.max)) for each in samples]


def highest(samples: Iterable[Sample]) -> float | None:
    """The highest value there was, also within a longer step."""
    known = [each.max if each.max is not None else each.value for each in samples]
    return max((value for value in known if value is not None), default=None)


MORE_METRICS = (
    Metric("gpu.utilisation_memory", "memory load", lambda value: f"{value * 100:.0f}%", lambda _: 1.0),
    Metric("gpu.encoder", "encoder", lambda value: f"{value * 100:.0f}%", lambda _: 1.0),
    Metric("gpu.decoder", "decoder", lambda value: f"{value * 100:.0f}%", lambda _: 1.0),
    Metric("gpu.fan", "fan", lambda value: f"{value * 100:.0f}%", lambda _: 1.0),
    Metric("gpu.clock", "clock", lambda value: f"{value:.0f}M", lambda _: None, 1e-6),
    Metric("gpu.clock_memory", "memory clock", lambda value: f"{value:.0f}M", lambda _: None, 1e-6),
    Metric("gpu.pcie_sent", "PCIe sent", lambda value: f"{value:.3g}M", lambda _: None, 2.0**-20),
    Metric("gpu.pcie_received", "PCIe received", lambda value: f"{value:.3g}M", lambda _: None, 2.0**-20),
)
"""What is asked for less often. Clocks in megahertz, traffic in MiB a second."""

BY_NAME = {metric.series.removeprefix("gpu."): metric for metric in (*METRICS, *MORE_METRICS)}


def newest(moments: Iterable[datetime], now: datetime) -> datetime:
    """Where a chart ends: now, or the newest point where the host's clock is ahead of ours."""
    return max((now, *moments))
