"""Home: every host on a strip, and every deployment of every host in one table."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.content import Content

from quarterdeck_console.tui import commands, words
from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui.screens.fleet_rows import COLUMNS, STATE, gpus_that_fit, host_columns, host_lines, lines
from quarterdeck_console.tui.view import TargetView
from quarterdeck_console.tui.widgets.hoststrip import HostStrip
from quarterdeck_console.tui.widgets.table import Table


class FleetScreen(TargetView):
    """The cursor is on a deployment; the host strip follows it."""

    place: ClassVar[m.Place] = "fleet"
    title_of_help = "Fleet"

    def body(self) -> ComposeResult:
        yield HostStrip(host_columns(0), id="hosts", empty="no hosts: add one with qd hosts add")
        yield Table(COLUMNS, id="deployments", empty="no deployment yet: D deploys one, qd push sends a version")

    @property
    def main(self) -> Table:
        return self.query_one("#deployments", Table)

    def show(self, hosts: frozenset[str]) -> None:
        now = self.context.now()
        strip = self.query_one(HostStrip)
        gpus = gpus_that_fit(self.fleet, self.app.size.width)
        strip.show_columns(host_columns(gpus))
        strip.show_rows(host_lines(self.fleet, self.context.history, gpus, now))
        self.main.show_rows(lines(self.fleet, now))

    def targets(self) -> tuple[m.Target, ...]:
        return tuple(m.Target(*key) for key in self.main.chosen if len(key) == 2 and key[1])

    def detail(self) -> Content:
        line = self.main.current
        if line is None:
            return Content("")
        state = line.note[1] if line.note is not None else line.cells[STATE]
        return words.joined(
            (f" {' on '.join(reversed([part for part in line.key if part]))}  ", "bold"), (state.text, state.severity)
        )

    def command(self) -> str:
        found = self.targets()
        return commands.words("describe", found[0].name, *commands.on_hosts(found[:1])) if found else ""

    def filter_host(self, host: str) -> None:
        """Only this host's deployments."""
        self.set_filter_text(host)

    async def action_open(self) -> None:
        await self.action_describe()

    @on(Table.Moved)
    def _follow(self, event: Table.Moved) -> None:
        if event.table is self.main and event.key is not None:
            self.query_one(HostStrip).move_to((event.key[0],))
