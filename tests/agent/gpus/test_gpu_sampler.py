"""The loop that watches GPUs: what it publishes, what it remembers, and that nothing it waits for holds others up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from quarterdeck_agent.board import Board
from quarterdeck_agent.clock import SystemClock
from quarterdeck_agent.drivers.base import Found, Life
from quarterdeck_agent.drivers.cgroup import CgroupReader
from quarterdeck_agent.drivers.host import HostReader
from quarterdeck_agent.drivers.nvml_seen import NvmlProcess, NvmlSeen
from quarterdeck_agent.drivers.processes import HostProcess
from quarterdeck_agent.errors import NoSpace
from quarterdeck_agent.gpus.sampler import WRITE_EVERY, GpuSampler, GpuSources, Labels, Peaks, labelled
from quarterdeck_agent.protocol import Gpu, GpuFacts, GpuHealth, GpuUse, HostInfo, HostStatus, PartState
from quarterdeck_agent.sampler import Sampler, Sources

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
INFO = HostInfo("h", "i", "0.1", "os", "k", "x86_64", 2, 1 << 30, "b", START, "process", "http://x", "/d")
GIB = 1 << 30
MINE, OTHER = 100, 200


class HandClock:
    """A clock whose hands the test turns."""

    boot_id = "boot"

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> float:
        return self.seconds

    def wall(self) -> datetime:
        return START + timedelta(seconds=self.seconds - 1000)


def gpu(index: int = 0, **changes: Any) -> Gpu:
    whole = Gpu(index, f"GPU-{index}", "H100", memory_total=80 * GIB, memory_free=79 * GIB, memory_reserved=GIB)
    return replace(whole, **changes)


def seen(*processes: NvmlProcess, gpus: tuple[Gpu, ...] = (gpu(),), **changes: Any) -> NvmlSeen:
    facts = tuple(GpuFacts(one.uuid) for one in gpus)
    listed = {gpus[0].uuid: processes} if gpus else {}
    return replace(NvmlSeen(PartState.OK, "", "570", gpus, facts, listed), **changes)


@dataclass
class Nvml:
    """NVML that tells what the test says, at once or when the gate is opened."""

    told: NvmlSeen | Exception = field(default_factory=seen)
    gate: asyncio.Event | None = None
    reads: int = 0
    closed: bool = False

    async def read(self) -> NvmlSeen:
        self.reads += 1
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(self.told, Exception):
            raise self.told
        return self.told

    def close(self) -> None:
        self.closed = True


class People:
    """A process table with one process of the replica and one of somebody else."""

    asked: tuple[int, ...] = ()
    closed = False

    async def look(self, pids: Iterable[int]) -> Mapping[int, HostProcess]:
        self.asked = tuple(pids)
        mine = HostProcess(MINE, 7, "quarterdeck", "python", frozenset({(MINE, 7)}))
        other = HostProcess(OTHER, 9, "alice", "train", frozenset({(OTHER, 9)}))
        return {pid: one for pid, one in ((MINE, mine), (OTHER, other)) if pid in self.asked}

    def close(self) -> None:
        self.closed = True


def replica(name: str = "toy-1", body: str = "b", **changes: Any) -> Found:
    return replace(Found(name, "toy", 3, body, "v", f"{MINE}:7", Life.RUNNING, pids=(MINE,)), **changes)


@dataclass
class Bench:
    board: Board
    clock: HandClock
    nvml: Nvml
    people: People
    sampler: GpuSampler
    kept: list[tuple[str, str, int]]

    def passes(self, count: int = 1, seconds: float = 1.0) -> HostStatus:
        async def run() -> None:
            for _ in range(count):
                await self.sampler.sample()
                self.clock.seconds += seconds

        asyncio.run(run())
        return self.board.status()


def bench(
    *told: NvmlProcess,
    replicas: Sequence[Found] = (),
    judge: Any = None,
    labels: Labels | None = None,
    keep: Callable[[str, str, int], None] | None = None,
) -> Bench:
    board, clock, nvml, people = Board(INFO), HandClock(), Nvml(seen(*told)), People()
    kept: list[tuple[str, str, int]] = []
    write = keep or (lambda *what: kept.append(what))
    sources = GpuSources(nvml, people, lambda: replicas, write, judge, labels)
    return Bench(board, clock, nvml, people, GpuSampler(board, sources, clock), kept)


def test_one_reading_tells_whose_each_process_is_and_what_a_replica_holds() -> None:
    it = bench(NvmlProcess(MINE, 3 * GIB), NvmlProcess(OTHER, 5 * GIB, 0.5), replicas=[replica()])
    status = it.passes()
    (use,) = status.gpu_uses
    assert [(one.pid, one.user, one.command, one.replica, one.deployment, one.revision) for one in use.processes] == [
        (OTHER, "alice", "train", None, None, None),
        (MINE, "quarterdeck", "python", "toy-1", "toy", 3),
    ]
    assert it.sampler.memory() == {"toy-1": 3 * GIB}
    assert [one.uuid for one in status.gpus] == [one.uuid for one in status.gpu_facts] == ["GPU-0"]
    assert [(part.name, part.state, part.version) for part in status.parts] == [("nvml", PartState.OK, "570")]


@pytest.mark.parametrize(
    ("claims", "told", "holds"),
    [
        ((), {}, {}),
        (("GPU-0",), {"GPU-0": ()}, {"toy-1": 0}),
        (("GPU-0",), {}, {"toy-1": None}),
        (("GPU-0",), {"GPU-0": (NvmlProcess(MINE, None),)}, {"toy-1": None}),
        ((), {"GPU-0": (NvmlProcess(MINE, GIB),)}, {"toy-1": GIB}),
    ],
    ids=["no GPU of its own", "nothing yet", "not asked", "not told", "more than it asked for"],
)
def test_what_a_replica_holds_is_unknown_rather_than_wrong(
    claims: tuple[str, ...], told: dict[str, tuple[NvmlProcess, ...]], holds: dict[str, int | None]
) -> None:
    it = bench(replicas=[replica(gpus=claims)])
    it.nvml.told = seen(processes=told)
    it.passes()
    assert it.sampler.memory() == holds


def test_a_gpu_that_left_leaves_the_board_with_all_that_was_said_of_it() -> None:
    it = bench(NvmlProcess(MINE, GIB))
    it.passes()
    it.nvml.told = NvmlSeen(PartState.ABSENT, "no NVIDIA driver on this host")
    status = it.passes()
    assert (status.gpus, status.gpu_facts, status.gpu_uses) == ((), (), ())
    assert [part.state for part in status.parts] == [PartState.ABSENT]


def test_memory_without_an_owner_is_told_once_it_stays() -> None:
    it = bench()
    it.nvml.told = seen(gpus=(gpu(memory_free=60 * GIB),))
    told = [it.passes().gpu_uses[0].unexplained for _ in range(2)]
    it.nvml.told = seen(gpus=(gpu(memory_free=70 * GIB),))
    told += [it.passes().gpu_uses[0].unexplained for _ in range(2)]
    it.nvml.told = seen()
    told += [it.passes().gpu_uses[0].unexplained]
    assert told == [0, 0, 9 * GIB, 9 * GIB, 0]
    it.nvml.told = seen(gpus=(gpu(memory_free=None),))
    assert it.passes().gpu_uses[0].unexplained is None


def test_health_is_judged_with_every_reading_and_its_uses() -> None:
    judgements: list[tuple[NvmlSeen, Sequence[GpuUse]]] = []

    @dataclass
    class Verdict:
        gpus: tuple[Gpu, ...]
        facts: tuple[GpuFacts, ...]

    class Judge:
        async def judged(self, reading: NvmlSeen, uses: Sequence[GpuUse]) -> Verdict:
            judgements.append((reading, uses))
            sick = tuple(replace(one, health=GpuHealth.SICK, why="Xid 48") for one in reading.gpus)
            return Verdict(sick, tuple(replace(one, ecc_uncorrected=1) for one in reading.facts))

    it = bench(NvmlProcess(OTHER, GIB), judge=Judge(), labels={"0": ("big",)})
    status = it.passes()
    assert [(one.health, one.why) for one in status.gpus] == [(GpuHealth.SICK, "Xid 48")]
    assert [(one.ecc_uncorrected, one.labels) for one in status.gpu_facts] == [(1, ("big",))]
    ((reading, uses),) = judgements
    assert reading is it.nvml.told and tuple(uses) == status.gpu_uses


def test_labels_are_by_uuid_or_index_and_instances_have_those_of_their_gpu() -> None:
    whole, part = gpu(1, mig=True), gpu(0, uuid="MIG-0", parent="GPU-1")
    facts = [GpuFacts(one) for one in ("GPU-0", "GPU-1", "MIG-0", "GPU-9")]
    labels = {"0": ("first",), "GPU-1": ("big", "rack-2"), "MIG-0": ("small",), "1": ("big",)}
    found = labelled(facts, [gpu(), whole, part], labels)
    assert [one.labels for one in found] == [("first",), ("big", "rack-2"), ("big", "rack-2", "small"), ()]


def test_a_fault_of_ours_is_a_state_of_the_part_until_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    it = bench()
    it.passes()
    it.nvml.told = ValueError("a fault")
    parts = [it.passes().parts[0] for _ in range(3)]
    assert {part.state for part in parts} == {PartState.FAILED} and "a fault" in parts[0].detail
    assert caplog.text.count("Traceback") == 1
    it.nvml.told = seen()
    assert it.passes().parts[0].state is PartState.OK


# --- peaks -----------------------------------------------------------------------------------------------------


def grows(it: Bench, *sizes: float, seconds: float = 1.0) -> list[float]:
    """Readings in which the replica holds so many GiB; the GiB that were written."""
    for size in sizes:
        it.nvml.told = seen(NvmlProcess(MINE, int(size * GIB)))
        it.passes(seconds=seconds)
    return [size / GIB for _, _, size in it.kept]


def test_a_peak_is_written_once_it_stands_and_only_when_it_has_grown() -> None:
    it = bench(replicas=[replica()])
    assert grows(it, 1, 2, 3, 4) == []
    assert grows(it, 4, 4, 4) == [4] and it.kept[0][:2] == ("toy", "b")
    assert grows(it, 2, 4, 3, *[1] * 100) == [4]
    assert grows(it, 5, *[1] * 4) == [4, 5]


def test_a_peak_that_grows_all_the_time_is_written_once_a_minute() -> None:
    it = bench(replicas=[replica()])
    written = grows(it, *(1 + n / 100 for n in range(300)))
    assert len(written) == 4 and written == sorted(written)
    assert grows(it, *[1] * 70) == [*written, pytest.approx(3.99)]


def test_a_peak_is_that_of_one_replica_on_one_gpu() -> None:
    kept: list[tuple[str, str, int]] = []
    clock = HandClock()
    peaks = Peaks(lambda *what: kept.append(what), clock)
    peaks.see({"a": {"GPU-0": 3, "GPU-1": 4}, "b": {"GPU-0": 2}, "c": {"GPU-0": None}}, [replica(x) for x in "abc"])
    clock.seconds += 5
    asyncio.run(peaks.write())
    assert kept == [("toy", "b", 4)]


def test_a_peak_that_could_not_be_written_is_tried_again_later(caplog: pytest.LogCaptureFixture) -> None:
    tries: list[int] = []

    def full(deployment: str, body: str, size: int) -> None:
        tries.append(size)
        if len(tries) < 2:
            raise NoSpace("the disk is full")

    it = bench(replicas=[replica()], keep=full)
    grows(it, 2, *[1] * 30)
    assert tries == [2 * GIB] and "could not be written" in caplog.text
    assert it.board.status().parts[0].state is PartState.OK
    grows(it, *[1] * int(WRITE_EVERY))
    assert tries == [2 * GIB] * 2
    grows(it, *[1] * 100)
    assert len(tries) == 2


def test_what_is_due_is_written_when_the_agent_ends_also_for_a_replica_that_is_gone() -> None:
    replicas = [replica()]
    it = bench(replicas=replicas)

    async def run() -> None:
        it.nvml.told = seen(NvmlProcess(MINE, 2 * GIB))
        await it.sampler.sample()
        replicas.clear()
        await it.sampler.sample()
        task = asyncio.create_task(it.sampler.run())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    assert it.kept == [("toy", "b", 2 * GIB)] and it.nvml.closed and it.people.closed


# --- the loop --------------------------------------------------------------------------------------------------


def test_a_driver_that_is_not_there_is_asked_for_once_a_minute_and_one_that_has_gone_more_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    it = bench()
    it.nvml.told = absent = NvmlSeen(PartState.ABSENT, "no NVIDIA driver on this host")
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        it.clock.seconds += seconds
        if len(slept) in (2, 6):
            it.nvml.told = seen()
        if len(slept) == 4:
            it.nvml.told = absent
        if len(slept) == 7:
            raise asyncio.CancelledError

    monkeypatch.setattr("quarterdeck_agent.gpus.sampler.asyncio.sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(it.sampler.run())
    assert slept == [60, 60, 1, 1, 5, 5, 1] and it.nvml.reads == 7


class Gateway:
    async def stats(self) -> Mapping[str, Any]:
        return {}

    async def rotate_access_log(self, largest: int) -> bool:
        return largest < 0


def test_nvml_that_hangs_does_not_delay_the_other_gauges(tmp_path: Path) -> None:
    async def run() -> None:
        board, clock = Board(INFO), SystemClock()
        nvml = Nvml(gate=asyncio.Event())
        gpus = GpuSampler(board, GpuSources(nvml, People(), list, lambda *_: None), clock, interval=0.05)
        sources = Sources(HostReader(tmp_path, clock), CgroupReader(), Gateway(), list, gpus.memory)
        sampler = Sampler(board, sources, clock, interval=0.05)
        tasks = [asyncio.create_task(gpus.run()), asyncio.create_task(sampler.run())]

        def samples() -> int:
            kept = sampler.series("host.memory", "")
            return 0 if kept is None else len(kept.samples)

        async with asyncio.timeout(20):
            while samples() < 10:  # noqa: ASYNC110 - the loops under test have no event
                await asyncio.sleep(0.01)
        assert nvml.reads == 1 and not board.all("gpu")
        assert nvml.gate is not None
        nvml.gate.set()
        async with asyncio.timeout(20):
            while not board.all("gpu"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())


def test_eight_busy_gpus_cost_less_than_a_fifth_of_a_percent_of_a_core_beside_nvml_itself() -> None:
    gpus = tuple(gpu(n) for n in range(8))
    processes = {one.uuid: tuple(NvmlProcess(MINE + n, GIB) for n in range(4)) for one in gpus}
    it = bench(replicas=[replica(f"r{n}", handle=f"{MINE + n}:7") for n in range(16)])

    def reading(tick: int) -> NvmlSeen:
        return seen(gpus=tuple(replace(one, utilisation=tick % 7 / 7) for one in gpus), processes=processes)

    async def run() -> float:
        for tick in range(5):
            it.nvml.told = reading(tick)
            await it.sampler.sample()
        began = time.process_time()
        for tick in range(100):
            it.nvml.told = reading(tick)
            await it.sampler.sample()
        return (time.process_time() - began) / 100

    assert asyncio.run(run()) < 0.002
