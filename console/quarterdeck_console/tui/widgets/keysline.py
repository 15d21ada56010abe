"""The last line of a screen: the keys that matter here, and the `qd …` command for what is under the cursor."""

from __future__ import annotations

from textual.screen import Screen

from quarterdeck_console.tui import words
from quarterdeck_console.tui.widgets.label import Label
from quarterdeck_console.views import Severity


class KeysLine(Label):
    """Made from the bindings that are active, so that it is true after a remapping and in read-only mode."""

    DEFAULT_CSS = """
    KeysLine { height: 1; background: $panel; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    command = ""

    def show_command(self, command: str) -> None:
        """The command that does what the keys would do to the present row."""
        self.command = command
        self.renew()

    def renew(self) -> None:
        """Read the bindings anew."""
        parts: list[tuple[str, str | Severity]] = [(" ", "")]
        for key, description in hints(self.screen):
            parts += [(key, "bold $text-accent"), (f" {description}  ", "")]
        text = words.joined(*parts)
        room = self.app.size.width - text.cell_length - len(self.command) - 1
        if room < 0:
            shown = self.command[: max(0, len(self.command) + room - 2)]
            self.show(words.joined(text, (shown and f"{shown}…", Severity.MUTED)) if len(shown) > 12 else text)
        else:
            self.show(words.joined(text, (" " * room + self.command, Severity.MUTED)))


def hints(screen: Screen[object]) -> list[tuple[str, str]]:
    """Key and description of every active binding that wants to be shown, the first key of each action."""
    found: dict[str, tuple[int, str, str]] = {}
    for _, binding, enabled, _ in screen.active_bindings.values():
        if binding.show and enabled and binding.action not in found:
            area = (binding.id or "").partition(".")[0]
            rank = _LAST.index(area) + 1 if area in _LAST else 0
            found[binding.action] = (rank, screen.app.get_key_display(binding), binding.description.lower())
    return [(key, description) for _, key, description in sorted(found.values(), key=lambda each: each[0])]


_LAST = ("view", "table")
"""What every view has comes after what this view has."""
