"""Pure: every version as a row, every host as a column: where it lies, and what serves of it there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from textual.content import Content

from quarterdeck_agent.protocol import DeploymentStatus, OperationState, Version
from quarterdeck_console import views
from quarterdeck_console.clean import clean_line
from quarterdeck_console.state import FleetState, HostState
from quarterdeck_console.tui import marks, words
from quarterdeck_console.tui.messages import PushCame
from quarterdeck_console.tui.widgets.table import Column, Line
from quarterdeck_console.views import Cell, Severity

HOST = 12
"""Columns of a host."""

_FIRST = (Column("label", "VERSION", 22), Column("on", "ON", 5, number=True))
_LAST = (
    Column("size", "SIZE", 9, number=True, drop=1000), Column("runtime", "RUNTIME", 11, drop=1001),
    Column("age", "PUSHED", 6, number=True, drop=1002), Column("by", "BY", 8, drop=1003),
    Column("id", "ID", 12, drop=1004),
)  # fmt: skip
BLANK = Cell("", Severity.MUTED)


def columns(hosts: Sequence[str]) -> tuple[Column, ...]:
    """Hosts in the fleet file's order; the last ones are left out first where there is no room."""
    shown = (Column(f"host {name}", name, HOST, drop=number) for number, name in enumerate(hosts, 1))
    return (*_FIRST, *shown, *_LAST)


@dataclass(slots=True)
class Placed:
    """One version, by its bytes, and what each host says of it."""

    version: Version
    on: dict[str, HostState] = field(default_factory=dict)


def placed(fleet: FleetState) -> dict[str, Placed]:
    """Every version of the fleet by its id: models by name, the newest version of each first."""
    found: dict[str, Placed] = {}
    for host in fleet.hosts.values():
        for version in host.status.versions if host.status is not None else ():
            found.setdefault(version.id, Placed(version)).on[host.name] = host
    ordered = sorted(found.values(), key=lambda each: (each.version.name, -each.version.created_at.timestamp()))
    return {each.version.id: each for each in ordered}


def lines(fleet: FleetState, hosts: Sequence[str], now: datetime) -> Iterator[Line]:
    """One row for each version."""
    known = placed(fleet)
    ids: dict[str, int] = {}
    for each in known.values():
        ids[each.version.label] = ids.get(each.version.label, 0) + 1
    for id_, each in known.items():
        yield _line(id_, each, hosts, ids[each.version.label] > 1, now)


def _line(id_: str, each: Placed, hosts: Sequence[str], ambiguous: bool, now: datetime) -> Line:
    version = each.version
    cells = (
        Cell(f"▲ {version.label}" if ambiguous else version.label, Severity.WARNING if ambiguous else Severity.PLAIN),
        Cell(f"{len(each.on)}/{len(hosts)}", number=True),
        *(on_host(each.on[name], version) if name in each.on else BLANK for name in hosts),
        Cell(views.size(version.size), number=True),
        Cell(version.runtime),
        Cell(marks.since(version.created_at, now), number=True),
        Cell(version.by),
        Cell(id_[:12], Severity.WARNING if ambiguous else Severity.MUTED),
    )
    sort = (
        version.label, len(each.on), *(cell.text or None for cell in cells[2 : 2 + len(hosts)]), version.size,
        version.runtime, -version.created_at.timestamp(), version.by, id_,
    )  # fmt: skip
    searched = " ".join((version.label, version.runtime, version.by, id_, *each.on))
    return Line((id_,), cells, sort, searched=searched)


def on_host(host: HostState, version: Version) -> Cell:
    """What a host does with a version that it has: what serves comes first."""
    lost = host.connection == "lost"
    for deployment in host.status.deployments if host.status is not None else ():
        if (told := _served(host, deployment, version)) is not None:
            return Cell(told.text, Severity.MUTED) if lost else told
    return Cell("· pushed", Severity.MUTED)


def _served(host: HostState, each: DeploymentStatus, version: Version) -> Cell | None:
    name = each.name if not version.label.startswith(f"{each.name}:") else ""
    if _is_coming(host, each, version):
        return Cell(clean_line(f"◐ {name or 'deploying'}"), Severity.BUSY)
    if each.version == version.id:
        return Cell(clean_line(f"{marks.symbol(each.state)} {name or each.state}"), views.severity(each.state))
    warm = host.revisions.get(f"{each.name}/{each.warm_revision}")
    if warm is not None and warm.spec.version == version.id:
        return Cell("◌ warm", Severity.BUSY)
    return None


def _is_coming(host: HostState, each: DeploymentStatus, version: Version) -> bool:
    """Whether the change that is under way is to this version."""
    known = host.status.operations if host.status is not None else ()
    operation = next((one for one in known if one.id == each.operation), None)
    if operation is None or operation.state not in (OperationState.PENDING, OperationState.RUNNING):
        return False
    return any(change.field == "version" and change.new == version.label for change in operation.changes)


# --- a push under way ------------------------------------------------------------------------------------------------

BAR = 24


def pushes(hosts: Mapping[str, PushCame]) -> Content:
    """How far a push is, a line for each host."""
    width = max((len(name) for name in hosts), default=0)
    return words.lines([_push(name, came, width) for name, came in hosts.items()])


def _push(name: str, came: PushCame, width: int) -> Content:
    head = (f"{name:<{width}}  ", "")
    if came.error is not None:
        hint = f" ({came.error.hint})" if came.error.hint else ""
        return words.joined(head, (f"✖ {came.label} {came.error.detail}{hint}".replace("  ", " "), Severity.BAD))
    if came.version is not None:
        return words.joined(head, (f"✔ {came.version.label} is there", Severity.GOOD))
    share = came.done / came.total if came.total else None
    return words.joined(
        head, (f"{came.stage:<9} ", Severity.BUSY), (marks.bar(share, BAR), Severity.GOOD),
        (f" {views.ratio(share):>4}  {views.size(came.done)} of {views.size(came.total)}  {came.label}", ""),
        (f"  {came.detail}" if came.detail else "", Severity.WARNING),
    )  # fmt: skip
