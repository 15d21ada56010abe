"""A question before something that no plan can be asked for: sending a bundle, removing a version.

It has the grammar of every dialog: the answer is No unless it is `y`, Enter never confirms, and hosts marked
`protected` want their name typed first. Subclass it and say what is asked.
"""

from __future__ import annotations

from typing import ClassVar, Generic, TypeVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input

from quarterdeck_console.tui import words
from quarterdeck_console.tui.context import Context
from quarterdeck_console.tui.widgets.choice import Choice
from quarterdeck_console.tui.widgets.field import Field
from quarterdeck_console.tui.widgets.label import Label
from quarterdeck_console.views import Severity

T = TypeVar("T")


class SureDialog(ModalScreen[T | None], Generic[T]):
    """Dismissed with what is chosen, or `None`."""

    verb: str = "do it"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "confirm", "Yes", show=False, id="sure.yes"),
        Binding("n", "no", "No", show=False, id="sure.no"),
        Binding("escape", "no", "No", show=False, id="sure.leave"),
        Binding("ctrl+c", "no", "No", show=False, id="sure.end"),
    ]

    DEFAULT_CSS = """
    SureDialog { align: center middle; background: $background 60%; }
    """

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context
        self._wanted: T | None = None

    # --- for subclasses --------------------------------------------------------------------------------------------

    def question(self) -> str:
        """The question in a few words."""
        raise NotImplementedError

    def told(self) -> Content:
        """What there is to know before the answer."""
        return words.line("")

    def chosen(self) -> T | str:
        """What is chosen now, or what is still missing."""
        raise NotImplementedError

    def hosts(self, chosen: T) -> tuple[str, ...]:
        """The hosts that what is chosen is about."""
        raise NotImplementedError

    def command(self, chosen: T) -> str:
        """The command that does the same."""
        raise NotImplementedError

    def form(self) -> ComposeResult:
        """What can be chosen: `Field`s."""
        yield from ()

    # --- the dialog ------------------------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog"):
            yield Label(id="dialog-title")
            with Vertical(id="dialog-form"):
                yield from self.form()
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

    def renew(self) -> None:
        """Show what is asked now."""
        found = self.chosen()
        self._wanted = None if isinstance(found, str) else found
        self.query_one("#dialog-title", Label).show(words.line(self.question(), "bold"))
        missing = words.line(found, Severity.MUTED) if isinstance(found, str) else self.told()
        self.query_one("#plan", Label).show(missing)
        command = words.line("" if self._wanted is None else self.command(self._wanted), "$text-accent")
        self.query_one("#dialog-command", Label).show(command)
        self._show_answers()

    def _show_answers(self) -> None:
        needed, field = self._name_needed(), self.query_one("#dialog-name-field", Field)
        field.display = bool(needed)
        if needed:
            field.show_hint(f"type {needed} to confirm: it is protected", Severity.WARNING)
        yes = self.query_one("#dialog-yes", Label)
        if self._wanted is None:
            yes.show(words.line("y needs more", Severity.MUTED))
        elif needed and not self._named():
            yes.show(words.line("y needs the name", Severity.MUTED))
        else:
            yes.show(words.joined(("y", "bold $text-warning"), (f" {self.verb}", "")))

    def _name_needed(self) -> str:
        """What has to be typed, nothing where no host is protected."""
        names = self.context.protected(self.hosts(self._wanted)) if self._wanted is not None else ()
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
            self.renew()
            return
        self._show_answers()
        if self._name_needed() and self._named():
            self.query_one("#no").focus()

    # --- the answer ------------------------------------------------------------------------------------------------

    def action_confirm(self) -> None:
        """Only when nothing is missing, and with the name where one is needed."""
        if self._wanted is None or self.context.read_only:
            return
        if self._name_needed() and not self._named():
            self.query_one("#dialog-name").focus()
            return
        self._end(True)

    def action_no(self) -> None:
        self._end(False)

    def _end(self, sure: bool) -> None:
        """Close, once: a key that comes while it closes would close the screen below."""
        if self.is_current:
            self.dismiss(self._wanted if sure else None)

    @on(Choice.Picked)
    def _picked(self, event: Choice.Picked) -> None:
        event.stop()
        self.action_no()
