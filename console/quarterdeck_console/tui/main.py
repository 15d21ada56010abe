"""How the terminal UI begins: read the user's files, draw, and only then talk to anybody."""

from __future__ import annotations

import os

from quarterdeck_console import config, preferences
from quarterdeck_console.tui.app import Quarterdeck
from quarterdeck_console.tui.backend import Backend
from quarterdeck_console.tui.context import Context


def run(read_only: bool = False, mouse: bool | None = None, theme: str | None = None) -> int:
    """Open the console and return its exit code. Raises `ConsoleError` when a file of the user's is wrong."""
    # no-color.org: only a value that is not empty counts; Textual takes any.
    if not os.environ.get("NO_COLOR"):
        os.environ.pop("NO_COLOR", None)
    fleet = config.load(os.environ, os.geteuid())
    wanted = preferences.load(os.environ, theme=theme)
    context = Context(fleet, read_only=read_only or fleet.read_only)

    def backend() -> Backend:
        from quarterdeck_console.tui.agents import Agents

        return Agents(fleet)

    app = Quarterdeck(context, backend, wanted)
    app.run(mouse=wanted.mouse if mouse is None else mouse)
    return app.return_code or 0
