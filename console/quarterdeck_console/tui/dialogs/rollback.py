"""Roll back: the revision that served before is chosen already; up and down go through the others."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from quarterdeck_agent.protocol import Revision, RevisionOutcome, RollbackRequest
from quarterdeck_console import views
from quarterdeck_console.state import FleetState
from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui.context import Context
from quarterdeck_console.tui.dialogs.plan import PlanDialog
from quarterdeck_console.tui.widgets.field import Field

LAST = "the one before"


class RollbackDialog(PlanDialog):
    """With several targets, each goes back to the revision that served before its own."""

    verb = "roll back"

    # Also while No has the focus, as it has from the start: an input that has it takes them before.
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "other(-1)", "Revision before", show=False, id="dialog.revision_before"),
        Binding("down", "other(1)", "Revision after", show=False, id="dialog.revision_after"),
    ]

    def __init__(self, context: Context, fleet: FleetState, targets: tuple[m.Target, ...], to: int | None) -> None:
        super().__init__(context, fleet)
        self._targets, self._to = targets, to
        self._revisions: dict[str, Revision] = {}

    def question(self) -> str:
        return f"Roll back {', '.join(f'{each.name} on {each.host}' for each in self._targets)}"

    def form(self) -> ComposeResult:
        yield Field("revision", "to", LAST if self._to is None else str(self._to), [LAST])

    def begin(self) -> None:
        self.set_focus(self.query_one("#no"))
        if len(self._targets) == 1:
            self.post_message(m.WantDetail(self, self._targets[0]))

    @on(m.DetailCame)
    def _detail(self, event: m.DetailCame) -> None:
        event.stop()
        if event.detail is None:
            return
        live = event.detail.status.live_revision
        served = [
            each
            for each in event.detail.revisions
            if each.number != live and each.outcome not in (RevisionOutcome.FAILED, RevisionOutcome.PENDING)
        ]
        self._revisions = {str(each.number): each for each in served}
        self.query_one("#to-field", Field).set_options([LAST, *self._revisions])
        self._show_which()

    def renew(self) -> None:
        super().renew()
        self._show_which()

    def _show_which(self) -> None:
        field = self.query_one("#to-field", Field)
        typed = self.value("to")
        number = self._before() if typed in ("", LAST) else typed
        chosen = self._revisions.get(number)
        if chosen is not None:
            ago = views.age(chosen.created_at, self.context.now())
            which = "" if number == typed else f"{number}: "
            field.show_hint(f"↑ ↓  {which}{chosen.spec.label}, {ago} ago by {chosen.by}")
        else:
            field.show_hint("↑ ↓ choose another" if self._revisions else "")

    def action_other(self, by: int) -> None:
        """Another of the revisions that have served."""
        self.query_one("#to-field", Field).entry.action_known(by)

    def planned(self) -> None:
        self._show_which()

    def _before(self) -> str:
        """The revision that the host would go back to by itself, as its plan says it."""
        for command in self.commands():
            _, _, number = command.partition(" --to ")
            return number.strip()
        return ""

    def wish(self) -> m.Wish | str:
        typed = self.value("to")
        if typed in ("", LAST):
            return m.Wish("rollback", self._targets, RollbackRequest())
        if not typed.isdecimal():
            return "a revision is a number; see d for all of them"
        return m.Wish("rollback", self._targets, RollbackRequest(to=int(typed)))
