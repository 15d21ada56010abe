"""The command line over any screen: `:` and ctrl+p. What it can mean is `tui.palette`'s business."""

from __future__ import annotations

from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Input

from quarterdeck_console.state import FleetState
from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui.palette import Hit, hits
from quarterdeck_console.tui.widgets.table import Column, Line, Table
from quarterdeck_console.views import Cell, Severity

COLUMNS = (Column("command", "COMMAND", 36), Column("help", "", 20, grow=True))


class PaletteInput(Input):
    """Keys that are the list's go there, and all that are typed after enter to what that opened."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,ctrl+n", "screen.move(1)", "Next", show=False, id="palette.next"),
        Binding("up", "screen.move(-1)", "Previous", show=False, id="palette.previous"),
        Binding("tab", "screen.complete", "Complete", show=False, id="palette.complete"),
    ]

    def on_key(self, event: events.Key) -> None:
        """Here, and not when the key has come back to the app: those after it are on their way to this line already."""
        dialog = self.screen
        if isinstance(dialog, PaletteDialog) and (event.key == "enter" or dialog.done):
            event.stop()
            event.prevent_default()
            dialog.take(event)


class PaletteDialog(ModalScreen[None]):
    """Posts what was chosen as `Typed`, and is closed then. It only opens things: a change still shows its plan."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,ctrl+c", "dismiss", "Close", show=False, id="palette.close")
    ]

    def __init__(self, fleet: FleetState, here: tuple[m.Target, ...], read_only: bool) -> None:
        super().__init__()
        self._fleet, self._here, self._read_only = fleet, here, read_only
        self._hits: dict[tuple[str, ...], Hit] = {}
        self._found_for: str | None = None
        self.done = False
        """Whether something was chosen: no key is this dialog's any more."""

    def compose(self) -> ComposeResult:
        with Vertical(id="palette"):
            yield PaletteInput(placeholder="verb, deployment, host or place", id="palette-line")
            yield Table(COLUMNS, id="palette-hits", empty="nothing is called so")

    def on_mount(self) -> None:
        self.query_one(Table).can_focus = False
        self.set_focus(self.query_one(PaletteInput))
        self._find("")

    def on_key(self, event: events.Key) -> None:
        """Keys that came before the line had the focus, as when a whole command is pasted."""
        if event.key == "enter" or self.done:
            event.stop()
            self.take(event)
        elif event.is_printable and event.character is not None:
            event.stop()
            self.query_one(PaletteInput).insert_text_at_cursor(event.character)

    def take(self, event: events.Key) -> None:
        """Enter chooses; after it every key is the app's again, where it comes after what was chosen is done."""
        if self.done:
            self.app.post_message(events.Key(event.key, event.character))
            return
        line = self.query_one(PaletteInput)
        if line.value != self._found_for:
            self._find(line.value)  # the line has not told yet that it changed
        self._choose()

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        event.stop()
        self._find(event.value)

    def _find(self, typed: str) -> None:
        self._found_for = typed
        found = hits(typed, self._fleet, self._here, self._read_only)
        self._hits = {(str(index), hit.title): hit for index, hit in enumerate(found)}
        rows = [Line(key, (Cell(hit.title), Cell(hit.help, Severity.MUTED))) for key, hit in self._hits.items()]
        table = self.query_one(Table)
        table.show_rows(rows)
        table.action_go(0)

    def action_move(self, by: int) -> None:
        self.query_one(Table).action_move(by)

    def action_complete(self) -> None:
        """What is under the cursor becomes what is typed."""
        if (hit := self._current()) is not None:
            line = self.query_one(PaletteInput)
            line.value = hit.fill or hit.title + " "
            line.cursor_position = len(line.value)

    def _current(self) -> Hit | None:
        cursor = self.query_one(Table).cursor
        return self._hits.get(cursor) if cursor is not None else None

    @on(Table.Chosen)
    def _chosen(self, event: Table.Chosen) -> None:
        event.stop()
        self._choose()

    def _choose(self) -> None:
        hit = self._current()
        if hit is None:
            return
        if hit.message is None:
            self.action_complete()
        elif not self.done:
            self.done = True
            self.app.post_message(m.Typed(self, hit.message))

    @on(Table.Moved)
    @on(Table.Counted)
    def _quiet(self, event: Message) -> None:
        event.stop()
