"""Every GPU of the fleet in one table; of the one under the cursor whose its memory is, its facts and its history.

Table and text come with the fleet's events. A history is asked of its host when the cursor rests on a GPU, and again
every few seconds while it is looked at.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Grid, Horizontal
from textual.content import Content
from textual.timer import Timer

from quarterdeck_agent.protocol import Gpu, Sample
from quarterdeck_console import chart, gpu_metrics, gpus
from quarterdeck_console.gpu_metrics import METRICS, SPANS, Metric
from quarterdeck_console.gpus import Device
from quarterdeck_console.tui import commands, words
from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui.context import Context
from quarterdeck_console.tui.screens import gpus_text
from quarterdeck_console.tui.screens.gpus_rows import COLUMNS, lines, owners_of
from quarterdeck_console.tui.view import TargetView
from quarterdeck_console.tui.widgets.label import Label
from quarterdeck_console.tui.widgets.pane import Pane
from quarterdeck_console.tui.widgets.table import Table
from quarterdeck_console.views import Severity, span

REST = 0.25
"""Seconds that the cursor has to rest on a GPU before its history is asked for."""

FRESH = timedelta(seconds=5)
MINUTES = 1440
"""A long history is asked for again when this part of its span has passed."""

POINTS = 600
"""Points of a history: more than any chart here has columns of dots."""


KEPT = 32
"""Histories that are remembered: of thousands of GPUs that somebody may walk over, those of the last few."""

SCROLL = 6


class GpusScreen(TargetView):
    """The cursor is on a GPU; the verbs are about the deployments that run on it."""

    place: ClassVar[m.Place] = "gpus"
    title_of_help: ClassVar[str] = "GPUs"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("m", "metric", "metric", id="gpus.metric"),
        Binding("t", "span", "time span", id="gpus.span"),
        Binding("v", "about", "about it", id="gpus.about"),
        Binding("z", "zoom", "zoom", show=False, id="gpus.zoom"),
        Binding("ctrl+d", "pane(1)", "Text down", show=False, id="gpus.down"),
        Binding("ctrl+u", "pane(-1)", "Text up", show=False, id="gpus.up"),
    ]

    DEFAULT_CSS = """
    GpusScreen #gpus { height: 1fr; }
    GpusScreen #below { height: 9; }
    GpusScreen.-medium #below { height: 17; }
    GpusScreen.-tall #below { height: 28; }
    GpusScreen #about { display: none; }
    GpusScreen.-about #about { display: block; }
    GpusScreen.-about #charts { display: none; }
    GpusScreen.-normal #about, GpusScreen.-wide #about { display: block; }
    GpusScreen.-normal #charts, GpusScreen.-wide #charts { display: block; }
    GpusScreen.-normal.-about #charts, GpusScreen.-wide.-about #charts { display: none; }
    GpusScreen.-zoomed #gpus { display: none; }
    GpusScreen.-zoomed #below { height: 1fr; }
    GpusScreen #charts { width: 1fr; height: 100%; grid-size: 1 1; border-top: solid $panel; padding: 0 1; }
    GpusScreen #charts > Label { height: 100%; width: 100%; text-wrap: nowrap; display: none; }
    GpusScreen #charts > .first { display: block; }
    GpusScreen.-wide #charts { width: 2fr; grid-size: 2 2; grid-gutter: 0 2; }
    GpusScreen.-wide #charts > Label { display: block; }
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._metric = 0
        self._span = 1
        self._series: dict[tuple[str, str, str], tuple[Sample, ...] | str] = {}
        self._asked_at: dict[tuple[str, str, str], datetime] = {}
        self._wanted_since: dict[tuple[str, str, str], datetime] = {}
        self._resting: Timer | None = None

    def body(self) -> ComposeResult:
        yield Table(COLUMNS, id="gpus", empty="no host has a GPU that NVML can see")
        with Horizontal(id="below"):
            yield Pane("about")
            with Grid(id="charts"):
                for number in range(len(METRICS)):
                    yield Label(id=f"chart-{number}", classes="first" if number == 0 else "")

    def targets(self) -> tuple[m.Target, ...]:
        found = []
        for host, uuid in self.main.chosen if self.main is not None else ():
            if host in self.fleet.hosts:
                found += [m.Target(host, name) for name in owners_of(self.fleet.hosts[host]).get(uuid, ())]
        return tuple(dict.fromkeys(found))

    def detail(self) -> Content:
        """Why it is not well, then whose its memory is."""
        if (found := self.found) is None:
            return Content("")
        host, device = found
        words_of = gpus.health_words(device) and f"⚠ {device.gpu.health}: {device.gpu.why}   "
        owned = " · ".join(gpus.owned(share) for share in gpus.shares(device) if not device.gpu.mig)
        return words.joined((f" {device.what} on {host}  ", "bold"), (words_of, gpus.severity(device.gpu)), (owned, ""))

    def command(self) -> str:
        if (found := self.found) is None:
            return ""
        return commands.words("gpus", "--host", found[0], "--since", span(SPANS[self._span].total_seconds()))

    # --- showing ---------------------------------------------------------------------------------------------------

    def show(self, hosts: frozenset[str]) -> None:
        self.query_one("#gpus", Table).show_rows(lines(self.fleet, self.context.history, self.context.now()))
        self._ask()
        self._draw()

    @property
    def found(self) -> tuple[str, Device] | None:
        """The GPU or MIG instance under the cursor, with its host."""
        key = self.query_one("#gpus", Table).cursor
        host = self.fleet.hosts.get(key[0]) if key else None
        if key is None or host is None:
            return None
        return next(((host.name, each) for each in gpus.devices(host.status) if each.gpu.uuid == key[1]), None)

    @property
    def gpu(self) -> tuple[str, Gpu] | None:
        """What the gauges of the GPU under the cursor are, with its host."""
        return None if (found := self.found) is None else (found[0], found[1].gpu)

    @property
    def _shown_metrics(self) -> tuple[Metric, ...]:
        """All where there is room, else the chosen one."""
        return METRICS if self.has_class("-wide") else (METRICS[self._metric],)

    def _ask(self) -> None:
        """Ask for what is shown and is not fresh any more."""
        if (found := self.gpu) is None:
            return
        (host, gpu), now = found, self.context.now()
        for metric in self._shown_metrics:
            key = (host, metric.series, gpu.uuid)
            length = SPANS[self._span]
            if key not in self._asked_at or now - self._asked_at[key] >= max(FRESH, length / MINUTES):
                self._asked_at[key], self._wanted_since[key] = now, now - length
                self.post_message(m.WantSeries(self, host, metric.series, gpu.uuid, now - length, POINTS))

    @on(m.SeriesCame)
    def _came(self, event: m.SeriesCame) -> None:
        event.stop()
        key = (event.host, event.name, event.key)
        if event.since != self._wanted_since.get(key):
            return  # of a span that is not looked at any more
        if event.series is not None:
            self._keep(key, event.series.samples)
        elif event.error is not None and not isinstance(self._series.get(key), tuple):
            self._keep(key, event.error.detail)
        self._draw()

    def _keep(self, key: tuple[str, str, str], known: tuple[Sample, ...] | str) -> None:
        self._series.pop(key, None)
        self._series[key] = known
        for old in tuple(self._series)[:-KEPT]:
            for remembered in (self._series, self._asked_at, self._wanted_since):
                remembered.pop(old, None)

    def _draw(self) -> None:
        """The text and the charts of what is under the cursor."""
        pane, device = self.query_one("#about", Pane), self.found
        if device is not None and pane.display:
            host, each = device
            known = gpus.devices(self.fleet.hosts[host].status)
            pane.show(gpus_text.device(host, each, known, pane.size.width - 2), (host, each.gpu.uuid))
        elif device is None:
            pane.show(Content(""), None)
        found = self.found
        for number in range(len(METRICS)):
            label = self.query_one(f"#chart-{number}", Label)
            shown = number < len(self._shown_metrics)
            if shown:
                label.show(self._chart(self._shown_metrics[number], found, label))

    def _chart(self, metric: Metric, found: tuple[str, Device] | None, label: Label) -> Content:
        if found is None:
            return words.line("")
        host, gpu = found[0], found[1].gpu
        length, now = SPANS[self._span], self.context.now()
        title = f"{metric.title} of {found[1].what} on {host}, last {span(length.total_seconds())}"
        known = self._series.get((host, metric.series, gpu.uuid))
        if known is None or isinstance(known, str):
            return words.lines([words.line(title, "bold"), words.line(known or "asking …", Severity.MUTED)])
        samples = [each for each in gpu_metrics.drawn(known, metric) if each.at >= now - length]
        highest = gpu_metrics.highest(samples)
        told = "" if highest is None else f"  highest {metric.unit(highest)}"
        head = words.joined((title, "bold"), (told, Severity.MUTED))
        end = gpu_metrics.newest((each.at for each in samples[-1:]), now)
        size = label.size.width, label.size.height - 1
        drawn = chart.draw(samples, end - length, end, size, metric.top(gpu), metric.unit)
        return words.lines([head, *(_coloured(line) for line in drawn)])

    def on_resize(self) -> None:
        # Textual calls `on_resize` of the base class by itself.
        if self.is_mounted:
            self.call_after_refresh(self._again)

    def _again(self) -> None:
        self._ask()
        self._draw()

    # --- keys ------------------------------------------------------------------------------------------------------

    @on(Table.Moved)
    def _other(self, event: Table.Moved) -> None:
        self._draw()
        if self._resting is not None:
            self._resting.stop()
        self._resting = self.set_timer(REST, self._ask)

    def action_about(self) -> None:
        """Its text in place of the charts, and back."""
        self.toggle_class("-about")
        self.call_after_refresh(self._again)

    def action_zoom(self) -> None:
        """Text and charts alone, and back."""
        self.toggle_class("-zoomed")
        (self.query_one("#about", Pane) if self.has_class("-zoomed") else self.query_one("#gpus", Table)).focus()
        self.call_after_refresh(self._again)

    def action_pane(self, direction: int) -> None:
        self.query_one("#about", Pane).by(direction * SCROLL)

    async def action_back(self) -> None:
        if self.has_class("-zoomed"):
            self.action_zoom()
        elif self.has_class("-about"):
            self.action_about()
        else:
            await super().action_back()

    async def action_open(self) -> None:
        await self.action_describe()

    async def action_text(self, form: m.Form) -> None:
        """The GPUs themselves, as `qd gpus` has them."""
        chosen = tuple((host, uuid) for host, uuid in self.query_one("#gpus", Table).chosen)
        if chosen:
            await self.go(m.OpenItems("gpus", chosen, form))
        else:
            self.tell("there is no GPU under the cursor", bad=True)

    def action_metric(self) -> None:
        """The next gauge, where only one has room."""
        self._metric = (self._metric + 1) % len(METRICS)
        self._again()

    def action_span(self) -> None:
        """A longer history, and after the longest the shortest."""
        self._span = (self._span + 1) % len(SPANS)
        self._asked_at.clear()
        self._again()
        self.show_keys()


def _coloured(line: str) -> Content:
    """The scale muted, the series in its colour."""
    place = chart.AXIS if "│" in line else len(line)
    return words.joined((line[:place], Severity.MUTED), (line[place:], "$text-success"))
