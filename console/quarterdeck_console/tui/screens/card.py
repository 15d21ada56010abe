"""Pure: a model card, which is Markdown that somebody else wrote, as text to read and nothing to click.

Rendered from the parser's tokens: links and pictures are shown with their addresses and lead nowhere, HTML is shown
as it was typed. A long card is cut, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from textual.content import Content

from quarterdeck_console.tui import words
from quarterdeck_console.views import Severity

if TYPE_CHECKING:
    from markdown_it.token import Token

LONGEST = 40_000
"""Characters of a card that are shown."""

WIDEST = 32
"""Columns that one cell of a table may have."""

_HEADINGS = {"h1": "bold underline $text-primary", "h2": "bold $text-primary"}
_HEADING = "bold"
_CODE = "$text-warning"


def card(text: str) -> Content:
    """A card as lines."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": 12}).enable(["table", "strikethrough"])
    page = _Page()
    page.read(parser.parse(text[:LONGEST]))
    if len(text) > LONGEST:
        page.put(words.line(f"… {len(text) - LONGEST} more characters", Severity.MUTED))
    while page.lines and not page.lines[-1].plain:
        page.lines.pop()
    return words.lines(page.lines)


@dataclass
class _Page:
    """Lines so far, and what the next one begins with."""

    lines: list[Content] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    numbers: list[int | None] = field(default_factory=list)
    bullet: str = ""

    def read(self, tokens: Sequence[Token]) -> None:
        rest = iter(tokens)
        heading = ""
        for token in rest:
            if token.type == "heading_open":
                heading = _HEADINGS.get(token.tag, _HEADING)
            elif token.type == "inline":
                self.paragraph(_inline(token, heading))
            elif token.type in ("heading_close", "paragraph_close"):
                heading = ""
                self.gap(token)
            elif token.type in ("fence", "code_block"):
                self.code(token.content)
            elif token.type == "hr":
                self.put(words.line("─" * 24, Severity.MUTED))
            elif token.type == "table_open":
                self.table(_rows(rest))
            else:
                self.nest(token)

    def nest(self, token: Token) -> None:
        """Lists and quotes: what their lines begin with."""
        if token.type == "blockquote_open":
            self.prefixes.append("▌ ")
        elif token.type == "list_item_open":
            number = self.numbers[-1] if self.numbers else None
            self.bullet = "• " if number is None else f"{number}. "
            if number is not None:
                self.numbers[-1] = number + 1
            self.prefixes.append(" " * len(self.bullet))
        elif token.type == "ordered_list_open":
            self.numbers.append(int(token.attrs.get("start", 1)))
        elif token.type == "bullet_list_open":
            self.numbers.append(None)
        elif token.type in ("blockquote_close", "list_item_close"):
            self.prefixes.pop()
        elif token.type in ("ordered_list_close", "bullet_list_close"):
            self.numbers.pop()
            if not self.numbers:
                self.blank()

    def paragraph(self, content: Content) -> None:
        for line in content.split("\n", allow_blank=True):
            self.put(line)

    def put(self, line: Content) -> None:
        prefix = "".join(self.prefixes)
        if self.bullet:
            prefix, self.bullet = prefix[: len(prefix) - len(self.bullet)] + self.bullet, ""
        self.lines.append(words.joined((prefix, Severity.MUTED), line) if prefix else line)

    def gap(self, token: Token) -> None:
        if not token.hidden and not self.numbers:
            self.blank()

    def blank(self) -> None:
        if self.lines and self.lines[-1].plain:
            self.lines.append(words.line(""))

    def code(self, text: str) -> None:
        for line in text.rstrip("\n").expandtabs(4).split("\n"):
            self.put(words.joined(("│ ", Severity.MUTED), (line, _CODE)))
        self.blank()

    def table(self, rows: list[list[Content]]) -> None:
        if not rows:
            return
        count = max(len(row) for row in rows)
        widths = [
            min(WIDEST, max([1, *(cell_len(row[i].plain) for row in rows if i < len(row))])) for i in range(count)
        ]
        for number, row in enumerate(rows):
            cells = [_padded(row[i] if i < len(row) else words.line(""), widths[i]) for i in range(count)]
            self.put(words.joined(*cells))
            if number == 0:
                self.put(words.line(" ".join("─" * width for width in widths), Severity.MUTED))
        self.blank()


def _padded(cell: Content, width: int) -> Content:
    if (size := cell_len(cell.plain)) <= width:
        return words.joined(cell, (" " * (width - size + 1), ""))
    return words.line(set_cell_size(cell.plain, width - 1) + "… ")


def _rows(rest: Iterator[Token]) -> list[list[Content]]:
    """Takes the tokens up to the table's end."""
    rows: list[list[Content]] = []
    bold = ""
    for token in rest:
        if token.type == "table_close":
            break
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            bold = "bold" if token.type == "th_open" else ""
        elif token.type == "inline" and rows:
            rows[-1].append(_inline(token, bold))
    return rows


def _inline(token: Token, base: str) -> Content:
    """Words of one paragraph, heading or cell in their styles."""
    parts: list[Content] = []
    styles: list[str] = [base] if base else []
    links: list[str] = []
    for child in token.children or ():
        kind = child.type
        if kind in _STYLES:
            styles.append(_STYLES[kind])
        elif kind in ("em_close", "strong_close", "s_close"):
            styles.pop()
        elif kind == "link_open":
            links.append(str(child.attrs.get("href", "")))
        elif kind == "link_close":
            href = links.pop()
            parts.append(words.line(f" ({href})" if href else "", Severity.MUTED))
        else:
            told = _TEXTS[kind](child) if kind in _TEXTS else child.content
            style = _CODE if kind == "code_inline" else " ".join(styles)
            parts.append(words.block(told, style))
    return words.joined(*parts)


_STYLES = {"em_open": "italic", "strong_open": "bold", "s_open": "strike"}


def _picture(child: Token) -> str:
    return f"[picture: {child.content or 'untitled'} ({child.attrs.get('src', '')})]"


_TEXTS: dict[str, Callable[[Token], str]] = {
    "softbreak": lambda _: " ",
    "hardbreak": lambda _: "\n",
    "image": _picture,
}
