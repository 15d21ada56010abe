"""Eight hours of the terminal UI on a faster clock: whether its memory stays where it was.

The real app runs headless in a process of its own over a SIMULATED fleet of which every gauge changes once a
simulated second, with changes and versions coming in, a host lost and back each hour, and a person who visits every
screen. The fleet is a fortieth of the large one of `console`, so that eight hours pass in minutes;
`python -m tests.benchmarks.console_8h 500` takes the large one, and more than an hour of a core. Memory is looked at
once a simulated hour, always on the home screen.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.figures import Figure

if TYPE_CHECKING:
    from tests.console.simulation import Simulation
    from tests.console.tui.driving import Driver

ROOT = Path(__file__).parents[2]
HOSTS, GPUS, DEPLOYMENTS = 12, 8, 4
HOURS, HOUR = 8, 3600
WARM = 2
"""Hours until what is bounded is full: sparklines, logs, caches."""
KEPT = 200
"""Operations of each host at the start: as many as the console keeps."""
LINES = 20
"""Log lines a second while logs are followed, which is a quarter of each hour."""
PATIENCE = 900.0


def measure(_folder: Path) -> Sequence[Figure]:
    """Resident memory after each hour, as growth from the warm-up on."""
    path = os.pathsep.join(str(ROOT / part) for part in ("agent", "console", "."))
    ran = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.console_8h"], env={**os.environ, "PYTHONPATH": path}, cwd=ROOT,
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    if ran.returncode != 0:
        raise RuntimeError(f"the console ended with {ran.returncode}: {ran.stderr[-2000:]}")
    found: list[int] = json.loads(ran.stdout.splitlines()[-1])
    warm, last = found[WARM - 1], found[-1]
    size = f"{HOSTS} hosts × {GPUS} GPUs × {DEPLOYMENTS} deployments at 1 Hz, {HOURS} h of a faster clock"
    hourly = ", ".join(f"{each / 2**20:.1f}" for each in found)
    return [
        Figure("console, 8 h: memory against that after 2 h", last / warm, "×", at_most=1.05, note=size),
        Figure("console, 8 h: memory grown an hour", (last - warm) / 2**20 / (HOURS - WARM), "MiB/h",
               note=f"MiB at the end of each hour: {hourly}"),
    ]  # fmt: skip


# --- the measured process --------------------------------------------------------------------------------------------


async def _live(hours: int, hosts: int) -> list[int]:
    from quarterdeck_console.preferences import Preferences
    from quarterdeck_console.tui.garbage import look
    from tests.console.simulation import Simulation, large
    from tests.console.tui.driving import driven

    simulation = Simulation(large(hosts, GPUS, DEPLOYMENTS))
    found = []
    async with driven(simulation, size=(160, 50), preferences=Preferences(refresh=0.1)) as d:
        for number in range(hosts * KEPT):
            _change(simulation, number * 60 + 1, "old")
        for hour in range(hours):
            await _hour(d, hour)
            simulation.asked.clear()
            look()
            found.append(_resident())
            print(f"hour {hour + 1}: {found[-1] / 2**20:.1f} MiB", file=sys.stderr, flush=True)
    return found


async def _hour(d: Driver, hour: int) -> None:
    """A quarter at home, a quarter in logs, and the rest a few minutes on each other screen."""
    quarter, visit = HOUR // 4, HOUR // 30
    await _pass(d.simulation, hour, 0, quarter)
    d.simulation.lose("gpu-0003")
    await d.press("j", "j", "k", "s", "S", "/", "g", "p", "u", "escape", "l")
    await _pass(d.simulation, hour, quarter, 2 * quarter, LINES)
    await d.press("t", "w", "escape")
    d.simulation.snapshot("gpu-0003")
    at = 2 * quarter
    for keys in (
        ("d",), ("escape", "2"), ("3",), ("4",), ("1", "D"), ("escape", "R"), ("escape", "y"), ("escape", "J"),
        ("escape", "question_mark"), ("escape", "colon"), ("escape", "d", "l"), ("escape", "escape", "j", "d"),
    ):  # fmt: skip
        await d.press(*keys)
        await _pass(d.simulation, hour, at, at + visit)
        at += visit
    await d.press("escape", "escape", "1")
    await _pass(d.simulation, hour, at, HOUR)
    assert len(d.app.screen_stack) == 1, d.text


async def _pass(simulation: Simulation, hour: int, since: int, until: int, lines: int = 0) -> None:
    """These seconds of the hour, as fast as the console takes them."""
    from quarterdeck_console.tui.garbage import look

    for second in range(since, until):
        simulation.tick()
        if second % 60 == 0:
            _change(simulation, hour * HOUR + second)
        if second % 300 == 0:
            look()  # as the console does it by itself, and more often, where it has a terminal
        for number in range(lines):
            _log(simulation, f"INFO request {hour}-{second}-{number} took {second % 700 / 100:.2f} ms status=200")
        while simulation.events_queue.qsize() or simulation.log_queue.qsize() > 10 * lines:  # noqa: ASYNC110 - emptied
            await asyncio.sleep(0)


def _change(simulation: Simulation, number: int, kind: str = "op") -> None:
    """Somebody deploys: an operation without end of numbers, and each ten minutes a version."""
    from tests.console.simulation import operation, version

    host = f"gpu-{number // 60 % len(simulation.status):04d}"
    made = operation("deploy", f"model-{number % DEPLOYMENTS}", f"{kind}-{number}", at=simulation.at)
    simulation.delta(host, "operation", made.id, made)
    if number % 600 == 0:
        added = version(f"model-0:{number}", created_at=simulation.at)
        simulation.delta(host, "version", added.id, replace(added, id=f"{number:064x}"))
        simulation.delta(host, "version", f"{max(0, number - 6000):064x}", None)


def _log(simulation: Simulation, text: str) -> None:
    from quarterdeck_agent.protocol import LogLine
    from quarterdeck_console.tui.messages import LogEntry, Target

    at = simulation.at + timedelta(milliseconds=simulation.log_queue.qsize() % 1000)
    line = LogLine(at, "model-0", 1, "model-0-1-1", "stdout", text)
    simulation.log_queue.put_nowait(LogEntry(Target("gpu-0000", "model-0"), line))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_live(HOURS, int(sys.argv[1]) if sys.argv[1:] else HOSTS))))
