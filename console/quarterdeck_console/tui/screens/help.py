"""The keys of the screen it was opened on, read from that screen's bindings: it cannot be out of date."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen, Screen

from quarterdeck_console.tui import words
from quarterdeck_console.tui.widgets.label import Label
from quarterdeck_console.views import Severity

GRAMMAR = (
    ("/text", "rows with this text; /!text those without; /~tx those with these letters in this order"),
    (":verb", "type a verb, a deployment, a host or a place; the same as ctrl+p"),
    ("capitals", "D R C T X change something; each shows its plan first, and only y does it"),
)


class HelpScreen(ModalScreen[None]):
    """Escape, q or ? close it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,enter", "dismiss", "Close", show=False, id="help.close")
    ]
    DEFAULT_CSS = """
    HelpScreen { align: center middle; }
    HelpScreen > VerticalScroll { width: 78; max-width: 100%; max-height: 90%; height: auto; border: round $primary;
        background: $surface; padding: 0 1; }
    """

    def __init__(self, title: str, keys: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._title, self._keys = title, keys

    def compose(self) -> ComposeResult:
        shown: list[Content] = [words.line(self._title, "bold"), Content("")]
        width = max((len(key) for key, _ in self._keys), default=8)
        for key, description in (*self._keys, ("", ""), *GRAMMAR):
            shown.append(words.joined((key.rjust(width) + "  ", "bold $text-accent"), (description, "")))
        shown += [Content(""), words.line("keys can be changed in console.toml, see the table [keys]", Severity.MUTED)]
        with VerticalScroll():
            yield Label(words.lines(shown))


def keys_of(screen: Screen[object]) -> list[tuple[str, str]]:
    """All keys of every enabled binding of a screen and what they do, one line for each action."""
    found: dict[str, tuple[list[str], str]] = {}
    for _, binding, enabled, _ in screen.active_bindings.values():
        if enabled and binding.description and not binding.system:
            keys, _ = found.setdefault(binding.action, ([], binding.description))
            keys.append(screen.app.get_key_display(binding))
    return [(" ".join(keys), description[:1].upper() + description[1:]) for keys, description in found.values()]
