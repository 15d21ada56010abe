"""A question before something that no plan can be asked for: sending a bundle, removing a version."""

from __future__ import annotations

from typing import Generic, TypeVar

from textual.content import Content

from quarterdeck_console.tui import words
from quarterdeck_console.tui.context import Context
from quarterdeck_console.tui.dialogs.question import Question
from quarterdeck_console.views import Severity

T = TypeVar("T")


class SureDialog(Question[T], Generic[T]):
    """Subclass it and say what is asked. Dismissed with what is chosen, or `None`."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._wanted: T | None = None

    # --- for subclasses --------------------------------------------------------------------------------------------

    def told(self) -> Content:
        """What there is to know before the answer."""
        return words.line("")

    def chosen(self) -> T | str:
        """What is chosen now, or what is still missing."""
        raise NotImplementedError

    def hosts_of(self, chosen: T) -> tuple[str, ...]:
        """The hosts that what is chosen is about."""
        raise NotImplementedError

    def command(self, chosen: T) -> str:
        """The command that does the same."""
        raise NotImplementedError

    # --- the question ----------------------------------------------------------------------------------------------

    def renew(self) -> None:
        found = self.chosen()
        self._wanted = None if isinstance(found, str) else found
        told = words.line(found, Severity.MUTED) if isinstance(found, str) else self.told()
        command = "" if self._wanted is None else self.command(self._wanted)
        self.show_question(told, words.line(command, "$text-accent"))

    def hosts(self) -> tuple[str, ...]:
        return self.hosts_of(self._wanted) if self._wanted is not None else ()

    def missing(self) -> Content | None:
        return words.line("y needs more", Severity.MUTED) if self._wanted is None else None

    def answer(self) -> T | None:
        return self._wanted
