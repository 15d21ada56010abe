"""Every gauge over time, whatever the span: the last hour as it was sampled, and beyond that minutes from the history.

It picks where an answer comes from and thins it to what was asked for; means stay means and maxima maxima.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

from quarterdeck_agent.clock import Clock
from quarterdeck_agent.history import Minutes
from quarterdeck_agent.historyfile import Point, merged
from quarterdeck_agent.protocol import Sample, Series, SeriesName
from quarterdeck_agent.series import LENGTH, UNITS, History, Key

MINUTE = 60.0
POINTS = 1_000
"""So many samples at most are told of a span beyond the hour, unless another number is asked for."""

Measured = tuple[float, float, float]
"""Seconds since 1970, mean, maximum."""


class Gauges:
    """What the sampler adds to and the API reads from. Without `minutes` only the hour in memory is kept."""

    def __init__(self, clock: Clock, minutes: Minutes | None = None, *, hour: History | None = None) -> None:
        self.hour = hour or History()
        self.minutes = minutes
        self._clock = clock

    def add(self, at: datetime, values: Mapping[Key, float | None]) -> None:
        """One tick: what every series by (name, key) was at `at`. Never waits."""
        self.hour.add(at, values)
        if self.minutes is not None:
            self.minutes.add(at, values)

    def close(self) -> None:
        """Write what is not written yet. Blocks, but not for long."""
        if self.minutes is not None:
            self.minutes.close()

    async def names(self) -> tuple[SeriesName, ...]:
        """Every series that there is, in a steady order."""
        known = self.hour.names()
        if self.minutes is not None:
            known |= await asyncio.to_thread(self.minutes.names)
        return tuple(SeriesName(name, key, UNITS.get(name, "")) for name, key in sorted(known))

    async def series(
        self,
        name: str,
        key: str,
        since: datetime | None = None,
        *,
        step: float | None = None,
        points: int | None = None,
    ) -> Series | None:
        """One series after `since` (an hour ago), `None` where there is none of that name and key.

        Samples are `step` seconds apart, or as much further as it takes to have no more than `points` (at least 2).
        Without either, an hour comes as it was sampled.
        """
        hour = self.hour.series(name, key, since)
        if self.minutes is None or (hour is not None and not self._older(since)):
            return hour and self._thinned(hour, step, points)
        longer = await self._minutes(self.minutes, (name, key), since)
        if hour is not None and not (longer and self._older(datetime.fromtimestamp(min(longer) * MINUTE, UTC))):
            return self._thinned(hour, step, points)  # the history reaches back no further
        if longer is None:
            return None
        measured = [(number * MINUTE, *point) for number, point in longer.items()]
        return await asyncio.to_thread(self._sampled, (name, key), measured, MINUTE, step, points or POINTS)

    def _older(self, moment: datetime | None) -> bool:
        """Whether the hour in memory does not reach back to `moment`."""
        began = self.hour.began
        return moment is not None and (began is None or moment < began - timedelta(seconds=MINUTE))

    async def _minutes(self, minutes: Minutes, key: Key, since: datetime | None) -> dict[int, Point] | None:
        now = self._clock.wall()
        earliest = now - timedelta(days=minutes.days)
        begin = now - timedelta(hours=1) if since is None else max(since, earliest)
        first, last = math.ceil(begin.timestamp() / MINUTE), int(now.timestamp() // MINUTE)
        recent = {number: point for number, point in minutes.recent(key).items() if first <= number <= last}
        written = await asyncio.to_thread(minutes.read, key, first, last)
        if written is None:
            return recent or None
        # A restart may have parted a minute: its first part is written, its second is not yet.
        return written | {n: merged(written[n], point) if n in written else point for n, point in recent.items()}

    def _thinned(self, hour: Series, step: float | None, points: int | None) -> Series:
        """`hour` in steps as they are asked for, or as it is where nothing is."""
        if (step is None or step <= hour.step) and (points is None or len(hour.samples) <= points):
            return hour
        measured = [(s.at.timestamp(), s.value, s.value) for s in hour.samples if s.value is not None]
        return self._sampled((hour.name, hour.key), measured, hour.step, step, points or LENGTH)

    def _sampled(self, key: Key, measured: list[Measured], base: float, step: float | None, points: int) -> Series:
        now = self._clock.wall().timestamp()
        times = [at for at, _, _ in measured]
        until = max([now, *times])
        chosen = chosen_step(until - min(times, default=until), base, step or base, points)
        return Series(*key, UNITS.get(key[0], ""), sampled(measured, chosen, until), chosen)


def chosen_step(span: float, base: float, step: float, points: int) -> float:
    """The least multiple of `base` that is no less than `step` and cuts `span` into no more than `points` samples.

    Steps begin at multiples of themselves, so a span touches one more of them than its length says: `points` >= 2.
    """
    return max(math.ceil(step / base), math.ceil(span / (points - 1) / base)) * base


def sampled(measured: Iterable[Measured], step: float, until: float) -> tuple[Sample, ...]:
    """Samples `step` seconds apart from the first measurement up to `until`; a step without a measurement is a gap.

    Each tells the mean of the means in its step and the largest maximum.
    """
    steps: dict[float, list[tuple[float, float]]] = {}
    for at, mean, peak in measured:
        steps.setdefault(at // step, []).append((mean, peak))
    if not steps:
        return ()
    samples = []
    for place in range(int(min(steps)), int(until // step) + 1):
        begin, found = datetime.fromtimestamp(place * step, UTC), steps.get(place)
        if found:
            mean, peak = sum(mean for mean, _ in found) / len(found), max(peak for _, peak in found)
            samples.append(Sample(begin, mean, peak))
        else:
            samples.append(Sample(begin, None))
    return tuple(samples)
