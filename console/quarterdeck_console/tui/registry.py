"""Which screen or dialog answers which message: the one place that knows all, so that they need not know each other.

All but the home screen are imported when they are first wanted: the first frame does not wait for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from textual.binding import Binding
from textual.message import Message
from textual.screen import Screen

from quarterdeck_console.state import FleetState
from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui.context import Context
from quarterdeck_console.tui.screens.fleet import FleetScreen
from quarterdeck_console.tui.view import View

if TYPE_CHECKING:
    from quarterdeck_console.tui.dialogs.palette import PaletteDialog
    from quarterdeck_console.tui.dialogs.plan import PlanDialog

PLACES: tuple[m.Place, ...] = ("fleet", "versions", "operations", "gpus")


def maker(place: m.Place, context: Context) -> Callable[[], Screen[object]]:
    """Makes the screen of a place when it is first shown."""

    def make() -> Screen[object]:
        return _of_place(place)(context)  # type: ignore[return-value] # Screen is invariant in what it is dismissed with

    return make


def _of_place(place: m.Place) -> type[View]:
    if place == "versions":
        from quarterdeck_console.tui.screens.versions import VersionsScreen

        return VersionsScreen
    if place == "operations":
        from quarterdeck_console.tui.screens.operations import OperationsScreen

        return OperationsScreen
    if place == "gpus":
        from quarterdeck_console.tui.screens.gpus import GpusScreen

        return GpusScreen
    return FleetScreen


def opened(message: Message, context: Context, fleet: FleetState) -> View:
    """The screen that an `Open…` message opens over the present one."""
    if isinstance(message, m.OpenDeployment):
        from quarterdeck_console.tui.screens.deployment import DeploymentScreen

        return DeploymentScreen(context, message.target)
    if isinstance(message, m.OpenLogs):
        from quarterdeck_console.tui.screens.logs import LogsScreen

        return LogsScreen(context, message.targets, message.revision, message.previous)
    assert isinstance(message, m.OpenText | m.OpenItems)
    from quarterdeck_console.tui import export
    from quarterdeck_console.tui.screens.text import TextScreen

    title, text, command = export.text(message, fleet)
    return TextScreen(context, title, text, command)


def help_of(view: View) -> Screen[None]:
    """The keys of a screen."""
    from quarterdeck_console.tui.screens.help import HelpScreen, keys_of

    return HelpScreen(view.title_of_help, keys_of(cast("Screen[object]", view)))


def palette(fleet: FleetState, here: tuple[m.Target, ...], read_only: bool) -> PaletteDialog:
    """The command line."""
    from quarterdeck_console.tui.dialogs.palette import PaletteDialog

    return PaletteDialog(fleet, here, read_only)


def dialog(message: m.Ask, context: Context, fleet: FleetState) -> PlanDialog:
    """The dialog that an `Ask…` message opens."""
    if isinstance(message, m.AskDeploy):
        from quarterdeck_console.tui.dialogs.deploy import DeployDialog

        return DeployDialog(context, fleet, message.targets, message.version)
    if isinstance(message, m.AskRollback):
        from quarterdeck_console.tui.dialogs.rollback import RollbackDialog

        return RollbackDialog(context, fleet, message.targets, message.to)
    if isinstance(message, m.AskScale):
        from quarterdeck_console.tui.dialogs.scale import ScaleDialog

        return ScaleDialog(context, fleet, message.targets, message.replicas)
    from quarterdeck_console.tui.dialogs.confirm import ConfirmDialog

    kinds: dict[type[m.Ask], m.Kind] = {m.AskRestart: "restart", m.AskStop: "stop", m.AskRemove: "remove"}
    return ConfirmDialog(context, fleet, kinds[type(message)], message.targets)


def binding_ids() -> frozenset[str]:
    """The id of every binding a user may give other keys; imports every screen and dialog."""
    return frozenset(binding.id for kind in _all() for binding in _bindings(kind) if binding.id)


def _bindings(kind: type) -> list[Binding]:
    found = kind.__dict__.get("BINDINGS", [])
    return [each for each in found if isinstance(each, Binding)]


def _all() -> set[type]:
    import importlib
    import pkgutil

    from quarterdeck_console.tui import dialogs, screens, widgets

    found: set[type] = set()
    for package in (screens, dialogs, widgets):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type):
                    found.update(each for each in value.__mro__ if each.__module__.startswith("quarterdeck_console."))
    return found
