"""Restart, stop and remove: nothing to choose, only to know before it happens."""

from __future__ import annotations

from quarterdeck_agent.protocol import ChangeRequest
from quarterdeck_console.state import FleetState
from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui.context import Context
from quarterdeck_console.tui.dialogs.plan import PlanDialog


class ConfirmDialog(PlanDialog):
    """One kind of change for some targets."""

    def __init__(self, context: Context, fleet: FleetState, kind: m.Kind, targets: tuple[m.Target, ...]) -> None:
        super().__init__(context, fleet)
        self._kind, self._targets = kind, targets
        self.verb = kind

    def question(self) -> str:
        return f"{self._kind.capitalize()} {', '.join(f'{each.name} on {each.host}' for each in self._targets)}"

    def wish(self) -> m.Wish:
        return m.Wish(self._kind, self._targets, ChangeRequest())
