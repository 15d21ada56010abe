"""Draws the console's pictures: the real app over the SIMULATED fleet, with a frozen clock, as SVG.

Run `make screenshots`. Nothing in a picture is drawn by hand, and the same sources make the same pictures.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from textual.widgets import Input

from quarterdeck_agent.protocol import LogLine
from quarterdeck_console.preferences import Preferences
from quarterdeck_console.tui.messages import LogEntry, Target
from tests.console.simulation import Simulation
from tests.console.tui.driving import Driver, driven

FOLDER = Path(__file__).parents[3] / "screenshots"


@dataclass(frozen=True)
class Scene:
    """One picture: the keys that lead to it, and a text that is there when it is ready to be taken."""

    name: str
    keys: tuple[str, ...] = ()
    ready: str = ""
    size: tuple[int, int] = (120, 32)
    theme: str | None = None
    lost: str = ""


SCENES = (
    Scene("fleet", ("j", "j"), "refused: golden request 2 of 5", lost="gpu-b1"),
    Scene("fleet-light", ("j", "j"), "refused", theme="quarterdeck-light", lost="gpu-b1"),
    Scene("fleet-80x24", ("j",), "hold", size=(80, 24), lost="gpu-b1"),
    Scene("fleet-200x60", ("j", "j"), "refused", size=(200, 60), lost="gpu-b1"),
    Scene("deploy", ("j", "D"), "y deploy", size=(120, 36)),
    Scene("rollback", ("j", "j", "R"), "y roll back"),
    Scene("palette", ("colon", *"roll"), "rollback"),
    Scene("help", ("question_mark",), "Roll back", size=(120, 40)),
    Scene("deployment", ("j", "j", "d"), "embed on gpu-a2", size=(120, 40)),
    Scene("logs", ("j", "j", "space", "space", "l", "t"), "served 24 of 24"),
    Scene("versions", ("2",), "Versions"),
    Scene("operations", ("3",), "Operations"),
    Scene("gpus", ("4",), "unmanaged pid 4711", size=(120, 40)),
    Scene("gpus-80x24", ("4", *"jjjjj", "v"), "reboot the host", size=(80, 24)),
    Scene("gpus-200x60", ("4",), "power of GPU 0", size=(200, 60)),
)


async def take(scene: Scene) -> str:
    """The picture of one scene as SVG."""
    simulation = Simulation()
    simulation.log_entries = said(simulation.at)
    async with driven(simulation, size=scene.size, preferences=Preferences(scene.theme, refresh=0.5)) as d:
        await _let_time_pass(d)
        if scene.lost:
            simulation.lose(scene.lost, "connection refused")
            await d.shows("○ 1 lost")
            simulation.at = simulation.at.replace(minute=simulation.at.minute + 2)
        await d.press(*scene.keys)
        if scene.ready:
            await d.shows(scene.ready)
        await d.until(lambda: d.app.session.fleet is d.view.fleet, "the newest is shown")
        for line in d.app.screen.query(Input):
            line.cursor_blink = False  # a busy machine would take the picture at another phase
        await d.pilot.pause(0.7)
        return d.app.export_screenshot(title="Quarterdeck, a simulated fleet")


def said(at: datetime) -> list[LogEntry]:
    """What two SIMULATED models said over half a minute."""
    embed, whisper = Target("gpu-a2", "embed"), Target("gpu-a2", "whisper")
    texts = (
        (whisper, 2, "stderr", "WARNING utterance of 31.2 s is longer than 30 s: cut"),
        (embed, 8, "stdout", "batch of 16 in 9 ms"),
        (embed, 8, "stdout", "batch of 12 in 8 ms"),
        (whisper, 2, "stdout", "transcribed 4.1 s of speech in 0.62 s"),
        (embed, 9, "stderr", "WARNING tokenizer.json differs from training"),
        (embed, 9, "stdout", "ready after 4.4 s: python, cuda:0, threads 4"),
        (embed, 9, "stdout", "served golden request 2"),
        (embed, 8, "stdout", "batch of 16 in 9 ms"),
        (whisper, 2, "stderr", "ERROR CUDA error: the launch timed out and was terminated"),
        (whisper, 2, "stderr", "exiting with code 1"),
        (embed, 8, "stdout", "batch of 16 in 10 ms"),
        (whisper, 2, "stdout", "whisper:3 is ready after 11.8 s: python, cuda:1, threads 4"),
        (embed, 8, "stdout", "served 24 of 24 requests of the last second"),
    )
    entries = []
    for second, (target, revision, stream, text) in enumerate(texts):
        moment = at - timedelta(seconds=2.3 * (len(texts) - second))
        replica = f"{target.name}-{revision}-0"
        line = LogLine(moment, target.name, revision, replica, stream, text)  # type: ignore[arg-type]
        entries.append(LogEntry(target, line))
    return entries


async def _let_time_pass(d: Driver) -> None:
    """A minute of figures, so that there is something to draw a line through; then the sketch's own."""
    for _ in range(30):
        d.simulation.tick()
    for host in d.simulation.status:
        d.simulation.snapshot(host)
    await d.until(d.simulation.events_queue.empty, "all has been taken")


def main() -> None:
    """Take all of them, or those named."""
    os.environ["TZ"] = "UTC"
    time.tzset()
    FOLDER.mkdir(exist_ok=True)
    wanted = sys.argv[1:]
    for scene in SCENES:
        if not wanted or scene.name in wanted:
            (FOLDER / f"{scene.name}.svg").write_text(asyncio.run(take(scene)), encoding="utf-8")
            print(f"screenshots/{scene.name}.svg")


if __name__ == "__main__":
    main()
