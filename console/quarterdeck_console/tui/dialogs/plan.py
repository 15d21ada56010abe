"""What every dialog of a change is: the plan is shown first, then the question, and the answer is No unless it is `y`.

Enter never confirms. A host marked `protected` wants its name typed before `y` does anything. While the plan is not
known nothing can be confirmed; targets whose plan was refused are left out.
"""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.timer import Timer
from textual.widgets import Input

from quarterdeck_agent.protocol import Preview
from quarterdeck_console.errors import ConsoleError
from quarterdeck_console.state import FleetState
from quarterdeck_console.tui import commands, words
from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui.context import Context
from quarterdeck_console.tui.dialogs.plan_text import plan
from quarterdeck_console.tui.widgets.choice import Choice
from quarterdeck_console.tui.widgets.field import Field
from quarterdeck_console.tui.widgets.label import Label
from quarterdeck_console.views import Severity

TYPING = 0.3
"""Seconds without a key before the plan of a form is asked anew."""


class PlanDialog(ModalScreen[m.Wish | None]):
    """Subclass it: `question()`, `wish()`, and `form()` for what can be chosen. Dismissed with a wish or `None`."""

    verb: str = "do it"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "confirm", "Yes", show=False, id="dialog.yes"),
        Binding("n", "no", "No", show=False, id="dialog.no"),
        Binding("escape", "no", "No", show=False, id="dialog.leave"),
        Binding("pagedown", "scroll_plan(1)", "Plan down", show=False, id="dialog.down"),
        Binding("pageup", "scroll_plan(-1)", "Plan up", show=False, id="dialog.up"),
        Binding("ctrl+c", "no", "No", show=False, id="dialog.end"),
    ]

    def __init__(self, context: Context, fleet: FleetState) -> None:
        super().__init__()
        self.context, self.fleet = context, fleet
        self._asked: m.Wish | None = None
        self._previews: tuple[Preview | ConsoleError, ...] | None = None
        self._timer: Timer | None = None

    # --- for subclasses --------------------------------------------------------------------------------------------

    def question(self) -> str:
        """The question in a few words."""
        raise NotImplementedError

    def wish(self) -> m.Wish | str:
        """What is chosen now, or what is still missing."""
        raise NotImplementedError

    def form(self) -> ComposeResult:
        """What can be chosen: `Field`s."""
        yield from ()

    def begin(self) -> None:
        """Called once, when the dialog is there. Textual calls every class's `on_mount` by itself: use this."""

    def learn(self) -> None:
        """`self.fleet` is newer than before: a form may have more to offer."""

    # --- the dialog ------------------------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog"):
            yield Label(id="dialog-title")
            with Vertical(id="dialog-form"):
                yield from self.form()
            with VerticalScroll(id="dialog-plan", can_focus=False):
                yield Label(id="plan")
            yield Label(id="dialog-command")
            yield Field("", "dialog-name")
            with Horizontal(id="dialog-answers"):
                yield Label(id="dialog-yes")
                yield Choice("[ No ]", "no")

    def on_mount(self) -> None:
        self.renew()
        fields = self.query("#dialog-form Entry")
        (fields.first() if fields else self.query_one("#no")).focus()
        self.begin()

    def renew(self) -> None:
        """Something was chosen: the plan is of yesterday."""
        self._previews = None
        self.query_one("#dialog-title", Label).show(words.line(self.question(), "bold"))
        found = self.wish()
        if isinstance(found, str):
            self._asked = None
            self.query_one("#plan", Label).show(words.line(found, Severity.MUTED))
            self.query_one("#dialog-command", Label).show(words.line(""))
        else:
            self._asked = found
            self.query_one("#plan", Label).show(words.line("asking for the plan …", Severity.MUTED))
            self.query_one("#dialog-command", Label).show(
                words.lines([words.line(command, "$text-accent") for command in commands.of_wish(found)])
            )
            self.post_message(m.WantPreviews(self, found))
        self._show_answers()

    @on(m.PreviewsCame)
    def _came(self, event: m.PreviewsCame) -> None:
        event.stop()
        if event.wish is not self._asked:
            return
        self._previews = event.previews
        self.query_one("#plan", Label).show(
            plan(event.wish.targets, event.previews, self.query_one("#dialog-plan").size.width - 1)
        )
        self._show_answers()

    def _show_answers(self) -> None:
        needed, ready = self._name_needed(), self._ready()
        field = self.query_one("#dialog-name-field", Field)
        field.set_class(bool(needed), "needed")
        if needed:
            field.show_hint(f"type {needed} to confirm: it is protected", Severity.WARNING)
        yes = self.query_one("#dialog-yes", Label)
        if not ready:
            yes.show(words.line("y needs a plan", Severity.MUTED) if self._previews is None else
                     words.line("nothing can be done", Severity.BAD))  # fmt: skip
        elif needed and not self._named():
            yes.show(words.line("y needs the name", Severity.MUTED))
        else:
            yes.show(words.joined(("y", "bold $text-warning"), (f" {self.verb}", "")))

    def _ready(self) -> bool:
        return any(isinstance(preview, Preview) for preview in self._previews or ())

    def _name_needed(self) -> str:
        """What has to be typed, nothing where no host is protected."""
        hosts = tuple(target.host for target in self._asked.targets) if self._asked else ()
        names = self.context.protected(hosts)
        return " ".join(names) if len(names) <= 3 else f"{len(names)} protected hosts"

    def _named(self) -> bool:
        return self.query_one("#dialog-name", Input).value == self._name_needed()

    @on(m.FleetCame)
    def _fleet_came(self, event: m.FleetCame) -> None:
        self.fleet = event.fleet
        self.learn()

    # --- what is typed ---------------------------------------------------------------------------------------------

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        event.stop()
        if event.input.id == "dialog-name":
            self._show_answers()
            if self._named():
                self.query_one("#no").focus()
            return
        self._previews = None
        self._show_answers()
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(TYPING, self.renew)

    def value(self, id: str) -> str:
        """What is in a field of the form."""
        return self.query_one(f"#{id}", Input).value.strip()

    # --- the answer ------------------------------------------------------------------------------------------------

    def action_confirm(self) -> None:
        """Only with a plan, and with the name where one is needed."""
        if self._asked is None or not self._ready() or self.context.read_only:
            return
        if self._name_needed() and not self._named():
            self.query_one("#dialog-name").focus()
            return
        pairs = [
            (target, preview.generation)
            for target, preview in zip(self._asked.targets, self._previews or (), strict=True)
            if isinstance(preview, Preview)
        ]
        targets, generations = tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
        self._end(m.Wish(self._asked.kind, targets, self._asked.request, generations))

    def action_no(self) -> None:
        self._end(None)

    def _end(self, wanted: m.Wish | None) -> None:
        """Close, once: a key that comes while it closes would close the screen below."""
        if self.is_current:
            self.dismiss(wanted)

    @on(Choice.Picked)
    def _picked(self, event: Choice.Picked) -> None:
        event.stop()
        self.action_no()

    def action_scroll_plan(self, direction: int) -> None:
        self.query_one("#dialog-plan").scroll_relative(y=direction * 5, animate=False)
