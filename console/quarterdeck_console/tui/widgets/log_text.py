"""Pure: where a line of text is cut, wrapped and highlighted, in columns of a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rich.cells import cell_len, get_character_cell_size

from quarterdeck_console.clean import clean_line

MOST_PER_COLUMN = 4
"""Characters that are drawn for each column: text of nothing but combining marks would else be drawn without end."""


def plain(text: str) -> str:
    """One line that holds nothing a terminal would obey; tabs become spaces."""
    if text.isascii() and text.isprintable():
        return text
    return clean_line(text.expandtabs())


def cells(text: str) -> int:
    """The columns that a text takes."""
    return len(text) if text.isascii() else cell_len(text)


def fitting(text: str, start: int, width: int) -> int:
    """The end of what fits into `width` columns from `start` on."""
    if text.isascii():
        return min(len(text), start + width)
    used, most = 0, min(len(text), start + width * MOST_PER_COLUMN)
    for place in range(start, most):
        used += get_character_cell_size(text[place])
        if used > width:
            return place
    return most


def pieces(text: str, width: int) -> Iterator[tuple[int, int]]:
    """The stretches of a line wrapped to `width` columns; one, maybe empty, at least."""
    start = 0
    while True:
        # A character that is wider than the room still has to go somewhere.
        end = max(fitting(text, start, width), min(start + 1, len(text)))
        yield start, end
        if end >= len(text):
            return
        start = end


def pattern(terms: list[str]) -> re.Pattern[str] | None:
    """Finds any of these texts, whatever their case; the longest where several begin."""
    found = [re.escape(term) for term in sorted(terms, key=len, reverse=True) if term]
    return re.compile("|".join(found), re.IGNORECASE) if found else None


def filter_terms(typed: str) -> list[str]:
    """What of a filter can be seen in a line that passes it; nothing of an inverse or a fuzzy one."""
    typed = typed.strip()
    return [] if typed[:1] in ("!", "~") else typed.split()
