"""Pure: the symbols, bars and sparklines that figures and states are drawn with. One style each, one row high.

A symbol says what a colour says, so that everything reads without colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from quarterdeck_console.views import NOTHING, Severity, severity

SYMBOLS = {
    Severity.GOOD: "●", Severity.BUSY: "◐", Severity.WARNING: "▲", Severity.BAD: "✖", Severity.MUTED: "○",
    Severity.PLAIN: "·",
}  # fmt: skip
LOST = "○"
UNKNOWN = "?"

_LEVELS = "▁▂▃▄▅▆▇█"


def symbol(state: str) -> str:
    """The symbol of a state."""
    return SYMBOLS[severity(state)]


def bar(value: float | None, width: int) -> str:
    """A ratio as a block bar of `width` columns; unknown is dots."""
    if value is None:
        return "·" * width
    whole = round(min(max(value, 0.0), 1.0) * width)
    drawn = "█" * whole or ("▏" if value > 0 else "")
    return drawn + "░" * (width - len(drawn))


def parts(shares: Sequence[tuple[str, float]], width: int) -> str:
    """Ratios of one whole, each in its own character, as a bar of `width` columns."""
    found = columns([share for _, share in shares], width)
    drawn = "".join(mark * count for (mark, _), count in zip(shares, found, strict=True))
    return drawn + "░" * (width - len(drawn))


def columns(shares: Sequence[float], width: int) -> list[int]:
    """How many of `width` columns each ratio of one whole takes: whatever is there gets one, while there are any."""
    found = [max(1, round(share * width)) if share > 0 else 0 for share in shares]
    while sum(found) > width:
        largest = found.index(max(found))
        found[largest] -= 1
    return found


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


def since(moment: datetime | None, now: datetime) -> str:
    """How long ago in five columns: `12s`, `5m10`, `6h12`, `3d04h`, `11d`."""
    if moment is None:
        return NOTHING
    seconds = max(0, int((now - moment).total_seconds()))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}"
    if seconds < 86400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}"
    days = seconds // 86400
    return f"{days}d{seconds % 86400 // 3600:02d}h" if days < 10 else f"{days}d"
