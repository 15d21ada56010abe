"""Pure: every GPU of the fleet as a row, each followed by its MIG instances."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import cached_property
from typing import Any

from quarterdeck_agent.protocol import Gpu, GpuHealth
from quarterdeck_console import gpus, views
from quarterdeck_console.clean import clean_line
from quarterdeck_console.gpus import Device, Owner
from quarterdeck_console.state import FleetState, HostState
from quarterdeck_console.tui import marks
from quarterdeck_console.tui.history import History
from quarterdeck_console.tui.widgets.table import Column, Later, Line
from quarterdeck_console.views import NOTHING, Cell, Severity

BAR = 8
SPARK = 16
WORTH_A_WORD = 64 << 20
"""Unexplained bytes from which a row mentions them; the text below tells every one."""

COLUMNS = (
    Column("host", "HOST", 12), Column("index", "GPU", 4, number=True), Column("load", "LOAD", BAR + 5),
    Column("memory", "MEMORY", BAR + 11), Column("temperature", "TEMP", 5, number=True),
    Column("power", "POWER", 9, number=True, drop=2), Column("health", "HEALTH", 8, drop=3),
    Column("history", "LAST MINUTES", SPARK, drop=5), Column("name", "NAME", 18, drop=4),
    Column("owners", "WHOSE MEMORY", 14, grow=True),
)  # fmt: skip

HEALTH = {GpuHealth.LOST: 0, GpuHealth.SICK: 1, GpuHealth.DEGRADED: 2, GpuHealth.OK: 4}


class _Host:
    """What the rows of one host share, worked out when the first of them is looked at."""

    def __init__(self, state: HostState) -> None:
        self.state = state

    @cached_property
    def devices(self) -> Mapping[str, Device]:
        return {each.gpu.uuid: each for each in gpus.devices(self.state.status)}

    @cached_property
    def owners(self) -> Mapping[str, tuple[str, ...]]:
        return owners_of(self.state)


def lines(fleet: FleetState, history: History, now: datetime) -> Iterator[Later]:
    """One row for each GPU and each MIG instance, in the hosts' order."""
    for state in fleet.hosts.values():
        host = _Host(state)
        for gpu in gpus.ordered(state.status.gpus) if state.status is not None else ():
            yield Later((state.name, gpu.uuid), _row, (host, gpu, history, now), _sorted_by, _searched)


def owners_of(host: HostState) -> Mapping[str, tuple[str, ...]]:
    """The deployments whose replicas were given each GPU, or hold memory on it; a GPU's also those of its instances."""
    found: dict[str, dict[str, None]] = {}
    status = host.status
    for deployment in status.deployments if status is not None else ():
        for replica in deployment.replicas:
            for uuid in replica.gpus:
                found.setdefault(uuid, {})[deployment.name] = None
    for use in status.gpu_uses if status is not None else ():
        for process in use.processes:
            if process.deployment is not None:
                found.setdefault(use.uuid, {})[process.deployment] = None
    for gpu in status.gpus if status is not None else ():
        if gpu.parent is not None:
            found.setdefault(gpu.parent, {}).update(found.get(gpu.uuid, {}))
    return {uuid: tuple(names) for uuid, names in found.items()}


def is_lost(gpu: Gpu) -> bool:
    """Whether nothing at all can be measured on it any more."""
    return gpu.memory_total is None and gpu.utilisation is None and gpu.temperature is None


def _row(host: _Host, gpu: Gpu, history: History, now: datetime) -> Line:
    device, owners, name = host.devices[gpu.uuid], host.owners.get(gpu.uuid, ()), host.state.name
    away = host.state.connection == "lost"
    note = (2, Cell(clean_line(f"⚠ {_why_lost(device, host.state)}"), Severity.BAD)) if is_lost(gpu) else None
    cells = (
        Cell(f"{name} {'○' if away else ''}".rstrip(), Severity.BAD if away else Severity.PLAIN),
        Cell(device.label, number=True),
        Cell(f"{marks.bar(gpu.utilisation, BAR)} {views.ratio(gpu.utilisation):>4}", Severity.GOOD),
        Cell(f"{memory_bar(device, BAR)} {gpus.memory(gpu):>10}", _full(gpus.filled(gpu))),
        Cell(gpus.temperature(gpu), Severity.WARNING if gpus.is_hot(gpu) else Severity.PLAIN, number=True),
        Cell(gpus.power(gpu), number=True),
        Cell(clean_line(str(gpu.health)), gpus.severity(gpu)),
        Cell(marks.sparkline(history.last(name, "gpu", gpu.uuid, SPARK), SPARK)),
        Cell(clean_line(gpus.short_name(gpu.name) if gpu.profile is None else f"MIG {gpu.profile}")),
        _away(host.state, now) if away else _owners(device, owners),
    )
    return Line((name, gpu.uuid), cells, faded=away, note=note)


def _searched(host: _Host, gpu: Gpu, _history: History, _now: datetime) -> str:
    device, owners = host.devices[gpu.uuid], host.owners.get(gpu.uuid, ())
    whose = _owners(device, owners).text
    return f"{host.state.name} {device.label} {gpu.name} {gpu.uuid} {gpu.health} {whose} {' '.join(owners)}"


def _sorted_by(host: _Host, gpu: Gpu, _history: History, _now: datetime, index: int) -> Any:
    return _SORTS[index](host, gpu)


_SORTS: tuple[Callable[[_Host, Gpu], Any], ...] = (
    lambda host, gpu: host.state.name,
    lambda host, gpu: (gpu.index, gpu.instance if gpu.instance is not None else -1),
    lambda host, gpu: gpu.utilisation,
    lambda host, gpu: gpus.filled(gpu),
    lambda host, gpu: gpu.temperature,
    lambda host, gpu: gpu.power,
    lambda host, gpu: HEALTH.get(gpu.health, 3),
    lambda host, gpu: None,
    lambda host, gpu: gpu.name,
    lambda host, gpu: ", ".join(host.owners.get(gpu.uuid, ())),
)
"""A value for each of `COLUMNS`, without the cells: all rows are sorted, few are shown."""


def _away(host: HostState, now: datetime) -> Cell:
    return Cell(f"unreachable for {marks.since(host.since, now)}")


def _why_lost(device: Device, host: HostState) -> str:
    """What is known of the reason for which a GPU tells nothing."""
    if words := gpus.health_words(device):
        return words
    parts = host.status.parts if host.status is not None else ()
    said = next((part.detail for part in parts if part.name == "nvml" and part.detail), "")
    return f"no answer: {said or 'NVML tells nothing about it'}"


def _full(share: float | None) -> Severity:
    if share is None:
        return Severity.MUTED
    return Severity.WARNING if share >= 0.95 else Severity.BUSY


# --- whose memory it is ----------------------------------------------------------------------------------------------

FILLS = {Owner.DEPLOYMENT: "█", Owner.UNMANAGED: "▓", Owner.UNEXPLAINED: "▒", Owner.DRIVER: "▒", Owner.FREE: "░"}
"""How each owner's memory is drawn, so that a bar reads without colour."""


def memory_bar(device: Device, width: int) -> str:
    """Used memory as a bar, by owner where that is known: deployments full, unmanaged lighter, unexplained lightest."""
    total = device.gpu.memory_total
    if device.use is None or not total:
        return marks.bar(gpus.filled(device.gpu), width)
    by_owner: dict[Owner, int] = {}
    for share in gpus.shares(device):
        by_owner[share.owner] = by_owner.get(share.owner, 0) + (share.memory or 0)
    drawn = [(FILLS[owner], by_owner.get(owner, 0) / total) for owner in gpus.CLAIMED]
    return marks.parts(drawn, width)


def _owners(device: Device, owners: tuple[str, ...]) -> Cell:
    """The worst first: what is wrong with it, then whose its memory is."""
    words = gpus.health_words(device)
    parts = [f"⚠ {words}"] if words else []
    if device.gpu.mig:
        parts.append("MIG" + (f": {', '.join(owners)}" if owners else ""))
    else:
        parts += _whose(device, owners)
    meaning = gpus.severity(device.gpu) if words else Severity.PLAIN if parts else Severity.MUTED
    return Cell(clean_line(" · ".join(parts)) or NOTHING, meaning)


def _whose(device: Device, owners: tuple[str, ...]) -> list[str]:
    """`llama-chat 56G`, `unmanaged 3.3G`, `unexplained 1.7G`; a deployment that holds nothing yet by its name."""
    held: dict[str, int] = {}
    for process in device.use.processes if device.use is not None else ():
        name = process.deployment if process.replica is not None and process.deployment else Owner.UNMANAGED.value
        held[name] = held.get(name, 0) + (process.memory or 0)
    unmanaged = held.pop(Owner.UNMANAGED.value, None)
    told = [f"{name} {gpus.gib(memory)}G" for name, memory in held.items()]
    told += [name for name in owners if name not in held]
    if unmanaged is not None:
        told.append(f"unmanaged {gpus.gib(unmanaged)}G")
    unexplained = (device.use.unexplained if device.use is not None else None) or 0
    if unexplained >= WORTH_A_WORD:
        told.append(f"unexplained {gpus.gib(unexplained)}G")
    return told
