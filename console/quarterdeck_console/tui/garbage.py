"""When Python looks for unreachable cycles: between a person's keys, not under them.

Looking through all objects of a fleet of hundreds of hosts takes about 0.1 s, in which no key is answered. So the
whole heap is looked through only here, when no key came for a while; the young generations are left to Python.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

from textual._styles_cache import StylesCache

QUIET = 1.0
"""Seconds without a key after which a person is taken to be reading."""

OFTEN, SELDOM = 30.0, 300.0
"""Seconds between two looks: while keys rest, and at the latest."""

_NEVER = 1_000_000
"""Looks at the middle generation after which Python would look at the oldest by itself."""


def look() -> None:
    """Look through the whole heap."""
    # Textual 8.2 caches the result of a method together with `self`, which keeps the lines drawn by a widget that is
    # long gone: some MiB an hour for who opens and closes screens. What is cleared is made again when it is drawn.
    StylesCache.get_inner_outer.cache_clear()
    gc.collect()


class Garbage:
    """Tell it of keys with `touched`, and give it a turn about every second with `turn`."""

    def __init__(self, clock: Callable[[], float], collect: Callable[[], object] = look) -> None:
        self._clock, self._collect = clock, collect
        self._touched = self._looked = clock()

    def begin(self) -> None:
        """Leave what is imported by now out of every look, for it never goes away; take over the oldest generation."""
        gc.freeze()
        young, middle, _ = gc.get_threshold()
        gc.set_threshold(young, middle, _NEVER)

    def touched(self) -> None:
        """A key was pressed."""
        self._touched = self._clock()

    def turn(self) -> bool:
        """Look now, if this is the moment for it; whether it was."""
        now = self._clock()
        due = OFTEN if now - self._touched >= QUIET else SELDOM
        if now - self._looked < due:
            return False
        self._collect()
        self._looked = self._clock()
        return True
