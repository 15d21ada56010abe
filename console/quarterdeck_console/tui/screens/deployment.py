"""One deployment in full: revisions, replicas, traffic, the steps of a change in progress, failures, its version."""

from __future__ import annotations

from textual.app import ComposeResult

from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui import words
from quarterdeck_console.tui.context import Context
from quarterdeck_console.tui.view import TargetView
from quarterdeck_console.tui.widgets.label import Label
from quarterdeck_console.views import Severity


class DeploymentScreen(TargetView):
    """Opened from anywhere with `OpenDeployment`."""

    def __init__(self, context: Context, target: m.Target) -> None:
        super().__init__(context)
        self.target = target

    def targets(self) -> tuple[m.Target, ...]:
        return (self.target,)

    def crumbs(self) -> tuple[str, ...]:
        return (f"{self.target.name} on {self.target.host}",)

    def body(self) -> ComposeResult:
        yield Label(words.line(" nothing here yet", Severity.MUTED), id="empty")
