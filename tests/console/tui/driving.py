"""Driving the real app over the simulated fleet: press keys, wait for what should be on the screen, read it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from textual import events
from textual.pilot import Pilot

from quarterdeck_console.config import Fleet
from quarterdeck_console.preferences import Preferences
from quarterdeck_console.tui.app import Quarterdeck
from quarterdeck_console.tui.context import Context
from quarterdeck_console.tui.view import View
from tests.console.simulation import Simulation, fleet_file

S = TypeVar("S")


@dataclass
class Driver:
    """The app as a person at a keyboard has it."""

    app: Quarterdeck
    pilot: Pilot[int]
    simulation: Simulation

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def burst(self, keys: Iterable[str]) -> None:
        """Keys as a terminal hands them over that were typed ahead, pasted, or repeated: all at once."""
        for key in keys:
            self.app.post_message(events.Key(key, {"colon": ":", "slash": "/", "space": " "}.get(key)))
        await self.pilot.pause()

    async def until(self, condition: Callable[[], Any], what: str, seconds: float = 10.0) -> Any:
        """Wait until this is so; the screen is shown when it never is."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, f"not within {seconds:g} s: {what}\n{self.text}"
            await self.pilot.pause(0.01)
        return value

    async def shows(self, text: str) -> None:
        await self.until(lambda: text in self.text, f"{text!r} is on the screen")

    async def type(self, text: str) -> None:
        await self.press(*text)

    @property
    def text(self) -> str:
        """What is on the screen, as text."""
        lines = self.app.screen._compositor.render_strips()
        return "\n".join(line.text.rstrip() for line in lines)

    def line_with(self, text: str) -> str:
        """The line of the screen in which this stands."""
        return next((line for line in self.text.splitlines() if text in line), "")

    @property
    def view(self) -> View:
        found = self.app.view
        assert found is not None
        return found


def _heard(driver: Driver) -> bool:
    """Whether everything that the simulation says at first is on the screen."""
    seen = driver.view.fleet.hosts
    return bool(seen) and all(seen[name].status is not None for name in driver.simulation.status if name in seen)


@contextlib.asynccontextmanager
async def driven(
    simulation: Simulation | None = None,
    *,
    size: tuple[int, int] = (120, 32),
    read_only: bool = False,
    fleet: Fleet | None = None,
    preferences: Preferences | None = None,
    ready: bool = True,
) -> AsyncGenerator[Driver, None]:
    """The app over a simulated fleet, with its figures on the screen when `ready`."""
    simulation = simulation or Simulation()
    known = fleet or fleet_file(simulation.status)
    context = Context(known, read_only=read_only or known.read_only, now=simulation.now)
    app = Quarterdeck(context, lambda: simulation, preferences or Preferences(refresh=0.5))
    async with app.run_test(size=size) as pilot:
        driver = Driver(app, pilot, simulation)
        if ready:
            await driver.until(lambda: _heard(driver), "the fleet has come")
        yield driver


def drive(story: Callable[[Driver], Any], **options: Any) -> None:
    """Run one story: `drive(story, size=(80, 24))`."""

    async def run() -> None:
        async with driven(**options) as driver:
            await story(driver)

    asyncio.run(run())
