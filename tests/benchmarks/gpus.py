"""What GPUs cost an agent: CPU for sampling them once a second, and answers of the API while their driver hangs.

The GPUs are the fake library's: real calls of pynvml into real C, but no driver behind it, whose own time would come on
top. Every GPU is busy, so that its gauges are other ones in each sample, and holds the memory of a live process.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import quantiles

from tests.benchmarks.figures import Figure
from tests.benchmarks.hosts import cpu_seconds, memory
from tests.end_to_end.rig import Agent, until
from tests.nvml.fake import GIB, FakeGpu, FakeLink, FakeMig, FakeNvml, FakeProcess, Fault, Machine, bus_of

GPUS = 8
INSTANCES = 7
SECONDS = 60.0
SETTLE = 15.0
"""Seconds before anything is measured: what is asked once, or seldom, has been asked by then."""

HANG = 60.0
PACE = 0.005
CPU_BOUND = 0.5
CUT_BOUND = 1.0
"""Percent of a core; with MIG there are eight times as many devices."""

ANSWER_BOUND = 100.0
SEEN_BOUND = 15.0


def measure(folder: Path) -> Sequence[Figure]:
    """The CPU of three agents over the same minute; then one whose driver hangs for another."""
    with ExitStack() as ending:
        pids = ending.enter_context(_sleepers(GPUS * INSTANCES))
        machines = (Machine(loaded="absent"), _whole(pids), _cut(pids))
        hosts = [
            ending.enter_context(_host(folder / str(number), FakeNvml(folder / f"nvml{number}", machine)))
            for number, machine in enumerate(machines)
        ]
        for host, known in zip(hosts, (0, GPUS, GPUS * (1 + INSTANCES)), strict=True):
            _until_seen(host, known)
        time.sleep(SETTLE)
        figures = _cost(hosts)
    fake = FakeNvml(folder / "nvml", _whole([1] * GPUS))
    with _host(folder / "hanging", fake) as host:
        _until_seen(host, GPUS)
        return [*figures, *_hang(host, fake)]


def _cost(hosts: Sequence[Agent]) -> list[Figure]:
    before = [cpu_seconds(host.pid) for host in hosts]
    began = time.monotonic()
    time.sleep(SECONDS)
    elapsed = time.monotonic() - began
    used = [(cpu_seconds(host.pid) - was) / elapsed * 100 for host, was in zip(hosts, before, strict=True)]
    resident = [memory(host.pid) for host in hosts]
    against = f"an agent without a driver: {used[0]:.2f} %, {resident[0]:.0f} MiB"
    figures = []
    for name, bound, cpu, room in (
        (f"{GPUS} busy GPUs", CPU_BOUND, used[1], resident[1]),
        (f"{GPUS} busy GPUs of {INSTANCES} MIG instances", CUT_BOUND, used[2], resident[2]),
    ):
        cost = cpu - used[0]
        figures += [
            Figure(f"{name} at 1 Hz: CPU more", cost, "% of a core", at_most=bound, baseline=against),
            Figure(f"{name}: memory more", room - resident[0], "MiB", baseline=against),
        ]
    return figures


def _hang(host: Agent, fake: FakeNvml) -> list[Figure]:
    """GET /v1/status without a pause to speak of, before and while every call of NVML hangs."""
    well = _answers(host, 10.0)
    fake.write(fake.machine.failing(Fault(seconds=HANG)))
    began = time.monotonic()
    seen: list[float] = []
    hung = _answers(host, HANG, lambda: seen.append(time.monotonic() - began) if not seen and _told(host) else None)
    against = f"before the hang {_p99(well):.1f} ms"
    return [
        Figure(
            f"hung NVML ({HANG:g} s): GET /v1/status, p99 of {len(hung):,}",
            _p99(hung),
            "ms",
            at_most=ANSWER_BOUND,
            baseline=against,
            needs_quiet=True,
        ),
        Figure("hung NVML: the slowest answer", max(hung), "ms", baseline=f"before the hang {max(well):.1f} ms"),
        Figure("hung NVML: until it is told", seen[0] if seen else HANG, "s", at_most=SEEN_BOUND),
    ]


def _answers(host: Agent, seconds: float, between: object = None) -> list[float]:
    """Milliseconds of each answer."""
    took = []
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        began = time.perf_counter()
        status, _ = host.api("GET", "/v1/status")
        took.append((time.perf_counter() - began) * 1000)
        assert status == 200
        if callable(between):
            between()
        time.sleep(PACE)
    return took


def _until_seen(host: Agent, count: int) -> None:
    until(lambda: len(_status(host)["gpus"]) == count, f"{count} GPUs and instances are seen")


def _p99(values: Sequence[float]) -> float:
    return quantiles(values, n=100)[98]


def _told(host: Agent) -> bool:
    parts = {part["name"]: part["state"] for part in _status(host)["parts"]}
    return parts.get("nvml") == "unresponsive"


def _status(host: Agent) -> dict[str, list[dict[str, object]]]:
    _, answer = host.api("GET", "/v1/status")
    assert isinstance(answer, dict)
    return answer


# --- machines ------------------------------------------------------------------------------------------------------


def _whole(pids: Sequence[int]) -> Machine:
    """GPUs in a ring of NVLinks, each with a process."""
    busy = FakeGpu(utilisation_gpu=70, utilisation_memory=40, power=500_000, clock_graphics=1700, memory_used=60 * GIB)
    gpus = tuple(
        replace(
            busy,
            processes=(FakeProcess(pids[number], 59 * GIB, sm=60),),
            links=tuple(FakeLink(link, bus_of((number + 1) % GPUS)) for link in range(18)),
        )
        for number in range(GPUS)
    )
    return Machine(gpus=gpus, busy=True)


def _cut(pids: Sequence[int]) -> Machine:
    """The same GPUs, each cut into instances, each instance with a process."""

    def instances(number: int) -> tuple[FakeMig, ...]:
        own = pids[number * INSTANCES : (number + 1) * INSTANCES]
        return tuple(
            FakeMig(7 + place, processes=(FakeProcess(pid, 8 * GIB),), memory_used=8 * GIB)
            for place, pid in enumerate(own)
        )

    whole = _whole(pids)
    gpus = tuple(
        replace(gpu, migs=instances(number), processes=(), utilisation_gpu=None)
        for number, gpu in enumerate(whole.gpus)
    )
    return replace(whole, gpus=gpus)


@contextmanager
def _host(folder: Path, fake: FakeNvml) -> Iterator[Agent]:
    made = Agent(folder, variables=fake.env)
    try:
        yield made.start()
    finally:
        made.clear()


@contextmanager
def _sleepers(count: int) -> Iterator[list[int]]:
    """Processes to hold the memory."""
    processes = [
        subprocess.Popen([sys.executable, "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
        for _ in range(count)
    ]
    try:
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.communicate()
