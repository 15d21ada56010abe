"""The same app in a browser on this machine: textual-serve behind a secret path, on loopback only.

textual-serve has no authentication of its own, and any page that a browser shows may open a WebSocket to loopback.
So every path begins with a secret that is made anew for each run and stands in the printed address only; requests
for another host name or from another origin are refused, and the page may load nothing from anywhere else.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from textual_serve.server import Server

from quarterdeck_console.errors import ConsoleError, Usage

GRACE = 1.0
"""Seconds that open pages have to end when the server does."""


@dataclass(frozen=True, slots=True)
class Serving:
    """Where the app is offered, and how each page's app begins."""

    address: str
    port: int
    read_only: bool = False
    theme: str | None = None

    def command(self) -> str:
        """A shell command, as textual-serve wants one: the UI in a process of its own for each page."""
        run = f"run(read_only={self.read_only!r}, theme={self.theme!r})"
        code = f"import sys; from quarterdeck_console.tui.main import run; sys.exit({run})"
        return shlex.join([sys.executable, "-c", code])


def loopback(address: str) -> str:
    """The address as it stands in a URL. Raises `Usage` unless it is of this machine alone."""
    try:
        found = ipaddress.ip_address("127.0.0.1" if address == "localhost" else address)
    except ValueError as error:
        raise Usage(f"{address!r} is not an address", hint="give 127.0.0.1 or ::1", field="--address") from error
    if not found.is_loopback:
        raise Usage(
            f"{address} can be reached from outside: the console in a browser is offered on loopback only",
            hint="from another machine: ssh -L 8765:127.0.0.1:8765 HOST, and open the printed address there",
            field="--address",
        )
    return f"[{found}]" if found.version == 6 else str(found)


class Page(Server):
    """textual-serve's server without its banner, its log handlers and its own way to run."""

    async def on_startup(self, app: web.Application) -> None:
        """Say nothing: the caller tells the address."""

    def initialize_logging(self) -> None:
        """Leave logging as it is."""

    async def inner(self) -> web.Application:
        """What lies behind the secret."""
        return await self._make_app()


async def serve(serving: Serving, ready: Callable[[str], None]) -> int:
    """Offer the app until SIGINT or SIGTERM; `ready` is told the address when it can be opened."""
    host = loopback(serving.address)
    secret = secrets.token_urlsafe(24)
    runner, site = await _listening(serving, host, secret)
    try:
        ready(f"{site}/{secret}/")
        await _until_ended()
    finally:
        await runner.cleanup()
    return 0


async def _listening(serving: Serving, host: str, secret: str) -> tuple[web.AppRunner, str]:
    """A server that listens, and its origin."""
    page = Page(serving.command(), serving.address, serving.port, title="Quarterdeck")
    origins: set[str] = set()
    app = web.Application(middlewares=[_guard(origins)])
    app.on_response_prepare.append(_protect)
    app.add_subapp(f"/{secret}", await page.inner())
    runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=GRACE)
    await runner.setup()
    try:
        await web.TCPSite(runner, host.strip("[]"), serving.port).start()
    except OSError as error:
        await runner.cleanup()
        what = error.strerror or str(error)
        raise ConsoleError(f"cannot listen on {host}:{serving.port}: {what}", hint="give another --port") from error
    port = runner.addresses[0][1]
    page.port, page.public_url = port, f"http://{host}:{port}"
    origins |= {page.public_url, f"http://localhost:{port}"}
    return runner, page.public_url


def _guard(origins: set[str]) -> Middleware:
    """Lets in only what this machine's own browser asks of this very address."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if f"http://{request.host}" not in origins or (origin is not None and origin not in origins):
            raise web.HTTPForbidden(text="this is not for you\n")
        return await handler(request)

    return guard


def _policy(host: str) -> str:
    """What the page may load: its own files, and its own socket. Its inline styles and scripts are textual-serve's."""
    own = f"'self' ws://{host}" if host else "'none'"
    return (
        f"default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; font-src 'self' "
        f"data:; img-src 'self' data:; connect-src {own}; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )


async def _protect(request: web.Request, response: web.StreamResponse) -> None:
    """Headers of every answer."""
    response.headers["Content-Security-Policy"] = _policy(request.host if response.status < 400 else "")
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cache-Control"] = "no-store"


async def _until_ended() -> None:
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()
