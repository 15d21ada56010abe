"""Pure: every change of every host as a row, those under way on top."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from datetime import datetime

from quarterdeck_agent.protocol import Operation, OperationState
from quarterdeck_console import views
from quarterdeck_console.clean import clean_line
from quarterdeck_console.state import FleetState
from quarterdeck_console.tui import marks
from quarterdeck_console.tui.screens.deployment_rows import elapsed
from quarterdeck_console.tui.widgets.table import Column, Line
from quarterdeck_console.views import NOTHING, Cell, Severity

COLUMNS = (
    Column("host", "HOST", 10), Column("when", "WHEN", 6, number=True), Column("by", "WHO", 8),
    Column("kind", "KIND", 8), Column("target", "TARGET", 14), Column("state", "OUTCOME", 27, grow=True),
    Column("took", "TOOK", 7, number=True, drop=3), Column("rev", "REV", 4, number=True, drop=4),
    Column("why", "WHY", 30, drop=6), Column("id", "ID", 8, drop=7),
)  # fmt: skip
SHOWN = 1000
"""Changes that have a row."""

LIVE = (OperationState.PENDING, OperationState.RUNNING)


def is_live(each: Operation) -> bool:
    """Whether a change is still under way."""
    return each.state in LIVE


def lines(fleet: FleetState, now: datetime) -> Iterator[Line]:
    """Those under way first, then the newest first; of very many the oldest are counted only."""
    found = [
        (host, each)
        for host in fleet.hosts.values()
        if host.status is not None
        for each in host.status.operations
    ]  # fmt: skip
    shown = heapq.nsmallest(SHOWN, found, key=lambda one: (not is_live(one[1]), -one[1].at.timestamp()))
    for host, each in shown:
        yield _operation(host.name, each, host.connection == "lost", now)
    if len(found) > SHOWN:
        told = Cell(f"… and {len(found) - SHOWN} older ones: see qd operations", Severity.MUTED)
        yield Line(("", ""), (Cell(""),) * len(COLUMNS), note=(0, told))


def _operation(host: str, each: Operation, lost: bool, now: datetime) -> Line:
    took = seconds(each, now)
    said = outcome(each, now)
    cells = (
        Cell(host),
        Cell(marks.since(each.at, now), number=True),
        Cell(each.by),
        Cell(each.kind),
        Cell(each.target),
        Cell(said, views.severity(each.state)),
        Cell(views.duration(took), number=True),
        Cell(NOTHING if each.revision is None else str(each.revision), number=True),
        Cell(clean_line(each.why)),
        Cell(each.id[:8]),
    )
    sort = (
        host, -each.at.timestamp(), each.by, each.kind, each.target, said, took, each.revision, each.why, each.id,
    )  # fmt: skip
    return Line((host, each.id), cells, sort, lost)


def seconds(each: Operation, now: datetime) -> float | None:
    """How long a change took, or takes so far."""
    end = each.finished_at or (now if is_live(each) else None)
    return None if end is None else max(0.0, (end - each.at).total_seconds())


def outcome(each: Operation, now: datetime) -> str:
    """The state, and what is behind it: the step that runs, the reason why it failed, else what was done."""
    mark = marks.symbol(each.state)
    running = next((step for step in reversed(each.steps) if step.state == "running"), None)
    if is_live(each) and running is not None:
        return clean_line(f"{mark} {running.name}  {views.duration(elapsed(running, now))}  {running.detail}".rstrip())
    told = each.detail or each.summary
    return clean_line(f"{mark} {each.state}" + (f": {told}" if told else ""))
