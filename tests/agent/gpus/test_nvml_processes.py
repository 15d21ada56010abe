"""Who is on a GPU, by what older and newer drivers tell of them."""

from __future__ import annotations

import asyncio

from quarterdeck_agent.drivers.nvml import NvmlProcess
from quarterdeck_agent.drivers.nvml_calls import NOT_FOUND
from quarterdeck_agent.protocol import PartState
from tests.agent.gpus.nvml_host import host
from tests.nvml.fake import (
    FUNCTION_NOT_FOUND,
    GIB,
    NO_PERMISSION,
    NOT_SUPPORTED,
    UNKNOWN,
    FakeGpu,
    FakeNvml,
    FakeProcess,
    Fault,
    Machine,
    uuid_of,
)

SERVER = FakeProcess(4711, 12 * GIB, sm=35)
DESKTOP = FakeProcess(812, 300 << 20, kind="graphics", sm=2)
BOTH = FakeProcess(900, 2 * GIB)
QUIET = FakeProcess(901, None)
UUID = uuid_of(0)


async def processes(fake: FakeNvml, machine: Machine) -> tuple[NvmlProcess, ...] | None:
    with host(fake, machine) as there:
        seen = await there.read()
    assert seen.state is PartState.OK
    return seen.processes.get(UUID)


def test_each_process_has_its_memory_share_and_kind(fake_nvml: FakeNvml) -> None:
    drawing = FakeProcess(900, 2 * GIB, kind="graphics")
    machine = Machine((FakeGpu(processes=(SERVER, DESKTOP, BOTH, drawing, QUIET)),))
    assert asyncio.run(processes(fake_nvml, machine)) == (
        NvmlProcess(812, 300 << 20, 0.02, "graphics"),
        NvmlProcess(900, 2 * GIB, 0.0, "compute"),
        NvmlProcess(901, None, 0.0, "compute"),
        NvmlProcess(4711, 12 * GIB, 0.35, "compute"),
    )


def test_a_client_of_mps_is_a_process_that_computes(fake_nvml: FakeNvml) -> None:
    machine = Machine((FakeGpu(processes=(FakeProcess(77, GIB, kind="mps"),)),))
    (client,) = asyncio.run(processes(fake_nvml, machine)) or ()
    assert (client.pid, client.memory, client.kind) == (77, GIB, "compute")


def test_an_empty_gpu_has_nobody_and_is_not_unknown(fake_nvml: FakeNvml) -> None:
    assert asyncio.run(processes(fake_nvml, Machine())) == ()


def test_a_driver_without_v3_is_asked_the_older_way(fake_nvml: FakeNvml) -> None:
    machine = Machine((FakeGpu(processes=(SERVER, DESKTOP)),)).failing(
        Fault("nvmlDeviceGetComputeRunningProcesses_v3", None, FUNCTION_NOT_FOUND),
        Fault("nvmlDeviceGetGraphicsRunningProcesses_v3", None, FUNCTION_NOT_FOUND),
    )
    found = asyncio.run(processes(fake_nvml, machine))
    assert [process.pid for process in found or ()] == [812, 4711]


def test_a_driver_that_does_not_tell_who_computes_is_not_one_without_processes(fake_nvml: FakeNvml) -> None:
    for code in (NO_PERMISSION, NOT_SUPPORTED, UNKNOWN):
        faults = [Fault(f"nvmlDeviceGetComputeRunningProcesses_v{version}", None, code) for version in (2, 3)]
        assert asyncio.run(processes(fake_nvml, Machine((FakeGpu(processes=(SERVER,)),)).failing(*faults))) is None


def test_utilisation_is_unknown_where_the_driver_does_not_tell_it(fake_nvml: FakeNvml) -> None:
    for code in (NOT_SUPPORTED, UNKNOWN):
        fault = Fault("nvmlDeviceGetProcessUtilization", None, code)
        found = asyncio.run(processes(fake_nvml, Machine((FakeGpu(processes=(SERVER,)),)).failing(fault)))
        assert found == (NvmlProcess(4711, 12 * GIB, None),)


def test_processes_come_and_go_with_each_reading(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        with host(fake_nvml, Machine()) as there:
            assert (await there.read()).processes == {UUID: ()}
            there.write(Machine((FakeGpu(processes=(SERVER, BOTH)),)))
            assert [process.pid for process in (await there.read()).processes[UUID]] == [900, 4711]
            there.write(Machine((FakeGpu(processes=(BOTH,)),)))
            assert [process.pid for process in (await there.read()).processes[UUID]] == [900]

    asyncio.run(run())


def test_a_share_outlives_one_reading_that_comes_before_the_next_sample(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        busy = Machine((FakeGpu(processes=(SERVER,)),))
        none_new = busy.failing(Fault("nvmlDeviceGetProcessUtilization", None, NOT_FOUND))
        with host(fake_nvml, busy) as there:
            shares = []
            for machine in (busy, none_new, none_new, busy):
                there.write(machine)
                await asyncio.sleep(0.2)
                shares.append((await there.read()).processes[UUID][0].utilisation)
        assert shares == [0.35, 0.35, 0.0, 0.35]

    asyncio.run(run())
