"""A view of log lines that draws only what is visible: coloured prefixes, wrapping, marks, search, a cursor, the mouse.

Textual's `RichLog` is slow and its `Log` has no colours. Lines are drawn as segments of plain text, never parsed: what
a host wrote is text here, whatever it looks like. Rows come in batches with `write`; filter, search and the toggles
are the view's own and outlast `clear`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

from quarterdeck_console.tui.widgets import log_text
from quarterdeck_console.tui.widgets.log_rows import Row, Rows
from quarterdeck_console.tui.widgets.log_sources import COLOURS, Sources

NARROWEST = 20
"""Columns that the text of a wrapped line has at least, however wide its prefix."""


RULE = "──"
"""How a mark, a gap or an error begins. They are wrapped always: what they say must not be beyond the edge."""


class Piece(NamedTuple):
    """What one line of the screen shows: a stretch of a row's text, the whole of it unless it is wrapped."""

    row: Row
    start: int
    end: int


class Run(NamedTuple):
    """Text of one style on a line; `at` is where it begins, in characters from the line's beginning."""

    at: int
    text: str
    style: Style


class LogView(ScrollView, can_focus=True):
    """`sources` names who lines are from. Follows the newest line until the cursor is moved up, or paused."""

    ALLOW_SELECT = True

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "log--plain", "log--muted", "log--good", "log--busy", "log--warning", "log--bad", "log--time", "log--mark",
        "log--note", "log--error", "log--cursor", "log--matched", "log--found", "log--current",
        *(f"log--source-{number}" for number in range(COLOURS)),
    }  # fmt: skip

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "move(1)", "Down", show=False, id="log.down"),
        Binding("up,k", "move(-1)", "Up, and stop following", show=False, id="log.up"),
        Binding("pagedown,ctrl+f", "page(1)", "Page down", show=False, id="log.page_down"),
        Binding("pageup", "page(-1)", "Page up", show=False, id="log.page_up"),
        Binding("g,home", "first", "First line", show=False, id="log.first"),
        Binding("G,end", "last", "Last line, and follow", show=False, id="log.last"),
        Binding("right,l", "shift(16)", "Further right", show=False, id="log.right"),
        Binding("left,h", "shift(-16)", "Further left", show=False, id="log.left"),
    ]

    DEFAULT_CSS = """
    LogView { height: 1fr; overflow-x: hidden; overflow-y: auto; scrollbar-size-vertical: 1; }
    LogView.following { scrollbar-size-vertical: 0; }
    LogView > .log--muted { color: $text-disabled; }
    LogView > .log--good { color: $text-success; }
    LogView > .log--busy { color: $text-accent; }
    LogView > .log--warning { color: $text-warning; }
    LogView > .log--bad { color: $text-error; }
    LogView > .log--time { color: $text-muted; }
    LogView > .log--mark { color: $text-accent; text-style: bold; }
    LogView > .log--note { color: $text-warning; text-style: bold; }
    LogView > .log--error { color: $text-error; text-style: bold; }
    LogView > .log--cursor { background: $primary-muted; }
    LogView > .log--matched { color: $text-accent; text-style: bold; }
    LogView > .log--found { background: $warning; color: $background; }
    LogView > .log--current { text-style: bold underline; }
    LogView > .log--source-0 { color: $text-accent; }
    LogView > .log--source-1 { color: $text-success; }
    LogView > .log--source-2 { color: $text-warning; }
    LogView > .log--source-3 { color: $text-primary; }
    LogView > .log--source-4 { color: $text-secondary; }
    LogView > .log--source-5 { color: $text-muted; }
    """

    @dataclass
    class Followed(Message):
        """Following began or stopped."""

        following: bool

    def __init__(self, sources: Sources, rows: Rows | None = None, *, id: str | None = None, empty: str = "") -> None:
        # While following there is no scrollbar: Textual sends all of it, twice, with every batch.
        super().__init__(id=id, classes="following")
        self.sources = sources
        self.rows = rows or Rows()
        self.empty = empty
        self.following, self.wrapped, self.times = True, False, False
        self.sought: re.Pattern[str] | None = None
        self.filtered: re.Pattern[str] | None = None
        self.found: tuple[Row, int] | None = None
        """Row and place in its text of the search's present hit."""
        self.laid: list[Piece] = []
        self.cursor = 0
        self.passed = 0
        """Pieces that were pruned so far. Selections count from the first line ever shown, so that they stay put."""
        self.shifted = 0
        self._moving = False
        self._drawn_styles: dict[tuple[str, ...], Style] = {}

    # --- what is shown ---------------------------------------------------------------------------------------------

    def write(self, batch: Sequence[Row]) -> None:
        """More rows, in any order; many at once cost little more than one."""
        if self.sources.stale and self.sources.relabel(self._widest_label()):
            self._lay_all(self._anchor())
        self._change(lambda: self.rows.merge(batch))

    def put(self, row: Row) -> None:
        """A row of our own: at the end while following, else before the cursor's line."""
        before = None if self.following or not self.laid else self.laid[self.cursor].row
        self._change(lambda: self.rows.put(row, before))

    def clear(self) -> None:
        """Forget every line."""
        self.rows.clear()
        self.passed += len(self.laid)
        self.laid.clear()
        self.cursor, self.found = 0, None
        self.screen.clear_selection()
        self._settle(0)

    def set_filter(self, wanted: Callable[[Row], bool] | None, shown: re.Pattern[str] | None) -> None:
        """Show only rows that `wanted` lets through, with `shown` highlighted in them."""
        anchor = self._anchor()
        self.filtered = shown
        self.rows.set_filter(wanted)
        self._lay_all(anchor)

    def set_wrapped(self, wrapped: bool) -> None:
        """Break lines that are too long, or not."""
        anchor = self._anchor()
        self.wrapped, self.shifted = wrapped, 0
        self._lay_all(anchor)

    def set_times(self, times: bool) -> None:
        """Show each line's time of day, or not."""
        anchor = self._anchor()
        self.times = times
        self._lay_all(anchor)

    def set_following(self, following: bool) -> None:
        """Stay at the newest line, or where we are."""
        if following == self.following:
            return
        self._set_following(following, len(self.laid) - 1 if following else self._last_visible())
        self._settle(round(self.scroll_y))

    def visible_text(self) -> str:
        """What is on the screen, in plain text, wrapped lines whole."""
        top = self.scroll_offset.y
        rows = dict.fromkeys(piece.row for piece in self.laid[top : top + self.size.height])
        return "\n".join(self.line(row) for row in rows)

    def text_since_mark(self) -> str:
        """All lines shown between the last mark above the cursor, or the beginning, and the cursor."""
        if not self.laid:
            return ""
        shown = self.rows.shown
        end = self._shown_place(self.laid[-1 if self.following else self.cursor].row)
        start = next((n for n in range(end, -1, -1) if shown[n].kind == "mark"), -1) + 1
        return "\n".join(self.line(row) for row in shown[start : end + 1])

    def cursor_text(self) -> str:
        """The line under the cursor; the newest while following."""
        return self.line(self.laid[-1 if self.following else self.cursor].row) if self.laid else ""

    def line(self, row: Row) -> str:
        """One row as it is shown, whole."""
        return self._head(row) + row.text

    # --- searching -------------------------------------------------------------------------------------------------

    def set_sought(self, sought: re.Pattern[str] | None) -> None:
        """Highlight this wherever it is."""
        self.sought, self.found = sought, None
        self.refresh()

    def find(self, direction: int, inclusive: bool = False) -> tuple[int, int, bool] | None:
        """Go to the next line below (1) or above (-1) with what is sought; its number, how many, whether it went round.

        `inclusive` also takes the cursor's own line.
        """
        if self.sought is None or not self.laid:
            return None
        hits = [n for n, row in enumerate(self.rows.shown) if row.kind == "line" and self.sought.search(row.text)]
        if not hits:
            return None
        here = self._shown_place(self.laid[min(self.cursor, len(self.laid) - 1)].row)
        beyond = [n for n in hits if (n - here) * direction > 0 or (inclusive and n == here)]
        chosen = (beyond[0] if direction > 0 else beyond[-1]) if beyond else (hits[0] if direction > 0 else hits[-1])
        self._show_hit(self.rows.shown[chosen])
        return hits.index(chosen) + 1, len(hits), not beyond

    def _show_hit(self, row: Row) -> None:
        assert self.sought is not None
        match = self.sought.search(row.text)
        place = match.start() if match else 0
        self.found = (row, place)
        room = max(1, self._width - log_text.cells(self._head(row)))
        if not self.wrapped and not self.shifted <= place < self.shifted + room - 8:
            self.shifted = max(0, place - room // 2) if place >= room - 8 else 0
        self._pause()
        self._go(next(n for n, piece in enumerate(self.laid) if piece.row is row and place <= piece.end))
        self.refresh()

    def _shown_place(self, row: Row) -> int:
        return next((n for n, each in enumerate(self.rows.shown) if each is row), 0)

    # --- moving ----------------------------------------------------------------------------------------------------

    def action_move(self, by: int) -> None:
        if self.following:
            if by > 0 or not self.laid:
                return
            self._pause()
        self._go(self.cursor + by)

    def action_page(self, direction: int) -> None:
        page = max(1, self.size.height - 1)
        self.action_move(direction * page)

    def action_first(self) -> None:
        self._pause()
        self._go(0)

    def action_last(self) -> None:
        self.set_following(True)

    def action_shift(self, by: int) -> None:
        """Show what of long lines is beyond the edge."""
        if self.wrapped:
            return
        top = self.scroll_offset.y
        widest = max((len(piece.row.text) for piece in self.laid[top : top + self.size.height]), default=0)
        self.shifted = max(0, min(self.shifted + by, widest - 8)) if by > 0 else max(0, self.shifted + by)
        self.refresh()

    def _pause(self) -> None:
        if self.following:
            self._set_following(False, len(self.laid) - 1)

    def _set_following(self, following: bool, cursor: int) -> None:
        self.following, self.cursor = following, max(0, cursor)
        self.set_class(following, "following")
        self.post_message(self.Followed(following))

    def _go(self, place: int) -> None:
        if not self.laid:
            return
        old, self.cursor = self.cursor, min(max(place, 0), len(self.laid) - 1)
        top, height = round(self.scroll_target_y), max(1, self.size.height)
        if self.cursor < top:
            self._scroll(self.cursor)
        elif self.cursor >= top + height:
            self._scroll(self.cursor - height + 1)
        self.refresh_line(old)
        self.refresh_line(self.cursor)

    def _scroll(self, top: int) -> None:
        self._moving = True
        try:
            # Forced: before there is a scrollbar Textual would not scroll at all.
            self.scroll_to(y=top, animate=False, immediate=True, force=True)
        finally:
            self._moving = False

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """The wheel and the scrollbar move the view under us: up stops following, and the cursor stays in view."""
        super().watch_scroll_y(old_value, new_value)
        if self._moving:
            return
        # A larger window also brings the end down, and is at the end still.
        if new_value < min(old_value, self.max_scroll_y):
            self._pause()
        elif not self.following and new_value > old_value and new_value >= self.max_scroll_y:
            self.set_following(True)
        if not self.following and self.laid:
            top = round(new_value)
            self.cursor = min(max(self.cursor, top), min(top + self.size.height, len(self.laid)) - 1)

    def on_click(self, event: events.Click) -> None:
        """The cursor goes where it is clicked; a drag selects text instead."""
        place = self.scroll_offset.y + event.y
        if place < len(self.laid) and self.text_selection is None:
            self._pause()
            self._go(place)

    # --- selecting with the mouse ----------------------------------------------------------------------------------

    def selection_updated(self, selection: Selection | None) -> None:
        """What is selected must not run away."""
        if selection is not None:
            self._pause()
        self.refresh()

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The selected text; wrapped lines come out whole."""
        made: list[str] = []
        first = 0 if selection.start is None else max(0, selection.start.y - self.passed)
        last = len(self.laid) if selection.end is None else selection.end.y - self.passed + 1
        for place in range(first, min(last, len(self.laid))):
            if (span := selection.get_span(place + self.passed)) is None:
                continue
            piece = self.laid[place]
            head = "" if piece.start else self._head(piece.row)
            blank = len(self._head(piece.row)) if piece.start else 0
            text = head + piece.row.text[piece.start : piece.end]
            start, end = max(0, span[0] - blank), len(text) if span[1] == -1 else max(0, span[1] - blank)
            if piece.start and made:
                made[-1] += text[start:end]
            else:
                made.append(text[start:end])
        return "\n".join(made), "\n"

    # --- laying out ------------------------------------------------------------------------------------------------

    def _change(self, change: Callable[[], int]) -> None:
        """Lay out anew what a change of the rows has touched, and stay where we are."""
        top = round(self.scroll_y)
        anchor = self.laid[top] if not self.following and top < len(self.laid) else None
        under = self.laid[self.cursor].row if not self.following and self.laid else None
        length = len(self.laid)
        place = self._lay_from(change())
        if place < length and (chosen := self.text_selection) is not None:
            bottom = chosen.end.y if chosen.end is not None else 0
            if place + self.passed <= bottom:
                self.screen.clear_selection()
        gone = self._prune()
        if not self.following:
            top, self.cursor = self._found_again(anchor, under, top, gone)
        self._settle(top)

    def _found_again(self, anchor: Piece | None, under: Row | None, top: int, gone: int) -> tuple[int, int]:
        """Where the top line and the cursor's line are now: rows went at the beginning, and may have come between."""
        start = max(0, top - gone)
        if anchor is not None:
            start = next(
                (n for n in range(start, len(self.laid)) if self.laid[n].row is anchor.row), min(start, len(self.laid))
            )
        cursor = max(0, self.cursor - gone)
        if under is not None:
            cursor = next((n for n in range(cursor, len(self.laid)) if self.laid[n].row is under), cursor)
        return start, min(cursor, max(0, len(self.laid) - 1))

    def _lay_from(self, start: int) -> int:
        """Lay out the shown rows from this one on; the first piece that is new."""
        shown = self.rows.shown
        if start == 0:
            self.laid.clear()
        else:
            last = shown[start - 1]
            while self.laid and self.laid[-1].row is not last:
                self.laid.pop()
        place = len(self.laid)
        for row in shown[start:]:
            self.laid.extend(self._pieces(row))
        return place

    def _pieces(self, row: Row) -> Sequence[Piece]:
        if row.kind == "line" and not self.wrapped:
            return (Piece(row, 0, len(row.text)),)
        head = self._head(row) if row.kind == "line" else f"{RULE} {self._time(row)} "
        room = max(NARROWEST, self._width - log_text.cells(head))
        return [Piece(row, start, end) for start, end in log_text.pieces(row.text, room)]

    def _prune(self) -> int:
        if not self.rows.prune():
            return 0
        first = self.rows.shown[0] if self.rows.shown else None
        gone = next((n for n, piece in enumerate(self.laid) if piece.row is first), len(self.laid))
        del self.laid[:gone]
        self.passed += gone
        return gone

    def _anchor(self) -> Row | None:
        """The row to stay at while everything is laid out anew."""
        return self.laid[self.cursor].row if not self.following and self.cursor < len(self.laid) else None

    def _lay_all(self, anchor: Row | None = None) -> None:
        self.screen.clear_selection()
        offset = self.cursor - round(self.scroll_y)
        self._lay_from(0)
        top = round(self.scroll_y)
        if anchor is not None:
            # Where the filter hides the row, the one that came next takes its place.
            at = next((n for n, piece in enumerate(self.laid) if piece.row is anchor or piece.row.at > anchor.at), None)
            self.cursor = at if at is not None else max(0, len(self.laid) - 1)
            top = max(0, self.cursor - offset)
        self._settle(top)

    def _settle(self, top: int) -> None:
        """Tell Textual how long it is now, and be where we should be."""
        size = Size(1, len(self.laid))
        if self.virtual_size != size:
            self._moving = True
            try:
                self.virtual_size = size
            finally:
                self._moving = False
        if self.following:
            self.cursor = max(0, len(self.laid) - 1)
            top = max(0, len(self.laid) - self.size.height)
        self._scroll(top)
        self.refresh()

    def on_resize(self, _event: events.Resize) -> None:
        self.sources.relabel(self._widest_label())
        self._lay_all(self._anchor())

    @property
    def _width(self) -> int:
        # The scrollbar's column is kept free, so that lines do not break anew when it comes.
        return max(1, self.container_size.width - 1)

    def _widest_label(self) -> int:
        return max(12, min(30, self._width // 4))

    def _last_visible(self) -> int:
        return max(0, min(len(self.laid), self.scroll_offset.y + self.size.height) - 1)

    # --- drawing ---------------------------------------------------------------------------------------------------

    def notify_style_update(self) -> None:
        self._drawn_styles.clear()
        super().notify_style_update()

    def render_line(self, y: int) -> Strip:
        place, width = self.scroll_offset.y + y, self.size.width
        if place >= len(self.laid):
            text = f" {self.empty}" if place == 0 and self.empty else ""
            style = self._look("muted")
            return Strip([Segment(text, style)], log_text.cells(text)).adjust_cell_length(width, style)
        piece = self.laid[place]
        ground = ("cursor",) if place == self.cursor and not self.following else ()
        if piece.row.kind != "line":
            return self._rule(piece, width, ground)
        runs, used = self._runs(piece, width, ground)
        if (selection := self.text_selection) is not None and (span := selection.get_span(place + self.passed)):
            chosen = self.screen.get_component_rich_style("screen--selection")
            end = span[1] if span[1] != -1 else len(self._head(piece.row)) + piece.end - piece.start
            runs = _overlaid(runs, [(span[0], end)], lambda _style: chosen)
        segments = [
            Segment(run.text, run.style + Style.from_meta({"offset": (run.at, place + self.passed)})) for run in runs
        ]
        return Strip(segments, used)

    def _runs(self, piece: Piece, width: int, ground: tuple[str, ...]) -> tuple[list[Run], int]:
        """The runs of a line and the columns that they take: all of them, since the last is as long as it must be."""
        row = piece.row
        time, label = self._time(row), self.sources.label(row.source)
        head = len(time) + len(label)
        runs: list[Run] = []
        if piece.start:
            runs.append(Run(0, " " * log_text.cells(time + label), self._look("plain", *ground)))
        else:
            if time:
                runs.append(Run(0, time, self._look("time", *ground)))
            if label:
                runs.append(Run(len(time), label, self._look(f"source-{self.sources.colour(row.source)}", *ground)))
        used = log_text.cells(time + label)
        start = piece.start if self.wrapped else min(self.shifted, len(row.text))
        end = min(piece.end, log_text.fitting(row.text, start, max(0, width - used)))
        text = row.text[start:end]
        at = head + start - piece.start
        used += log_text.cells(text)
        # The rest of the line belongs to the text: a run of its own would cost forty bytes a line on the wire.
        body = [Run(at, text + " " * (width - used), self._look(row.meaning.value, *ground))]
        for wanted, name in ((self.filtered, "matched"), (self.sought, "found")):
            if wanted is not None:
                body = self._highlighted(body, row, wanted, name, head - piece.start, ground)
        return [run for run in (*runs, *body) if run.text], max(used, width)

    def _highlighted(
        self, body: list[Run], row: Row, wanted: re.Pattern[str], name: str, shift: int, ground: tuple[str, ...]
    ) -> list[Run]:
        first, last = body[0].at - shift, body[-1].at + len(body[-1].text) - shift
        spans = [
            (match.start() + shift, match.end() + shift)
            # A hit may begin before what is visible; far more than that is not looked at.
            for match in wanted.finditer(row.text, max(0, first - 100), last + 100)
            if match.end() > match.start()
        ]
        body = _overlaid(body, spans, lambda style: style + self._look(name, *ground, partial=True))
        if self.found is not None and self.found[0] is row and wanted is self.sought:
            here = [span for span in spans if span[0] == self.found[1] + shift]
            body = _overlaid(body, here, lambda style: style + self._look("current", *ground, partial=True))
        return body

    def _rule(self, piece: Piece, width: int, ground: tuple[str, ...]) -> Strip:
        """A mark, a gap or an error: a line across, with words in it."""
        row, style = piece.row, self._look(piece.row.kind, *ground)
        head = f"{RULE} {self._time(row)}"
        text = (" " * len(head) if piece.start else head) + row.text[piece.start : piece.end] + " "
        text = text[: log_text.fitting(text, 0, width)]
        rest = "─" if piece.end >= len(row.text) else " "
        return Strip([Segment(text + rest * (width - log_text.cells(text)), style)], width)

    def _head(self, row: Row) -> str:
        return "" if row.kind != "line" else self._time(row) + self.sources.label(row.source)

    def _time(self, row: Row) -> str:
        if not self.times:
            return ""
        at = row.at.astimezone()
        return f"{at:%H:%M:%S}.{at.microsecond // 1000:03} "

    def _look(self, name: str, *ground: str, partial: bool = False) -> Style:
        key = (name, *ground, "partial" if partial else "")
        found = self._drawn_styles.get(key)
        if found is None:
            found = self.get_component_rich_style(f"log--{name}", partial=True)
            if not partial:
                found = self.rich_style + found
                for each in ground:
                    found += self.get_component_rich_style(f"log--{each}", partial=True)
            self._drawn_styles[key] = found
        return found


def _overlaid(runs: list[Run], spans: Sequence[tuple[int, int]], look: Callable[[Style], Style]) -> list[Run]:
    """The runs, with another look wherever a span lies. Spans are in order and do not overlap."""
    made = list(runs)
    for start, end in spans:
        cut: list[Run] = []
        for run in made:
            first, last = max(start - run.at, 0), min(end - run.at, len(run.text))
            if first >= last:
                cut.append(run)
                continue
            cut += [
                Run(run.at, run.text[:first], run.style),
                Run(run.at + first, run.text[first:last], look(run.style)),
                Run(run.at + last, run.text[last:], run.style),
            ]
        made = [run for run in cut if run.text]
    return made
