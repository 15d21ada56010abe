"""`qd serve`: the console in a browser on this machine."""

from __future__ import annotations

import importlib
from types import ModuleType

import click

from quarterdeck_console.cli.call import Call, run, verb
from quarterdeck_console.errors import ConsoleError

MODULE = "quarterdeck_console.tui.served"
NEEDED = ("textual_serve", "aiohttp")


@verb(
    hosts=False,
    short_help="The console in a browser on this machine.",
    epilog="""
    qd serve
    qd serve --read-only --port 9000
    ssh -t -L 8765:127.0.0.1:8765 HOST qd serve   # then open the printed address here
    """,
)
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0 takes a free one.")
@click.option("--address", default="127.0.0.1", show_default=True, help="Loopback only; anything else is refused.")
@click.option("--read-only", is_flag=True, help="Change nothing from the browser.")
@click.option("--theme", metavar="NAME", help="Colours of the console.")
def command(call: Call, port: int, address: str, read_only: bool, theme: str | None) -> int:
    """Offer the console to a browser until Ctrl-C. The printed address holds a secret: whoever has it may do all."""
    served = _served()
    served.loopback(address)
    # A fleet file that is wrong is told here, not in every page.
    call.fleet()

    def ready(url: str) -> None:
        if call.out.json:
            call.out.item("Serving", {"url": url, "read_only": read_only})
        else:
            call.out.line(url)
            call.out.note("open it in a browser on this machine; Ctrl-C ends it")
        call.out.lines_now()

    return run(served.serve(served.Serving(address, port, read_only, theme), ready))


def _served() -> ModuleType:
    """The module that needs the extra. Raises `ConsoleError` saying how to get it."""
    try:
        return importlib.import_module(MODULE)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in NEEDED:
            raise
        raise ConsoleError(
            f"the console in a browser needs {error.name}, which is not installed",
            code="not_installed",
            hint="pip install 'quarterdeck[serve]'",
        ) from error
