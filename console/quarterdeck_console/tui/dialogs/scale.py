"""Scale: one number, up and down change it."""

from __future__ import annotations

from textual.app import ComposeResult

from quarterdeck_agent.protocol import ScaleRequest
from quarterdeck_console.state import FleetState
from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui.context import Context
from quarterdeck_console.tui.dialogs.plan import PlanDialog
from quarterdeck_console.tui.look import deployment
from quarterdeck_console.tui.widgets.field import Field

MOST = 16
"""The highest number that up and down reach; more can be typed."""


class ScaleDialog(PlanDialog):
    """Begins with the number that is wanted now."""

    verb = "scale"

    def __init__(
        self, context: Context, fleet: FleetState, targets: tuple[m.Target, ...], replicas: int | None
    ) -> None:
        super().__init__(context, fleet)
        self._targets = targets
        found = deployment(fleet, targets[0])
        self._now = found.replicas_wanted if found is not None else None
        self._replicas = replicas if replicas is not None else self._now

    def question(self) -> str:
        return f"Scale {', '.join(f'{each.name} on {each.host}' for each in self._targets)}"

    def form(self) -> ComposeResult:
        known = [str(number) for number in range(MOST + 1)]
        value = "" if self._replicas is None else str(self._replicas)
        yield Field("replicas", "replicas", value, known, digits=True)

    def wish(self) -> m.Wish | str:
        typed = self.value("replicas")
        if not typed:
            return "how many replicas?"
        if int(typed) == self._now and len(self._targets) == 1:
            return f"{typed} is what is wanted already; up and down change it"
        return m.Wish("scale", self._targets, ScaleRequest(int(typed)))
