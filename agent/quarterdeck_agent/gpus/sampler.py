"""Watches the GPUs beside all other gauges: reads NVML, says whose each process is, has it judged, and publishes it.

A driver that hangs holds nobody up but this loop, and that within the reader's deadline. What replicas hold is
remembered: their peak goes to the store, seldom and only when it has grown.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from quarterdeck_agent.board import Board
from quarterdeck_agent.clock import Clock
from quarterdeck_agent.drivers.base import Found
from quarterdeck_agent.drivers.nvml_seen import NvmlSeen
from quarterdeck_agent.drivers.processes import HostProcess
from quarterdeck_agent.errors import AgentError
from quarterdeck_agent.gpus.attribution import attribute, held
from quarterdeck_agent.protocol import Gpu, GpuFacts, GpuUse, Part, PartState

log = logging.getLogger(__name__)

NAME = "nvml"

ABSENT_EVERY = 60.0
"""Where there is no NVML it is asked once a minute, in case a driver is installed."""

GONE_EVERY = 5.0
"""Where it has gone it is asked more often: most likely its driver is being loaded anew."""

STEADY = 3
"""Readings in a row that must show memory without an owner: memory and processes are not read at one moment, and a
process that ends leaves the list a little before its memory is free."""

SETTLED = 3.0
"""Seconds without growth after which a peak is written: a model that is being loaded grows in many steps."""

WRITE_EVERY = 60.0
"""Seconds between two writes of one peak, at least."""


class NvmlSource(Protocol):
    """NVML, as this loop needs it. `read` returns within a deadline of its own."""

    async def read(self) -> NvmlSeen: ...

    def close(self) -> None: ...


class ProcessSource(Protocol):
    """The host's process table. `look` returns within a deadline of its own."""

    async def look(self, pids: Iterable[int]) -> Mapping[int, HostProcess]: ...

    def close(self) -> None: ...


class Judged(Protocol):
    """A reading's GPUs with their health, and its facts with their Xids."""

    @property
    def gpus(self) -> tuple[Gpu, ...]: ...
    @property
    def facts(self) -> tuple[GpuFacts, ...]: ...


class Judge(Protocol):
    """Says how far each GPU can be trusted, once for every reading."""

    async def judged(self, seen: NvmlSeen, uses: Sequence[GpuUse]) -> Judged: ...


Labels = Mapping[str, tuple[str, ...]]
"""What the host's settings call its GPUs, by uuid or by index."""


@dataclass(frozen=True, slots=True)
class GpuSources:
    """Where it all comes from and goes to. `replicas` gives the last inventory and must not block.

    `keep` writes the peak of a deployment's body and may block. Without a `judge` health is as the driver tells it.
    """

    nvml: NvmlSource
    processes: ProcessSource
    replicas: Callable[[], Sequence[Found]]
    keep: Callable[[str, str, int], None]
    judge: Judge | None = None
    labels: Labels | None = None


class GpuSampler:
    """Reads every `interval` seconds until cancelled; `had_gpus` tells that this host had some before."""

    def __init__(
        self, board: Board, sources: GpuSources, clock: Clock, *, interval: float = 1.0, had_gpus: bool = False
    ) -> None:
        self._board, self._sources, self._clock, self._interval = board, sources, clock, interval
        self._peaks = Peaks(sources.keep, clock)
        self._lost: dict[str, deque[int | None]] = {}
        self._memory: dict[str, int | None] = {}
        self._failing: str | None = None
        self._was_there = had_gpus

    def memory(self) -> Mapping[str, int | None]:
        """Replica id → bytes on all its GPUs together, as last read. A replica without GPUs is not in it."""
        return self._memory

    async def run(self) -> None:
        """Read until cancelled; an agent that ends writes the peaks first."""
        next_at = self._clock.now()
        try:
            while True:
                state = await self.sample()
                next_at = max(next_at + self._pause(state), self._clock.now())
                await asyncio.sleep(max(0.0, next_at - self._clock.now()) or 0.001)
        finally:
            self._sources.nvml.close()
            self._sources.processes.close()
            self._peaks.close()

    def _pause(self, state: PartState | None) -> float:
        if state is PartState.ABSENT:
            return max(GONE_EVERY if self._was_there else ABSENT_EVERY, self._interval)
        self._was_there = True
        return self._interval

    async def sample(self) -> PartState | None:
        """One reading: how NVML is, `None` where the reading failed by a fault of ours."""
        try:
            seen = await self._sources.nvml.read()
            await self._take(seen)
        except Exception as error:
            said = repr(error)
            if said != self._failing:
                log.exception("no gauges from the GPUs")
                self._failing = said
            # What stands on the board is old: nobody should build on it.
            self._tell(NvmlSeen(PartState.FAILED, f"the agent failed to read the GPUs ({said}); see its log"))
            return None
        await self._peaks.write()
        if self._failing is not None:
            log.info("gauges from the GPUs again")
            self._failing = None
        return seen.state

    # --- one reading -------------------------------------------------------------------------------------------

    async def _take(self, seen: NvmlSeen) -> None:
        people = await self._sources.processes.look(one.pid for listed in seen.processes.values() for one in listed)
        replicas = self._sources.replicas()
        uses = self._steady(attribute(seen.processes, people, replicas, seen.gpus))
        gpus, facts = seen.gpus, seen.facts
        if self._sources.judge is not None:
            judged = await self._sources.judge.judged(seen, uses)
            gpus, facts = judged.gpus, judged.facts
        self._publish(seen, gpus, labelled(facts, gpus, self._sources.labels or {}), uses)
        holding = held(uses)
        self._memory = _memory(holding, replicas, uses)
        self._peaks.see(holding, replicas)

    def _steady(self, uses: tuple[GpuUse, ...]) -> tuple[GpuUse, ...]:
        """Memory without an owner as far as it has been without one for some readings in a row."""
        self._lost = {use.uuid: self._lost.get(use.uuid, deque(maxlen=STEADY)) for use in uses}
        steady = []
        for use in uses:
            last = self._lost[use.uuid]
            last.append(use.unexplained)
            known = [size for size in last if size is not None]
            if use.unexplained is not None:
                use = replace(use, unexplained=min(known) if len(known) == STEADY else 0)
            steady.append(use)
        return tuple(steady)

    def _publish(self, seen: NvmlSeen, gpus: Sequence[Gpu], facts: Sequence[GpuFacts], uses: Sequence[GpuUse]) -> None:
        self._tell(seen)
        # Whose memory it is first: who sees a GPU's new gauges may look up who holds them.
        self._board.publish_all("gpu_use", {use.uuid: use for use in uses})
        self._board.publish_all("gpu_facts", {fact.uuid: fact for fact in facts})
        self._board.publish_all("gpu", {gpu.uuid: gpu for gpu in gpus})

    def _tell(self, seen: NvmlSeen) -> None:
        before = self._board.get("part", NAME)
        same = isinstance(before, Part) and before.state == seen.state
        since = before.since if isinstance(before, Part) and same else self._clock.wall()
        self._board.publish("part", NAME, Part(NAME, seen.state, since, seen.version, seen.detail))


def labelled(facts: Iterable[GpuFacts], gpus: Iterable[Gpu], labels: Labels) -> tuple[GpuFacts, ...]:
    """The facts with the labels that the settings give each GPU; a MIG instance has those of its GPU too."""
    if not labels:
        return tuple(facts)
    known = {gpu.uuid: gpu for gpu in gpus}

    def of(uuid: str) -> set[str]:
        gpu, own = known.get(uuid), set(labels.get(uuid, ()))
        if gpu is None:
            return own
        return own | (of(gpu.parent) if gpu.parent is not None else set(labels.get(str(gpu.index), ())))

    return tuple(replace(fact, labels=tuple(sorted({*fact.labels, *of(fact.uuid)}))) for fact in facts)


def _memory(
    holding: Mapping[str, Mapping[str, int | None]], replicas: Iterable[Found], uses: Sequence[GpuUse]
) -> dict[str, int | None]:
    """What each replica holds in all. One with GPUs of its own on which it is not seen holds 0, if all were asked."""
    asked = {use.uuid for use in uses}
    found: dict[str, int | None] = {}
    for replica in replicas:
        there = holding.get(replica.id)
        if there is None and not replica.gpus:
            continue
        sizes = list((there or {}).values())
        known = [size for size in sizes if size is not None]
        found[replica.id] = sum(known) if len(known) == len(sizes) and asked.issuperset(replica.gpus) else None
    return found


# --- peaks -----------------------------------------------------------------------------------------------------

Body = tuple[str, str]
"""Deployment and body."""


@dataclass(slots=True)
class _Peak:
    """The most that was seen, and since when it is due to be written; `written` is when that was done last."""

    size: int
    grown: float
    due: float | None
    written: float | None = None

    def ripe(self, now: float) -> bool:
        if self.due is None or (self.written is not None and now - self.written < WRITE_EVERY):
            return False
        return now - self.grown >= SETTLED or now - self.due >= WRITE_EVERY


class Peaks:
    """The most bytes that one replica of each body was seen to hold on one GPU."""

    def __init__(self, keep: Callable[[str, str, int], None], clock: Clock) -> None:
        self._keep, self._clock = keep, clock
        self._peaks: dict[Body, _Peak] = {}

    def see(self, holding: Mapping[str, Mapping[str, int | None]], replicas: Iterable[Found]) -> None:
        """Take in what replicas hold now, by their ids and the GPUs' uuids."""
        now, bodies = self._clock.now(), set[Body]()
        for found in replicas:
            body = found.deployment, found.body
            bodies.add(body)
            most = max((size for size in holding.get(found.id, {}).values() if size is not None), default=0)
            peak = self._peaks.get(body)
            if peak is None and most:
                self._peaks[body] = _Peak(most, now, now)
            elif peak is not None and most > peak.size:
                peak.size, peak.grown = most, now
                peak.due = now if peak.due is None else peak.due
        self._peaks = {body: peak for body, peak in self._peaks.items() if body in bodies or peak.due is not None}

    async def write(self) -> None:
        """Have what is ripe written; what cannot be written stays due."""
        now = self._clock.now()
        for (deployment, body), peak in list(self._peaks.items()):
            if peak.ripe(now):
                size, peak.written = peak.size, now
                if await asyncio.to_thread(self._kept, deployment, body, size):
                    peak.due = None if peak.size == size else now

    def close(self) -> None:
        """Write what is due, in the caller's thread: the agent ends."""
        for (deployment, body), peak in self._peaks.items():
            if peak.due is not None:
                self._kept(deployment, body, peak.size)

    def _kept(self, deployment: str, body: str, size: int) -> bool:
        try:
            self._keep(deployment, body, size)
        except AgentError as error:
            log.warning("the peak of GPU memory of %s could not be written: %s", deployment, error.detail)
            return False
        return True
