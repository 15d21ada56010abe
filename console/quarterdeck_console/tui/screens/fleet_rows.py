"""Pure: the fleet's state as the rows of the home screen."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from quarterdeck_agent.protocol import DeploymentStatus
from quarterdeck_console import views
from quarterdeck_console.state import FleetState, HostState
from quarterdeck_console.tui.context import Context
from quarterdeck_console.tui.widgets.table import Column, Line
from quarterdeck_console.views import NOTHING, Cell, Severity

COLUMNS = (
    Column("host", "HOST", 12), Column("name", "DEPLOYMENT", 16), Column("version", "VERSION", 12, drop=4),
    Column("rev", "REV", 4, number=True, drop=6), Column("state", "STATE", 22, grow=True),
    Column("replicas", "REPL", 5, number=True), Column("gpu", "GPU", 9, drop=5),
    Column("rate", "REQ/S", 8, number=True), Column("errors", "ERR", 6, number=True, drop=2),
    Column("p95", "P95", 7, number=True, drop=7), Column("since", "SINCE", 7, number=True, drop=8),
    Column("by", "BY", 8, drop=9),
)  # fmt: skip
HOST_COLUMNS = (
    Column("host", "HOST", 12), Column("cpu", "CPU", 14), Column("memory", "MEM", 5, number=True),
    Column("disk", "DISK", 5, number=True, drop=1), Column("gpus", "GPU", 20, grow=True),
)  # fmt: skip


def lines(fleet: FleetState, now: datetime) -> Iterator[Line]:
    """Every deployment of every host; a host of which nothing is known has one line that says so."""
    for host in fleet.hosts.values():
        if host.status is None or not host.status.deployments:
            if host.status is None:
                yield _silent(host, now)
            continue
        for each in host.status.deployments:
            yield _deployment(host, each, now)


def _silent(host: HostState, now: datetime) -> Line:
    lost = host.connection == "lost"
    said = f"unreachable: {host.error}" if lost else "connecting …"
    blank = Cell(NOTHING, Severity.MUTED)
    cells = [Cell(f"{host.name} {'○' if lost else '·'}"), *[blank] * (len(COLUMNS) - 1)]
    cells[4] = Cell(said, Severity.BAD if lost else Severity.MUTED)
    cells[10] = Cell(views.age(host.since, now), Severity.MUTED, number=True)
    return Line((host.name, ""), tuple(cells), (host.name, *[None] * (len(COLUMNS) - 1)))


def _deployment(host: HostState, each: DeploymentStatus, now: datetime) -> Line:
    lost = host.connection == "lost"
    assert host.status is not None
    traffic = next(
        (t for t in host.status.traffic if (t.deployment, t.revision) == (each.name, each.live_revision)), None
    )
    state = Cell(each.summary)
    cells = (
        Cell(host.name), Cell(each.name), Cell(each.label),
        Cell(str(each.live_revision or each.wanted_revision), number=True), state,
        Cell(f"{each.replicas_ready}/{each.replicas_wanted}", number=True), Cell(""),
        Cell(f"{traffic.rate:.1f}" if traffic and traffic.rate is not None else NOTHING, number=True),
        Cell(NOTHING, number=True),
        Cell(NOTHING, number=True), Cell(views.age(each.since, now), number=True), Cell(each.by),
    )  # fmt: skip
    return Line((host.name, each.name), cells, faded=lost)


def host_lines(fleet: FleetState, context: Context, gpus: int, now: datetime) -> Iterator[Line]:
    """Every host with its figures."""
    for host in fleet.hosts.values():
        cells = (Cell(host.name), Cell(""), Cell(""), Cell(""), Cell(""))
        yield Line((host.name,), cells)
