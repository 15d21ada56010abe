"""Sending a bundle to hosts, and removing a version from them."""

from __future__ import annotations

from dataclasses import dataclass

from textual.app import ComposeResult
from textual.content import Content

from quarterdeck_console import config
from quarterdeck_console.errors import ConsoleError
from quarterdeck_console.tui import commands, words
from quarterdeck_console.tui.context import Context
from quarterdeck_console.tui.dialogs.sure import SureDialog
from quarterdeck_console.tui.widgets.field import Field
from quarterdeck_console.views import Severity

YES_NO = ("no", "yes")


@dataclass(frozen=True, slots=True)
class Push:
    """A bundle for these hosts."""

    hosts: tuple[str, ...]
    folder: str
    allow_pickle: bool


class PushDialog(SureDialog[Push]):
    """Where the bundle lies is a path on the machine that the console runs on."""

    verb = "push"

    def __init__(self, context: Context, folder: str = "") -> None:
        super().__init__(context)
        self._folder = folder

    def question(self) -> str:
        return "Push a bundle"

    def form(self) -> ComposeResult:
        hosts = self.context.fleet.hosts
        one = hosts[0].name if len(hosts) == 1 else ""
        yield Field("bundle", "folder", self._folder, placeholder="a folder with model.toml in it")
        yield Field("hosts", "hosts", one, list(self.context.hosts), "names or globs like gpu-*")
        yield Field("pickle", "pickle", "no", YES_NO, "no")

    def begin(self) -> None:
        """With the folder known, what is missing is next: the hosts, else the answer. `y` must not go into a field."""
        if self._folder:
            self.set_focus(self.query_one("#no" if self.value("hosts") else "#hosts"))

    def told(self) -> Content:
        if self.value("pickle") == "yes":
            said = "▲ loading a pickle runs its author's code; that it was allowed is recorded with the version"
            return words.line(said, Severity.WARNING)
        return words.line("only what a host does not have yet travels; after a cut it goes on where it was")

    def chosen(self) -> Push | str:
        folder, patterns = self.value("folder"), tuple(self.value("hosts").replace(",", " ").split())
        if not folder:
            return "which folder?"
        if not patterns:
            return "to which hosts?"
        if (pickle := self.value("pickle") or "no") not in YES_NO:
            return "pickle is yes or no"
        try:
            hosts = tuple(host.name for host in config.choose(self.context.fleet, patterns))
        except ConsoleError as error:
            return error.detail
        return Push(hosts, folder, pickle == "yes")

    def hosts_of(self, chosen: Push) -> tuple[str, ...]:
        return chosen.hosts

    def command(self, chosen: Push) -> str:
        options = ["--allow-pickle"] if chosen.allow_pickle else []
        hosts = [part for host in chosen.hosts for part in ("--host", host)]
        return commands.words("push", chosen.folder, *options, *hosts)


@dataclass(frozen=True, slots=True)
class Removal:
    """One version of one host."""

    host: str
    id: str
    label: str


class RemoveDialog(SureDialog[tuple[Removal, ...]]):
    """A host refuses while a revision that it may roll back to needs the version."""

    verb = "remove"

    def __init__(self, context: Context, removals: tuple[Removal, ...]) -> None:
        super().__init__(context)
        self._removals = removals

    def question(self) -> str:
        labels = ", ".join(dict.fromkeys(each.label for each in self._removals))
        return f"Remove {labels} from {', '.join(self.hosts_of(self._removals))}"

    def told(self) -> Content:
        return words.line("its files go where no other version has them; a host refuses while a revision needs it")

    def chosen(self) -> tuple[Removal, ...] | str:
        return self._removals

    def hosts_of(self, chosen: tuple[Removal, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(each.host for each in chosen))

    def command(self, chosen: tuple[Removal, ...]) -> str:
        lines = []
        for id_ in dict.fromkeys(each.id for each in chosen):
            hosts = [part for each in chosen if each.id == id_ for part in ("--host", each.host)]
            lines.append(commands.words("versions", "--remove", id_[:12], *hosts))
        return "  ".join(lines)
