"""The one door by which text becomes something a widget shows: always `Content`, always clean, never markup.

A `str` given to a Textual widget is parsed as markup: `[/x]` in a log line would end the app and `[@click=…]` would
run an action. No other module of the UI may hand a `str` to a widget; a test reads the sources for it.
"""

from __future__ import annotations

from textual.content import Content

from quarterdeck_console.clean import clean, clean_line
from quarterdeck_console.views import Severity

STYLES = {
    Severity.PLAIN: "",
    Severity.MUTED: "$foreground-muted",
    Severity.GOOD: "$text-success",
    Severity.BUSY: "$text-accent",
    Severity.WARNING: "$text-warning",
    Severity.BAD: "$text-error",
}
"""How each severity looks in a line of text; tables have component classes of the same names."""


def line(text: str, style: str | Severity = "") -> Content:
    """One line in one style."""
    return Content.styled(clean_line(text), _style(style))


def block(text: str, style: str | Severity = "") -> Content:
    """Several lines in one style; newlines and tabs stay."""
    return Content.styled(clean(text), _style(style))


def joined(*parts: Content | tuple[str, str | Severity]) -> Content:
    """Pieces one after another: contents as they are, texts in their style."""
    return Content.assemble(*(part if isinstance(part, Content) else line(*part) for part in parts))


def lines(parts: list[Content]) -> Content:
    """Lines one below another."""
    return Content("\n").join(parts)


def _style(style: str | Severity) -> str:
    return STYLES[style] if isinstance(style, Severity) else style
