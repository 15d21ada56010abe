"""The logs of one or many deployments, merged by time."""

from __future__ import annotations

from textual.app import ComposeResult

from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui import words
from quarterdeck_console.tui.context import Context
from quarterdeck_console.tui.view import View
from quarterdeck_console.tui.widgets.label import Label
from quarterdeck_console.views import Severity


class LogsScreen(View):
    """Opened from anywhere with `OpenLogs`."""

    def __init__(
        self, context: Context, targets: tuple[m.Target, ...], revision: int | None = None, previous: bool = False
    ) -> None:
        super().__init__(context)
        self.shown_targets, self.revision, self.previous = targets, revision, previous

    def targets(self) -> tuple[m.Target, ...]:
        return self.shown_targets

    def crumbs(self) -> tuple[str, ...]:
        names = ", ".join(f"{target.name} on {target.host}" for target in self.shown_targets[:3])
        return (f"logs of {names}" + (" …" if len(self.shown_targets) > 3 else ""),)

    def body(self) -> ComposeResult:
        yield Label(words.line(" nothing here yet", Severity.MUTED), id="empty")
