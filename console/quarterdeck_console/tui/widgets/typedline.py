"""Lines above the keys in which a filter or a search is typed, and told while it is typed.

Enter keeps it, escape clears it; either gives the keys back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual import events, on
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widget import Widget
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
        self._before: Widget | None = None
        """What had the keys before the line was opened."""
        self._told = ""

    def open(self) -> None:
        """Show the line, with what was typed before."""
        if not self.has_class("open"):
            self._before = self.screen.focused
        self.add_class("open")
        # Not `focus()`, which takes effect later: the next key may be here already.
        self.screen.set_focus(self)

    def on_key(self, event: events.Key) -> None:
        """Enter ends the typing here, not when it has come back to the app: the keys after it are here before that.

        They go round by the app until whoever was told gives the keys back.
        """
        if event.key != "enter" and self.has_class("open"):
            return
        event.stop()
        event.prevent_default()
        if self.has_class("open"):
            self._finish()
        else:
            self.app.post_message(events.Key(event.key, event.character))

    def _finish(self) -> None:
        self.remove_class("open")
        self._told = self.value
        self.post_message(self.Typed(self.value, done=True))

    def give_back(self) -> None:
        """What had the keys has them again; called when what was typed has had its effect."""
        self.screen.set_focus(self._before)

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        if self.value != self._told:  # else what came right after it has told it
            self._told = self.value
            self.post_message(self.Typed(self.value))

    def action_clear(self) -> None:
        """Type nothing any more."""
        self.value = ""
        self._finish()


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
