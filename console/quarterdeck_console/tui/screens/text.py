"""A text to read, scroll, search and copy: the YAML or the JSON of a deployment."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content

from quarterdeck_console.tui import words
from quarterdeck_console.tui.context import Context
from quarterdeck_console.tui.filtering import matcher
from quarterdeck_console.tui.view import View
from quarterdeck_console.tui.widgets.label import Label
from quarterdeck_console.views import Severity


class TextScreen(View):
    """`/` shows only lines that match; `c` copies the whole."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("c", "copy", "copy", id="text.copy")]

    def __init__(self, context: Context, title: str, text: str, command: str) -> None:
        super().__init__(context)
        self._title, self._text, self._command = title, text, command

    def crumbs(self) -> tuple[str, ...]:
        return (self._title,)

    def command(self) -> str:
        return self._command

    def body(self) -> ComposeResult:
        with VerticalScroll(id="text"):
            yield Label(self._coloured(""), id="lines")

    def begin(self) -> None:
        self.set_focus(self.query_one("#text"))

    def set_filter(self, typed: str) -> None:
        self.query_one("#lines", Label).show(self._coloured(typed))

    def action_copy(self) -> None:
        self.app.copy_to_clipboard(self._text)
        self.tell("copied with OSC 52; in tmux that needs `set -g set-clipboard on`")

    def _coloured(self, typed: str) -> Content:
        wanted = matcher(typed)
        return words.lines([_line(text) for text in self._text.splitlines() if wanted(text)])


def _line(text: str) -> Content:
    """A key in the accent's colour, the value plain."""
    name, colon, value = text.partition(":")
    if colon and name.strip(' -"').replace("_", "").isalnum():
        return words.joined((name, "$text-accent"), (colon + value, ""))
    return words.line(text, Severity.PLAIN)
