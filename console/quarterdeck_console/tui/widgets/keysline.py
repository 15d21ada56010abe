"""The last line of a screen: the keys that matter here, and the `qd …` command for what is under the cursor."""

from __future__ import annotations

from typing import NamedTuple

from rich.cells import cell_len
from textual import events
from textual.dom import DOMNode
from textual.screen import Screen

from quarterdeck_console.tui import words
from quarterdeck_console.tui.widgets.label import Label
from quarterdeck_console.views import Severity


class Hint(NamedTuple):
    """A key, what it does in words, and that as an action of a node."""

    key: str
    description: str
    action: str
    node: DOMNode


class KeysLine(Label):
    """Made from the bindings that are active, so that it is true after a remapping and in read-only mode."""

    DEFAULT_CSS = """
    KeysLine { height: 1; background: $panel; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    command = ""
    _places: tuple[tuple[range, Hint], ...] = ()
    """The columns in which each hint stands."""

    def show_command(self, command: str) -> None:
        """The command that does what the keys would do to the present row."""
        self.command = command
        self.renew()

    def renew(self) -> None:
        """Read the bindings anew."""
        parts: list[tuple[str, str | Severity]] = [(" ", "")]
        places, at = [], 1
        for hint in hints(self.screen):
            parts += [(hint.key, "bold $text-accent"), (f" {hint.description}  ", "")]
            end = at + cell_len(hint.key) + 1 + cell_len(hint.description)
            places.append((range(at, end), hint))
            at = end + 2
        text, self._places = words.joined(*parts), tuple(places)
        room = self.app.size.width - text.cell_length - len(self.command) - 1
        if room < 0:
            shown = self.command[: max(0, len(self.command) + room - 2)]
            self.show(words.joined(text, (shown and f"{shown}…", Severity.MUTED)) if len(shown) > 12 else text)
        else:
            self.show(words.joined(text, (" " * room + self.command, Severity.MUTED)))

    def on_click(self, event: events.Click) -> None:
        """What a hint says is done, as its key does it."""
        hint = next((hint for columns, hint in self._places if event.x in columns), None)
        if hint is not None:
            # In the app's own turn, as keys are: a dialog that opens tells its answer to whoever opened it.
            self.app.call_later(self.app.run_action, hint.action, hint.node)


def hints(screen: Screen[object]) -> list[Hint]:
    """Every active binding that wants to be shown, by the first key of each action."""
    found: dict[str, tuple[int, Hint]] = {}
    for node, binding, enabled, _ in screen.active_bindings.values():
        if binding.show and enabled and binding.action not in found:
            area = (binding.id or "").partition(".")[0]
            rank = _LAST.index(area) + 1 if area in _LAST else 0
            hint = Hint(screen.app.get_key_display(binding), binding.description.lower(), binding.action, node)
            found[binding.action] = (rank, hint)
    return [hint for _, hint in sorted(found.values(), key=lambda each: each[0])]


_LAST = ("view", "table")
"""What every view has comes after what this view has."""
