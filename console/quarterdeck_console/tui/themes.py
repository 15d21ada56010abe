"""The console's own colours, dark and light; Textual's others go by name, the `ansi-…` ones for plain terminals."""

from __future__ import annotations

from collections.abc import Mapping

from textual.theme import Theme

from quarterdeck_console.errors import Usage

DARK = Theme(
    name="quarterdeck", primary="#5fa8d3", secondary="#7a8ca0", accent="#7fd1e0", warning="#e0b054", error="#ef6b73",
    success="#7fc77f", foreground="#d8dee6", background="#10151b", surface="#151c24", panel="#1d2731", dark=True,
)  # fmt: skip
LIGHT = Theme(
    name="quarterdeck-light", primary="#1f6f9e", secondary="#5c6b7a", accent="#0f7285", warning="#8a5a00",
    error="#b3261e", success="#2c6e2f",
    foreground="#1b2127", background="#fbfbf9", surface="#f2f3f1", panel="#e3e7ea", dark=False,
)  # fmt: skip
THEMES = (DARK, LIGHT)


def chosen(name: str | None, known: Mapping[str, Theme]) -> str:
    """The theme to begin with. Raises `Usage` where there is none of that name."""
    if name is None:
        return DARK.name
    if name not in known:
        raise Usage(f"there is no theme {name!r}", hint=f"there are {', '.join(sorted(known))}")
    return name
