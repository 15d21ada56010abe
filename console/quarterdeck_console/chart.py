"""Pure: a series as braille dots, two across and four down in every character, with its scale beside it.

Shared by the terminal UI and the CLI; it knows no terminal and no colour. Unicode block U+2800: dots 1-8 are bits 0-7.
A gap in the series stays a gap in the line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime

from quarterdeck_agent.protocol import Sample
from quarterdeck_console import views

AXIS = 9
"""Columns of the scale on the left."""

LEAST = 12
"""Columns of the narrowest chart: its time axis needs them."""

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


def draw(
    samples: Sequence[Sample],
    start: datetime,
    end: datetime,
    size: tuple[int, int],
    top: float | None,
    unit: Callable[[float], str],
) -> list[str]:
    """Lines of `size` (width, height): the series from `start` to `end`, from 0 to `top`, or to its own highest."""
    width, height = max(AXIS + LEAST, size[0]), max(3, size[1])
    columns, rows = width - AXIS, height - 1
    values = _resampled(samples, start, end, columns * 2)
    bound = top or rounded_up(max((value for value in values if value is not None), default=0.0))
    grid = _plotted(values, columns, rows, bound)
    labels = {0: unit(bound), rows // 2: unit(bound / 2) if rows > 4 else "", rows - 1: unit(0.0)}
    lines = [f"{labels.get(row, ''):>{AXIS - 2}} │" + "".join(grid[row]) for row in range(rows)]
    return [*lines, _axis(start, end, columns)]


def rounded_up(value: float) -> float:
    """The next of 1, 2, 5, 10, … that is not below."""
    if value <= 0:
        return 1.0
    step = 10.0 ** math.floor(math.log10(value))
    return next(factor * step for factor in (1, 2, 5, 10) if factor * step >= value * 0.9999)


def _axis(start: datetime, end: datetime, columns: int) -> str:
    left, right = f"-{views.span((end - start).total_seconds())}", "now"
    return " " * (AXIS - 2) + " └" + left + "─" * max(1, columns - len(left) - len(right)) + right


def _resampled(samples: Sequence[Sample], start: datetime, end: datetime, count: int) -> list[float | None]:
    """The highest value of each of `count` equal spans of time; a span in which nothing was measured is `None`."""
    span = max((end - start).total_seconds(), 1.0)
    found: list[float | None] = [None] * count
    gaps = [False] * count
    for sample in samples:
        place = int((sample.at - start).total_seconds() / span * count)
        if not 0 <= place <= count:
            continue
        place = min(place, count - 1)
        if sample.value is None or not math.isfinite(sample.value):
            gaps[place] = True
        elif (old := found[place]) is None or sample.value > old:
            found[place] = sample.value
    return _joined(found, gaps, _reach(samples, span / count))


def _reach(samples: Sequence[Sample], column: float) -> int:
    """How many columns two points may lie apart and still be neighbours: three of the series' own intervals."""
    if len(samples) < 2:
        return 2
    interval = (samples[-1].at - samples[0].at).total_seconds() / (len(samples) - 1)
    return max(2, math.ceil(3 * interval / column))


def _joined(found: list[float | None], gaps: list[bool], reach: int) -> list[float | None]:
    """Where fewer points came than there are columns, the line goes straight from one to the next."""
    last: int | None = None
    for place, value in enumerate(list(found)):
        if gaps[place] and value is None:
            last = None
        elif value is not None:
            if last is not None and 1 < place - last <= reach:
                before = found[last] or 0.0
                for between in range(last + 1, place):
                    found[between] = before + (value - before) * (between - last) / (place - last)
            last = place
    return found


def _plotted(values: Sequence[float | None], columns: int, rows: int, bound: float) -> list[list[str]]:
    bits = [[0] * columns for _ in range(rows)]
    levels = rows * 4
    before: int | None = None
    for x, value in enumerate(values):
        if value is None:
            before = None
            continue
        level = min(levels - 1, max(0, round(value / bound * (levels - 1))))
        low, high = (level, level) if before is None else (min(before, level), max(before, level))
        for each in range(low, high + 1):
            y = levels - 1 - each
            bits[y // 4][x // 2] |= _DOTS[x % 2][y % 4]
        before = level
    return [[chr(0x2800 + cell) if cell else " " for cell in row] for row in bits]
