"""Replicas with GPUs are asked from inside now and then, twice before it is believed, and beside everything else."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from quarterdeck_agent.drivers.base import Found, Life
from quarterdeck_agent.gpus.probe import GpuProbe


def found(name: str, gpus: tuple[str, ...] = ("GPU-a",), life: Life = Life.RUNNING) -> Found:
    return Found(name, "m", 1, "body", "v", f"{name}:1", life, gpus=gpus, cgroups={"unified": Path("/x")})


class Bench:
    """A probe over replicas; `says` are the answers from inside in their order, the last one for ever."""

    def __init__(self, *replicas: Found, says: tuple[str, ...] = ("",)) -> None:
        self.replicas, self.says, self.asked = replicas, list(says), list[str]()
        self.told: list[tuple[str, str]] = []

    def look(self, replica: Found) -> str:
        self.asked.append(replica.id)
        return self.says.pop(0) if len(self.says) > 1 else self.says[0]

    async def until(self, count: int) -> None:
        """Run until `count` answers were told."""
        enough = asyncio.Event()

        def tell(replica: Found, why: str) -> None:
            self.told.append((replica.id, why))
            if len(self.told) >= count:
                enough.set()

        probe = GpuProbe(self.look, lambda: self.replicas, tell, interval=0.01, sure_after=0.0)
        task = asyncio.create_task(probe.run())
        async with asyncio.timeout(10):
            await enough.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_only_running_replicas_with_gpus_are_asked() -> None:
    bench = Bench(found("a"), found("b", gpus=()), found("c", life=Life.EXITED))
    asyncio.run(bench.until(3))
    assert set(bench.asked) == {"a"}
    assert set(bench.told) == {("a", "")}


def test_a_loss_is_told_once_it_was_seen_twice() -> None:
    bench = Bench(found("a"), says=("Unknown Error", "", "Unknown Error", "Unknown Error", ""))
    asyncio.run(bench.until(3))
    assert bench.told[:3] == [("a", ""), ("a", "Unknown Error"), ("a", "")]


def test_a_look_that_hangs_keeps_the_loop_free() -> None:
    release = threading.Event()
    bench = Bench(found("a"))
    bench.look = lambda replica: "" if release.wait(10) else "never"  # type: ignore[method-assign]

    async def whole() -> None:
        waiting = asyncio.create_task(bench.until(1))
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert bench.told == []
        release.set()
        await waiting

    asyncio.run(whole())
    assert bench.told == [("a", "")]


def test_a_fault_in_a_look_ends_neither_the_probe_nor_the_replica() -> None:
    bench = Bench(found("a"))
    answers = iter([OSError("boom")])

    def look(replica: Found) -> str:
        fault = next(answers, None)
        if fault is not None:
            raise fault
        return ""

    bench.look = look  # type: ignore[method-assign]
    asyncio.run(bench.until(3))
    assert bench.told == [("a", "")] * 3
