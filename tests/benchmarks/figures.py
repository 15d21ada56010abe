"""What a benchmark tells: figures, each beside what it was compared with in the same run, and the table of them.

A figure without a bound is there to be read; one with a bound was met or not, and says how far its rounds spread.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value. `at_most` and `at_least` bound it; `spread` is the lowest and highest of its rounds.

    `needs_quiet` is set where the value is wall time, which a busy machine makes worse.
    """

    name: str
    value: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None
    spread: tuple[float, float] | None = None
    baseline: str = ""
    note: str = ""
    needs_quiet: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the bound holds, `None` where there is none."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return None if self.at_least is None else self.value >= self.at_least

    @property
    def bound(self) -> str:
        if self.at_most is not None:
            return f"≤ {shown(self.at_most, self.unit)}"
        return "" if self.at_least is None else f"≥ {shown(self.at_least, self.unit)}"

    @property
    def measured(self) -> str:
        text = shown(self.value, self.unit)
        return text if self.spread is None else f"{text} ({number(self.spread[0])} to {number(self.spread[1])})"


Benchmark = Callable[[Path], Sequence[Figure]]
"""Measures in a folder of its own, leaves nothing running, and gives its figures."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A benchmark that could not be run here, and why."""

    name: str
    why: str


def shown(value: float, unit: str) -> str:
    return f"{number(value)} {unit}".rstrip()


def number(value: float) -> str:
    """Three digits that count, and none of a large number is dropped."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def median(name: str, values: Sequence[float], unit: str = "", **more: object) -> Figure:
    """The figure that is the median of these rounds."""
    spread = (min(values), max(values))
    return Figure(name, statistics.median(values), unit, spread=spread, **more)  # type: ignore[arg-type]


def table(figures: Sequence[Figure], left_out: Sequence[LeftOut] = ()) -> str:
    """All figures as aligned text, and below it what was left out and what a busy machine distorts."""
    words: dict[bool | None, Literal["yes", "NO", ""]] = {True: "yes", False: "NO", None: ""}
    rows = [("figure", "measured (lowest to highest)", "bound", "met", "compared with")]
    rows += [(f.name, f.measured, f.bound, words[f.met], f.baseline) for f in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines += [f"note: {f.name}: {f.note}" for f in figures if f.note]
    lines += [f"left out: {each.name}: {each.why}" for each in left_out]
    quiet = [f.name for f in figures if f.needs_quiet and f.met is False]
    if quiet:
        lines.append(f"wall time, which a busy machine makes worse: {', '.join(quiet)}")
    return "\n".join(lines)
