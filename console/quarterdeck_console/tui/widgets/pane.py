"""A text beside or below a table, that scrolls: what is known about the row under the table's cursor."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content

from quarterdeck_console.tui.widgets.label import Label


class Pane(VerticalScroll):
    """Keeps its place while the text changes, and goes to the top when the text is about something else."""

    DEFAULT_CSS = """
    Pane { height: 1fr; width: 1fr; padding: 0 1; scrollbar-size-vertical: 1; border-top: solid $panel; }
    Pane:focus { border-top: solid $primary; }
    Pane > Label { height: auto; width: 1fr; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll_down", "Down", show=False, id="pane.down"),
        Binding("k", "scroll_up", "Up", show=False, id="pane.up"),
        Binding("g", "scroll_home", "Top", show=False, id="pane.top"),
        Binding("G", "scroll_end", "End", show=False, id="pane.end"),
    ]

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._text = Label()
        self._about: object = None

    def compose(self) -> ComposeResult:
        yield self._text

    @property
    def text(self) -> str:
        """What it shows, without styles."""
        return self._text.shown.plain

    def show(self, content: Content, about: object) -> None:
        """Show this; `about` names what it is of."""
        self._text.show(content)
        if about != self._about:
            self._about = about
            self.scroll_home(animate=False)

    def by(self, lines: int) -> None:
        """Scroll from afar, while a table has the keys."""
        self.scroll_relative(y=lines, animate=False)
