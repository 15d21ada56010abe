"""MIG: instances beside the GPU that they are cut from, also when they are made, removed or switched off meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from quarterdeck_agent.drivers.nvml import NvmlProcess
from quarterdeck_agent.protocol import Gpu, GpuHealth, PartState
from tests.agent.gpus.nvml_host import facts, gpu, host
from tests.nvml.fake import (
    GIB,
    GPU_IS_LOST,
    MIB,
    UNKNOWN,
    FakeGpu,
    FakeMig,
    FakeNvml,
    FakeProcess,
    Fault,
    Machine,
    uuid_of,
)

NAME = "NVIDIA H100 80GB HBM3"
SEVEN = tuple(
    FakeMig(number, memory_used=number * MIB, processes=(FakeProcess(100 + number, GIB),)) for number in range(7)
)


def test_an_instance_has_its_own_uuid_profile_memory_and_processes(fake_nvml: FakeNvml) -> None:
    large = FakeMig(2, profile="3g.40gb", memory_total=40 * GIB, memory_used=5 * GIB, memory_reserved=100 * MIB)

    async def run() -> None:
        cut = FakeGpu(migs=(large, replace(SEVEN[3], gpu_instance=9)), power=200_000, utilisation_gpu=None)
        with host(fake_nvml, Machine((FakeGpu(), cut))) as there:
            seen = await there.read()
        assert seen.state is PartState.OK
        assert [one.uuid for one in seen.gpus] == [uuid_of(0), uuid_of(1), uuid_of(1, 0), uuid_of(1, 1)]
        assert seen.gpus[2] == Gpu(
            index=1,
            uuid=uuid_of(1, 0),
            name=NAME,
            memory_total=40 * GIB,
            memory_used=5 * GIB,
            memory_free=35 * GIB - 100 * MIB,
            memory_reserved=100 * MIB,
            parent=uuid_of(1),
            profile="3g.40gb",
            instance=0,
        )
        assert (seen.gpus[1].mig, seen.gpus[1].utilisation, seen.gpus[1].power) == (True, None, 200.0)
        assert (seen.gpus[0].mig, seen.gpus[0].utilisation) == (False, 0.0)
        assert facts(seen, uuid_of(1)).mig_enabled is True and facts(seen, uuid_of(0)).mig_enabled is False
        assert facts(seen, uuid_of(1, 0)).compute_capability == (9, 0)
        assert seen.processes == {
            uuid_of(0): (),
            uuid_of(1, 0): (),
            uuid_of(1, 1): (NvmlProcess(103, GIB, None),),
        }

    asyncio.run(run())


def test_eight_gpus_of_seven_instances_each(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        with host(fake_nvml, Machine(tuple(FakeGpu(migs=SEVEN) for _ in range(8)))) as there:
            seen = await there.read()
        assert len(seen.gpus) == len(seen.facts) == 64 and len(seen.processes) == 56
        assert [one.uuid for one in seen.gpus] == [told.uuid for told in seen.facts]
        for place in range(8):
            parent, *instances = seen.gpus[place * 8 : place * 8 + 8]
            assert parent.mig and parent.parent is None
            assert [(one.index, one.parent, one.instance) for one in instances] == [
                (place, parent.uuid, n) for n in range(7)
            ]
            assert [one.memory_used for one in instances] == [n * MIB for n in range(7)]

    asyncio.run(run())


def test_a_profile_without_a_name_is_made_of_its_slices(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        whole = FakeMig(1, memory_total=39 * GIB, gpu_slices=3, compute_slices=3)
        part = FakeMig(2, memory_total=39 * GIB, gpu_slices=3, compute_slices=1)
        fault = Fault("nvmlDeviceGetName", None, UNKNOWN)
        machine = Machine((FakeGpu(migs=(whole, part)),))
        with host(fake_nvml, machine) as there:
            await there.read()
            # The names of both fail, and the GPU's own is known by then.
            machine = machine.failing(fault).changed(
                0, migs=(replace(whole, uuid="MIG-a"), replace(part, uuid="MIG-b"))
            )
            there.write(machine)
            seen = await there.read(after=11)
        assert [one.profile for one in seen.gpus[1:]] == ["3g.40gb", "1c.3g.40gb"]

    asyncio.run(run())


def test_mig_is_switched_on_and_off_while_we_watch(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        plain = Machine((FakeGpu(utilisation_gpu=7),))
        with host(fake_nvml, plain) as there:
            assert gpu(await there.read()).utilisation == 0.07
            there.write(plain.changed(0, migs=SEVEN[:2], utilisation_gpu=None))
            seen = await there.read(after=11)
            assert [one.mig for one in seen.gpus] == [True, False, False]
            assert gpu(seen).utilisation is None
            there.write(plain)
            seen = await there.read(after=11)
            assert [(one.mig, one.utilisation) for one in seen.gpus] == [(False, 0.07)]
            assert list(seen.processes) == [uuid_of(0)]

    asyncio.run(run())


def test_instances_are_made_and_removed_while_we_watch(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        def cut(*numbers: int) -> Machine:
            migs = tuple(FakeMig(number, uuid=f"MIG-{number}") for number in numbers)
            return Machine((FakeGpu(mig_mode=1, migs=migs),))

        with host(fake_nvml, cut(1, 2)) as there:
            assert [one.uuid for one in (await there.read()).gpus[1:]] == ["MIG-1", "MIG-2"]
            there.write(cut(1, 3, 4))
            assert [one.uuid for one in (await there.read(after=11)).gpus[1:]] == ["MIG-1", "MIG-3", "MIG-4"]
            there.write(cut(3))
            seen = await there.read(after=11)
            assert [(one.uuid, one.instance) for one in seen.gpus[1:]] == [("MIG-3", 0)]

    asyncio.run(run())


def test_instances_of_a_lost_gpu_are_lost_with_it(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        machine = Machine((FakeGpu(migs=SEVEN[:2]), FakeGpu(migs=SEVEN[:1])))
        with host(fake_nvml, machine) as there:
            await there.read()
            there.write(machine.failing(Fault("*", 0, GPU_IS_LOST)))
            seen = await there.read()
        assert [one.health for one in seen.gpus] == [GpuHealth.LOST] * 3 + [GpuHealth.OK] * 2
        assert [one.memory_free is None for one in seen.gpus] == [True] * 3 + [False] * 2
        assert [(one.parent, one.profile) for one in seen.gpus[1:3]] == [(uuid_of(0), "1g.10gb")] * 2
        assert gpu(seen).mig is True
        assert list(seen.processes) == [uuid_of(1, 0)]

    asyncio.run(run())
