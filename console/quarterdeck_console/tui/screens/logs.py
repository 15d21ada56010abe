"""The logs of one or many deployments on one or many hosts, merged by time.

What is shown of them (filter, search, wrapping, times, following) is the view's and outlasts every new stream; which
lines are wanted (how long back, which revision, the run before) makes a new stream.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal

from quarterdeck_console.errors import ConsoleError
from quarterdeck_console.tui import commands, logfiles, look, words
from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui.context import Context
from quarterdeck_console.tui.filtering import matcher
from quarterdeck_console.tui.view import View
from quarterdeck_console.tui.widgets import log_text
from quarterdeck_console.tui.widgets.label import Label
from quarterdeck_console.tui.widgets.log import LogView
from quarterdeck_console.tui.widgets.log_rows import Row, meaning
from quarterdeck_console.tui.widgets.log_sources import Source, Sources
from quarterdeck_console.tui.widgets.typedline import FilterLine, SearchLine
from quarterdeck_console.views import Severity, count

TAIL = 1000
"""Lines that are asked of each deployment at first."""

HEAD = 5000
"""Lines from the beginning that are shown; then the stream is ended."""

BACK_AFTER = timedelta(seconds=20)
"""A host that is there again has its streams again by then, even where nothing is said on them."""


@dataclass(frozen=True, slots=True)
class Preset:
    """Which lines a digit asks for; without `minutes` so many lines of an end."""

    short: str
    title: str
    minutes: int | None = None

    @property
    def head(self) -> bool:
        return self.short == "head"

    def option(self) -> list[str]:
        """What `qd logs` calls it."""
        if self.minutes is not None:
            return ["--since", self.short]
        return [] if self.head else ["--tail", str(TAIL)]


PRESETS = (
    Preset("tail", f"last {TAIL:,} lines"), Preset("head", "from the beginning"), Preset("1m", "last minute", 1),
    Preset("5m", "last 5 minutes", 5), Preset("15m", "last 15 minutes", 15), Preset("30m", "last 30 minutes", 30),
    Preset("1h", "last hour", 60),
)  # fmt: skip

QUIET = 2.0
"""Seconds without a line, a cut or an end after which a stream counts as followed."""


class LogsScreen(View):
    """Opened from anywhere with `OpenLogs`. The digits are k9s's: 0 the newest lines, 1 the oldest, 2-6 ever more."""

    title_of_help = "Logs"
    numbered = False

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "follow", "pause", id="logs.follow"),
        Binding("w", "wrap", "wrap", id="logs.wrap"),
        Binding("t", "times", "times", id="logs.times"),
        Binding("f", "find", "find", id="logs.find"),
        Binding("n", "next(1)", "Next line found", show=False, id="logs.next"),
        Binding("N", "next(-1)", "Previous line found", show=False, id="logs.previous_found"),
        Binding("m", "mark", "mark", id="logs.mark"),
        Binding("c", "copy('line')", "copy", id="logs.copy"),
        Binding("x", "copy('marked')", "Copy from the mark above to the cursor", show=False, id="logs.copy_marked"),
        Binding("v", "copy('visible')", "Copy what is on the screen", show=False, id="logs.copy_visible"),
        Binding("o", "save", "save", id="logs.save"),
        Binding("C", "clear", "Clear", show=False, id="logs.clear"),
        Binding("p", "previous", "run before", id="logs.previous"),
        Binding("left_square_bracket", "revision(-1)", "Earlier revision", show=False, id="logs.earlier"),
        Binding("right_square_bracket", "revision(1)", "Later revision", show=False, id="logs.later"),
        Binding("d", "describe", "Describe", show=False, id="logs.describe"),
        Binding("R", "rollback", "Roll back", show=False, id="logs.rollback"),
        *(
            Binding(str(digit), f"since({digit})", preset.title.capitalize(), show=False, id=f"logs.since_{digit}")
            for digit, preset in enumerate(PRESETS)
        ),
    ]  # fmt: skip

    DEFAULT_CSS = """
    LogsScreen #log-line { height: 1; background: $boost; }
    LogsScreen #log-state { width: 1fr; text-wrap: nowrap; text-overflow: ellipsis; }
    LogsScreen #log-count { width: 14; color: $text-muted; }
    """

    def __init__(
        self, context: Context, targets: tuple[m.Target, ...], revision: int | None = None, previous: bool = False
    ) -> None:
        super().__init__(context)
        self.shown_targets, self.revision, self.previous = targets, revision, previous
        self.preset = PRESETS[0]
        self.sources = Sources(len({each.host for each in targets}), len({each.name for each in targets}))
        self.asked, self.ended = True, False
        self.cut: dict[m.Target, datetime] = {}
        """Targets whose stream is cut, and since when."""
        self._wish: m.LogWish | None = None
        self._received = self._missed = 0
        self._hit = ""

    # --- the frame -------------------------------------------------------------------------------------------------

    def targets(self) -> tuple[m.Target, ...]:
        return self.shown_targets

    def crumbs(self) -> tuple[str, ...]:
        names = ", ".join(f"{target.name} on {target.host}" for target in self.shown_targets[:3])
        return (f"logs of {names}" + (" …" if len(self.shown_targets) > 3 else ""),)

    def command(self) -> str:
        if not self.shown_targets:
            return ""
        name = self.shown_targets[0].name
        parts = ["logs", name, *commands.on_hosts([each for each in self.shown_targets if each.name == name])]
        parts += self.preset.option()
        parts += ["--revision", str(self.revision)] if self.revision is not None else []
        return commands.words(*parts, *(["--previous"] if self.previous else [] if self.preset.head else ["-f"]))

    def body(self) -> ComposeResult:
        with Horizontal(id="log-line"):
            yield Label(id="log-state")
            # By itself, for it changes with every batch: the other is not sent again for that.
            yield Label(id="log-count")
        yield LogView(self.sources, id="log", empty="no lines yet")
        yield SearchLine()

    @property
    def log_view(self) -> LogView:
        """The lines."""
        return self.query_one(LogView)

    def begin(self) -> None:
        self.set_focus(self.log_view)
        self._ask()

    def on_unmount(self) -> None:
        self.app.post_message(m.EndLogs(self))

    def show(self, hosts: frozenset[str]) -> None:
        """A host that is there again for a while has its streams again, even where it says nothing on them."""
        now = self.context.now()
        for target, since in tuple(self.cut.items()):
            host = self.fleet.hosts.get(target.host)
            if host is not None and host.connection == "live" and now - max(since, host.since or since) > BACK_AFTER:
                del self.cut[target]
        self._show_state()

    # --- lines -----------------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Begin anew, with what is wanted now."""
        self.sources.clear()
        self.log_view.clear()
        self.cut.clear()
        self.asked, self.ended = True, False
        self._received = self._missed = 0
        since = None
        if self.preset.minutes is not None:
            at = self.context.now() - timedelta(minutes=self.preset.minutes)
            since = at.isoformat().replace("+00:00", "Z")
        self._wish = m.LogWish(
            self.shown_targets, since=since, tail=None if since or self.preset.head else TAIL, revision=self.revision,
            previous=self.previous, follow=not (self.previous or self.preset.head),
        )  # fmt: skip
        self.post_message(m.WantLogs(self, self._wish))
        wish = self._wish
        self.set_timer(QUIET, lambda: self._quiet(wish))
        self._show_state()
        self.show_keys()

    def _quiet(self, wish: m.LogWish) -> None:
        """A stream that is there and has no line says nothing: nobody waits for an answer any more."""
        if self.asked and self._wish is wish:
            self.asked = False
            self._show_state()

    @on(m.LogsCame)
    def _came(self, event: m.LogsCame) -> None:
        event.stop()
        if self.ended or event.wish is not self._wish:
            return  # a last batch of a stream that was replaced meanwhile
        view = self.log_view
        rows: list[Row] = []
        end = view.rows.newest or next((entry.line.at for entry in event.entries if entry.line is not None), None)
        back: list[str] = []
        for entry in event.entries:
            if entry.line is not None:
                end = entry.line.at if end is None else max(end, entry.line.at)
                back += self._back(entry.target)
            rows += self._rows(entry, end or self.context.now())
        # After what was said meanwhile, so that it lies between the cut and the return.
        rows += [Row(end or self.context.now(), text, "note") for text in back]
        self.asked, self.ended = False, event.ended
        if enough := self.preset.head and self._received + len(rows) > HEAD:
            del rows[max(0, HEAD - self._received) :]
        lines = sum(row.kind == "line" for row in rows)
        self._received += lines
        self._missed = 0 if view.following else self._missed + lines
        view.write(rows)
        if enough:
            self.ended = True
            self.post_message(m.EndLogs(self))
            view.put(self._said("note", f"the first {self._received:,} lines end here; 0 shows the newest"))
        self._show_state()

    def _rows(self, entry: m.LogEntry, end: datetime) -> list[Row]:
        """What an entry is on the screen. `end` is where what has no time of its own is put: after all before it."""
        where = f"{entry.target.name} on {entry.target.host}"
        if entry.error is not None:
            return [Row(end, log_text.plain(f"{where}: {_told(entry.error)}"), "error")]
        if entry.line is None:
            if entry.cut:
                self.cut[entry.target] = self.context.now()
            return [Row(end, log_text.plain(f"{where}: {entry.note}"), "note")]
        line = entry.line
        if line.dropped:
            text = line.text or f"{line.dropped} lines dropped"
            return [Row(line.at, log_text.plain(f"{where}: {text}"), "note")]
        source = Source(entry.target.host, line.deployment, line.revision, line.replica)
        severity = Severity.BUSY if line.stream == "agent" else meaning(line.text)
        return [Row(line.at, log_text.plain(line.text), source=self.sources.place(source), meaning=severity)]

    def _back(self, target: m.Target) -> list[str]:
        """What to tell of a target that says something again after a cut."""
        if (since := self.cut.pop(target, None)) is None:
            return []
        gone = (self.context.now() - since).total_seconds()
        return [log_text.plain(f"{target.name} on {target.host}: back after {gone:.0f} s")]

    def _said(self, kind: str, text: str) -> Row:
        at = self.log_view.rows.newest or self.context.now()
        return Row(at, text, "mark" if kind == "mark" else "note")

    # --- what is shown of them -------------------------------------------------------------------------------------

    def set_filter(self, typed: str) -> None:
        wanted, view = matcher(typed), self.log_view
        if not typed.strip():
            view.set_filter(None, None)
        else:
            shown = log_text.pattern(log_text.filter_terms(typed))
            view.set_filter(lambda row: wanted(self.sources.label(row.source) + row.text), shown)
        self._show_state()

    @on(SearchLine.Typed)
    def _search_typed(self, event: SearchLine.Typed) -> None:
        event.stop()
        self._hit = ""
        self.log_view.set_sought(log_text.pattern([event.text]))
        if event.done:
            self.query_one(SearchLine).give_back()
            if event.text:
                self._find(-1, inclusive=True)
        self._show_state()

    def action_find(self) -> None:
        self.query_one(SearchLine).open()

    def action_next(self, direction: int) -> None:
        if self.query_one(SearchLine).value:
            self._find(direction)
        else:
            self.action_find()

    def _find(self, direction: int, inclusive: bool = False) -> None:
        wanted = self.query_one(SearchLine).value
        if (found := self.log_view.find(direction, inclusive)) is None:
            self._hit = "none"
            self.tell(f"no line has {wanted}", bad=True)
        else:
            number, many, round_ = found
            self._hit = f"{number}/{many}"
            if round_ and not inclusive:
                self.tell("went on from the " + ("first line" if direction > 0 else "last line"))
        self._show_state()

    def action_follow(self) -> None:
        self.log_view.set_following(not self.log_view.following)

    @on(LogView.Followed)
    def _followed(self, event: LogView.Followed) -> None:
        event.stop()
        self._missed = 0
        self._show_state()

    def action_wrap(self) -> None:
        self.log_view.set_wrapped(not self.log_view.wrapped)
        self._show_state()

    def action_times(self) -> None:
        self.log_view.set_times(not self.log_view.times)
        self._show_state()

    def action_mark(self) -> None:
        """A line of our own, to find this place again and to copy from."""
        self.log_view.put(self._said("mark", f"mark at {self.context.now().astimezone():%H:%M:%S}"))

    def action_clear(self) -> None:
        """An empty screen; new lines go on coming."""
        self.log_view.clear()
        self._received = self._missed = 0
        self._show_state()

    async def action_back(self) -> None:
        """One step back: what is selected goes first, then the filter, then the search, then the screen."""
        search = self.query_one(SearchLine)
        if self.selections:
            self.clear_selection()
        elif self.query_one(FilterLine).value or not search.value:
            await super().action_back()
        else:
            search.action_clear()

    # --- which lines are wanted ------------------------------------------------------------------------------------

    def action_since(self, digit: int) -> None:
        self.preset = PRESETS[digit]
        self._ask()

    def action_previous(self) -> None:
        """The run before the present one, and back."""
        self.previous = not self.previous
        self._ask()

    def action_revision(self, by: int) -> None:
        """One revision only: the live one, then one earlier or later at a time; beyond the newest are all again."""
        if len(self.shown_targets) != 1:
            self.tell("revisions of several deployments have nothing in common: open the logs of one", bad=True)
            return
        seen = look.deployment(self.fleet, self.shown_targets[0])
        newest = max((seen.wanted_revision or 0, seen.live_revision or 0) if seen is not None else (0,))
        chosen = (newest if by < 0 else None) if self.revision is None else self.revision + by
        if chosen is not None and (chosen < 1 or not newest):
            self.tell("there is no earlier revision")
            return
        self.revision = None if chosen is None or chosen > newest else chosen
        self._ask()

    async def action_describe(self) -> None:
        await self.go(m.OpenDeployment(self.shown_targets[0]))

    def action_rollback(self) -> None:
        self.ask_for(m.AskRollback(self.shown_targets))

    # --- taking them along -----------------------------------------------------------------------------------------

    def action_copy(self, what: str) -> None:
        """To the terminal's clipboard; to a file where that cannot be."""
        view = self.log_view
        if what == "line":
            text = self.get_selected_text() or view.cursor_text()
        else:
            text = view.text_since_mark() if what == "marked" else view.visible_text()
        if not text:
            self.tell("there is nothing to copy", bad=True)
            return
        lines = count(text.count("\n") + 1, "line")
        possible, told = logfiles.clipboard(os.environ)
        if not logfiles.fits_clipboard(text):
            self._save(text, f"{lines} are more than a terminal takes ({logfiles.OSC_52_MOST:,} bytes): ")
        elif not possible:
            self._save(text, f"{told}: {lines} ")
        else:
            self.app.copy_to_clipboard(text)
            self.tell(f"{lines} {told}")

    def action_save(self) -> None:
        """All lines that the filter lets through, with their times and where they are from."""
        view = self.log_view
        rows = tuple(view.rows.shown)
        if not rows:
            self.tell("there is nothing to save", bad=True)
            return
        text = "\n".join(_saved(row, self.sources.label(row.source)) for row in rows) + "\n"
        self._save(text, f"{count(len(rows), 'line')} ")

    def _save(self, text: str, told: str) -> None:
        about = tuple(dict.fromkeys(part for target in self.shown_targets[:2] for part in reversed(target)))
        now = self.context.now().astimezone()

        async def work() -> None:
            try:
                place = await asyncio.to_thread(logfiles.save, text, about, now, Path.cwd())
            except OSError as error:
                self.tell(f"{told}cannot be saved: {error.strerror or error}", bad=True)
            else:
                self.tell(f"{told}saved to {place}")

        self.run_worker(work(), name="save", exit_on_error=True)

    # --- the line of state -----------------------------------------------------------------------------------------

    def _show_state(self) -> None:
        if not self.is_mounted:
            return
        parts = [(" ", ""), self._activity(), *self._lost()]
        if self.previous:
            parts.append(("  the run before", Severity.WARNING))
        if self.revision is not None:
            parts.append((f"  revision {self.revision}", Severity.WARNING))
        parts += [("  ", ""), *self._presets()]
        parts += self._narrowed()
        view = self.log_view
        for on_, name in ((view.wrapped, "wrap"), (view.times, "times")):
            if on_:
                parts.append((f"  {name}", Severity.MUTED))
        self.query_one("#log-state", Label).show(words.joined(*parts))
        self.query_one("#log-count", Label).show(words.line(f"{count(len(view.rows.every), 'line')} ".rjust(14)))

    def _activity(self) -> tuple[str, str | Severity]:
        if self.asked:
            return "◌ asking", Severity.BUSY
        if self.ended:
            return "■ ended", Severity.MUTED
        if self.log_view.following:
            return "● following", Severity.GOOD
        return "‖ paused" + (f" +{self._missed:,}" if self._missed else ""), Severity.WARNING

    def _presets(self) -> list[tuple[str, str | Severity]]:
        """Every preset with its digit where there is room, else the present one."""
        if self.app.size.width < 110:
            return [(self.preset.title, "")]
        parts: list[tuple[str, str | Severity]] = []
        for digit, preset in enumerate(PRESETS):
            chosen = preset is self.preset
            parts += [
                (f"{digit} ", "bold $text-accent"),
                (preset.short, "bold" if chosen else Severity.MUTED),
                ("  ", ""),
            ]
        return parts[:-1]

    def _lost(self) -> Sequence[tuple[str, str | Severity]]:
        hosts = list(dict.fromkeys(target.host for target in self.cut))
        shown = [(f"  ○ {host} cut", Severity.BAD) for host in hosts[:2]]
        return [*shown, (f" and {len(hosts) - 2} more", Severity.BAD)] if len(hosts) > 2 else shown

    def _narrowed(self) -> list[tuple[str, str | Severity]]:
        """What of the lines is shown, and what is looked for in them."""
        parts: list[tuple[str, str | Severity]] = []
        if filter_ := self.query_one(FilterLine).value.strip():
            parts.append((f"  /{filter_} {len(self.log_view.rows.shown):,}", Severity.WARNING))
        if sought := self.query_one(SearchLine).value:
            parts.append((f"  find {sought}" + (f" {self._hit}" if self._hit else ""), Severity.WARNING))
        return parts


def _told(error: ConsoleError) -> str:
    return error.detail + (f" ({error.hint})" if error.hint else "")


def _saved(row: Row, label: str) -> str:
    """A row in a file: its time in UTC first, so that files of several hosts can be merged by `sort`."""
    at = row.at.isoformat().replace("+00:00", "Z")
    return f"{at} {label}{row.text}" if row.kind == "line" else f"{at} ── {row.text} ──"
