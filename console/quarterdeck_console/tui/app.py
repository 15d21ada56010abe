"""The app: which screens there are, how messages find whoever acts on them, colours, and how it ends.

It is thin on purpose: what waits is the session's, what is shown is the screens', what is asked before a change is
the dialogs'. Handlers here only hand over.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, cast

from textual import events, on
from textual.app import App
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Input

from quarterdeck_console.errors import Usage
from quarterdeck_console.preferences import Preferences
from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui import registry, themes
from quarterdeck_console.tui.backend import Backend
from quarterdeck_console.tui.context import Context
from quarterdeck_console.tui.garbage import Garbage
from quarterdeck_console.tui.screens.fleet import FleetScreen
from quarterdeck_console.tui.session import Session
from quarterdeck_console.tui.view import View


class Quarterdeck(App[int], inherit_bindings=False):
    """One run of the terminal UI. `backend` is called after the first frame: it may import what it likes."""

    TITLE = "Quarterdeck"
    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = False
    DEFAULT_MODE = "fleet"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-normal"), (160, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-short"), (30, "-medium"), (50, "-tall")]  # noqa: RUF012
    MODES: ClassVar[dict[str, str | Callable[[], Screen[object]]]] = {}

    def __init__(self, context: Context, backend: Callable[[], Backend], preferences: Preferences) -> None:
        super().__init__()
        self.context, self.keys = context, preferences.keys
        for place in registry.PLACES:
            self.add_mode(place, registry.maker(place, context))
        for theme in themes.THEMES:
            self.register_theme(theme)
        self.theme = themes.chosen(preferences.theme, self.available_themes)
        self.session = Session(context, backend, self.post_message, preferences.refresh)
        self.set_keymap(checked_keys(preferences.keys))
        self._garbage = Garbage(time.monotonic)

    # --- beginning and end -----------------------------------------------------------------------------------------

    def on_mount(self) -> None:
        if not self.is_headless:
            for number in (signal.SIGTERM, signal.SIGHUP):
                # Without a handler the process dies with mouse, paste and alternate screen left on.
                asyncio.get_running_loop().add_signal_handler(number, self._ended_by, number)
        self.call_after_refresh(self._begin)

    def _ended_by(self, number: signal.Signals) -> None:
        self.exit(return_code=128 + number)

    def _begin(self) -> None:
        if not self.is_headless:
            # Only where the process is ours: tests have other things in it.
            self._garbage.begin()
            self.set_interval(1.0, self._garbage.turn)
        self.run_worker(self.session.start(), name="session", exit_on_error=True)

    async def on_unmount(self) -> None:
        await self.session.close()

    async def on_event(self, event: events.Event) -> None:
        if isinstance(event, events.Key):
            self._garbage.touched()
            if not event.is_forwarded and await self._done_by(event.key):
                return
        await super().on_event(event)

    async def _done_by(self, key: str) -> bool:
        """Whether a key was bound to something, which is done by now: the next one finds the screen that it opened.

        By itself Textual hands a key to the widget with the focus, and does what it is bound to when it has come back
        up from there: keys that are typed right after it overtake that. A line that is typed into has its keys first;
        while another window has the focus, no widget has, and Textual gives it back with the first key.
        """
        if not self.app_focus or isinstance(self.focused, Input):
            return False
        found = self.screen.active_bindings.get(key)
        return found is not None and found.enabled and await self.run_action(found.binding.action, found.node)

    # --- the fleet -------------------------------------------------------------------------------------------------

    @on(m.FleetChanged)
    def _fleet_changed(self, event: m.FleetChanged) -> None:
        """The screen on top shows it; one under a dialog does too, those under other screens when they come back."""
        try:
            self._show(event.hosts)
        finally:
            self.session.shown()

    def _show(self, hosts: frozenset[str]) -> None:
        view = self.view
        # Ending, the app takes a screen's widgets away before the screen itself: there is nothing to show things on.
        if self.is_running and view is not None and view.is_mounted:
            view.show_fleet(self.session.fleet, hosts, self.session.refresh)
            if self.screen is not view:
                self.screen.post_message(m.FleetCame(self.session.fleet))

    @property
    def view(self) -> View | None:
        """The screen on top that is not a dialog."""
        return next((screen for screen in reversed(self.screen_stack) if isinstance(screen, View)), None)

    def show_again(self) -> None:
        """A screen came to the top: everything may be new to it."""
        self._show(frozenset(self.session.fleet.hosts))

    # --- going somewhere -------------------------------------------------------------------------------------------

    @on(m.OpenPlace)
    @on(m.OpenHost)
    @on(m.OpenDeployment)
    @on(m.OpenLogs)
    @on(m.OpenText)
    @on(m.OpenItems)
    @on(m.OpenHelp)
    @on(m.GoBack)
    @on(m.Quit)
    async def go(self, message: Message) -> None:
        """Go where this says; it is there when this is over."""
        if isinstance(message, m.OpenPlace):
            await self._open_place(message)
        elif isinstance(message, m.OpenHost):
            await self._open_place(m.OpenPlace("fleet"))
            cast(FleetScreen, self.screen).filter_host(message.host)
        elif isinstance(message, m.OpenHelp):
            self._open_help()
        elif isinstance(message, m.GoBack):
            await self._go_back()
        elif isinstance(message, m.Quit):
            self.exit(0)
        else:
            await self._open(message)

    async def _open_place(self, event: m.OpenPlace) -> None:
        if event.place != self.current_mode:
            await self.switch_mode(event.place)
        while len(self.screen_stack) > 1:
            await self.pop_screen()
        self.show_again()
        if event.then is not None and self.view is not None:
            self.view.told(event.then)

    async def _open(self, event: Message) -> None:
        if self.screen is not self.view:
            return  # it was typed before the dialog that has come meanwhile, and would cover it
        view = registry.opened(event, self.context, self.session.fleet)
        # Its first frame is of the fleet that is known, not of none.
        view.fleet, view.refresh_seconds = self.session.fleet, self.session.refresh
        await self.push_screen(view)
        self.show_again()

    def _open_help(self) -> None:
        if (view := self.view) is not None:
            self.push_screen(registry.help_of(view))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """A colon is a letter where something is typed."""
        if action == "palette" and self.screen is self.view and isinstance(self.focused, Input):
            return False
        return super().check_action(action, parameters)

    def action_palette(self) -> None:
        """Open the command line, at once: the next key is its."""
        view = self.view
        here = view.targets() if view is not None else ()
        self.push_screen(registry.palette(self.session.fleet, here, self.context.read_only))

    @on(m.Typed)
    async def _typed(self, event: m.Typed) -> None:
        """Close the command line and do what was chosen, before the next key."""
        if self.screen is not event.dialog:
            return
        await self.pop_screen()
        message = event.message
        if isinstance(message, m.Ask):
            self.ask(message)
        elif isinstance(message, m.SetTheme | m.SaveScreen):
            self.post_message(message)
        else:
            await self.go(message)

    async def _go_back(self) -> None:
        if len(self.screen_stack) > 1:
            await self.pop_screen()
            self.show_again()
        elif self.current_mode != self.DEFAULT_MODE:
            await self._open_place(m.OpenPlace("fleet"))

    # --- changes and questions -------------------------------------------------------------------------------------

    @on(m.Ask)
    def _asked(self, event: m.Ask) -> None:
        self.ask(event)

    def ask(self, message: m.Ask) -> None:
        """Open the dialog of a change, at once: the next key is its. One at a time."""
        if self.context.read_only:
            self._tell("this console is read-only: nothing is changed from here", bad=True)
        elif self.screen is self.view:
            self.push_screen(registry.dialog(message, self.context, self.session.fleet), self._wished)

    def _wished(self, wish: m.Wish | None) -> None:
        if wish is not None:
            self.session.change(wish)

    @on(m.Want)
    def _wanted(self, event: m.Want) -> None:
        self.session.answer(event)

    @on(m.Told)
    def _told(self, event: m.Told) -> None:
        self._tell(event.text, event.bad)

    def _tell(self, text: str, bad: bool = False) -> None:
        if (view := self.view) is not None and view.is_mounted:
            view.tell(text, bad)

    # --- looks -----------------------------------------------------------------------------------------------------

    @on(m.ChangeRefresh)
    def _change_refresh(self, event: m.ChangeRefresh) -> None:
        self._tell(f"refresh every {self.session.change_refresh(event.direction):g} s")

    @on(m.SetTheme)
    def _set_theme(self, event: m.SetTheme) -> None:
        if event.theme in self.available_themes:
            self.theme = event.theme
        else:
            self._tell(f"there is no theme {event.theme}", bad=True)

    @on(m.SaveScreen)
    def _save_screen(self) -> None:
        name = f"quarterdeck-{self.context.now():%Y%m%d-%H%M%S}.svg"
        try:
            Path(name).write_text(self.export_screenshot(), encoding="utf-8")
        except OSError as error:
            self._tell(f"cannot write {name}: {error.strerror}", bad=True)
        else:
            self._tell(f"saved to {Path(name).absolute()}")


def checked_keys(keys: Mapping[str, str]) -> dict[str, str]:
    """The user's keys; raises `Usage` where an id is not one of a binding."""
    known = registry.binding_ids() if keys else frozenset()
    for name in keys:
        if name not in known:
            raise Usage(f"console.toml: there is no key called {name!r}", hint=f"there are {', '.join(sorted(known))}")
    return dict(keys)
