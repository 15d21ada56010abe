"""Everything that was changed on any host, by whom and how it went; what is under way is on top, with its steps.

The list comes with the fleet's events. The record of a failure is asked for when the cursor rests on a change that
failed.
"""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.timer import Timer

from quarterdeck_agent.protocol import Failure, Operation, OperationState
from quarterdeck_console.tui import commands, look, words
from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui.context import Context
from quarterdeck_console.tui.screens import story
from quarterdeck_console.tui.screens.operations_rows import COLUMNS, is_live, lines
from quarterdeck_console.tui.view import TargetView
from quarterdeck_console.tui.widgets.pane import Pane
from quarterdeck_console.tui.widgets.table import Table

REST = 0.2
"""Seconds that the cursor has to rest on a failed change before its record is asked for."""

SCROLL = 6


class OperationsScreen(TargetView):
    """The cursor is on a change; the verbs are about the deployment that it changed."""

    place: ClassVar[m.Place] = "operations"
    title_of_help: ClassVar[str] = "Operations"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("z", "zoom", "zoom", id="operations.zoom"),
        Binding("ctrl+d", "pane(1)", "Text down", show=False, id="operations.down"),
        Binding("ctrl+u", "pane(-1)", "Text up", show=False, id="operations.up"),
    ]

    DEFAULT_CSS = """
    OperationsScreen #operations { height: 1fr; }
    OperationsScreen #story { height: 9; }
    OperationsScreen.-medium #story { height: 14; }
    OperationsScreen.-tall #story { height: 26; }
    OperationsScreen.-zoomed #story { height: 1fr; }
    OperationsScreen.-zoomed #operations { display: none; }
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._failures: dict[tuple[str, str], Failure | None] = {}
        self._resting: Timer | None = None

    def body(self) -> ComposeResult:
        yield Table(COLUMNS, id="operations", empty="nothing was changed yet")
        yield Pane("story")

    def begin(self) -> None:
        self.set_interval(1.0, self._tick)

    def _tick(self) -> None:
        """While a change goes on, its times go on between two refreshes."""
        if self.is_current and any(is_live(each) for _, each in self._operations()):
            self.show(frozenset())

    def _operations(self) -> list[tuple[str, Operation]]:
        known = [host for host in self.fleet.hosts.values() if host.status is not None]
        return [(host.name, each) for host in known if host.status is not None for each in host.status.operations]

    @property
    def chosen(self) -> tuple[str, Operation] | None:
        """The change under the cursor, with its host."""
        key = self.query_one("#operations", Table).cursor
        host = self.fleet.hosts.get(key[0]) if key is not None else None
        if key is None or host is None or host.status is None:
            return None
        return next(((host.name, each) for each in host.status.operations if each.id == key[1]), None)

    def targets(self) -> tuple[m.Target, ...]:
        chosen = self.query_one("#operations", Table).chosen
        found = [m.Target(host, each.target) for host, each in self._operations() if (host, each.id) in chosen]
        return tuple(each for each in dict.fromkeys(found) if look.deployment(self.fleet, each) is not None)

    def command(self) -> str:
        if (chosen := self.chosen) is None:
            return ""
        return commands.words("operations", chosen[1].id, "--host", chosen[0])

    # --- showing ---------------------------------------------------------------------------------------------------

    def show(self, hosts: frozenset[str]) -> None:
        self.query_one("#operations", Table).show_rows(lines(self.fleet, self.context.now()))
        self._show_story()

    def _show_story(self) -> None:
        pane, chosen = self.query_one("#story", Pane), self.chosen
        if chosen is None:
            pane.show(words.line(""), None)
            return
        host, each = chosen
        failed = self._failures.get((host, each.id))
        pane.show(story.operation(each, host, self.context.now(), failed), (host, each.id))

    @on(Table.Moved)
    def _other(self, event: Table.Moved) -> None:
        self._show_story()
        if self._resting is not None:
            self._resting.stop()
        self._resting = self.set_timer(REST, self._ask)

    def _ask(self) -> None:
        """The record of a failure is with its revision."""
        if (chosen := self.chosen) is None:
            return
        host, each = chosen
        target = m.Target(host, each.target)
        failed = each.state == OperationState.FAILED and each.revision is not None
        if failed and (host, each.id) not in self._failures and look.deployment(self.fleet, target) is not None:
            self._failures[(host, each.id)] = None
            self.post_message(m.WantDetail(self, target))

    @on(m.DetailCame)
    def _came(self, event: m.DetailCame) -> None:
        event.stop()
        for revision in event.detail.revisions if event.detail is not None else ():
            if revision.failure is not None:
                self._failures[(event.target.host, revision.operation)] = revision.failure
        self._show_story()

    # --- keys ------------------------------------------------------------------------------------------------------

    async def action_open(self) -> None:
        self.action_zoom()

    def action_zoom(self) -> None:
        """The text alone, and back."""
        self.toggle_class("-zoomed")
        (self.query_one("#story") if self.has_class("-zoomed") else self.query_one("#operations")).focus()

    async def action_back(self) -> None:
        if self.has_class("-zoomed"):
            self.action_zoom()
        else:
            await super().action_back()

    def action_pane(self, direction: int) -> None:
        self.query_one("#story", Pane).by(direction * SCROLL)

    async def action_text(self, form: m.Form) -> None:
        """The change itself, as `qd operations` has it."""
        if (chosen := self.chosen) is None:
            self.tell("there is no change under the cursor", bad=True)
        else:
            await self.go(m.OpenItems("operations", ((chosen[0], chosen[1].id),), form))

    async def action_logs(self) -> None:
        """Of the revision that the change made."""
        targets, chosen = self.targets(), self.chosen
        if len(targets) == 1 and chosen is not None:
            await self.go(m.OpenLogs(targets, chosen[1].revision))
        else:
            await super().action_logs()
