"""The last minutes of the gauges that are drawn as sparklines, as they came with the fleet's events.

A series of an hour is asked of the agent (`WantSeries`); this is what is there at once and costs no request. Bounded
by the number of things that a host has: what is gone from a host is forgotten with `keep`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

POINTS = 60

Key = tuple[str, str, str]
"""Host, gauge (`cpu`, `gpu`, `rate`, `p95`), and which: a GPU's uuid, a deployment's name."""


class History:
    """Points by key, oldest first."""

    def __init__(self) -> None:
        self._points: dict[Key, deque[float | None]] = {}

    def add(self, host: str, gauge: str, which: str, value: float | None) -> None:
        """One more point; `None` is a gap."""
        points = self._points.get((host, gauge, which))
        if points is None:
            points = self._points[(host, gauge, which)] = deque(maxlen=POINTS)
        points.append(value)

    def last(self, host: str, gauge: str, which: str = "", count: int = POINTS) -> tuple[float | None, ...]:
        """The newest points, at most `count`."""
        points = self._points.get((host, gauge, which), ())
        return tuple(points)[-count:]

    def keep(self, host: str, known: Iterable[tuple[str, str]]) -> None:
        """Forget whatever of this host is not among these gauges."""
        wanted = set(known)
        for key in [key for key in self._points if key[0] == host and key[1:] not in wanted]:
            del self._points[key]
