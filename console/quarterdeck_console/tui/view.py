"""What every screen is: the band on top, its own body, the event line and the keys below, and the common grammar.

A screen shows what it is given in `show_fleet` and posts messages up; it does no I/O. Its class says its place, its
crumbs and its help; its keys are bindings with ids, so that a user can remap them and `?` can list them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol, cast

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Input

from quarterdeck_console.state import FleetState
from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui.context import Context
from quarterdeck_console.tui.widgets.band import Band
from quarterdeck_console.tui.widgets.eventline import EventLine
from quarterdeck_console.tui.widgets.keysline import KeysLine
from quarterdeck_console.tui.widgets.label import Label
from quarterdeck_console.tui.widgets.table import Table
from quarterdeck_console.tui.widgets.typedline import FilterLine

if TYPE_CHECKING:
    pass

CHANGES = frozenset({"deploy", "rollback", "scale", "restart", "stop", "remove", "push"})
"""Actions that change something: hidden and refused in a read-only console."""


class Leading(Protocol):
    """What the app does for a view at once, before any other key."""

    keys: Mapping[str, str]
    """The keys of the user's own, by the id of a binding."""

    def ask(self, message: m.Ask) -> None:
        """Open the dialog of a change."""

    async def go(self, message: Message) -> None:
        """Go where an `Open…` message says, or back: when it is over, the next key is for what is there."""


class View(Screen[None]):
    """Subclass it: `body()` yields the widgets, `show()` shows the fleet, `main` is what the grammar is about."""

    place: ClassVar[m.Place] = "fleet"
    title_of_help: ClassVar[str] = "Keys"
    numbered: ClassVar[bool] = True
    """Whether the digits go to places, as the band says then."""

    BINDINGS: ClassVar[list[BindingType]] = [
        # These two before all others: what is typed right after them, or pasted, must not reach the view as keys.
        Binding("/", "filter", "filter", id="view.filter", priority=True),
        Binding("colon,ctrl+p", "app.palette", "command", id="view.command", priority=True),
        Binding("question_mark,f1", "help", "help", show=False, id="view.help"),
        Binding("escape", "back", "Back", show=False, id="view.back"),
        Binding("plus,equals_sign", "refresh_rate(-1)", "Refresh more often", show=False, id="view.faster"),
        Binding("minus", "refresh_rate(1)", "Refresh less often", show=False, id="view.slower"),
        Binding("1", "place('fleet')", "Fleet", show=False, id="view.fleet"),
        Binding("2", "place('versions')", "Versions", show=False, id="view.versions"),
        Binding("3", "place('operations')", "Operations", show=False, id="view.operations"),
        Binding("4", "place('gpus')", "GPUs", show=False, id="view.gpus"),
        Binding("q", "quit_or_back", "Quit", show=False, id="view.quit"),
        Binding("ctrl+c", "quit", "Quit", show=False, id="view.end"),
    ]

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context
        self.fleet = FleetState()
        self.refresh_seconds = 2.0
        self._filter_note = ""

    # --- for subclasses --------------------------------------------------------------------------------------------

    def body(self) -> ComposeResult:
        """The widgets between band and event line."""
        yield from ()

    def begin(self) -> None:
        """Called once, when the screen is there. Textual calls every class's `on_mount` by itself: use this."""

    def show(self, hosts: frozenset[str]) -> None:
        """Show `self.fleet`; `hosts` are those of which anything is new, all of them when the screen is shown again."""

    @property
    def main(self) -> Table | None:
        """The table that filter, sort and selection are about."""
        found = self.query(Table)
        return found.first() if found else None

    def crumbs(self) -> tuple[str, ...]:
        """What was opened from the place, outermost first."""
        return ()

    def command(self) -> str:
        """The `qd …` command that shows what the cursor is on."""
        return ""

    def detail(self) -> Content:
        """One line in full about what the cursor is on, for which its row may have no room."""
        return Content("")

    def targets(self) -> tuple[m.Target, ...]:
        """The deployments that a verb would be about now: the selected ones, or the one under the cursor."""
        return ()

    def set_filter(self, typed: str) -> None:
        """Narrow what is shown; the main table, unless a view knows better."""
        if self.main is not None:
            self.main.set_filter(typed)

    def set_filter_text(self, typed: str) -> None:
        """As if this had been typed after `/`."""
        self.query_one(FilterLine).value = typed

    # --- the frame -------------------------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        yield Band(self.context, self.numbered)
        yield from self.body()
        with Vertical(id="foot"):
            yield FilterLine()
            yield Label(id="detail")
            yield EventLine()
            yield KeysLine()

    def on_mount(self) -> None:
        self.show_frame()
        if self.main is not None:
            # Not `focus()`, which takes effect later: the next key may be here already.
            self.set_focus(self.main)
        self.begin()

    def show_fleet(self, fleet: FleetState, hosts: frozenset[str], refresh: float) -> None:
        """The fleet as it is now. Called by the app for the screen that is on top."""
        self.fleet, self.refresh_seconds = fleet, refresh
        self.show(hosts)
        self.show_frame()

    def show_frame(self) -> None:
        """Band, crumbs, event line and keys as they are now."""
        band = self.query_one(Band)
        band.show_fleet(self.fleet, self.refresh_seconds)
        band.show_place(self.place, self.crumbs(), self._filter_note)
        self.query_one(EventLine).show_fleet(self.fleet, self.context.now())
        self.show_keys()

    def show_keys(self) -> None:
        """The last lines, for what is under the cursor now."""
        self.query_one("#detail", Label).show(self.detail())
        self.query_one(KeysLine).show_command(self.command())

    def tell(self, text: str, bad: bool = False) -> None:
        """Say something on the event line."""
        self.query_one(EventLine).tell(text, bad, self.context.now())

    def ask_for(self, message: m.Ask) -> None:
        """Open the dialog of a change, at once: a message would let the keys typed right after reach this view."""
        self._app.ask(message)

    def told(self, message: Message) -> None:
        """Do what whoever opened this place says."""

    async def go(self, message: Message) -> None:
        """Go somewhere, at once: a message would let the keys typed right after reach this view."""
        await self._app.go(message)

    @property
    def _app(self) -> Leading:
        return cast(Leading, self.app)

    def on_resize(self) -> None:
        if self.is_mounted:
            self.show_frame()

    # --- the grammar -----------------------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Changes are neither shown nor done in a read-only console."""
        if self.context.read_only and action in CHANGES:
            return False
        if action == "filter" and isinstance(self.focused, Input):
            return False  # it is a letter there
        return super().check_action(action, parameters)

    def action_filter(self) -> None:
        self.query_one(FilterLine).open()

    def on_key(self, event: events.Key) -> None:
        """A key that is not there in a read-only console says why nothing happens."""
        if self.context.read_only and event.key in self._changing_keys():
            self.tell("this console is read-only: nothing is changed from here", bad=True)

    def _changing_keys(self) -> frozenset[str]:
        bindings = self._bindings.copy()
        bindings.apply_keymap(dict(self._app.keys))
        return frozenset(
            key for key, found in bindings.key_to_bindings.items() if any(each.action in CHANGES for each in found)
        )

    async def action_open(self) -> None:
        """Enter or a second click on a row."""

    async def action_help(self) -> None:
        await self.go(m.OpenHelp())

    async def action_back(self) -> None:
        """One step back: the filter goes first, then the selection, then the screen."""
        filter_line = self.query_one(FilterLine)
        if filter_line.value:
            filter_line.action_clear()
        elif self.main is None or not self.main.clear_selection():
            await self.go(m.GoBack())

    def action_refresh_rate(self, direction: int) -> None:
        self.post_message(m.ChangeRefresh(direction))

    async def action_place(self, place: m.Place) -> None:
        await self.go(m.OpenPlace(place))

    async def action_quit_or_back(self) -> None:
        await self.go(m.GoBack() if self.crumbs() else m.Quit())

    def action_quit(self) -> None:
        self.post_message(m.Quit())

    @on(FilterLine.Typed)
    def _filter_typed(self, event: FilterLine.Typed) -> None:
        event.stop()
        self.set_filter(event.text)
        if event.done:
            self.query_one(FilterLine).give_back()

    @on(Table.Counted)
    def _counted(self, event: Table.Counted) -> None:
        event.stop()
        if event.table is not self.main:
            return
        notes = []
        if event.table.filter:
            notes.append(f"/{event.table.filter} {event.shown} of {event.total}")
        if event.selected:
            notes.append(f"{event.selected} selected")
        self._filter_note = "  ".join(notes)
        self.query_one(Band).show_place(self.place, self.crumbs(), self._filter_note)

    @on(Table.Chosen)
    async def _chosen(self, event: Table.Chosen) -> None:
        event.stop()
        await self.action_open()

    @on(Table.Moved)
    def _moved(self, event: Table.Moved) -> None:
        if event.table is self.main:
            self.show_keys()


class TargetView(View):
    """A view with deployments under its cursor: the keys that look at them, and those that change them."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d", "describe", "describe", id="target.describe"),
        Binding("l", "logs", "logs", id="target.logs"),
        Binding("D", "deploy", "deploy", id="target.deploy"),
        Binding("R", "rollback", "roll back", id="target.rollback"),
        Binding("C", "scale", "scale", id="target.scale"),
        Binding("T", "restart", "restart", show=False, id="target.restart"),
        Binding("X", "stop", "stop", show=False, id="target.stop"),
        Binding("y", "text('yaml')", "YAML", show=False, id="target.yaml"),
        Binding("J", "text('json')", "JSON, as --json prints it", show=False, id="target.json"),
    ]

    async def _go_with(self, make: Callable[[tuple[m.Target, ...]], Message]) -> None:
        if targets := self._under_cursor():
            await self.go(make(targets))

    def _ask_about(self, make: Callable[[tuple[m.Target, ...]], m.Ask]) -> None:
        if targets := self._under_cursor():
            self.ask_for(make(targets))

    def _under_cursor(self) -> tuple[m.Target, ...]:
        if not (targets := self.targets()):
            self.tell("there is no deployment under the cursor", bad=True)
        return targets

    async def action_describe(self) -> None:
        await self._go_with(lambda targets: m.OpenDeployment(targets[0]))

    async def action_logs(self) -> None:
        await self._go_with(m.OpenLogs)

    async def action_text(self, form: m.Form) -> None:
        await self._go_with(lambda targets: m.OpenText(targets, form))

    def action_deploy(self) -> None:
        self.ask_for(m.AskDeploy(self.targets()))

    def action_rollback(self) -> None:
        self._ask_about(m.AskRollback)

    def action_scale(self) -> None:
        self._ask_about(m.AskScale)

    def action_restart(self) -> None:
        self._ask_about(m.AskRestart)

    def action_stop(self) -> None:
        self._ask_about(m.AskStop)
