"""Whether two sides tell the same of a GPU, figure by figure, and the table of it. Pure.

What moves by itself is asked of us before and after nvidia-smi is: its figure agrees when it lies between ours, give or
take what rounding does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tests.gpu_smoke.figures import MHZ, MIB, Told, Value

SLACK = {
    "memory_total": MIB,
    "memory_used": 2 * MIB,
    "memory_free": 2 * MIB,
    "memory_reserved": 2 * MIB,
    "temperature": 2,
    "temperature_memory": 3,
    "power": 25,
    "power_limit": 0.01,
    "power_limit_max": 0.01,
    "clock_graphics": 60 * MHZ,
    "clock_memory": 60 * MHZ,
    "utilisation": 0.25,
    "utilisation_memory": 0.25,
    "utilisation_encoder": 0.25,
    "utilisation_decoder": 0.25,
    "fan": 0.05,
}
"""How far apart two readings may lie: what nvidia-smi rounds away, and what a busy GPU does between them."""

Verdict = Literal["ok", "differs", "only ours", "only nvidia-smi", "neither"]


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one GPU. Only `ok`, `only ours` and `neither` are well."""

    gpu: str
    figure: str
    ours: str
    theirs: str
    verdict: Verdict

    @property
    def well(self) -> bool:
        return self.verdict in ("ok", "only ours", "neither")


def compared(
    before: Mapping[str, Told],
    theirs: Mapping[str, Told],
    after: Mapping[str, Told],
    *,
    apart: bool = False,
) -> list[Row]:
    """All rows: which GPUs there are, then figure by figure, then process by process.

    `apart` tells that this is a container with pids of its own: NVML then lists those of the host, and nvidia-smi
    leaves out those that it does not find.
    """
    rows = []
    for uuid in [*before, *(uuid for uuid in theirs if uuid not in before)]:
        mine, other = before.get(uuid), theirs.get(uuid)
        name = (mine or other or Told(uuid, {})).name
        rows.append(Row(name, "uuid", uuid if mine else "–", uuid if other else "–", _there(mine, other)))
        if mine is not None and other is not None:
            rows += _figures(name, mine, other, after.get(uuid, mine))
            rows += _processes(name, mine, other, after.get(uuid, mine), apart=apart)
    return rows


def _there(mine: Told | None, other: Told | None) -> Verdict:
    return "ok" if mine and other else "differs"


def _figures(name: str, mine: Told, other: Told, later: Told) -> Iterator[Row]:
    for figure, value in mine.values.items():
        them = other.values.get(figure)
        verdict = verdict_of(figure, value, them, later.values.get(figure))
        yield Row(name, figure, shown(figure, value), shown(figure, them), verdict)


def verdict_of(figure: str, value: Value, them: Value, later: Value) -> Verdict:
    """How a figure of nvidia-smi's stands to ours before and after it."""
    if value is None and later is None:
        return "neither" if them is None else "only nvidia-smi"
    if them is None:
        return "only ours"
    if isinstance(them, float | int) and not isinstance(them, bool):
        numbers = [float(each) for each in (value, later) if isinstance(each, float | int)]
        slack = SLACK.get(figure, 0)
        close = bool(numbers) and min(numbers) - slack <= them <= max(numbers) + slack
        return "ok" if close else "differs"
    return "ok" if them in (value, later) else "differs"


def _processes(name: str, mine: Told, other: Told, later: Told, *, apart: bool) -> Iterator[Row]:
    if mine.processes is None or other.processes is None:
        return
    last = later.processes or {}
    for pid in sorted({*mine.processes, *other.processes}):
        figure, there = f"process {pid}", pid in other.processes
        if there and (pid in mine.processes or pid in last):
            value, them = mine.processes.get(pid), other.processes[pid]
            verdict = verdict_of("memory_used", value, them, last.get(pid))
            yield Row(name, figure, shown("memory_used", value), shown("memory_used", them), verdict)
        elif there:
            yield Row(name, figure, "–", "listed", "differs")
        elif pid in last:
            yield Row(name, figure, "listed", "–", "only ours" if apart else "differs")
        # One that ended between our first reading and nvidia-smi's says nothing about either.


def shown(figure: str, value: Value) -> str:
    """A value with its unit; a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    for prefix, unit, scale in UNITS:
        if figure.startswith(prefix):
            return f"{value / scale:,.6g} {unit}"
    return f"{value:g}"


UNITS = (
    ("memory_", "MiB", MIB),
    ("clock_", "MHz", MHZ),
    ("temperature", "°C", 1),
    ("power", "W", 1),
    ("utilisation", "%", 0.01),
    ("fan", "%", 0.01),
)


def table(rows: Sequence[Row]) -> str:
    """All rows as aligned text."""
    cells = [("GPU", "figure", "quarterdeck", "nvidia-smi", "")]
    cells += [(row.gpu, row.figure, row.ours, row.theirs, row.verdict) for row in rows]
    widths = [max(len(cell[column]) for cell in cells) for column in range(5)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(cell, widths, strict=True)).rstrip() for cell in cells]
    lines.insert(1, "  ".join("-" * width for width in widths).rstrip())
    return "\n".join(lines)
