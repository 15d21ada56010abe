"""What can be deployed, and where: every version by every host, what serves of it, and what is being sent.

Two versions are compared as far as their configuration and the digests of their files tell.
"""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message

from quarterdeck_agent.protocol import Version
from quarterdeck_console.tui import commands, look, words
from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui.context import Context
from quarterdeck_console.tui.dialogs.versions import Push, PushDialog, Removal, RemoveDialog
from quarterdeck_console.tui.screens import differences, version_text
from quarterdeck_console.tui.screens.versions_rows import columns, lines, placed, pushes
from quarterdeck_console.tui.view import View
from quarterdeck_console.tui.widgets.label import Label
from quarterdeck_console.tui.widgets.pane import Pane
from quarterdeck_console.tui.widgets.table import Table

SCROLL = 6
READING = "reading"
"""What stands in a host's place while the bundle is hashed, before any host is asked."""


class VersionsScreen(View):
    """The cursor is on a version; the pane tells what it is."""

    place: ClassVar[m.Place] = "versions"
    title_of_help: ClassVar[str] = "Versions"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("D", "deploy", "deploy", id="versions.deploy"),
        Binding("P", "push", "push", id="versions.push"),
        Binding("X", "remove", "remove", id="versions.remove"),
        Binding("x", "diff", "compare", id="versions.diff"),
        Binding("d,z", "zoom", "describe", id="versions.zoom"),
        Binding("l", "logs", "Logs of what serves it", show=False, id="versions.logs"),
        Binding("y", "text('yaml')", "YAML", show=False, id="versions.yaml"),
        Binding("J", "text('json')", "JSON, as --json prints it", show=False, id="versions.json"),
        Binding("c", "clear", "End the push, or forget what became of it", show=False, id="versions.clear"),
        Binding("ctrl+d", "pane(1)", "Text down", show=False, id="versions.down"),
        Binding("ctrl+u", "pane(-1)", "Text up", show=False, id="versions.up"),
    ]

    DEFAULT_CSS = """
    VersionsScreen #versions { height: 1fr; }
    VersionsScreen #pushes { height: auto; max-height: 8; padding: 0 1; display: none; border-top: solid $panel; }
    VersionsScreen.-pushing #pushes { display: block; }
    VersionsScreen #about { height: 9; }
    VersionsScreen.-medium #about { height: 14; }
    VersionsScreen.-tall #about { height: 28; }
    VersionsScreen.-zoomed #about { height: 1fr; }
    VersionsScreen.-zoomed #versions { display: none; }
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._pushes: dict[str, m.PushCame] = {}
        self._compared: tuple[Version, Version] | None = None
        self._compared_at: tuple[str, ...] | None = None

    def body(self) -> ComposeResult:
        empty = "no version yet: P pushes a bundle"
        yield Table(columns(list(self.context.hosts)), id="versions", empty=empty)
        yield Label(id="pushes")
        yield Pane("about")

    @property
    def table(self) -> Table:
        """The versions."""
        return self.query_one("#versions", Table)

    @property
    def chosen(self) -> Version | None:
        """The version under the cursor."""
        return self._version(self.table.cursor)

    def _version(self, key: tuple[str, ...] | None) -> Version | None:
        found = placed(self.fleet).get(key[0]) if key else None
        return found.version if found is not None else None

    def _selected(self) -> tuple[Version, ...]:
        return tuple(each for key in self.table.chosen if (each := self._version(key)) is not None)

    def command(self) -> str:
        chosen = self.chosen
        return commands.words("versions", chosen.name) if chosen is not None else ""

    def targets(self) -> tuple[m.Target, ...]:
        """What serves the versions that are meant."""
        ids = {each.id for each in self._selected()}
        statuses = ((target, look.deployment(self.fleet, target)) for target in look.targets(self.fleet))
        return tuple(target for target, status in statuses if status is not None and status.version in ids)

    # --- showing ---------------------------------------------------------------------------------------------------

    def show(self, hosts: frozenset[str]) -> None:
        self.table.show_rows(lines(self.fleet, list(self.context.hosts), self.context.now()))
        self._show_about()

    def _show_about(self) -> None:
        pane, chosen = self.query_one("#about", Pane), self.chosen
        if self._compared is not None:
            old, new = self._compared
            title = f"{old.label} → {new.label}   x closes"
            pane.show(version_text.diff(title, differences.versions(old, new)), (old.id, new.id))
        elif chosen is not None:
            pane.show(version_text.version(chosen, self.context.now()), chosen.id)
        else:
            pane.show(words.line(""), None)

    def _leave_comparison(self, cursor: tuple[str, ...] | None) -> None:
        """The cursor went elsewhere. What it did before `x` may be told after it, when both were typed fast."""
        if cursor != self._compared_at:
            self._compared = None

    @on(Table.Moved)
    def _other(self, event: Table.Moved) -> None:
        if self.is_mounted:
            self._leave_comparison(event.key)
            self._show_about()

    # --- sending and removing --------------------------------------------------------------------------------------

    def action_push(self) -> None:
        self.app.push_screen(PushDialog(self.context), self._push)

    def told(self, message: Message) -> None:
        if isinstance(message, m.StartPush):
            self.app.push_screen(PushDialog(self.context, message.folder), self._push)
        elif isinstance(message, m.StartCompare):
            self._start_compare(message.labels)

    def _push(self, wanted: Push | None) -> None:
        if wanted is not None:
            self._pushes = {READING: m.PushCame(None, READING, label=wanted.folder)}
            self._show_pushes()
            self.post_message(m.WantPush(self, wanted.hosts, wanted.folder, wanted.allow_pickle))

    @on(m.PushCame)
    def _push_came(self, event: m.PushCame) -> None:
        event.stop()
        if event.host is not None:
            self._pushes.pop(READING, None)
        self._pushes[event.host or READING] = event
        self._show_pushes()
        if event.version is not None:
            self.tell(f"pushed {event.version.label} to {event.host}")

    def _show_pushes(self) -> None:
        self.set_class(bool(self._pushes), "-pushing")
        self.query_one("#pushes", Label).show(pushes(self._pushes))

    def action_clear(self) -> None:
        """End a push that is under way, and forget those that are over."""
        ended = [host for host, came in self._pushes.items() if came.version is None and came.error is None]
        if ended:
            self.post_message(m.EndPush(self))
            self.tell("the push is ended; pushed again, it goes on where it was")
        self._pushes = {}
        self._show_pushes()

    def action_remove(self) -> None:
        known = placed(self.fleet)
        removals = [
            Removal(host, each.id, each.label) for each in self._selected() for host in known[each.id].on
        ]  # fmt: skip
        if removals:
            self.app.push_screen(RemoveDialog(self.context, tuple(removals)), self._remove)
        else:
            self.tell("there is no version under the cursor", bad=True)

    def _remove(self, removals: tuple[Removal, ...] | None) -> None:
        for each in removals or ():
            self.post_message(m.WantRemoveVersion(self, each.host, each.id, each.label))

    @on(m.VersionRemoved)
    def _removed(self, event: m.VersionRemoved) -> None:
        event.stop()
        if event.error is None:
            self.tell(f"removed {event.label} from {event.host}")
        else:
            hint = f" ({event.error.hint})" if event.error.hint else ""
            self.tell(f"{event.label} stays on {event.host}: {event.error.detail}{hint}", bad=True)

    # --- keys ------------------------------------------------------------------------------------------------------

    def action_deploy(self) -> None:
        chosen = self.chosen
        self.ask_for(m.AskDeploy((), chosen.label if chosen is not None else None))

    async def action_text(self, form: m.Form) -> None:
        """The versions themselves, as `qd versions` has them, on each host."""
        known = placed(self.fleet)
        keys = tuple((host, each.id) for each in self._selected() for host in known[each.id].on)
        if keys:
            await self.go(m.OpenItems("versions", keys, form))
        else:
            self.tell("there is no version under the cursor", bad=True)

    async def action_logs(self) -> None:
        if targets := self.targets():
            await self.go(m.OpenLogs(targets))
        else:
            self.tell("nothing serves this version", bad=True)

    def action_diff(self) -> None:
        """Of the two selected versions; else of the one under the cursor and the same model's one before it."""
        if self._compared is not None:
            self._compared = None
        elif (pair := self._pair()) is not None:
            self._compare(*pair)
        else:
            self.tell("select two versions with space to compare them", bad=True)
        self._show_about()

    def _start_compare(self, labels: tuple[str, ...]) -> None:
        known = {each.version.label: each.version for each in placed(self.fleet).values()}
        pair = [known[label] for label in labels if label in known]
        if len(pair) == 2:
            self._compare(pair[0], pair[1])
            self._show_about()
        elif self._compared is None:
            self.action_diff()

    def _compare(self, one: Version, other: Version) -> None:
        old, new = sorted((one, other), key=lambda each: each.created_at)
        self._compared, self._compared_at = (old, new), self.table.cursor

    def _pair(self) -> tuple[Version, Version] | None:
        selected = self._selected()
        if len(selected) == 2:
            return selected[0], selected[1]
        if len(selected) != 1:
            return None
        older = [
            each.version
            for each in placed(self.fleet).values()
            if each.version.name == selected[0].name and each.version.created_at < selected[0].created_at
        ]
        return (max(older, key=lambda each: each.created_at), selected[0]) if older else None

    async def action_open(self) -> None:
        self.action_zoom()

    def action_zoom(self) -> None:
        """The text alone, and back."""
        self.toggle_class("-zoomed")
        (self.query_one("#about") if self.has_class("-zoomed") else self.table).focus()

    async def action_back(self) -> None:
        if self.has_class("-zoomed"):
            self.action_zoom()
        elif self._compared is not None:
            self.action_diff()
        else:
            await super().action_back()

    def action_pane(self, direction: int) -> None:
        self.query_one("#about", Pane).by(direction * SCROLL)
