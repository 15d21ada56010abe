"""One line of a form: a name, and an input whose known values up and down go through. Enter goes to the next line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.suggester import SuggestFromList
from textual.widgets import Input

from quarterdeck_console.tui import words
from quarterdeck_console.tui.widgets.label import Label
from quarterdeck_console.views import Severity


class Entry(Input):
    """The input of a field."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "known(-1)", "Value before", show=False, id="field.before"),
        Binding("down", "known(1)", "Value after", show=False, id="field.after"),
    ]

    options: tuple[str, ...] = ()

    def action_known(self, by: int) -> None:
        """Put the next of the known values in."""
        if not self.options:
            return
        place = self.options.index(self.value) + by if self.value in self.options else (0 if by > 0 else -1)
        self.value = self.options[place % len(self.options)]
        self.cursor_position = len(self.value)


class Field(Horizontal):
    """`Entry.Changed` of it bubbles up as Textual's `Input.Changed`, with the field's id."""

    DEFAULT_CSS = """
    Field { height: 1; }
    Field > Label { width: 12; color: $text-muted; }
    Field > Entry { width: 1fr; height: 1; border: none; padding: 0; background: $boost; }
    Field > Entry:focus { border: none; background: $primary 30%; }
    Field > .hint { width: auto; max-width: 40; margin-left: 1; }
    """

    def __init__(
        self,
        name: str,
        id: str,
        value: str = "",
        options: Sequence[str] = (),
        placeholder: str = "",
        digits: bool = False,
    ) -> None:
        super().__init__(id=f"{id}-field")
        self._caption = name
        self.entry = Entry(
            value, id=id, placeholder=placeholder, restrict=r"[0-9]*" if digits else None, select_on_focus=False
        )
        self.set_options(options)
        self.hint = Label(classes="hint")

    def set_options(self, options: Sequence[str]) -> None:
        """The values that up and down go through, and that are suggested while typing."""
        self.entry.options = tuple(options)
        self.entry.suggester = SuggestFromList(options, case_sensitive=True) if options else None

    def show_hint(self, text: str, meaning: Severity = Severity.MUTED) -> None:
        """A few words beside the input."""
        self.hint.show(words.line(text, meaning))

    def compose(self) -> ComposeResult:
        yield Label(words.line(self._caption))
        yield self.entry
        yield self.hint

    @on(Input.Submitted)
    def _next(self, event: Input.Submitted) -> None:
        event.stop()
        self.screen.focus_next()
