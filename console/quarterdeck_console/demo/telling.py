"""How the demo's story is told: events as lines for people, or as JSON for programs.

On a terminal a line shows what is under way, and for how long. Decides nothing and asks nobody.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TextIO

from quarterdeck_console.clean import clean

INDENT = " " * 10
TICK = 0.1


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the story. `seconds` is how long it took, `facts` what a program may want of it."""

    event: str
    text: str
    seconds: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class Teller:
    """Writes events to stdout between `with` and its end."""

    def __init__(self, as_json: bool, out: TextIO | None = None) -> None:
        self._json = as_json
        self._out = out or sys.stdout
        self._live = not as_json and self._out.isatty() and os.environ.get("TERM") != "dumb"
        self._colour = self._live and not os.environ.get("NO_COLOR")
        self._lock = threading.Lock()
        self._under_way: tuple[str, float] | None = None
        self._end = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Teller:
        if self._live:
            self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        if self._live:
            self._ticker.join()
            self._write("\r\x1b[K")

    def doing(self, text: str) -> None:
        """Say what is under way, where somebody looks on."""
        if self._live:
            with self._lock:
                self._under_way = (clean(text).splitlines()[0], time.monotonic())
            self._show()

    def tell(self, event: Event) -> None:
        """One event: a JSON object on one line, or lines for people."""
        if self._json:
            value = {"event": event.event, "text": event.text, "seconds": event.seconds, **event.facts}
            self._write(json.dumps(value, ensure_ascii=False) + "\n")
            return
        with self._lock:
            self._under_way = None
        self._write(("\r\x1b[K" if self._live else "") + "\n".join(self._lines(event)) + "\n")

    def _lines(self, event: Event) -> list[str]:
        first, *rest = clean(event.text).splitlines() or [""]
        took = f"{event.seconds:6.1f} s" if event.seconds is not None else " " * 8
        shown = self._folded(first)
        lines = [f"{self._painted(took, '2')}  {self._head(shown[0])}", *(INDENT + line for line in shown[1:])]
        return lines + [INDENT + line for text in rest for line in self._folded(text)]

    def _folded(self, text: str) -> list[str]:
        """The text in lines that fit the terminal; as it is where nobody looks on."""
        if not self._live:
            return [text]
        width = max(40, shutil.get_terminal_size().columns - len(INDENT))
        hang = "  " if text.startswith("→ ") else ""
        return textwrap.wrap(text, width, subsequent_indent=hang, break_on_hyphens=False, drop_whitespace=True) or [""]

    def _head(self, text: str) -> str:
        return self._painted(text, "1") if text.startswith("$ ") else text

    def _painted(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour and text.strip() else text

    def _tick(self) -> None:
        while not self._end.wait(TICK):
            self._show()

    def _show(self) -> None:
        with self._lock:
            if self._under_way is None:
                return
            text, began = self._under_way
            width = shutil.get_terminal_size().columns - len(INDENT) - 1
            took = f"{time.monotonic() - began:6.1f} s"
            self._write(f"\r\x1b[K{self._painted(took, '2')}  {text[: max(10, width)]}")

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
