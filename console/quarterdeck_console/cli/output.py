"""The only owner of stdout, stderr and exit codes: stdout is data, stderr is narration.

Whatever is written here is cleaned once more, so that text of this machine (a file's name, an argument) is as
harmless on a terminal as what came over the wire. Colour only where a terminal asks for it (NO_COLOR, FORCE_COLOR,
TERM=dumb). Never reads the network.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from quarterdeck_console.clean import clean
from quarterdeck_console.cli import envelope
from quarterdeck_console.errors import ConsoleError, Usage, exit_code

if TYPE_CHECKING:
    from quarterdeck_console.views import Table

BELOW = "      "
"""Before a line that stands under a row."""

_COLOURS = {"muted": "2", "good": "32", "busy": "36", "warning": "33", "bad": "31"}


class Output:
    """Where a verb's words go. One for each run of `qd`."""

    def __init__(
        self, as_json: bool, environ: Mapping[str, str], stdout: TextIO | None = None, stderr: TextIO | None = None
    ) -> None:
        self.json = as_json
        self._out, self._err = stdout or sys.stdout, stderr or sys.stderr
        self.live = self._err.isatty() and environ.get("TERM") != "dumb"
        self._colour = {stream: _wants_colour(stream, environ) for stream in (self._out, self._err)}
        self.redraws = self._out.isatty() and environ.get("TERM") != "dumb" and not as_json
        self._width = 0
        self._drawn = 0

    # --- data ---

    def items(
        self, kind: str, found: Sequence[Any], errors: Sequence[ConsoleError] = (), succeeded: int | None = None
    ) -> int:
        """Print many things as JSON and return the exit code; with nothing but errors it is an error envelope."""
        code = exit_code(list(errors), len(found) if succeeded is None else succeeded)
        if errors and not found:
            self._json(envelope.failed(weightiest(errors, code), errors), pretty=True)
        else:
            self._json(envelope.items(kind, found, errors), pretty=True)
        return code

    def item(self, kind: str, found: Any) -> None:
        """Print one thing as JSON."""
        self._json(envelope.item(kind, found), pretty=True)

    def event(self, kind: str, type_: str, found: Any, error: ConsoleError | None = None) -> None:
        """Print one line of a stream, at once."""
        self._json(envelope.event(kind, type_, found, error), pretty=False)
        self._out.flush()

    def _json(self, told: dict[str, Any], pretty: bool) -> None:
        self._clear()
        self._out.write(envelope.encode(told, pretty) + "\n")

    def line(self, text: str = "") -> None:
        """Print one line of data."""
        self._clear()
        self._out.write(clean(text) + "\n")

    def lines_now(self) -> None:
        """Let what was printed be seen now: for streams."""
        self._out.flush()

    def raw(self, content: bytes) -> None:
        """Hand on bytes as they are, for a pipe or a file; a terminal gets them cleaned."""
        if self._out.isatty():
            text = content.decode("utf-8", "backslashreplace")
            self._out.write(clean(text) + ("" if text.endswith("\n") else "\n"))
            return
        self._out.flush()
        self._out.buffer.write(content)

    def table(self, table: Table, empty: str) -> None:
        """Print rows in columns; `empty` goes to stderr where there is none. The last column is never padded."""
        if not table.rows:
            self.note(empty)
            return
        self._clear()
        self._out.writelines(f"{line}\n" for line in self._lines(table))

    def table_again(self, table: Table, empty: str) -> None:
        """Show rows in place of those shown last: for a terminal, see `redraws`. What has no room is cut off."""
        import shutil

        rows = max(2, shutil.get_terminal_size().lines - 1)
        lines = list(self._lines(table)) if table.rows else [empty]
        if len(lines) > rows:
            lines = [*lines[: rows - 1], f"… {len(lines) - rows + 1} more lines"]
        back = f"\x1b[{self._drawn}A" if self._drawn else ""
        # Without wrapping a line is a line, however narrow the terminal is.
        self._out.write(f"{back}\r\x1b[J\x1b[?7l" + "".join(f"{line}\n" for line in lines) + "\x1b[?7h")
        self._out.flush()
        self._drawn = len(lines)

    def _lines(self, table: Table) -> Iterator[str]:
        """A table's header and rows as they are printed."""
        widths = [len(name) for name in table.columns]
        for row in table.rows:
            for index, cell in enumerate(row.cells):
                widths[index] = max(widths[index], _width(cell.text))
        numbers = [cell.number for cell in table.rows[0].cells]
        yield self._row([(name, "muted", numbers[index]) for index, name in enumerate(table.columns)], widths)
        for row in table.rows:
            yield self._row([(cell.text, cell.severity.value, cell.number) for cell in row.cells], widths)
            for cell in row.below:
                yield from self._below(clean(cell.text), cell.severity.value)

    def _below(self, text: str, meaning: str) -> Iterator[str]:
        """A line under a row, broken where a terminal ends."""
        import textwrap

        parts = [text]
        if self._out.isatty() and len(text) > self.columns - len(BELOW):
            parts = textwrap.wrap(text, max(20, self.columns - len(BELOW)), subsequent_indent="  ") or [text]
        return (BELOW + self.painted(part, meaning) for part in parts)

    def _row(self, cells: list[tuple[str, str, bool]], widths: list[int]) -> str:
        parts = []
        for index, (text, meaning, number) in enumerate(cells):
            text = clean(text)
            gap = " " * (widths[index] - _width(text))
            last = index == len(cells) - 1
            shown = self.painted(text, meaning)
            parts.append(gap + shown if number else shown if last else shown + gap)
        return "  ".join(parts).rstrip()

    @property
    def columns(self) -> int:
        """How wide stdout is; what is no terminal is 80 columns wide, unless COLUMNS says otherwise."""
        import shutil

        return shutil.get_terminal_size((80, 24)).columns

    def painted(self, text: str, meaning: str) -> str:
        """`text` in the colour of a severity, where stdout has colours."""
        code = _COLOURS.get(meaning)
        return f"\x1b[{code}m{text}\x1b[0m" if code and self._colour[self._out] else text

    def heading(self, text: str) -> None:
        """A title above part of a description."""
        text = clean(text)
        self._out.write("\n" + (f"\x1b[1m{text}\x1b[0m" if self._colour[self._out] else text) + "\n")

    # --- narration ---

    def note(self, text: str) -> None:
        """Say something to a person; a program that reads JSON is not bothered."""
        if not self.json:
            self._clear()
            self._err.write(clean(text) + "\n")
            self._err.flush()

    def progress(self, text: str) -> None:
        """Show the newest state on one line that the next replaces; only on a terminal."""
        if not self.live:
            return
        import shutil

        text = clean(text).replace("\n", " ")[: max(20, shutil.get_terminal_size().columns - 1)]
        self._err.write("\r" + text + " " * (self._width - len(text)))
        self._err.flush()
        self._width = len(text)

    def _clear(self) -> None:
        if self._width:
            self._err.write("\r" + " " * self._width + "\r")
            self._err.flush()
            self._width = 0

    # --- errors ---

    def errors(self, errors: Sequence[ConsoleError]) -> None:
        """Say what went wrong, where, and what to do; in JSON they are in the envelope already."""
        self._clear()
        for error in [] if self.json else errors:
            word = f"\x1b[{_COLOURS['bad']}merror:\x1b[0m" if self._colour[self._err] else "error:"
            self._err.write(
                f"{word} {clean(error.detail)}" + (f" ({clean(error.field)})" if error.field else "") + "\n"
            )
            if error.operation and error.operation not in (error.hint or ""):
                self._err.write(f"  operation: {clean(error.operation)}\n")
            if error.hint:
                self._err.write(f"  hint: {clean(error.hint)}\n")
        self._err.flush()

    def fail(self, error: ConsoleError) -> int:
        """Tell the one error that ends this run, and return its exit code."""
        if self.json:
            self._json(envelope.failed(error, [error] if error.host else []), pretty=True)
        else:
            self.errors([error])
        return error.exit_code

    def confirm(self, question: str, flag: str = "--yes") -> None:
        """Ask a person, default No. Raises `Usage` where there is nobody to ask, `ConsoleError` on No."""
        if not (sys.stdin.isatty() and self._err.isatty()) or self.json:
            raise Usage(f"not confirmed, and there is no terminal to ask on: {question}", hint=f"give {flag}")
        self._clear()
        self._err.write(f"{clean(question)} [y/N] ")
        self._err.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise ConsoleError("nothing was changed: not confirmed", code="declined")

    def flush(self) -> None:
        """Write out what is buffered; raises `BrokenPipeError` when the reader has gone."""
        self._clear()
        self._out.flush()


def weightiest(errors: Sequence[ConsoleError], code: int) -> ConsoleError:
    """The error that the exit code is about, the first where none is."""
    return next((error for error in errors if error.exit_code == code), errors[0])


def _wants_colour(stream: TextIO, environ: Mapping[str, str]) -> bool:
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and environ.get("TERM") != "dumb"


def _width(text: str) -> int:
    """Columns that a text takes on a terminal (Unicode TR 11)."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(each) else 2 if east_asian_width(each) in "WF" else 1 for each in text)
