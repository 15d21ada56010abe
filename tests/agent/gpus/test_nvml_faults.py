"""Drivers that hang, lose GPUs, go and come back: each is a state that is told in time, and blocks nothing."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from quarterdeck_agent.drivers.nvml_calls import DRIVER_NOT_LOADED
from quarterdeck_agent.protocol import GpuHealth, PartState
from tests.agent.gpus.nvml_host import facts, gpu, host
from tests.nvml.fake import (
    GPU_IS_LOST,
    RESET_REQUIRED,
    UNINITIALIZED,
    UNKNOWN,
    FakeEvent,
    FakeGpu,
    FakeNvml,
    FakeProcess,
    Fault,
    Machine,
    uuid_of,
)

FOUR = Machine(tuple(FakeGpu(memory_used=(number + 1) << 30) for number in range(4)))


# --- no driver, and a driver that comes ----------------------------------------------------------------------------


def test_no_driver_is_a_state(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        with host(fake_nvml, Machine((), loaded="absent")) as there:
            seen = await there.read()
        assert (seen.state, seen.gpus, seen.version) == (PartState.ABSENT, (), "")
        assert "no NVIDIA driver" in seen.detail

    asyncio.run(run())


def test_a_driver_that_is_installed_later_is_found(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        with host(fake_nvml, Machine((), loaded="absent")) as there:
            await there.read()
            there.write(FOUR)
            assert (await there.read(after=1)).state is PartState.ABSENT
            assert len((await there.read(after=5)).gpus) == 4

    asyncio.run(run())


def test_a_driver_that_shows_its_gpus_is_tried_at_once(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        with host(fake_nvml, Machine((), loaded="absent")) as there:
            await there.read()
            there.write(FOUR)
            there.nodes = "four"
            assert len((await there.read(after=0.1)).gpus) == 4

    asyncio.run(run())


# --- lost GPUs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "why"), [(GPU_IS_LOST, "fallen off the bus"), (RESET_REQUIRED, "reset"), (UNKNOWN, "Unknown Error")]
)
def test_a_lost_gpu_keeps_its_name_and_says_why(fake_nvml: FakeNvml, code: int, why: str) -> None:
    async def run() -> None:
        with host(fake_nvml, FOUR) as there:
            before = await there.read()
            there.write(FOUR.failing(Fault("*", 2, code)))
            for _ in range(3):
                seen = await there.read()
            assert (seen.state, seen.detail) == (PartState.FAILED, "GPU 2 does not answer")
            lost = gpu(seen, 2)
            assert (lost.uuid, lost.name, lost.index) == (uuid_of(2), gpu(before, 2).name, 2)
            assert (lost.health, lost.memory_total, lost.memory_free, lost.temperature) == (
                GpuHealth.LOST,
                None,
                None,
                None,
            )
            assert why in lost.why
            assert uuid_of(2) not in seen.processes
            assert facts(seen, uuid_of(2)).pci_bus == facts(before, uuid_of(2)).pci_bus
            assert [one.health for one in seen.gpus if one is not lost] == [GpuHealth.OK] * 3
            assert gpu(seen, 3).memory_used == 4 << 30

    asyncio.run(run())


def test_a_gpu_that_answers_again_is_well_again(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        with host(fake_nvml, FOUR) as there:
            await there.read()
            there.write(FOUR.failing(Fault("*", 1, UNKNOWN)))
            assert gpu(await there.read(), 1).health is GpuHealth.LOST
            there.write(FOUR)
            seen = await there.read()
            assert (seen.state, gpu(seen, 1).health, gpu(seen, 1).why) == (PartState.OK, GpuHealth.OK, "")

    asyncio.run(run())


def test_a_gpu_that_was_lost_before_we_came_has_a_place(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        with host(fake_nvml, FOUR.failing(Fault("*", 1, GPU_IS_LOST))) as there:
            seen = await there.read()
            assert [one.index for one in seen.gpus] == [0, 1, 2, 3]
            assert (gpu(seen, 1).health, gpu(seen, 1).uuid) == (GpuHealth.LOST, "gpu-1")
            there.write(FOUR)
            seen = await there.read(after=61)
            assert (gpu(seen, 1).health, gpu(seen, 1).uuid) == (GpuHealth.OK, uuid_of(1))

    asyncio.run(run())


def test_a_lost_gpu_that_is_not_listed_any_more_stays_lost(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        with host(fake_nvml, FOUR) as there:
            await there.read()
            there.write(FOUR.failing(Fault("*", 3, GPU_IS_LOST)))
            await there.read()
            there.write(Machine(FOUR.gpus[:3], generation=2))
            seen = await there.read()
            assert [(one.uuid, one.health) for one in seen.gpus] == [
                *((uuid_of(number), GpuHealth.OK) for number in range(3)),
                (uuid_of(3), GpuHealth.LOST),
            ]
            assert (seen.state, seen.detail) == (PartState.FAILED, "GPU 3 does not answer")
            there.write(Machine(FOUR.gpus, generation=3))
            seen = await there.read()
            assert (seen.state, [one.health for one in seen.gpus]) == (PartState.OK, [GpuHealth.OK] * 4)

    asyncio.run(run())


def test_while_a_gpu_is_lost_nvml_is_begun_anew_now_and_then(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        # The fake tells of a GPU that came only after a new nvmlInit, as NVML does.
        with host(fake_nvml, Machine(FOUR.gpus[:2]), renew=100.0) as there:
            await there.read()
            there.write(Machine(FOUR.gpus[:2]).failing(Fault("*", 1, GPU_IS_LOST)))
            await there.read()
            there.write(FOUR.failing(Fault("*", 1, GPU_IS_LOST)))
            assert len((await there.read(after=50)).gpus) == 2
            assert len((await there.read(after=51)).gpus) == 4

    asyncio.run(run())


# --- hangs ---------------------------------------------------------------------------------------------------------


def test_one_gpu_that_hangs_does_not_hide_the_others(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        with host(fake_nvml, FOUR, deadline=0.2) as there:
            await there.read()
            threads = threading.active_count()
            there.write(FOUR.failing(Fault("nvmlDeviceGetPowerUsage", 1, seconds=600)))
            began = time.monotonic()
            seen = await there.read()
            assert time.monotonic() - began < 2
            assert seen.state is PartState.UNRESPONSIVE
            assert "GPU 1 has not answered nvmlDeviceGetPowerUsage" in seen.detail
            there.write(FOUR.changed(3, memory_used=9 << 30).failing(Fault("nvmlDeviceGetPowerUsage", 1, seconds=600)))
            for _ in range(5):
                seen = await there.read()
                assert seen.state is PartState.UNRESPONSIVE
            hung = gpu(seen, 1)
            assert (hung.uuid, hung.memory_free, hung.temperature) == (uuid_of(1), None, None)
            assert hung.health is GpuHealth.DEGRADED and "nvmlDeviceGetPowerUsage" in hung.why
            assert (gpu(seen, 3).memory_used, gpu(seen, 3).health) == (9 << 30, GpuHealth.OK)
            assert uuid_of(1) not in seen.processes and uuid_of(3) in seen.processes
            assert threading.active_count() <= threads + 1
            there.write(FOUR)
            seen = await there.until(lambda seen: seen.state is PartState.OK)
            assert gpu(seen, 1).power is not None
            assert threading.active_count() <= threads

    asyncio.run(run())


def test_a_driver_that_hangs_as_a_whole_is_left_alone_until_it_comes_back(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        with host(fake_nvml, FOUR, deadline=0.1) as there:
            await there.read()
            threads = threading.active_count()
            there.write(FOUR.failing(Fault("*", None, seconds=600)))
            for _ in range(8):
                began = time.monotonic()
                seen = await there.read()
                assert time.monotonic() - began < 2
                assert seen.state is PartState.UNRESPONSIVE
            assert seen.detail.startswith("NVML has not answered nvml")
            assert [(one.uuid, one.memory_free, one.health) for one in seen.gpus] == [
                (uuid_of(number), None, GpuHealth.DEGRADED) for number in range(4)
            ]
            assert threading.active_count() <= threads + 2
            there.write(FOUR)
            seen = await there.until(lambda seen: seen.state is PartState.OK)
            assert gpu(seen, 3).memory_used == 4 << 30

    asyncio.run(run())


def test_a_beginning_that_hangs_is_a_state_and_one_thread(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        threads = threading.active_count()
        with host(fake_nvml, FOUR.failing(Fault("nvmlInitWithFlags", None, seconds=600)), deadline=0.1) as there:
            for _ in range(5):
                seen = await there.read()
                assert (seen.state, seen.gpus) == (PartState.UNRESPONSIVE, ())
                assert "nvmlInit" in seen.detail
            assert threading.active_count() == threads + 1
            there.write(FOUR)
            assert len((await there.until(lambda seen: seen.state is PartState.OK)).gpus) == 4

    asyncio.run(run())


def test_a_gpu_that_hangs_from_the_first_does_not_hide_the_others(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        with host(
            fake_nvml, FOUR.failing(Fault("nvmlDeviceGetHandleByIndex_v2", 1, seconds=600)), deadline=0.2
        ) as there:
            await there.read()
            seen = await there.read()
            assert seen.state is PartState.UNRESPONSIVE and "GPU 1" in seen.detail
            assert [one.memory_used for one in seen.gpus] == [1 << 30, None, 3 << 30, 4 << 30]
            there.write(FOUR)
            seen = await there.until(lambda seen: seen.state is PartState.OK)
            assert [one.uuid for one in seen.gpus] == [uuid_of(number) for number in range(4)]
            there.write(FOUR.changed(1, events=(FakeEvent(1, 31),)))
            seen = await there.until(lambda seen: seen.events)
            assert [(event.uuid, event.code) for event in seen.events] == [(uuid_of(1), 31)]

    asyncio.run(run())


def test_a_slow_driver_is_not_one_that_hangs(fake_nvml: FakeNvml) -> None:
    """Eight GPUs that take their time pass the deadline together, and none of them alone."""

    async def run() -> None:
        slow = Machine(tuple(FakeGpu() for _ in range(8)))
        with host(fake_nvml, slow, deadline=0.4) as there:
            await there.read()
            there.write(slow.failing(Fault("nvmlDeviceGetFanSpeed", None, seconds=0.1)))
            there.clock.at += 5.0
            seen = await there.until(lambda seen: seen.state is PartState.OK)
            assert all(one.memory_free is not None for one in seen.gpus)

    asyncio.run(run())


# --- the driver changes --------------------------------------------------------------------------------------------


def test_a_driver_that_was_loaded_again_is_begun_anew_in_the_same_reading(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        with host(fake_nvml, FOUR) as there:
            await there.read()
            there.write(FOUR.reloaded(*FOUR.gpus[:2], FakeGpu(name="NVIDIA L4", uuid="GPU-new")))
            seen = await there.read()
            assert seen.state is PartState.OK
            assert [one.uuid for one in seen.gpus] == [uuid_of(0), uuid_of(1), "GPU-new"]
            assert gpu(seen, 2).name == "NVIDIA L4" and gpu(seen, 2).temperature == 31.0

    asyncio.run(run())


def test_a_driver_that_was_unloaded_leaves_lost_gpus_until_it_is_loaded_again(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        with host(fake_nvml, FOUR) as there:
            await there.read()
            there.write(Machine((), loaded="absent", generation=2))
            for _ in range(3):
                seen = await there.read()
                assert seen.state is PartState.FAILED and "unloaded" in seen.detail
                assert [(one.uuid, one.health) for one in seen.gpus] == [
                    (uuid_of(number), GpuHealth.LOST) for number in range(4)
                ]
                assert seen.gpus[0].memory_free is None and seen.processes == {}
            there.write(Machine(FOUR.gpus, generation=3, driver="560.1"))
            seen = await there.read(after=5)
            assert (seen.state, seen.version) == (PartState.OK, "560.1")
            assert [one.memory_used for one in seen.gpus] == [(number + 1) << 30 for number in range(4)]
            assert facts(seen, uuid_of(0)).driver == "560.1"

    asyncio.run(run())


@pytest.mark.parametrize("code", [UNINITIALIZED, DRIVER_NOT_LOADED])
def test_one_call_that_says_nvml_is_over_begins_it_anew(fake_nvml: FakeNvml, code: int) -> None:
    async def run() -> None:
        with host(fake_nvml, FOUR) as there:
            await there.read()
            there.write(FOUR.failing(Fault("nvmlDeviceGetMemoryInfo_v2", 2, code)))
            seen = await there.read()
            assert seen.state is PartState.FAILED
            assert all(one.memory_free is None for one in seen.gpus)
            there.write(FOUR)
            assert (await there.read(after=5)).state is PartState.OK

    asyncio.run(run())


@pytest.mark.parametrize("gpus", [1, 3, 6])
def test_another_number_of_gpus_is_noticed_by_the_kernels_nodes(fake_nvml: FakeNvml, gpus: int) -> None:
    async def run() -> None:
        with host(fake_nvml, FOUR) as there:
            await there.read()
            there.write(Machine(tuple(FakeGpu() for _ in range(gpus))))
            there.nodes = gpus
            seen = await there.read(after=10)
            assert seen.state is PartState.OK
            assert [one.uuid for one in seen.gpus] == [uuid_of(number) for number in range(gpus)]
            assert len(seen.facts) == len(seen.processes) == gpus

    asyncio.run(run())


def test_another_version_of_the_driver_says_what_to_do_and_is_taken_once_it_fits(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        with host(fake_nvml, FOUR) as there:
            await there.read()
            there.write(Machine(FOUR.gpus, loaded="mismatch", generation=2))
            seen = await there.read()
            assert seen.state is PartState.FAILED
            assert "another version than the loaded kernel module" in seen.detail
            assert [(one.health, one.memory_free) for one in seen.gpus] == [(GpuHealth.DEGRADED, None)] * 4
            fake_nvml.load()
            there.write(Machine(FOUR.gpus, generation=3))
            seen = await there.read(after=5)
            assert (seen.state, len(seen.gpus)) == (PartState.OK, 4)

    asyncio.run(run())


def test_an_error_that_nobody_knows_is_a_state(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        with host(fake_nvml, FOUR.failing(Fault("nvmlDeviceGetCount_v2", None, 4711))) as there:
            seen = await there.read()
            assert (seen.state, seen.gpus) == (PartState.FAILED, ())
            assert seen.detail.startswith("NVML: ")
            there.write(FOUR)
            assert (await there.read(after=5)).state is PartState.OK

    asyncio.run(run())


def test_a_driver_that_is_reloaded_again_and_again_is_always_told_as_it_is(fake_nvml: FakeNvml) -> None:
    """Loads and counts in any order, with processes and events under way: no reading tells of another machine."""

    async def run() -> None:
        with host(fake_nvml, FOUR) as there:
            await there.read()
            for turn in range(40):
                many = turn % 5 + 1
                gpus = tuple(
                    FakeGpu(
                        memory_used=turn << 20,
                        processes=(FakeProcess(turn + 1, 1 << 30),),
                        events=(FakeEvent(turn + 1, 13),),
                    )
                    for _ in range(many)
                )
                there.write(Machine(gpus, generation=turn + 2))
                there.nodes = turn
                seen = await there.read(after=10)
                assert seen.state is PartState.OK
                assert [(one.memory_used, one.health) for one in seen.gpus] == [(turn << 20, GpuHealth.OK)] * many
                assert {pid.pid for listed in seen.processes.values() for pid in listed} == {turn + 1}
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("nvml") and thread.is_alive()]

    asyncio.run(run())
