"""Pure: the symbols, bars and sparklines that figures and states are drawn with. One style each, one row high.

A symbol says what a colour says, so that everything reads without colour.
"""

from __future__ import annotations

from collections.abc import Sequence

from quarterdeck_console.views import Severity, severity

SYMBOLS = {
    Severity.GOOD: "●", Severity.BUSY: "◐", Severity.WARNING: "▲", Severity.BAD: "✖", Severity.MUTED: "○",
    Severity.PLAIN: "·",
}  # fmt: skip
LOST = "○"
UNKNOWN = "?"

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVELS = "▁▂▃▄▅▆▇█"


def symbol(state: str) -> str:
    """The symbol of a state."""
    return SYMBOLS[severity(state)]


def bar(value: float | None, width: int) -> str:
    """A ratio as a block bar of `width` columns; unknown is dots."""
    if value is None:
        return "·" * width
    eighths = round(min(max(value, 0.0), 1.0) * width * 8)
    whole, rest = divmod(eighths, 8)
    drawn = "█" * whole + (_EIGHTHS[rest] if rest else "")
    return drawn + "░" * (width - len(drawn))


def sparkline(points: Sequence[float | None], width: int, top: float | None = 1.0) -> str:
    """The newest `width` points as block characters, set to the right. `top` `None` means the highest of them."""
    newest = list(points)[-width:]
    known = [point for point in newest if point is not None]
    bound = top if top is not None else max(known, default=0.0)
    drawn = "".join(_level(point, bound) for point in newest)
    return drawn.rjust(width)


def _level(point: float | None, bound: float) -> str:
    if point is None:
        return " "
    if bound <= 0:
        return _LEVELS[0]
    return _LEVELS[min(7, max(0, int(point / bound * 8)))]
