"""The Versions screen. What is staged where, and what serves: model by host."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult

from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui import words
from quarterdeck_console.tui.view import View
from quarterdeck_console.tui.widgets.label import Label
from quarterdeck_console.views import Severity


class VersionsScreen(View):
    """What is staged where, and what serves: model by host."""

    place: ClassVar[m.Place] = "versions"

    def body(self) -> ComposeResult:
        yield Label(words.line(" nothing here yet", Severity.MUTED), id="empty")
