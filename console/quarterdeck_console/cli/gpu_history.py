"""The past of GPUs as charts in the terminal, or as points in JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from quarterdeck_agent.protocol import Series
from quarterdeck_console import chart, gpu_metrics, gpus, views
from quarterdeck_console.cli.call import Call, collect, show
from quarterdeck_console.cli.envelope import plain
from quarterdeck_console.client import Client
from quarterdeck_console.errors import NotFound
from quarterdeck_console.gpu_metrics import Metric
from quarterdeck_console.gpus import Device

AT_ONCE = 4
"""Questions to one host at a time."""

WIDEST, HEIGHT = 120, 8


@dataclass(frozen=True, slots=True)
class Past:
    """One gauge of one GPU; `series` is `None` where the host keeps none of it."""

    device: Device
    metric: Metric
    series: Series | None


def show_history(call: Call, since: datetime, names: Sequence[str], points: int | None) -> int:
    """Ask every host for these gauges of each of its GPUs, and show them."""
    metrics = [gpu_metrics.BY_NAME[name] for name in dict.fromkeys(names)]
    width = min(WIDEST, call.out.columns)
    wanted = points if call.out.json else 2 * width

    async def past(client: Client) -> list[Past]:
        return await _past(client, metrics, since, wanted)

    answers, errors = collect(call, call.hosts(), past)
    told = [(host, each) for host, found in answers for each in found]

    def human() -> None:
        if not told:
            call.out.note("no host has a GPU that NVML can see; qd doctor says what is missing")
        for host, each in told:
            _draw(call, host, each, since, width)

    items = [(host, _plain(each)) for host, each in told if each.series is not None]
    return show(call, "GpuSeriesList", items, errors, answered=len(answers), human=human)


async def _past(client: Client, metrics: Sequence[Metric], since: datetime, points: int | None) -> list[Past]:
    status = await client.status()
    room = asyncio.Semaphore(AT_ONCE)

    async def one(device: Device, metric: Metric) -> Past:
        async with room:
            try:
                return Past(device, metric, await client.series(metric.series, device.gpu.uuid, since, points))
            except NotFound:
                return Past(device, metric, None)

    wanted = [(device, metric) for device in gpus.devices(status) for metric in metrics]
    return list(await asyncio.gather(*(one(*each) for each in wanted)))


def _plain(each: Past) -> dict[str, object]:
    return {"gpu": each.device.label, "uuid": each.device.gpu.uuid, **plain(each.series)}


def _draw(call: Call, host: str, each: Past, since: datetime, width: int) -> None:
    """A chart with its title, and the highest and last values in words."""
    gpu, now = each.device.gpu, datetime.now(UTC)
    samples = gpu_metrics.drawn(each.series.samples, each.metric) if each.series is not None else []
    end = gpu_metrics.newest((sample.at for sample in samples[-1:]), now)
    span = views.span(round((end - since).total_seconds()))
    title = f"{each.metric.title} of {each.device.what} on {host}, last {span}"
    call.out.heading(f"{title}  {gpus.short_name(gpu.name)}")
    highest = gpu_metrics.highest(samples)
    if highest is None:
        call.out.line("nothing was measured")
        return
    known = [sample.value for sample in samples if sample.value is not None]
    unit = each.metric.unit
    call.out.line(f"lowest {unit(min(known))}, highest {unit(highest)}, last {unit(known[-1])}")
    for line in chart.draw(samples, since, end, (width, HEIGHT), each.metric.top(gpu), unit):
        call.out.line(line.rstrip())
