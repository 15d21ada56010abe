"""The two lines on top of every screen: which fleet this is (in its colour), how it is, what time; and where we are."""

from __future__ import annotations

from collections import Counter

from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical

from quarterdeck_console import gpus
from quarterdeck_console.state import FleetState
from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui import words
from quarterdeck_console.tui.context import Context
from quarterdeck_console.tui.standing import MEANING, Standing, standing
from quarterdeck_console.tui.widgets.label import Label
from quarterdeck_console.views import Severity, count

PLACES: tuple[tuple[str, m.Place, str], ...] = (
    ("1", "fleet", "Fleet"),
    ("2", "versions", "Versions"),
    ("3", "operations", "Operations"),
    ("4", "gpus", "GPUs"),
)

TROUBLES = (
    (Standing.FAILED, "✖"), (Standing.LOST, "○"), (Standing.DEGRADED, "▲"), (Standing.REFUSED, "✖"),
    (Standing.CHANGING, "◐"),
)  # fmt: skip
"""What is counted, with its mark: hosts that are lost, and deployments of those that are not."""

HELP = "? help "


class Band(Vertical):
    """`show_fleet` for the first line, `show_place` for the second."""

    DEFAULT_CSS = """
    Band { height: 2; dock: top; }
    Band > #band-fleet { height: 1; width: 1fr; background: $panel; text-wrap: nowrap; text-overflow: ellipsis; }
    Band > #band-place { height: 1; width: 1fr; color: $text-muted; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self, context: Context, numbered: bool = True) -> None:
        super().__init__()
        self._about, self._numbered = context, numbered

    def compose(self) -> ComposeResult:
        yield Label(id="band-fleet")
        yield Label(id="band-place")

    def show_fleet(self, fleet: FleetState, refresh: float) -> None:
        """The fleet's name in its colour, what it has, what is wrong, and the time."""
        context = self._about
        colour = f"ansi_{context.fleet.colour}" if context.fleet.colour else "$primary"
        wide = self.app.size.width >= 110
        parts: list[tuple[str, str | Severity]] = [
            (" Quarterdeck " if wide else " ", "bold"),
            (f" {context.fleet.name} ", f"bold $background on {colour}" if not colour.startswith("ansi") else
             f"bold ansi_black on {colour}"),
        ]  # fmt: skip
        if context.read_only:
            parts.append((" read-only ", "bold reverse"))
        parts += [("  ", ""), *_counts(fleet, wide), *_troubles(fleet)]
        text = words.joined(*parts)
        clock = f"{context.now().astimezone():%H:%M:%S}  ⟳ {refresh:g}s  {HELP}"
        room = self.app.size.width - text.cell_length - len(clock)
        if room < 1:
            clock = f"{context.now().astimezone():%H:%M:%S} "
            room = self.app.size.width - text.cell_length - len(clock)
        if room >= 1:
            text = words.joined(text, (" " * room + clock, Severity.MUTED))
        self.query_one("#band-fleet", Label).show(text)

    def show_place(self, place: str, crumbs: tuple[str, ...], note: str) -> None:
        """Where we are: the place that is always there, what was opened from it, and how the view is narrowed."""
        parts: list[tuple[str, str | Severity]] = [(" ", "")]
        for key, name, title in PLACES:
            here = name == place
            number = f"{key} " if self._numbered else ""
            parts += [(number, "bold $text-accent"), (title, "bold $foreground" if here else ""), ("  ", "")]
        for crumb in crumbs:
            parts.append((f"› {crumb} ", "bold $foreground"))
        if note:
            parts.append((f"  {note}", Severity.WARNING))
        self.query_one("#band-place", Label).show(words.joined(*parts))

    def on_click(self, event: events.Click) -> None:
        """A place is gone to, and the word help opens it."""
        offset = event.screen_offset - self.region.offset
        if offset.y == 0:
            if self._says_help() and offset.x >= self.size.width - len(HELP):
                self.post_message(m.OpenHelp())
            return
        at = 1
        for key, name, title in PLACES:
            width = len(title) + (len(key) + 1 if self._numbered else 0)
            if at <= offset.x < at + width:
                self.post_message(m.OpenPlace(name))
            at += width + 2

    def _says_help(self) -> bool:
        return self.query_one("#band-fleet", Label).shown.plain.endswith(HELP)


def _counts(fleet: FleetState, wide: bool) -> list[tuple[str, str | Severity]]:
    known = [host.status for host in fleet.hosts.values() if host.status is not None]
    cards, deployments = sum(len(gpus.whole(each.gpus)) for each in known), sum(len(each.deployments) for each in known)
    if not wide:
        return [(f"{count(len(fleet.hosts), 'host')}  ", "")]
    return [(f"{count(len(fleet.hosts), 'host')} · {count(cards, 'GPU')} · {count(deployments, 'deployment')}   ", "")]


def _troubles(fleet: FleetState) -> list[tuple[str, str | Severity]]:
    """What is not as it should be, the worst first; nothing where all is well."""
    found: Counter[Standing] = Counter()
    for host in fleet.hosts.values():
        if host.connection == "lost":
            found[Standing.LOST] += 1
        elif host.status is not None:
            found.update(standing(each, lost=False) for each in host.status.deployments)
    return [
        (f"{mark} {found[which]} {which.name.lower()}  ", MEANING[which]) for which, mark in TROUBLES if found[which]
    ]
