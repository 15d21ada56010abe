"""One deployment in full: revisions, replicas, traffic, the steps of a change in progress, failures, its version.

Figures and steps come with the fleet's events; the revisions are asked for when something about them has changed.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal

from quarterdeck_agent.protocol import DeploymentDetail, Revision, RevisionOutcome
from quarterdeck_console import views
from quarterdeck_console.errors import ConsoleError
from quarterdeck_console.state import HostState
from quarterdeck_console.tui import commands, look, marks, words
from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui.context import Context
from quarterdeck_console.tui.screens import deployment_rows as rows
from quarterdeck_console.tui.screens import differences, story, version_text
from quarterdeck_console.tui.view import TargetView
from quarterdeck_console.tui.widgets.fitted import FittedTable
from quarterdeck_console.tui.widgets.label import Label
from quarterdeck_console.tui.widgets.pane import Pane
from quarterdeck_console.tui.widgets.table import Table
from quarterdeck_console.views import Severity

AGAIN = timedelta(seconds=5)
"""Before a question that was not answered is put again."""

SCROLL = 6


class DeploymentScreen(TargetView):
    """Opened from anywhere with `OpenDeployment`. The cursor is on a revision; the pane tells its story."""

    title_of_help: ClassVar[str] = "Deployment"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x", "diff", "diff", id="deployment.diff"),
        Binding("v", "about", "version", id="deployment.version"),
        Binding("z", "zoom", "zoom", show=False, id="deployment.zoom"),
        Binding("ctrl+d", "pane(1)", "Text down", show=False, id="deployment.down"),
        Binding("ctrl+u", "pane(-1)", "Text up", show=False, id="deployment.up"),
    ]

    DEFAULT_CSS = """
    DeploymentScreen #head { height: auto; max-height: 3; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
    DeploymentScreen #revisions { max-height: 7; margin-bottom: 0; }
    DeploymentScreen #replicas { max-height: 3; margin-bottom: 0; border-top: solid $panel; }
    DeploymentScreen.-medium #revisions { max-height: 9; }
    DeploymentScreen.-medium #replicas, DeploymentScreen.-tall #replicas { max-height: 7; }
    DeploymentScreen.-tall #revisions { max-height: 18; }
    DeploymentScreen.-tall #replicas { max-height: 12; }
    DeploymentScreen #below { height: 1fr; }
    DeploymentScreen #about { display: none; }
    DeploymentScreen.-wide #about { display: block; }
    DeploymentScreen.-about #about { display: block; }
    DeploymentScreen.-about #story { display: none; }
    DeploymentScreen.-zoomed #revisions, DeploymentScreen.-zoomed #replicas { display: none; }
    """

    # Not by default CSS, which gives way to the app's: there is one cursor to look at, the other comes with the focus.
    CSS = """
    DeploymentScreen #replicas > .table--cursor { background: $background; }
    DeploymentScreen #replicas:focus > .table--cursor { background: $primary 35%; }
    """

    def __init__(self, context: Context, target: m.Target) -> None:
        super().__init__(context)
        self.target = target
        self._detail: DeploymentDetail | None = None
        self._error: ConsoleError | None = None
        self._asked_for: object = None
        self._asked_at: datetime | None = None
        self._compared: tuple[Revision, Revision] | None = None
        self._compared_at: tuple[str, ...] | None = None

    # --- what it is about ------------------------------------------------------------------------------------------

    def targets(self) -> tuple[m.Target, ...]:
        return (self.target,)

    def crumbs(self) -> tuple[str, ...]:
        return (f"{self.target.name} on {self.target.host}",)

    def command(self) -> str:
        on_host, chosen = commands.on_hosts((self.target,)), self.chosen
        if chosen is not None and self.may_return_to(chosen):
            return commands.words("rollback", self.target.name, "--to", str(chosen.number), *on_host)
        return commands.words("describe", self.target.name, *on_host)

    @property
    def main(self) -> Table:
        return self.query_one("#revisions", Table)

    @property
    def chosen(self) -> Revision | None:
        """The revision under the cursor."""
        return self._revision(self.main.cursor)

    def _revision(self, key: tuple[str, ...] | None) -> Revision | None:
        known = self._detail.revisions if self._detail is not None else ()
        return next((each for each in known if key == (str(each.number),)), None)

    def may_return_to(self, each: Revision) -> bool:
        """Whether a revision has served and does not now."""
        status = look.deployment(self.fleet, self.target)
        live = status.live_revision if status is not None else None
        never = (RevisionOutcome.FAILED, RevisionOutcome.PENDING, RevisionOutcome.SUPERSEDED)
        return each.number != live and each.outcome not in never

    # --- the frame -------------------------------------------------------------------------------------------------

    def body(self) -> ComposeResult:
        yield Label(words.line("asking …", Severity.MUTED), id="head")
        yield FittedTable(rows.WITHOUT_GPU, id="revisions", empty="asking for its revisions …")
        yield FittedTable(rows.REPLICAS, id="replicas", empty="no replica runs")
        with Horizontal(id="below"):
            yield Pane("story")
            yield Pane("about")

    def begin(self) -> None:
        self.set_interval(1.0, self._tick)

    def _tick(self) -> None:
        """While a change goes on, its times go on between two refreshes."""
        if self.is_current and self._seen.rolling() is not None:
            self._show_all()

    # --- showing ---------------------------------------------------------------------------------------------------

    def show(self, hosts: frozenset[str]) -> None:
        self._ask()
        self._show_all()

    def _ask(self) -> None:
        """Ask for the revisions when what the events tell says that they are others now."""
        wanted, now = self._signature(), self.context.now()
        late = self._error is not None and (self._asked_at is None or now - self._asked_at >= AGAIN)
        if wanted != self._asked_for or late:
            self._asked_for, self._asked_at = wanted, now
            self.post_message(m.WantDetail(self, self.target))

    def _signature(self) -> object:
        status, host = look.deployment(self.fleet, self.target), self.fleet.hosts.get(self.target.host)
        if status is None or host is None or host.status is None:
            return host is not None and host.connection == "live"
        changes = [(each.id, each.state) for each in host.status.operations if each.target == self.target.name]
        return (
            status.generation, status.state, status.live_revision, status.wanted_revision, status.warm_revision,
            status.failure, tuple(changes[:3]), host.connection,
        )  # fmt: skip

    @on(m.DetailCame)
    def _came(self, event: m.DetailCame) -> None:
        event.stop()
        newest = self.main.order[:1] if self.main.sort_column is None else []
        follow = bool(newest) and self.main.cursor == newest[0]
        self._error = event.error
        if event.detail is not None:
            self._detail = event.detail
        self._show_all()
        if follow and self.main.order:
            self.main.move_to(self.main.order[0])

    @property
    def _seen(self) -> rows.Seen:
        host = self.fleet.hosts.get(self.target.host) or HostState(self.target.host)
        status = look.deployment(self.fleet, self.target)
        revisions = rows.with_peaks(self._detail.revisions if self._detail is not None else (), host.revisions)
        return rows.Seen(status, revisions, host.status, self.context.now(), host.connection == "lost")

    def _show_all(self) -> None:
        seen = self._seen
        self._show_head(seen)
        self.main.show_columns(rows.columns(seen))
        self.main.show_rows(rows.revisions(seen))
        self.query_one("#replicas", Table).show_rows(rows.replicas(seen))
        self._show_story(seen)
        self._show_about(seen)

    def _show_head(self, seen: rows.Seen) -> None:
        status, host = seen.status, self.fleet.hosts.get(self.target.host)
        lines = []
        if host is not None and seen.lost:
            since = marks.since(host.since, seen.now)
            lines.append(words.line(f"○ {host.name} is unreachable for {since}: {host.error}", Severity.BAD))
        if status is None:
            known = host is not None and host.status is not None
            said = "there is no such deployment here now; its revisions are kept" if known else "asking …"
            lines.append(words.line(said, Severity.MUTED))
        else:
            symbol, meaning = marks.symbol(status.state), views.severity(status.state)
            since = f"since {marks.since(status.since, seen.now)}, by {status.by}"
            told = status.summary if status.summary.startswith(status.state) else f"{status.state}  {status.summary}"
            lines.append(words.joined((f"{symbol} {told}", meaning), (f"   {since}", Severity.MUTED)))
            ready = f"{status.replicas_ready}/{status.replicas_wanted} ready  "
            endpoint = f"{status.endpoint.rstrip('/')}{status.predict_path}"
            lines.append(words.joined((ready, ""), (endpoint, Severity.MUTED)))
        self.query_one("#head", Label).show(words.lines(lines))

    def _show_story(self, seen: rows.Seen) -> None:
        pane, chosen = self.query_one("#story", Pane), self.chosen
        if self._compared is not None:
            old, new = self._compared
            known = {each.id: each for each in (seen.host.versions if seen.host is not None else ())}
            title = f"DIFF {old.number} → {new.number}   ({old.spec.label} → {new.spec.label})   x closes"
            changes = differences.revisions(old, new, known)
            pane.show(version_text.diff(title, changes), (old.number, new.number))
        elif chosen is not None:
            pane.show(story.revision(seen, chosen), chosen.number)
        elif self._error is not None:
            pane.show(words.line(f"✖ {self._error.detail}", Severity.BAD), None)

    def _show_about(self, seen: rows.Seen) -> None:
        chosen, version = self.chosen, None
        if chosen is not None and seen.host is not None:
            version = next((each for each in seen.host.versions if each.id == chosen.spec.version), None)
        live = self._detail.version if self._detail is not None else None
        if version is None and live is not None and chosen is not None and live.id == chosen.spec.version:
            version = live
        pane = self.query_one("#about", Pane)
        if version is not None:
            pane.show(version_text.version(version, seen.now), version.id)
        elif chosen is not None:
            pane.show(words.line(f"{chosen.spec.label} is not on the host now", Severity.MUTED), chosen.spec.version)

    def _leave_comparison(self, cursor: tuple[str, ...] | None) -> None:
        """The cursor went elsewhere. What it did before `x` may be told after it, when both were typed fast."""
        if cursor != self._compared_at:
            self._compared = None

    @on(Table.Moved)
    def _other(self, event: Table.Moved) -> None:
        if event.table is self.main and self.is_mounted:
            self._leave_comparison(event.key)
            self._show_story(self._seen)
            self._show_about(self._seen)

    # --- keys ------------------------------------------------------------------------------------------------------

    def action_diff(self) -> None:
        """Between the two selected revisions, else from the live one to the one under the cursor."""
        if self._compared is not None:
            self._compared = None
        elif (pair := self._pair()) is None:
            self.tell("select two revisions with space, or put the cursor on one that is not live", bad=True)
        else:
            low, high = sorted(pair, key=lambda each: each.number)
            self._compared, self._compared_at = (low, high), self.main.cursor
            self.remove_class("-about")
        self._show_story(self._seen)

    def _pair(self) -> tuple[Revision, Revision] | None:
        selected = [each for key in self.main.lines if key in self.main.selected and (each := self._revision(key))]
        if len(selected) == 2:
            return selected[0], selected[1]
        status = look.deployment(self.fleet, self.target)
        live = self._revision((str(status.live_revision),)) if status is not None else None
        chosen = selected[0] if len(selected) == 1 else self.chosen
        if live is None or chosen is None or live is chosen or len(selected) > 2:
            return None
        return live, chosen

    def action_about(self) -> None:
        """The version and its card in place of the story, and back."""
        self.toggle_class("-about")

    def action_zoom(self) -> None:
        """The text alone, and back."""
        self.toggle_class("-zoomed")
        pane = self.query_one("#about" if self.has_class("-about") else "#story", Pane)
        (pane if self.has_class("-zoomed") else self.main).focus()

    async def action_back(self) -> None:
        if self.has_class("-zoomed"):
            self.action_zoom()
        elif self._compared is not None:
            self.action_diff()
        elif self.has_class("-about"):
            self.action_about()
        else:
            await super().action_back()

    def action_pane(self, direction: int) -> None:
        self.query_one("#about" if self.has_class("-about") else "#story", Pane).by(direction * SCROLL)

    async def action_open(self) -> None:
        self.action_zoom()

    async def action_describe(self) -> None:
        self.action_zoom()

    async def action_logs(self) -> None:
        chosen = self.chosen
        await self.go(m.OpenLogs((self.target,), rows.wrote(self._seen, chosen.number) if chosen is not None else None))

    def action_rollback(self) -> None:
        """To the revision under the cursor where that has served, else to the one that served before."""
        chosen = self.chosen
        to = chosen.number if chosen is not None and self.may_return_to(chosen) else None
        self.ask_for(m.AskRollback((self.target,), to))
