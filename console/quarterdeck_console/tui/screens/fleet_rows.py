"""Pure: the fleet's state as the rows of the home screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

from quarterdeck_agent.protocol import (
    DeploymentState,
    DeploymentStatus,
    Failure,
    FailureReason,
    Gpu,
    GpuHealth,
    Traffic,
)
from quarterdeck_console import gpus, views
from quarterdeck_console.clean import clean_line
from quarterdeck_console.gpus import Device
from quarterdeck_console.state import FleetState, HostState
from quarterdeck_console.tui import marks
from quarterdeck_console.tui.history import History
from quarterdeck_console.tui.standing import MEANING, Standing, standing
from quarterdeck_console.tui.widgets.table import Column, Later, Line
from quarterdeck_console.views import NOTHING, Cell, Severity

COLUMNS = (
    Column("host", "HOST", 10), Column("name", "DEPLOYMENT", 14), Column("version", "VERSION", 9, drop=3),
    Column("rev", "REV", 4, number=True, drop=6), Column("state", "STATE", 20, grow=True),
    Column("replicas", "REPL", 4, number=True), Column("gpu", "GPU", 5, drop=5),
    Column("rate", "REQ/S", 9, number=True, drop=1), Column("errors", "ERR", 5, number=True, drop=2),
    Column("p95", "P95", 7, number=True, drop=7), Column("since", "SINCE", 6, number=True, drop=8),
    Column("by", "BY", 6, drop=9),
)  # fmt: skip
STATE = 4
BLANK = Cell(NOTHING, Severity.MUTED)
NUMBER_BLANK = Cell(NOTHING, Severity.MUTED, number=True)


# --- deployments -----------------------------------------------------------------------------------------------------


def lines(fleet: FleetState, now: datetime) -> Iterator[Line | Later]:
    """Every deployment of every host; a host of which nothing is known has one line that says so."""
    for host in fleet.hosts.values():
        if host.status is None:
            yield _silent(host, now)
            continue
        for each in host.status.deployments:
            yield Later((host.name, each.name), _deployment, (host, each, now), _sorted_by, _searched)


def _silent(host: HostState, now: datetime) -> Line:
    lost = host.connection == "lost"
    note = Cell(f"? unreachable: {host.error}", Severity.BAD) if lost else Cell("· connecting …", Severity.MUTED)
    cells = [Cell(f"{host.name} {host_symbol(host)}"), *[BLANK] * (len(COLUMNS) - 1)]
    cells[10] = Cell(marks.since(host.since, now), Severity.MUTED, number=True)
    sort: list[Any] = [None] * len(COLUMNS)
    sort[0], sort[STATE] = host.name, Standing.LOST if lost else Standing.UNKNOWN
    return Line((host.name, ""), tuple(cells), tuple(sort), faded=True, note=(1, note))


def _deployment(host: HostState, each: DeploymentStatus, now: datetime) -> Line:
    lost = host.connection == "lost"
    held, share, p95 = _sum(t.held for t in _traffic(host, each)), _error_share(host, each), _p95(host, each)
    wrong = "?" if lost else None
    cells = (
        Cell(f"{host.name} {host_symbol(host)}", Severity.BAD if lost else Severity.PLAIN),
        Cell(each.name),
        Cell(short_label(each.label, each.name)),
        Cell(str(_revision(each)), number=True),
        _state(host, each, now),
        Cell(f"{wrong or each.replicas_ready}/{each.replicas_wanted}", _replicas(each), number=True),
        Cell(",".join(gpus_of(host, each)) or NOTHING),
        Cell(wrong or (f"{held:.0f} held" if held else _rate(_rate_of(host, each))),
             Severity.BUSY if held else Severity.PLAIN, True),
        Cell(wrong or _share(share), Severity.WARNING if share else Severity.PLAIN, number=True),
        Cell(wrong or views.duration(p95), number=True),
        Cell(marks.since(each.since, now), number=True),
        Cell(each.by),
    )  # fmt: skip
    return Line((host.name, each.name), cells, faded=lost)


def _searched(host: HostState, each: DeploymentStatus, now: datetime) -> str:
    return f"{host.name} {each.name} {each.label} {each.state} {_state_words(host, each, now)} {each.by}"


def _sorted_by(host: HostState, each: DeploymentStatus, _now: datetime, index: int) -> Any:
    return _SORTS[index](host, each)


def _traffic(host: HostState, each: DeploymentStatus) -> list[Traffic]:
    return [t for t in host.status.traffic if t.deployment == each.name] if host.status is not None else []


def _rate_of(host: HostState, each: DeploymentStatus) -> float | None:
    return _sum(t.rate for t in _traffic(host, each))


def _error_share(host: HostState, each: DeploymentStatus) -> float | None:
    rate, errors = _rate_of(host, each), _sum(t.errors for t in _traffic(host, each))
    return None if errors is None or rate is None else errors / (rate + errors) if rate + errors else 0.0


def _p95(host: HostState, each: DeploymentStatus) -> float | None:
    live = next((t for t in _traffic(host, each) if t.revision == each.live_revision), None)
    return live.p95 if live is not None else None


def _revision(each: DeploymentStatus) -> int:
    return each.live_revision if each.live_revision is not None else each.wanted_revision


_SORTS: tuple[Callable[[HostState, DeploymentStatus], Any], ...] = (
    lambda host, each: host.name,
    lambda host, each: each.name,
    lambda host, each: each.label,
    lambda host, each: _revision(each),
    lambda host, each: standing(each, host.connection == "lost"),
    lambda host, each: each.replicas_ready - each.replicas_wanted,
    lambda host, each: ",".join(gpus_of(host, each)) or NOTHING,
    _rate_of,
    _error_share,
    _p95,
    lambda host, each: -each.since.timestamp(),
    lambda host, each: each.by,
)
"""A value for each of `COLUMNS`, without the cells: all rows are sorted, few are shown."""


def _state(host: HostState, each: DeploymentStatus, now: datetime) -> Cell:
    return Cell(_state_words(host, each, now), MEANING[standing(each, host.connection == "lost")])


def _state_words(host: HostState, each: DeploymentStatus, now: datetime) -> str:
    said = _last_state(each, now)
    return f"? unreachable; was {said}" if host.connection == "lost" else said


def _last_state(each: DeploymentStatus, now: datetime) -> str:
    """The symbol, the word, and what is behind it, the worst thing told first."""
    mark = marks.symbol(each.state)
    if each.state == DeploymentState.SERVING:
        return f"{mark} serving" if each.failure is None else f"{mark} serving; ✖ {refused(each.failure)}"
    if each.state == DeploymentState.STOPPED:
        return f"{mark} stopped"
    if views.severity(each.state) == Severity.BUSY:
        # "embed:1.3: golden" is "1.3: golden" in the row of embed.
        said = each.summary.removeprefix(f"{each.name}:")
        return clean_line(f"{mark} {said}  {marks.since(each.since, now)}")
    return clean_line(f"{mark} {each.state}: {each.summary}")


def failed(failure: Failure) -> str:
    """A failure in one line: `refused: golden request 2 of 5 differs`."""
    word = "refused" if failure.reason == FailureReason.GOLDEN_MISMATCH else str(failure.reason).replace("_", " ")
    told = failure.message.removeprefix(f"{word} ")
    return clean_line(f"{word} {told}" if told != failure.message else f"{word}: {told}")


def refused(failure: Failure) -> str:
    """The same of one that something else serves beside: whatever its reason, the word that the band counts by."""
    said = failed(failure)
    return said if said.startswith("refused") else f"refused: {said}"


def _replicas(each: DeploymentStatus) -> Severity:
    return Severity.WARNING if each.replicas_ready < each.replicas_wanted else Severity.PLAIN


def short_label(label: str, name: str) -> str:
    """A label without the model's name where the deployment bears it already."""
    model, colon, version = label.partition(":")
    return version if colon and model == name else label


def gpus_of(host: HostState, each: DeploymentStatus) -> tuple[str, ...]:
    """The indexes of the GPUs that a deployment's replicas run on."""
    known = gpus.labels(host.status)
    found = {known.get(gpu, gpu) for replica in each.replicas for gpu in replica.gpus}
    return tuple(sorted(found, key=lambda index: (len(index), index)))


def _rate(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{value * 100:.1f}%"


def _sum(values: Iterator[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return float(sum(known)) if known else None


# --- hosts -----------------------------------------------------------------------------------------------------------

HOST, CPU, MEMORY, DISK, GPU = 10, 14, 5, 5, 24
BAR, SPARK = 10, 8


def host_columns(room: int) -> tuple[Column, ...]:
    """The strip's columns with this many GPUs side by side."""
    shown = (Column(f"gpu{index}", f"GPU {index}", GPU) for index in range(room))
    return (
        Column("host", "HOST", HOST), Column("cpu", "CPU", CPU), Column("memory", "MEM", MEMORY, number=True),
        Column("disk", "DISK", DISK, number=True), *shown, Column("rest", "" if room else "GPU", 10, grow=True),
    )  # fmt: skip


def gpus_that_fit(fleet: FleetState, width: int) -> int:
    """How many GPUs are shown side by side: as many as any host has, as far as there is room; below two, none."""
    most = max((len(cards(host)) for host in fleet.hosts.values()), default=0)
    room = (width - HOST - CPU - MEMORY - DISK - 7) // (GPU + 1)
    return min(most, room) if room >= min(2, most) else 0


def cards(host: HostState) -> tuple[Gpu, ...]:
    """A host's GPUs without their MIG instances."""
    return gpus.whole(host.status.gpus) if host.status is not None else ()


def host_lines(fleet: FleetState, history: History, room: int, now: datetime) -> Iterator[Later]:
    """Every host with its figures and `room` GPUs; of one that does not answer the last ones, and since when."""
    for host in fleet.hosts.values():
        yield Later((host.name,), _host, (host, history, room, now))


def _host(host: HostState, history: History, room: int, now: datetime) -> Line:
    lost, status = host.connection == "lost", host.status
    found = tuple(each for each in gpus.devices(status) if each.gpu.parent is None)
    name = Cell(f"{host.name} {host_symbol(host)}", Severity.BAD if lost else Severity.PLAIN)
    silent = Cell(_silence(host, now), Severity.BAD if lost else Severity.MUTED)
    note = (4, silent) if status is None or lost else _broken(host, found, room)
    gauges = status.gauges if status is not None else None
    points = history.last(host.name, "cpu", "", SPARK)
    cpu = gauges.cpu if gauges is not None else None
    cells = (
        name,
        Cell(f"{marks.sparkline(points, SPARK)} {views.ratio(cpu):>4}", _heat(cpu)),
        _part(gauges.memory_used if gauges else None, gauges.memory_total if gauges else None),
        _part(gauges.disk_used if gauges else None, gauges.disk_total if gauges else None),
        *(gpu_cell(found[index]) if index < len(found) else Cell("") for index in range(room)),
        _rest(host, found, room),
    )
    return Line((host.name,), cells, faded=lost, note=note)


def _silence(host: HostState, now: datetime) -> str:
    if host.connection != "lost":
        return "connecting …"
    last = "last values" if host.status is not None else "never heard from"
    return clean_line(f"unreachable for {marks.since(host.since, now)}, {last}: {host.error}")


def _broken(host: HostState, found: Sequence[Device], room: int) -> tuple[int, Cell] | None:
    """What is the matter with the GPUs, over the room of those that say nothing any more."""
    known = found[:room]
    answering = [index for index, each in enumerate(known) if not _is_lost(each.gpu)]
    first = answering[-1] + 1 if answering else 0
    if first >= len(known):
        return None
    assert host.status is not None
    trouble = next((part for part in host.status.parts if part.name == "nvml" and str(part.state) == "failed"), None)
    words = next((words for each in known[first:] if (words := gpus.health_words(each))), "")
    words = words or (trouble.detail if trouble is not None else "")
    return 4 + first, Cell(clean_line(f"⚠ {words or 'no answer'}"), Severity.BAD)


def _is_lost(gpu: Gpu) -> bool:
    return gpu.memory_total is None and gpu.utilisation is None


def gpu_cell(each: Device) -> Cell:
    """Utilisation as a bar and a figure, and memory used of all; of one that is sick or lost why."""
    gpu, words = each.gpu, gpus.health_words(each)
    if gpu.health in (GpuHealth.SICK, GpuHealth.LOST):
        # "Xid 79: lost since 13:58" is a little too long for the column.
        return Cell(clean_line(f"⚠ {words}".replace(" since ", " ")), Severity.BAD)
    if _is_lost(gpu):
        return Cell("⚠ no answer", Severity.BAD)
    use, memory = gpu.utilisation, memory_words(gpu)
    filled = gpus.filled(gpu)
    meaning = Severity.WARNING if words or (filled or 0.0) > 0.97 else Severity.GOOD if use else Severity.MUTED
    # NVML knows no load of a GPU that is cut into instances.
    load = f"{'MIG':<{BAR + 5}}" if gpu.mig and use is None else f"{marks.bar(use, BAR)} {views.ratio(use):>4}"
    return Cell(f"{load} {memory:>7}{'▲' if words else ''}", meaning)


def memory_words(gpu: Gpu) -> str:
    """`61/80G`."""
    if gpu.memory_used is None or gpu.memory_total is None:
        return NOTHING
    return f"{gpu.memory_used / 2**30:.0f}/{gpu.memory_total / 2**30:.0f}G"


def _rest(host: HostState, found: Sequence[Device], room: int) -> Cell:
    """The GPUs that have no room, by the one that is worst off, else the busiest; and what else is not well."""
    left = found[room:]
    worst = max(left, key=_worse, default=None)
    if worst is not None:
        cell = gpu_cell(worst)
        of = f"#{worst.label} of {len(found)}" if not room else f"#{worst.label} of {len(left)} more"
        return Cell(f"{cell.text} {of}", cell.severity)
    troubled = [part for part in (host.status.parts if host.status else ()) if str(part.state) not in ("ok", "absent")]
    if troubled:
        return Cell(clean_line(f"⚠ {troubled[0].name}: {troubled[0].detail or troubled[0].state}"), Severity.BAD)
    return Cell("" if room or found else "no GPU", Severity.MUTED)


def _worse(each: Device) -> tuple[bool, bool, float]:
    gpu = each.gpu
    return gpu.health in (GpuHealth.SICK, GpuHealth.LOST), gpu.utilisation is None, gpu.utilisation or 0.0


def host_symbol(host: HostState) -> str:
    """How a host is, in one character."""
    if host.connection == "lost":
        return marks.LOST
    if host.status is None:
        return "·"
    troubled = any(str(part.state) not in ("ok", "absent") for part in host.status.parts) or any(
        gpu.health != GpuHealth.OK for gpu in host.status.gpus
    )
    return marks.SYMBOLS[Severity.WARNING if troubled else Severity.GOOD]


def _part(used: int | None, total: int | None) -> Cell:
    if not total or used is None:
        return NUMBER_BLANK
    return Cell(views.ratio(used / total), _heat(used / total), number=True)


def _heat(value: float | None) -> Severity:
    if value is None:
        return Severity.MUTED
    return Severity.BAD if value > 0.95 else Severity.WARNING if value > 0.85 else Severity.PLAIN
