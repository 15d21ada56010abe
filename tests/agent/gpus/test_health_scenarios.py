"""From a driver that reports trouble to what everybody sees and what the planner does, on the fake NVML."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from quarterdeck_agent.board import Board
from quarterdeck_agent.clock import SystemClock
from quarterdeck_agent.drivers.processes import HostProcess
from quarterdeck_agent.gpus.records import GpuRecords
from quarterdeck_agent.gpus.sampler import GpuSampler, GpuSources
from quarterdeck_agent.gpus.trust import Trust
from quarterdeck_agent.gpus.xids import load_xids
from quarterdeck_agent.protocol import ChangeRequest, Gpu, GpuFacts, GpuHealth
from quarterdeck_agent.seen import Seen
from quarterdeck_agent.store import Store
from tests.agent.gpus import nvml_host
from tests.agent.gpus.test_gpu_sampler import INFO
from tests.agent.plan.test_moves import GpuWorld, serving
from tests.agent.plan.world import deploying, revision
from tests.nvml.fake import GIB, GPU_IS_LOST, FakeEvent, FakeGpu, FakeNvml, FakeProcess, Fault, Machine, uuid_of

THERMAL, POWER_CAP = 0x40, 0x4
TWO = Machine(gpus=(FakeGpu(), FakeGpu()))


class Nobody:
    """A process table without anybody in it."""

    async def look(self, pids: Iterable[int]) -> Mapping[int, HostProcess]:
        return {}

    def close(self) -> None:
        return


@dataclass
class Scene:
    """A host with a fake driver, and the loop that watches its GPUs."""

    host: nvml_host.Host
    store: Store
    board: Board
    sampler: GpuSampler

    def write(self, machine: Machine) -> None:
        self.host.write(machine)

    def passes(self, count: int = 1) -> None:
        """So many samples, a second apart."""

        async def run() -> None:
            for _ in range(count):
                self.host.clock.at += 1
                await self.sampler.sample()

        asyncio.run(run())

    def until(self, there: Callable[[], object], within: float = 20.0) -> None:
        """Sample until it is so: events of the driver come by a thread of their own."""
        deadline = time.monotonic() + within
        while True:
            self.passes()
            if there():
                return
            assert time.monotonic() < deadline, [(gpu.health, gpu.why) for gpu in self.gpus()]
            time.sleep(0.005)

    def gpus(self) -> list[Gpu]:
        return sorted(self.board.all("gpu").values(), key=lambda gpu: gpu.index)

    def facts(self, index: int = 0) -> GpuFacts:
        found = self.board.get("gpu_facts", uuid_of(index))
        assert isinstance(found, GpuFacts)
        return found

    def health(self, index: int = 0) -> GpuHealth:
        return self.gpus()[index].health


@pytest.fixture
def scene(fake_nvml: FakeNvml, tmp_path: Path) -> Iterator[Scene]:
    with nvml_host.host(fake_nvml, TWO) as host:
        store = Store.open(tmp_path / "store.sqlite", tmp_path / "backups", SystemClock())  # events have the real time
        board = Board(INFO)
        records = GpuRecords(store, load_xids(), host.clock, lambda: "module")
        sources = GpuSources(host.reader, Nobody(), lambda: (), lambda *_: None, records)
        yield Scene(host, store, board, GpuSampler(board, sources, host.clock))
        store.close()


def test_all_is_well_with_gpus_that_say_nothing_bad(scene: Scene) -> None:
    scene.passes(5)
    assert [(gpu.health, gpu.why) for gpu in scene.gpus()] == [(GpuHealth.OK, "")] * 2


def test_an_xid_makes_a_gpu_sick_until_somebody_trusts_it(scene: Scene) -> None:
    scene.passes()
    scene.write(TWO.changed(0, events=(FakeEvent(1, 95),)))
    scene.until(lambda: scene.health() is GpuHealth.SICK)
    assert scene.gpus()[0].why.startswith("Xid 95 at ")
    assert [xid.code for xid in scene.facts().xids] == [95]
    assert scene.health(1) is GpuHealth.OK
    trust = Trust(scene.store, lambda: tuple(scene.gpus()), lambda: (scene.facts(),), lambda: None)
    trust.trust(uuid_of(0), ChangeRequest("reset"), "ada", "op-1")
    scene.until(lambda: scene.health() is GpuHealth.OK)
    assert scene.facts().xids == ()


def test_a_program_that_makes_mistakes_is_listed_and_the_gpu_is_well(scene: Scene) -> None:
    scene.passes()
    scene.write(TWO.changed(1, events=(FakeEvent(1, 31), FakeEvent(2, 43))))
    scene.until(lambda: len(scene.facts(1).xids) == 2)
    assert scene.health(1) is GpuHealth.OK


def test_a_row_that_waits_to_be_remapped_degrades_a_gpu_and_one_that_cannot_be_makes_it_sick(scene: Scene) -> None:
    scene.write(TWO.changed(0, remap_pending=1))
    scene.until(lambda: scene.health() is GpuHealth.DEGRADED)
    assert "reset the GPU when nothing runs on it" in scene.gpus()[0].why
    scene.write(TWO.changed(0, remap_pending=0, remap_failed=1))
    scene.until(lambda: scene.health() is GpuHealth.SICK)
    scene.write(TWO)
    scene.until(lambda: scene.health() is GpuHealth.OK)


def test_memory_errors_that_ecc_cannot_correct_make_a_gpu_sick(scene: Scene) -> None:
    scene.write(TWO.changed(1, ecc_uncorrected=1))
    scene.until(lambda: scene.health(1) is GpuHealth.SICK)
    assert scene.gpus()[1].why == "1 memory error that ECC could not correct; drain the GPU and reset it"


def test_leaked_memory_degrades_a_gpu_after_a_minute_and_its_size_is_told(scene: Scene) -> None:
    scene.write(TWO.changed(0, memory_used=12 * GIB))
    scene.passes(50)
    assert scene.health() is GpuHealth.OK
    scene.until(lambda: scene.health() is GpuHealth.DEGRADED)
    assert scene.gpus()[0].why.startswith("12.0 GiB of memory are in use by no process")
    scene.write(TWO.changed(0, memory_used=12 * GIB, processes=(FakeProcess(4711, 12 * GIB),)))
    scene.until(lambda: scene.health() is GpuHealth.OK)


def test_throttling_degrades_a_gpu_when_it_lasts(scene: Scene) -> None:
    scene.write(TWO.changed(0, throttle=THERMAL))
    scene.passes(30)
    scene.write(TWO)
    scene.passes(40)
    scene.write(TWO.changed(0, throttle=THERMAL))
    scene.passes(40)
    assert scene.health() is GpuHealth.OK
    scene.until(lambda: scene.health() is GpuHealth.DEGRADED)
    assert "hw_thermal" in scene.gpus()[0].why


def test_a_power_limit_that_halves_the_clock_is_told(scene: Scene) -> None:
    scene.write(
        TWO.changed(0, throttle=POWER_CAP, clock_graphics=900).changed(1, throttle=POWER_CAP, clock_graphics=1700)
    )
    scene.until(lambda: scene.health() is GpuHealth.DEGRADED)
    assert "power limit of 700 W" in scene.gpus()[0].why
    assert scene.health(1) is GpuHealth.OK


class SceneWorld(GpuWorld):
    """The planner's pretend host, whose GPUs are those of a scene."""

    scene: Scene

    def seen(self) -> Seen:
        gpus = tuple(self.scene.gpus())
        ill = frozenset(gpu.uuid for gpu in gpus if gpu.health in (GpuHealth.SICK, GpuHealth.LOST))
        return replace(super().seen(), gpus=gpus, ailing=ill)


def world_of(scene: Scene, on: int) -> SceneWorld:
    plain = serving(on=(on,), count=2)
    world = SceneWorld(plain.d, plain.replicas, asks=plain.asks, staged=plain.staged)
    world.gpus = {uuid_of(index): 80 * GIB for index in range(len(scene.gpus()))}
    world.scene = scene
    for name, replica in world.replicas.items():
        world.replicas[name] = replace(replica, found=replace(replica.found, gpus=(uuid_of(on),)))
    return world


def test_a_gpu_that_falls_off_the_bus_during_a_deploy_fails_nobody(scene: Scene) -> None:
    three = Machine(gpus=(FakeGpu(), FakeGpu(), FakeGpu()))
    scene.write(three)
    scene.passes()
    world = world_of(scene, on=0)
    deploying(world, revision(2))
    while not world.running("body-2"):
        for step in world.steps():
            world.perform(step)
        world.turn(0.5)
    (new,) = [r.found for r in world.replicas.values() if r.found.body == "body-2"]
    fell = next(index for index in range(3) if uuid_of(index) == new.gpus[0])
    assert fell != 0
    scene.write(three.changed(fell, events=(FakeEvent(1, 79),)).failing(Fault(gpu=fell, code=GPU_IS_LOST)))
    scene.until(lambda: scene.health(fell) in (GpuHealth.SICK, GpuHealth.LOST))
    world.run()
    assert world.d.live is not None and world.d.live.number == 2
    places = {r.found.gpus for r in world.replicas.values() if r.found.body == "body-2"}
    assert places == {(uuid_of(3 - fell),)}
    assert None not in world.served
    state, summary = world.state()
    assert state == "serving", summary


def test_a_gpu_that_falls_off_the_bus_under_a_serving_replica_is_left_for_another(scene: Scene) -> None:
    scene.passes()
    world = world_of(scene, on=1)
    scene.write(TWO.changed(1, events=(FakeEvent(1, 79),)).failing(Fault(gpu=1, code=GPU_IS_LOST)))
    scene.until(lambda: scene.health(1) in (GpuHealth.SICK, GpuHealth.LOST))
    assert scene.health(0) is GpuHealth.OK
    world.run()
    assert [r.found.gpus for r in world.replicas.values()] == [(uuid_of(0),)]
    assert world.ready_least == 1
