"""The `[ No ]` of a dialog: it has the focus when the question is asked, so that Enter by reflex changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

from quarterdeck_console.tui import words
from quarterdeck_console.tui.widgets.label import Label


class Choice(Label, can_focus=True):
    """Posts `Picked` on enter, space or a click."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter,space", "pick", "Pick", show=False, id="choice.pick")]
    DEFAULT_CSS = """
    Choice { width: auto; height: 1; background: $boost; }
    Choice:focus { background: $primary; color: $background; text-style: bold; }
    """

    @dataclass
    class Picked(Message):
        """This one."""

        id: str

    def __init__(self, text: str, id: str) -> None:
        super().__init__(words.line(text), id=id)

    def action_pick(self) -> None:
        self.post_message(self.Picked(self.id or ""))

    def on_click(self, event: events.Click) -> None:
        event.stop()
        self.action_pick()
