"""Lines above the keys in which a filter or a search is typed, and told while it is typed.

Enter keeps it, escape clears it; either gives the keys back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import Input


class TypedLine(Input):
    """Hidden until asked for."""

    DEFAULT_CSS = """
    TypedLine { display: none; height: 1; border: none; padding: 0 1; background: $boost; }
    TypedLine:focus { border: none; }
    TypedLine.open { display: block; }
    """

    @dataclass
    class Typed(Message):
        """The text as it is now; `done` when typing is over."""

        text: str
        done: bool = False

    def __init__(self, id: str, placeholder: str) -> None:
        super().__init__(placeholder=placeholder, id=id, select_on_focus=False)

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
        """Type nothing any more."""
        self.value = ""
        self.remove_class("open")
        self.post_message(self.Typed("", done=True))


class FilterLine(TypedLine):
    """Hides from view what does not match."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "clear", "Clear", show=False, id="filter.clear")]

    @dataclass
    class Typed(TypedLine.Typed):
        """The filter as it is now."""

    def __init__(self) -> None:
        super().__init__("filter", "plain · !inverse · ~fuzzy")


class SearchLine(TypedLine):
    """Hides nothing: what it finds is highlighted, and enter goes to the newest of it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "clear", "Clear", show=False, id="search.clear")]

    @dataclass
    class Typed(TypedLine.Typed):
        """The search as it is now."""

    def __init__(self) -> None:
        super().__init__("search", "find: n next, N previous")
