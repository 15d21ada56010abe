"""The line that says what happened last: the newest change of the fleet, or how a change of ours is going."""

from __future__ import annotations

from datetime import datetime

from quarterdeck_agent.protocol import Operation
from quarterdeck_console.state import FleetState
from quarterdeck_console.tui import words
from quarterdeck_console.tui.marks import symbol
from quarterdeck_console.tui.widgets.label import Label
from quarterdeck_console.views import Severity, severity

TOLD_FOR = 12.0
"""Seconds that something told keeps the line before the fleet's newest change may have it again."""


class EventLine(Label):
    """One line. What is told to this console goes before what the fleet does."""

    DEFAULT_CSS = """
    EventLine { height: 1; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    _told_at: datetime | None = None

    def tell(self, text: str, bad: bool, now: datetime) -> None:
        """Say something."""
        self._told_at = now
        self.show(words.line(f" {now.astimezone():%H:%M} {text}", Severity.BAD if bad else Severity.GOOD))

    def show_fleet(self, fleet: FleetState, now: datetime) -> None:
        """The newest change on any host."""
        if self._told_at is not None and (now - self._told_at).total_seconds() < TOLD_FOR:
            return
        newest = newest_operation(fleet)
        if newest is None:
            return
        host, operation = newest
        said = operation.detail or operation.state.value
        if operation.summary not in ("", f"{operation.kind} {operation.target}"):
            said = f"{said}: {operation.summary}" if not operation.detail else said
        what = f" {operation.at.astimezone():%H:%M} {operation.by}  {operation.kind} {operation.target} on {host}   "
        self.show(words.joined((what, ""), (f"{symbol(operation.state)} {said}", severity(operation.state))))


def newest_operation(fleet: FleetState) -> tuple[str, Operation] | None:
    """The change that was asked for last, with its host."""
    found = [
        (host.name, operation)
        for host in fleet.hosts.values()
        if host.status is not None
        for operation in host.status.operations[:1]
    ]
    return max(found, key=lambda each: each[1].at, default=None)
