"""The frame and the grammar of every question: the answer is No unless it is `y`, and Enter never confirms.

Hosts marked `protected` want their name typed before `y` does anything. What is asked, and what is told before the
answer, is the subclass's.
"""

from __future__ import annotations

from typing import ClassVar, Generic, TypeVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.timer import Timer
from textual.widgets import Input

from quarterdeck_console.tui import words
from quarterdeck_console.tui.context import Context
from quarterdeck_console.tui.widgets.choice import Choice
from quarterdeck_console.tui.widgets.field import Field
from quarterdeck_console.tui.widgets.label import Label
from quarterdeck_console.views import Severity

T = TypeVar("T")

SEEN = 0.3
"""Seconds, without a `y`, that a question is in sight before a `y` answers it: what is typed ahead is no answer."""


class Question(ModalScreen[T | None], Generic[T]):
    """Dismissed with the answer, or `None` for No."""

    AUTO_FOCUS = ""
    verb: str = "do it"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "confirm", "Yes", show=False, id="dialog.yes"),
        Binding("n", "no", "No", show=False, id="dialog.no"),
        Binding("escape", "no", "No", show=False, id="dialog.leave"),
        Binding("pagedown", "scroll_plan(1)", "Plan down", show=False, id="dialog.down"),
        Binding("pageup", "scroll_plan(-1)", "Plan up", show=False, id="dialog.up"),
        Binding("ctrl+c", "no", "No", show=False, id="dialog.end"),
    ]

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context
        self._seen = False
        self._seeing: Timer | None = None

    # --- for subclasses --------------------------------------------------------------------------------------------

    def question(self) -> str:
        """The question in a few words."""
        raise NotImplementedError

    def form(self) -> ComposeResult:
        """What can be chosen: `Field`s."""
        yield from ()

    def begin(self) -> None:
        """Called once, when the dialog is there. Textual calls every class's `on_mount` by itself: use this."""

    def renew(self) -> None:
        """Show what is asked now."""
        raise NotImplementedError

    def typed(self) -> None:
        """Something was typed into the form."""
        self.renew()

    def hosts(self) -> tuple[str, ...]:
        """The hosts that what is asked now is about."""
        raise NotImplementedError

    def missing(self) -> Content | None:
        """What `y` still needs, `None` when it needs nothing."""
        raise NotImplementedError

    def answer(self) -> T | None:
        """What `y` means."""
        raise NotImplementedError

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
        # Not `focus()`, which takes effect later: what is typed by then would go into a field that is only passed by.
        self.set_focus(fields.first() if fields else self.query_one("#no"))
        self.begin()

    def show_question(self, told: Content, command: Content) -> None:
        """The question as it is now, what is told before its answer, and the command that does the same."""
        self.query_one("#dialog-title", Label).show(words.line(self.question(), "bold"))
        self.query_one("#plan", Label).show(told)
        self.query_one("#dialog-command", Label).show(command)
        self.show_answers()

    def on_screen_suspend(self) -> None:
        """Something covers it: what is answered when that goes has not been in sight."""
        self._seen = False
        if self._seeing is not None:
            self._seeing.stop()

    def on_screen_resume(self) -> None:
        """It came to the top, perhaps from under another screen."""
        self.come_in_sight()

    def come_in_sight(self) -> None:
        """What `y` would do is new to whoever looks: it can be answered a little later."""
        self._seen = False
        if self._seeing is not None:
            self._seeing.stop()
        self._seeing = self.set_timer(SEEN, self._has_been_seen)
        if self.is_mounted:
            self.show_answers()
            self.call_after_refresh(self._go_to_name)

    def _go_to_name(self) -> None:
        """Where a name is needed and nothing else is left to fill in, it can be typed at once: an n in it is no No."""
        if self.is_current and self._name_needed() and not self._named() and self.focused is self.query_one("#no"):
            self.query_one("#dialog-name").focus()

    def _has_been_seen(self) -> None:
        self._seen = True
        self.show_answers()

    def show_answers(self) -> None:
        """What `y` does now, or what it needs."""
        needed, field = self._name_needed(), self.query_one("#dialog-name-field", Field)
        field.set_class(bool(needed), "needed")
        if needed:
            field.show_hint(f"type {needed} to confirm: it is protected", Severity.WARNING)
        yes = words.joined(("y", "bold $text-warning"), (f" {self.verb}", ""))
        if needed and not self._named():
            yes = words.line("y needs the name", Severity.MUTED)
        if not self._seen:
            yes = words.line("read it first", Severity.MUTED)
        self.query_one("#dialog-yes", Label).show(self.missing() or yes)

    def _name_needed(self) -> str:
        """What has to be typed, nothing where no host is protected."""
        names = self.context.protected(self.hosts())
        return " ".join(names) if len(names) <= 3 else f"{len(names)} protected hosts"

    def _named(self) -> bool:
        return self.value("dialog-name") == self._name_needed()

    def value(self, id: str) -> str:
        """What is in a field."""
        return self.query_one(f"#{id}", Input).value.strip()

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        event.stop()
        if event.input.id != "dialog-name":
            self.typed()
            return
        self.show_answers()
        if self._name_needed() and self._named():
            self.query_one("#no").focus()

    def action_scroll_plan(self, direction: int) -> None:
        self.query_one("#dialog-plan").scroll_relative(y=direction * 5, animate=False)

    # --- the answer ------------------------------------------------------------------------------------------------

    def action_confirm(self) -> None:
        """Only when nothing is missing, and with the name where one is needed."""
        if self.missing() is not None or self.context.read_only:
            return
        if self._name_needed() and not self._named():
            self.query_one("#dialog-name").focus()
        elif not self._seen:
            self.come_in_sight()
        else:
            self._end(self.answer())

    def action_no(self) -> None:
        self._end(None)

    def _end(self, answer: T | None) -> None:
        """Close, once: a key that comes while it closes would close the screen below."""
        if self.is_current:
            self.dismiss(answer)

    @on(Choice.Picked)
    def _picked(self, event: Choice.Picked) -> None:
        event.stop()
        self.action_no()
