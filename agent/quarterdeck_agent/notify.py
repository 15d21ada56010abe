"""Tells systemd how the agent is: ready, alive, ending (sd_notify(3)). Does nothing where there is no systemd.

The watchdog is pinged by the reconciler after a real pass, never by a timer: a stalled loop is to be noticed.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping


class Notifier:
    """Sends to `NOTIFY_SOCKET`, a path or an abstract name that begins with `@`."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        usec = environ.get("WATCHDOG_USEC", "")
        mine = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.interval = int(usec) / 2e6 if usec.isdecimal() and mine else None
        """Seconds within which `alive` should be called, half of what systemd allows; `None` without a watchdog."""

    def ready(self, status: str = "") -> None:
        self._send(f"READY=1\nSTATUS={status}")

    def alive(self) -> None:
        """The reconciler has just made a real pass."""
        if self.interval is not None:
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        # A lost ping is better than an agent that ends because nobody listened.
        with sender, contextlib.suppress(OSError):
            sender.sendto(message.encode(), self._address)
