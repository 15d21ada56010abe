"""Pure: the lines of a log view, merged by time, filtered and bounded in number and in size.

It knows no widget and no terminal. Marks, gaps and errors are rows as well, and pass every filter.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from quarterdeck_console.views import Severity

MOST_ROWS = 20_000
MOST_CHARACTERS = 16_000_000

Kind = Literal["line", "mark", "note", "error"]

_LOOKED_AT = 200
_BAD = re.compile(
    r"\b(?:ERROR|CRITICAL|FATAL|PANIC|Traceback|[A-Z]\w*(?:Error|Exception):)|\blevel\W{1,3}(?:error|fatal)"
)
_WARNING = re.compile(r"\bWARN(?:ING)?\b|\w+Warning:|\blevel\W{1,3}warn")
_MUTED = re.compile(r"\b(?:DEBUG|TRACE)\b|\blevel\W{1,3}(?:debug|trace)")


@dataclass(slots=True, eq=False)
class Row:
    """One line. `source` is its place in `Sources`, none for what the console itself says."""

    at: datetime
    text: str
    kind: Kind = "line"
    source: int | None = None
    meaning: Severity = Severity.PLAIN
    shown: bool = False


def meaning(text: str) -> Severity:
    """How bad a line says it is, by the words that loggers use near its beginning."""
    start = text[:_LOOKED_AT]
    if _BAD.search(start):
        return Severity.BAD
    if _WARNING.search(start):
        return Severity.WARNING
    return Severity.MUTED if _MUTED.search(start) else Severity.PLAIN


class Rows:
    """All rows in order of time, and those of them that the filter lets through."""

    def __init__(self, most_rows: int = MOST_ROWS, most_characters: int = MOST_CHARACTERS) -> None:
        self._most_rows, self._most_characters = most_rows, most_characters
        self._characters = 0
        self._wanted: Callable[[Row], bool] = _every
        self.every: list[Row] = []
        self.shown: list[Row] = []

    def set_filter(self, wanted: Callable[[Row], bool] | None) -> None:
        """Show only lines that `wanted` lets through; `None` shows all. `shown` is another list afterwards."""
        self._wanted = wanted or _every
        for row in self.every:
            row.shown = self._passes(row)
        self.shown = [row for row in self.every if row.shown]

    def merge(self, batch: Sequence[Row]) -> int:
        """Put rows where their time belongs; the place in `shown` from which on it is new.

        Rows of one time keep the order in which they came.
        """
        ordered = sorted(batch, key=_time)
        for row in ordered:
            row.shown = self._passes(row)
            self._characters += len(row.text)
        _merge(self.every, ordered)
        return _merge(self.shown, [row for row in ordered if row.shown])

    def put(self, row: Row, before: Row | None = None) -> int:
        """Put a row of our own before another, or last, whatever its time; its place in `shown`."""
        row.shown = True
        self._characters += len(row.text)
        if before is None:
            row.at = max(row.at, self.every[-1].at) if self.every else row.at
            self.every.append(row)
            self.shown.append(row)
            return len(self.shown) - 1
        row.at = before.at
        self.every.insert(self.every.index(before), row)
        place = self.shown.index(before)
        self.shown.insert(place, row)
        return place

    def prune(self) -> int:
        """Forget the oldest rows beyond the bounds; how many of them were shown."""
        gone = max(0, len(self.every) - self._most_rows)
        left = self._characters - sum(len(row.text) for row in self.every[:gone])
        while left > self._most_characters:
            left -= len(self.every[gone].text)
            gone += 1
        self._characters = left
        shown = sum(row.shown for row in self.every[:gone])
        del self.every[:gone]
        del self.shown[:shown]
        return shown

    def clear(self) -> None:
        """Forget every row; the filter stays."""
        self.every.clear()
        self.shown.clear()
        self._characters = 0

    @property
    def newest(self) -> datetime | None:
        """The time of the last row."""
        return self.every[-1].at if self.every else None

    def _passes(self, row: Row) -> bool:
        return row.kind != "line" or self._wanted(row)


def _merge(rows: list[Row], batch: list[Row]) -> int:
    if not batch:
        return len(rows)
    start = len(rows)
    if rows and batch[0].at < rows[-1].at:
        start = bisect_right(rows, batch[0].at, key=_time)
        # Two runs in order: sorting them is merging them.
        rows[start:] = sorted([*rows[start:], *batch], key=_time)
    else:
        rows.extend(batch)
    return start


def _time(row: Row) -> datetime:
    return row.at


def _every(_row: Row) -> bool:
    return True
