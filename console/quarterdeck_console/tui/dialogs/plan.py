"""What every dialog of a change is: the plan is shown first, then the question.

While the plan is not known nothing can be confirmed; targets whose plan was refused are left out.
"""

from __future__ import annotations

from textual import on
from textual.content import Content
from textual.timer import Timer

from quarterdeck_agent.protocol import Preview
from quarterdeck_console.errors import ConsoleError
from quarterdeck_console.state import FleetState
from quarterdeck_console.tui import commands, words
from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui.context import Context
from quarterdeck_console.tui.dialogs.plan_text import plan
from quarterdeck_console.tui.dialogs.question import Question
from quarterdeck_console.tui.widgets.label import Label
from quarterdeck_console.views import Severity

TYPING = 0.3
"""Seconds without a key before the plan of a form is asked anew."""


class PlanDialog(Question[m.Wish]):
    """Subclass it: `question()`, `wish()`, and `form()` for what can be chosen. Dismissed with a wish or `None`."""

    def __init__(self, context: Context, fleet: FleetState) -> None:
        super().__init__(context)
        self.fleet = fleet
        self._asked: m.Wish | None = None
        self._previews: tuple[Preview | ConsoleError, ...] | None = None
        self._timer: Timer | None = None

    # --- for subclasses --------------------------------------------------------------------------------------------

    def wish(self) -> m.Wish | str:
        """What is chosen now, or what is still missing."""
        raise NotImplementedError

    def learn(self) -> None:
        """`self.fleet` is newer than before: a form may have more to offer."""

    def planned(self) -> None:
        """The plan is there: `self.commands()` say in full what was left to the host."""

    def commands(self) -> tuple[str, ...]:
        """The commands that the hosts say their plans are of, of those that have one."""
        return tuple(each.command for each in self._previews or () if isinstance(each, Preview))

    # --- the plan --------------------------------------------------------------------------------------------------

    def renew(self) -> None:
        """Something was chosen: the plan is of yesterday."""
        self._previews = None
        found = self.wish()
        if isinstance(found, str):
            self._asked = None
            self.show_question(words.line(found, Severity.MUTED), words.line(""))
        else:
            self._asked = found
            command = words.lines([words.line(each, "$text-accent") for each in commands.of_wish(found)])
            self.show_question(words.line("asking for the plan …", Severity.MUTED), command)
            self.post_message(m.WantPreviews(self, found))

    @on(m.PreviewsCame)
    def _came(self, event: m.PreviewsCame) -> None:
        event.stop()
        if event.wish is not self._asked:
            return
        self._previews = event.previews
        self._show_plan()
        self.planned()
        self.come_in_sight()

    def _show_plan(self) -> None:
        if self._asked is not None and self._previews is not None:
            width = self.query_one("#dialog-plan").size.width - 1
            self.query_one("#plan", Label).show(plan(self._asked, self._previews, width))

    def on_resize(self) -> None:
        """Its lines are as long as the dialog is wide."""
        self.call_after_refresh(self._wrap_plan)

    def _wrap_plan(self) -> None:
        if self.is_current:
            self._show_plan()

    def typed(self) -> None:
        self._previews = None
        self.show_answers()
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(TYPING, self.renew)

    @on(m.FleetCame)
    def _fleet_came(self, event: m.FleetCame) -> None:
        self.fleet = event.fleet
        self.learn()

    # --- the answer ------------------------------------------------------------------------------------------------

    def hosts(self) -> tuple[str, ...]:
        return tuple(target.host for target in self._asked.targets) if self._asked else ()

    def missing(self) -> Content | None:
        if self._asked is None or self._previews is None:
            return words.line("y needs a plan", Severity.MUTED)
        if not any(isinstance(preview, Preview) for preview in self._previews):
            return words.line("nothing can be done", Severity.BAD)
        return None

    def answer(self) -> m.Wish | None:
        """The wish, for the targets that have a plan, with the generations that their plans were made for."""
        if self._asked is None:
            return None
        pairs = [
            (target, preview.generation)
            for target, preview in zip(self._asked.targets, self._previews or (), strict=True)
            if isinstance(preview, Preview)
        ]
        targets, generations = tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
        return m.Wish(self._asked.kind, targets, self._asked.request, generations)
