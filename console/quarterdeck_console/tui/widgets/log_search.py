"""The line in which a search in a log is typed: what it finds is highlighted while typing; enter goes to the newest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import Input


class SearchLine(Input):
    """Hidden until asked for. It hides nothing from view, other than the filter line."""

    DEFAULT_CSS = """
    SearchLine { display: none; height: 1; border: none; padding: 0 1; background: $boost; }
    SearchLine:focus { border: none; }
    SearchLine.open { display: block; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "clear", "Clear", show=False, id="search.clear")]

    @dataclass
    class Typed(Message):
        """The search as it is now; `done` when typing is over."""

        text: str
        done: bool = False

    def __init__(self) -> None:
        super().__init__(placeholder="find: n next, N previous", id="search", select_on_focus=False)

    def open(self) -> None:
        """Show the line, with what was typed before."""
        self.add_class("open")
        # Not `focus()`, which takes effect later: the next key may be here already.
        self.screen.set_focus(self)

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        self.post_message(self.Typed(event.value))

    @on(Input.Submitted)
    def _done(self, event: Input.Submitted) -> None:
        event.stop()
        self.remove_class("open")
        self.post_message(self.Typed(self.value, done=True))

    def action_clear(self) -> None:
        """Find nothing any more."""
        self.value = ""
        self.remove_class("open")
        self.post_message(self.Typed("", done=True))
