"""The Operations screen. Everything that was changed, by whom, and how it went."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult

from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui import words
from quarterdeck_console.tui.view import View
from quarterdeck_console.tui.widgets.label import Label
from quarterdeck_console.views import Severity


class OperationsScreen(View):
    """Everything that was changed, by whom, and how it went."""

    place: ClassVar[m.Place] = "operations"

    def body(self) -> ComposeResult:
        yield Label(words.line(" nothing here yet", Severity.MUTED), id="empty")
