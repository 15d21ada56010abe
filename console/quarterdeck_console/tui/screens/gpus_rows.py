"""Pure: every GPU of the fleet as a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime

from quarterdeck_agent.protocol import Gpu
from quarterdeck_console import views
from quarterdeck_console.clean import clean_line
from quarterdeck_console.state import FleetState, HostState
from quarterdeck_console.tui import marks
from quarterdeck_console.tui.history import History
from quarterdeck_console.tui.widgets.table import Column, Line
from quarterdeck_console.views import NOTHING, Cell, Severity

BAR = 8
SPARK = 16
HOT = 85.0
"""°C from which a GPU is called hot: data-centre GPUs slow down at 85 to 90 (NVIDIA's board specifications)."""

COLUMNS = (
    Column("host", "HOST", 12), Column("index", "GPU", 3, number=True), Column("load", "LOAD", BAR + 5),
    Column("memory", "MEMORY", BAR + 11), Column("temperature", "TEMP", 5, number=True),
    Column("power", "POWER", 9, number=True, drop=2), Column("history", "LAST MINUTES", SPARK, drop=5),
    Column("name", "NAME", 22, drop=4), Column("owners", "SERVES", 14, grow=True),
)  # fmt: skip


def lines(fleet: FleetState, history: History, now: datetime) -> Iterator[Line]:
    """One row for each GPU, in the hosts' order."""
    for host in fleet.hosts.values():
        owners = owners_of(host)
        for gpu in host.status.gpus if host.status is not None else ():
            yield _gpu(host, gpu, owners.get(gpu.uuid, ()), history, now)


def owners_of(host: HostState) -> Mapping[str, tuple[str, ...]]:
    """The deployments whose replicas were given each GPU, by its uuid."""
    found: dict[str, dict[str, None]] = {}
    for deployment in host.status.deployments if host.status is not None else ():
        for replica in deployment.replicas:
            for gpu in replica.gpus:
                found.setdefault(gpu, {})[deployment.name] = None
    return {gpu: tuple(names) for gpu, names in found.items()}


def is_lost(gpu: Gpu) -> bool:
    """Whether nothing at all can be measured on it any more."""
    return gpu.memory_total is None and gpu.utilisation is None and gpu.temperature is None


def _gpu(host: HostState, gpu: Gpu, owners: tuple[str, ...], history: History, now: datetime) -> Line:
    away = host.connection == "lost"
    share = None if gpu.memory_used is None or not gpu.memory_total else gpu.memory_used / gpu.memory_total
    hot = gpu.temperature is not None and gpu.temperature >= HOT
    note = (2, Cell(clean_line(f"⚠ lost: {_why(host)}"), Severity.BAD)) if is_lost(gpu) else None
    cells = (
        Cell(f"{host.name} {'○' if away else ''}".rstrip(), Severity.BAD if away else Severity.PLAIN),
        Cell(str(gpu.index), number=True),
        Cell(f"{marks.bar(gpu.utilisation, BAR)} {views.ratio(gpu.utilisation):>4}", Severity.GOOD),
        Cell(f"{marks.bar(share, BAR)} {_memory(gpu):>10}", _full(share)),
        Cell(_number(gpu.temperature, "°"), Severity.WARNING if hot else Severity.PLAIN, number=True),
        Cell(_power(gpu), number=True),
        Cell(marks.sparkline(history.last(host.name, "gpu", gpu.uuid, SPARK), SPARK)),
        Cell(gpu.name),
        Cell(f"unreachable for {marks.since(host.since, now)}" if away else ", ".join(owners) or NOTHING,
             Severity.PLAIN if owners or away else Severity.MUTED),
    )  # fmt: skip
    sort = (
        host.name, gpu.index, gpu.utilisation, share, gpu.temperature, gpu.power, None, gpu.name, ", ".join(owners),
    )  # fmt: skip
    searched = f"{host.name} {gpu.index} {gpu.name} {gpu.uuid} {' '.join(owners)}"
    return Line((host.name, gpu.uuid), cells, sort, away, searched, note)


def _why(host: HostState) -> str:
    """What the host says of NVML."""
    parts = host.status.parts if host.status is not None else ()
    said = next((part.detail for part in parts if part.name == "nvml" and part.detail), "")
    return said or "NVML tells nothing about it"


def _full(share: float | None) -> Severity:
    if share is None:
        return Severity.MUTED
    return Severity.WARNING if share >= 0.95 else Severity.BUSY


def _memory(gpu: Gpu) -> str:
    if gpu.memory_used is None or gpu.memory_total is None:
        return NOTHING
    return f"{gpu.memory_used / 2**30:.0f}/{gpu.memory_total / 2**30:.0f} GiB"


def _number(value: float | None, unit: str) -> str:
    return NOTHING if value is None else f"{value:.0f}{unit}"


def _power(gpu: Gpu) -> str:
    if gpu.power is None:
        return NOTHING
    return f"{gpu.power:.0f} W" if gpu.power_limit is None else f"{gpu.power:.0f}/{gpu.power_limit:.0f}W"
