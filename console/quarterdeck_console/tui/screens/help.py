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
    HelpScreen > VerticalScroll { width: 98; max-width: 100%; max-height: 90%; height: auto; border: round $primary;
        background: $surface; padding: 0 1; }
    """

    def __init__(self, title: str, keys: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._caption, self._keys = title, keys

    def compose(self) -> ComposeResult:
        shown: list[Content] = [words.line(self._caption, "bold"), Content("")]
        shown += _columns(self._keys, 2 if self.app.size.width >= 100 else 1)
        shown.append(Content(""))
        shown += [words.joined((f"{key:>10}  ", "bold $text-accent"), (said, "")) for key, said in GRAMMAR]
        shown += [Content(""), words.line("keys can be changed in console.toml, see the table [keys]", Severity.MUTED)]
        with VerticalScroll():
            yield Label(words.lines(shown))


def _columns(keys: Sequence[tuple[str, str]], count: int) -> list[Content]:
    """The keys side by side, read down first."""
    width = max((len(key) for key, _ in keys), default=8)
    height = -(-len(keys) // count)
    lines = []
    for row in range(height):
        parts: list[tuple[str, str]] = []
        for key, description in keys[row::height]:
            parts += [(f"{key:>{width}}  ", "bold $text-accent"), (f"{description:<34}", "")]
        lines.append(words.joined(*parts))
    return lines


def keys_of(screen: Screen[object]) -> list[tuple[str, str]]:
    """All keys of every enabled binding of ours on a screen and what they do: what only this view has comes first."""
    found: dict[str, tuple[int, list[str], str]] = {}
    for _, binding, enabled, _ in screen.active_bindings.values():
        if enabled and binding.description and binding.id:
            area = binding.id.partition(".")[0]
            rank = {"view": 2, "table": 1}.get(area, 0)
            found.setdefault(binding.action, (rank, [], binding.description))[1].append(
                screen.app.get_key_display(binding)
            )
    ordered = sorted(found.values(), key=lambda each: each[0])
    return [(" ".join(keys), said[:1].upper() + said[1:]) for _, keys, said in ordered]
