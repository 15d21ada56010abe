"""A table of fixed columns over thousands of rows that change by key, of which only visible lines are ever drawn.

Sorting, filtering and selecting are here, so that they work the same in every view. Columns have fixed widths; the
rightmost in importance are left out where the terminal is narrow, and one of them takes the room that is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from quarterdeck_console.clean import clean_line
from quarterdeck_console.tui.filtering import matcher
from quarterdeck_console.views import Cell

Key = tuple[str, ...]

MARK = 1
"""Columns on the left for the cursor and the selection."""


@dataclass(frozen=True, slots=True)
class Column:
    """`drop` says how early it is left out when there is no room (0 never, the highest first)."""

    key: str
    title: str
    width: int
    number: bool = False
    drop: int = 0
    grow: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One row. `sort` holds a value for each column (`None` is last); `faded` is for what is not fresh any more."""

    key: Key
    cells: tuple[Cell, ...]
    sort: tuple[Any, ...] = ()
    faded: bool = False
    searched: str = ""
    note: tuple[int, Cell] | None = None
    """From this column on, one text over the rest of the row."""

    def text(self) -> str:
        """What a filter looks at."""
        return self.searched or " ".join(cell.text for cell in self.cells)

    def value(self, index: int) -> Any:
        """What it is sorted by in this column."""
        return self.sort[index] if index < len(self.sort) else None


class Later:
    """A row that is made when somebody looks at it: of thousands that change, a few are on the screen.

    `make` gets `arguments`. `value` gets them and a column's index, `text` only them: what the row is sorted and
    filtered by, for which without these two every row has to be made.
    """

    __slots__ = ("_arguments", "_made", "_make", "_said", "_text", "_value", "key")

    def __init__(
        self,
        key: Key,
        make: Callable[..., Line],
        arguments: tuple[Any, ...] = (),
        value: Callable[..., Any] | None = None,
        text: Callable[..., str] | None = None,
    ) -> None:
        self.key, self._make, self._arguments, self._value, self._text = key, make, arguments, value, text
        self._made: Line | None = None
        self._said: str | None = None

    @property
    def line(self) -> Line:
        if self._made is None:
            self._made = self._make(*self._arguments)
        return self._made

    def text(self) -> str:
        """What a filter looks at."""
        if self._said is None:
            self._said = self.line.text() if self._text is None else self._text(*self._arguments)
        return self._said

    def value(self, index: int) -> Any:
        """What it is sorted by in this column."""
        return self.line.value(index) if self._value is None else self._value(*self._arguments, index)


class _Lines(dict[Key, Line | Later]):
    """Rows by key, made when they are asked for with `of`."""

    def of(self, key: Key) -> Line:
        found = self[key]
        return found.line if isinstance(found, Later) else found


@dataclass(slots=True)
class _Shape:
    """Which columns are shown, by index, and how wide."""

    width: int = -1
    shown: list[tuple[int, int]] = field(default_factory=list)


class Table(ScrollView, can_focus=True):
    """Rows by key. Say what there is with `show_rows`, as often as you like."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "table--header", "table--sorted", "table--cursor", "table--selected", "table--plain", "table--muted",
        "table--good", "table--busy", "table--warning", "table--bad",
    }  # fmt: skip

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "move(1)", "Down", show=False, id="table.down"),
        Binding("up,k", "move(-1)", "Up", show=False, id="table.up"),
        Binding("pagedown,ctrl+f", "page(1)", "Page down", show=False, id="table.page_down"),
        Binding("pageup", "page(-1)", "Page up", show=False, id="table.page_up"),
        Binding("g,home", "go(0)", "First row", show=False, id="table.first"),
        Binding("G,end", "go(-1)", "Last row", show=False, id="table.last"),
        Binding("right", "shift(8)", "Columns to the right", show=False, id="table.right"),
        Binding("left,h", "shift(-8)", "Columns to the left", show=False, id="table.left"),
        Binding("space", "select", "Select", id="table.select"),
        Binding("s", "sort", "Sort", id="table.sort"),
        Binding("S", "reverse", "Reverse the order", show=False, id="table.reverse"),
        Binding("enter", "screen.open", "Open", show=False, id="table.open"),
    ]

    DEFAULT_CSS = """
    Table { height: 1fr; overflow-x: hidden; overflow-y: auto; scrollbar-size-vertical: 1; }
    """

    @dataclass
    class Moved(Message):
        """The cursor is on another row, or on none."""

        table: Table
        key: Key | None

    @dataclass
    class Chosen(Message):
        """A second click on a row. Enter is the screen's `open`, at once: what is typed after it is for what opens."""

        table: Table
        key: Key

    @dataclass
    class Counted(Message):
        """How many rows are shown, of how many, and how many are selected."""

        table: Table
        shown: int
        total: int
        selected: int

    def __init__(self, columns: Sequence[Column], *, id: str | None = None, empty: str = "nothing here") -> None:
        super().__init__(id=id)
        self.columns = tuple(columns)
        self.empty = empty
        self.lines = _Lines()
        self.order: list[Key] = []
        self.selected: set[Key] = set()
        self.cursor: Key | None = None
        self.sort_column: str | None = None
        self.descending = False
        self.filter = ""
        self._wanted: Callable[[str], bool] = matcher("")
        self._place = 0
        self._shift = 0
        self._shape = _Shape()
        self._styles: dict[tuple[str, bool, bool, bool], Style] = {}

    # --- what there is ---------------------------------------------------------------------------------------------

    def show_rows(self, rows: Iterable[Line | Later]) -> None:
        """These are the rows now, in their usual order; what is on screen and did not change is not drawn again."""
        old, old_order = self.lines, self.order
        self.lines = _Lines({row.key: row for row in rows})
        self.selected &= self.lines.keys()
        self._arrange()
        if self.order != old_order:
            self.refresh()
            return
        top, height = self.scroll_offset.y, max(0, self.size.height - 1)
        for place in range(top, min(len(self.order), top + height)):
            key = self.order[place]
            if old.of(key) != self.lines.of(key):
                self._draw(place)

    def show_columns(self, columns: Sequence[Column]) -> None:
        """Other columns from now on; rows given after this have a cell for each."""
        if tuple(columns) != self.columns:
            self.columns = tuple(columns)
            self._shape.width = -1
            self.lines, self.order = _Lines(), []
            self.refresh()

    def set_filter(self, typed: str) -> None:
        """Show only rows that match, see `filtering`."""
        if typed != self.filter:
            self.filter, self._wanted = typed, matcher(typed)
            self._arrange()
            self.refresh()

    def sort_by(self, column: str | None, descending: bool = False) -> None:
        """Order by a column; `None` is the order in which the rows were given."""
        self.sort_column, self.descending = column, descending
        self._arrange()
        self.refresh()

    def _arrange(self) -> None:
        found = list(self.lines)
        if self.filter:
            found = [key for key in found if self._wanted(self.lines[key].text())]
        index = next((i for i, column in enumerate(self.columns) if column.key == self.sort_column), None)
        if index is not None:
            values = {key: self.lines[key].value(index) for key in found}
            known = [key for key in found if values[key] is not None]
            unknown = [key for key in found if values[key] is None]
            found = sorted(known, key=lambda key: values[key], reverse=self.descending) + unknown
        before = len(self.order), self.cursor
        self.order = found
        self._keep_cursor()
        if self.is_attached and (len(self.order), self.cursor) != before:
            self._resize()
        self.post_message(self.Counted(self, len(self.order), len(self.lines), len(self.selected)))

    def _keep_cursor(self) -> None:
        """The cursor stays on its row wherever that goes; when the row is gone, on the one that took its place."""
        if not self.order:
            self._place = 0
            self._set_cursor(None)
            return
        if self.cursor in self.lines and self.cursor is not None:
            place = self._find(self.cursor)
            if place is not None:
                self._place = place
                return
        self._place = min(self._place, len(self.order) - 1)
        self._set_cursor(self.order[self._place])

    def _find(self, key: Key) -> int | None:
        if self._place < len(self.order) and self.order[self._place] == key:
            return self._place
        try:
            return self.order.index(key)
        except ValueError:
            return None

    def _set_cursor(self, key: Key | None) -> None:
        if key != self.cursor:
            self.cursor = key
            self.post_message(self.Moved(self, key))

    @property
    def current(self) -> Line | None:
        """The row under the cursor."""
        return self.lines.of(self.cursor) if self.cursor in self.lines and self.cursor is not None else None

    @property
    def chosen(self) -> tuple[Key, ...]:
        """The selected rows in their order, else the one under the cursor."""
        picked = tuple(key for key in self.lines if key in self.selected)
        return picked or ((self.cursor,) if self.cursor is not None else ())

    def clear_selection(self) -> bool:
        """Select nothing; whether anything was selected."""
        had = bool(self.selected)
        self.selected.clear()
        if had:
            self._arrange()
            self.refresh()
        return had

    # --- moving ----------------------------------------------------------------------------------------------------

    def move_to(self, key: Key) -> None:
        """Put the cursor on this row, where it is shown."""
        if (place := self._find(key)) is not None:
            self._go(place)

    def _go(self, place: int) -> None:
        if not self.order:
            return
        old, self._place = self._place, min(max(place, 0), len(self.order) - 1)
        self._set_cursor(self.order[self._place])
        if self._place != old:
            self._draw(old)
            self._draw(self._place)
        self._into_view()

    def _into_view(self) -> None:
        top, height = round(self.scroll_target_y), max(1, self.size.height - 1)
        if self._place < top:
            self.scroll_to(y=self._place, animate=False)
        elif self._place >= top + height:
            self.scroll_to(y=self._place - height + 1, animate=False)

    def action_move(self, by: int) -> None:
        self._go(self._place + by)

    def action_page(self, direction: int) -> None:
        self._go(self._place + direction * max(1, self.size.height - 2))

    def action_go(self, place: int) -> None:
        self._go(place if place >= 0 else len(self.order) - 1)

    def action_shift(self, by: int) -> None:
        """Columns that do not fit come into view."""
        most = max(0, sum(column.width + 1 for column in self.columns) - self.size.width)
        self._shift = min(max(0, self._shift + by), most)
        self._shape.width = -1
        self.refresh()

    def action_select(self) -> None:
        if self.cursor is None:
            return
        self.selected ^= {self.cursor}
        self.post_message(self.Counted(self, len(self.order), len(self.lines), len(self.selected)))
        self._go(self._place + 1)
        self._draw(self._place - 1)

    def action_sort(self) -> None:
        """By the next column that is shown; after the last, in the usual order again."""
        keys: list[str | None] = [None, *(self.columns[index].key for index, _ in self._layout().shown)]
        place = keys.index(self.sort_column) if self.sort_column in keys else 0
        self.sort_by(keys[(place + 1) % len(keys)], self.descending)

    def action_reverse(self) -> None:
        self.sort_by(self.sort_column or self.columns[0].key, not self.descending)

    # --- the mouse -------------------------------------------------------------------------------------------------

    def on_click(self, event: events.Click) -> None:
        """A header sorts, a row gets the cursor, a second click opens it."""
        if event.y == 0:
            self._sort_at(event.x)
            return
        place = self.scroll_offset.y + event.y - 1
        if place < len(self.order):
            again = self.order[place] == self.cursor and event.chain > 1
            self._go(place)
            if again:
                self.post_message(self.Chosen(self, self.order[place]))

    def _sort_at(self, x: int) -> None:
        at = MARK
        for index, width in self._layout().shown:
            if at <= x <= at + width:
                key = self.columns[index].key
                self.sort_by(key, not self.descending if key == self.sort_column else False)
                return
            at += width + 1

    # --- drawing ---------------------------------------------------------------------------------------------------

    def on_resize(self, _event: events.Resize) -> None:
        self._resize()
        self._into_view()

    def _resize(self) -> None:
        self.virtual_size = Size(max(1, self.size.width), len(self.order) + 1)

    def _draw(self, place: int) -> None:
        y = place - self.scroll_offset.y + 1
        if 1 <= y < self.size.height:
            self.refresh(Region(0, y, self.size.width, 1))

    def notify_style_update(self) -> None:
        self._styles.clear()
        super().notify_style_update()

    def _layout(self) -> _Shape:
        """Which columns fit: the most droppable go first, and the growing one takes what is left."""
        width = max(10, self.size.width - 1 - MARK)
        if self._shape.width == width:
            return self._shape
        kept = list(range(len(self.columns)))
        if self._shift:
            shown = [(index, self.columns[index].width) for index in self._shifted(kept)]
            self._shape = _Shape(width, shown)
            return self._shape
        while sum(self.columns[i].width + 1 for i in kept) - 1 > width:
            droppable = [i for i in kept if self.columns[i].drop]
            if not droppable:
                break
            kept.remove(max(droppable, key=lambda i: (self.columns[i].drop, i)))
        rest = width - (sum(self.columns[i].width + 1 for i in kept) - 1)
        shown = [(i, self.columns[i].width + (max(0, rest) if self.columns[i].grow else 0)) for i in kept]
        self._shape = _Shape(width, shown)
        return self._shape

    def _shifted(self, kept: list[int]) -> list[int]:
        at, first = 0, 1
        for index in kept[1:]:
            if at >= self._shift:
                break
            at += self.columns[index].width + 1
            first = index + 1
        return [0, *(index for index in kept if index >= first)]

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if y == 0:
            return self._header(width)
        place = self.scroll_offset.y + y - 1
        if place >= len(self.order):
            if place == 0:
                text = "nothing matches the filter" if self.lines else self.empty
                return self._strip([Segment(" " + text, self._style("muted", False, False, False))], width)
            return Strip.blank(width, self._style("plain", False, False, False))
        key = self.order[place]
        return self._row(self.lines.of(key), key == self.cursor, key in self.selected, width)

    def _header(self, width: int) -> Strip:
        style = self.get_component_rich_style("table--header")
        chosen = self.get_component_rich_style("table--sorted")
        segments = [Segment(" " * MARK, style)]
        for index, size in self._layout().shown:
            column = self.columns[index]
            mark = ("▼" if self.descending else "▲") if column.key == self.sort_column else ""
            title = set_cell_size(column.title[: size - len(mark)] + mark, size)
            if column.number:
                title = title.strip().rjust(size)
            segments.append(Segment(title + " ", chosen if mark else style))
        return Strip(segments).adjust_cell_length(width, style)

    def _row(self, row: Line, cursor: bool, selected: bool, width: int) -> Strip:
        plain = self._style("plain", cursor, selected, row.faded)
        # Without colour the cursor and the selection have to be seen too.
        text, style = "✓" if selected else "▌" if cursor and self.has_focus else " ", plain
        segments: list[Segment] = []
        for piece, meaning in self._pieces(row, width):
            found = plain if meaning is None else self._style(meaning, cursor, selected, row.faded)
            # Neighbours of one style are one segment: whatever Textual does to a line, it does to each segment.
            if found is style:
                text += piece
            else:
                segments.append(Segment(text, style))
                text, style = piece, found
        segments.append(Segment(text, style))
        return self._strip(segments, width, cursor, selected)

    def _pieces(self, row: Line, width: int) -> Iterator[tuple[str, str | None]]:
        """The cells in their widths with what they mean, and the gaps between them, which mean nothing."""
        note, used = row.note, MARK
        for index, size in self._layout().shown:
            if note is not None and index >= note[0]:
                yield fit(note[1].text, max(0, width - used - 1)), note[1].severity.value
                return
            used += size + 1
            cell = row.cells[index]
            yield fit(cell.text, size, cell.number), cell.severity.value
            yield " ", None

    def _strip(self, segments: list[Segment], width: int, cursor: bool = False, selected: bool = False) -> Strip:
        return Strip(segments).adjust_cell_length(width, self._style("plain", cursor, selected, False))

    def _style(self, meaning: str, cursor: bool, selected: bool, faded: bool) -> Style:
        found = self._styles.get((meaning, cursor, selected, faded))
        if found is None:
            name = "muted" if faded and meaning != "bad" else meaning
            found = self.get_component_rich_style(f"table--{name}")
            if selected:
                found += Style(bgcolor=self.get_component_rich_style("table--selected").bgcolor)
            if cursor:
                over = self.get_component_rich_style("table--cursor")
                found += Style(bgcolor=over.bgcolor, bold=over.bold, reverse=over.reverse)
            self._styles[(meaning, cursor, selected, faded)] = found
        return found


def fit(text: str, width: int, right: bool = False) -> str:
    """`text` in exactly `width` columns, with an ellipsis where it is longer; never anything that moves a cursor."""
    if not text.isprintable():
        text = clean_line(text)
    if text.isascii():
        if len(text) > width:
            return text[: max(0, width - 1)] + "…"[:width]
        return text.rjust(width) if right else text.ljust(width)
    size = cell_len(text)
    if size > width:
        return set_cell_size(text, max(0, width - 1)) + "…"[:width]
    return " " * (width - size) + text if right else text + " " * (width - size)
