"""Pure: the gauges of a GPU that can be looked at over time, and how their scales look."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from quarterdeck_agent.protocol import Gpu, Sample
from quarterdeck_console.gpus import GIB


@dataclass(frozen=True, slots=True)
class Metric:
    """One gauge of a GPU: the name of its series, and how its scale looks."""

    series: str
    title: str
    unit: Callable[[float], str]
    top: Callable[[Gpu], float | None]
    scale: float = 1.0


METRICS = (
    Metric("gpu.utilisation", "load", lambda value: f"{value * 100:.0f}%", lambda _: 1.0),
    Metric(
        "gpu.memory", "memory", lambda value: f"{value:.3g}G", lambda gpu: (gpu.memory_total or 0) / GIB or None,
        1 / GIB,
    ),
    Metric("gpu.temperature", "temperature", lambda value: f"{value:.0f}°", lambda _: 100.0),
    Metric("gpu.power", "power", lambda value: f"{value:.0f}W", lambda gpu: gpu.power_limit),
)  # fmt: skip

MORE_METRICS = (
    Metric("gpu.utilisation_memory", "memory load", lambda value: f"{value * 100:.0f}%", lambda _: 1.0),
    Metric("gpu.encoder", "encoder", lambda value: f"{value * 100:.0f}%", lambda _: 1.0),
    Metric("gpu.decoder", "decoder", lambda value: f"{value * 100:.0f}%", lambda _: 1.0),
    Metric("gpu.fan", "fan", lambda value: f"{value * 100:.0f}%", lambda _: 1.0),
    Metric("gpu.clock", "clock", lambda value: f"{value:.0f}M", lambda _: None, 1e-6),
    Metric("gpu.clock_memory", "memory clock", lambda value: f"{value:.0f}M", lambda _: None, 1e-6),
    Metric("gpu.pcie_sent", "PCIe sent", lambda value: f"{value:.3g}M", lambda _: None, 2.0**-20),
    Metric("gpu.pcie_received", "PCIe received", lambda value: f"{value:.3g}M", lambda _: None, 2.0**-20),
)
"""What is asked for less often. Clocks in megahertz, traffic in MiB a second."""

BY_NAME = {metric.series.removeprefix("gpu."): metric for metric in (*METRICS, *MORE_METRICS)}

SPANS = tuple(timedelta(minutes=minutes) for minutes in (5, 15, 60, 1440, 7 * 1440, 30 * 1440))
"""How far back a chart may look: the agent keeps an hour by the second, thirty days by the minute."""


def drawn(samples: Iterable[Sample], metric: Metric) -> list[Sample]:
    """The points of a gauge in the unit of its scale."""

    def scaled(value: float | None) -> float | None:
        return None if value is None else value * metric.scale

    return [Sample(each.at, scaled(each.value), scaled(each.max)) for each in samples]


def highest(samples: Iterable[Sample]) -> float | None:
    """The highest value there was, also within a longer step."""
    known = [each.max if each.max is not None else each.value for each in samples]
    return max((value for value in known if value is not None), default=None)


def newest(moments: Iterable[datetime], now: datetime) -> datetime:
    """Where a chart ends: now, or the newest point where the host's clock is ahead of ours."""
    return max((now, *moments))
