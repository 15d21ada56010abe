"""Log lines for the tests of the logs screen, and the screen opened over a simulated fleet."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from quarterdeck_agent.protocol import LogLine
from quarterdeck_console.tui import messages as m
from quarterdeck_console.tui.messages import LogEntry, Target
from quarterdeck_console.tui.screens.logs import LogsScreen
from quarterdeck_console.tui.widgets.log import LogView
from tests.console.simulation import NOW, Simulation
from tests.console.tui.driving import Driver

EMBED = Target("gpu-a2", "embed")
CHAT = Target("gpu-a1", "llama-chat")

HOSTILE = "ERROR [/x] [@click=app.quit]press[/] [bold]\x1b[31mred\x1b]52;c;aGFja2Vk\x07\x9b2J\ttab\rback \u202eevil"
"""Markup, an action, colours, a clipboard sequence, C1, a carriage return and a bidirectional override."""


def at(second: float) -> datetime:
    return NOW - timedelta(minutes=10) + timedelta(seconds=second)


def entry(
    second: float, text: str, target: Target = EMBED, *, revision: int = 8, replica: str = "", **more: Any
) -> LogEntry:
    """One line, so many seconds after the first."""
    name = replica or f"{target.name}-{revision}-1"
    return LogEntry(target, LogLine(at(second), target.name, revision, name, "stdout", text, **more))


def numbered(count: int, target: Target = EMBED, first: int = 0) -> list[LogEntry]:
    return [entry(n, f"line {n}.", target) for n in range(first, first + count)]


def simulation(*entries: LogEntry) -> Simulation:
    return Simulation(log_entries=list(entries))


async def opened(driver: Driver, *targets: Target, revision: int | None = None) -> LogView:
    """The logs of these deployments, with the first lines on the screen."""
    driver.app.post_message(m.OpenLogs(targets or (EMBED,), revision))
    await driver.until(lambda: isinstance(driver.view, LogsScreen) and driver.view.is_mounted, "the logs are open")
    await driver.until(lambda: "asking" not in driver.text and "◌" not in driver.text, "lines have come")
    return driver.view.query_one(LogView)


def say(driver: Driver, *entries: LogEntry) -> None:
    """More lines on the stream."""
    for each in entries:
        driver.simulation.log_queue.put_nowait(each)


def wishes(driver: Driver) -> list[m.LogWish]:
    """What was asked of the hosts so far."""
    return [what for kind, what in driver.simulation.asked if kind == "logs"]


def body(driver: Driver) -> list[str]:
    """The lines of the log that are on the screen."""
    view = driver.view.query_one(LogView)
    region = view.region
    return [line[: region.width - 1].rstrip() for line in driver.text.splitlines()[region.y : region.bottom]]
