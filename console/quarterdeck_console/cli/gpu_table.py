"""Pure: GPUs as `qd gpus` prints them, whose memory it is below each."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from quarterdeck_agent.protocol import GpuHealth
from quarterdeck_console import gpus
from quarterdeck_console.clean import clean_line
from quarterdeck_console.gpus import Device, Owner
from quarterdeck_console.state import FleetState, HostState
from quarterdeck_console.views import NOTHING, Cell, Row, Severity, Table, age, ratio, size

FULL = 0.97
"""Of all memory used from which a GPU is called full."""


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
    for device in gpus.devices(host.status):
        yield row(host.name, device)


def _blank(host: str, state: str, detail: str) -> Row:
    blank = Cell(NOTHING, number=True)
    told = Cell(clean_line(state), Severity.BAD), Cell(clean_line(detail), Severity.BAD)
    return Row((host, ""), (Cell(clean_line(host)), *[blank] * 5, *told))


def row(host: str, device: Device) -> Row:
    """One GPU or MIG instance."""
    gpu = device.gpu
    full = (gpus.filled(gpu) or 0.0) >= FULL
    cells = (
        Cell(clean_line(host)),
        Cell(device.label, number=True),
        Cell(ratio(gpu.utilisation), number=True),
        Cell(gpus.memory(gpu), Severity.WARNING if full else Severity.PLAIN, number=True),
        Cell(gpus.temperature(gpu), Severity.WARNING if gpus.is_hot(gpu) else Severity.PLAIN, number=True),
        Cell(gpus.power(gpu), number=True),
        Cell(clean_line(str(gpu.health)), gpus.severity(gpu)),
        Cell(clean_line(gpus.short_name(gpu.name) if gpu.profile is None else f"MIG {gpu.profile}")),
    )
    return Row((host, gpu.uuid), cells, tuple(_below(device)))


def _below(device: Device) -> Iterator[Cell]:
    gpu = device.gpu
    if gpu.health != GpuHealth.OK:
        yield Cell(clean_line(f"⚠ {gpu.why or 'the host does not say why'}"), gpus.severity(gpu))
    if gpu.throttle:
        yield Cell(clean_line(f"▲ slowed down: {', '.join(gpu.throttle)}"), Severity.WARNING)
    for share in gpus.shares(device):
        if share.owner in gpus.CLAIMED:
            meaning = Severity.PLAIN if share.owner == Owner.DEPLOYMENT else Severity.WARNING
            yield Cell(f"{size(share.memory):>9}  {share.words}", meaning)


def in_a_line(device: Device) -> str:
    """Everything that `row` tells, as one line."""
    gpu = device.gpu
    figures = (ratio(gpu.utilisation), gpus.memory(gpu), gpus.temperature(gpu), gpus.power(gpu))
    health = gpus.health_words(device) or str(gpu.health)
    owners = ", ".join(gpus.owned(share) for share in gpus.shares(device) if share.owner in gpus.CLAIMED)
    return clean_line("  ".join(part for part in (device.what, *figures, health, owners) if part))
