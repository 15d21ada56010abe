"""The fake NVML through pynvml: what a test writes comes out as the driver's library would tell it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pynvml
import pytest

from tests.nvml.fake import (
    ECC_CORRECTED,
    ECC_UNCORRECTED,
    FUNCTION_NOT_FOUND,
    GIB,
    GPU_IS_LOST,
    MIB,
    NO_PERMISSION,
    FakeEvent,
    FakeGpu,
    FakeLink,
    FakeMig,
    FakeNvml,
    FakeProcess,
    Fault,
    Machine,
    bus_of,
    uuid_of,
)


def first() -> object:
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByIndex(0)


def error(call: object, *arguments: object) -> int:
    with pytest.raises(pynvml.NVMLError) as raised:
        call(*arguments)  # type: ignore[operator]
    return int(raised.value.value)


def test_nothing_answers_before_nvmlinit_and_after_nvmlshutdown(fake_nvml: FakeNvml) -> None:
    assert error(pynvml.nvmlDeviceGetCount) == pynvml.NVML_ERROR_UNINITIALIZED
    pynvml.nvmlInit()
    assert pynvml.nvmlDeviceGetCount() == 1
    pynvml.nvmlShutdown()
    assert error(pynvml.nvmlDeviceGetCount) == pynvml.NVML_ERROR_UNINITIALIZED


def test_the_system_tells_its_versions(fake_nvml: FakeNvml) -> None:
    pynvml.nvmlInit()
    assert pynvml.nvmlSystemGetDriverVersion() == "550.127.05"
    assert pynvml.nvmlSystemGetCudaDriverVersion() == 12040
    assert pynvml.nvmlSystemGetCudaDriverVersion_v2() == 12040
    assert pynvml.nvmlSystemGetNVMLVersion() == "12.550.127.05"


def test_a_gpu_is_found_by_index_uuid_and_address(fake_nvml: FakeNvml) -> None:
    fake_nvml.write(Machine(gpus=(FakeGpu(), FakeGpu(name="NVIDIA L4"))))
    pynvml.nvmlInit()
    by_index = pynvml.nvmlDeviceGetHandleByIndex(1)
    for handle in (
        by_index,
        pynvml.nvmlDeviceGetHandleByUUID(uuid_of(1)),
        pynvml.nvmlDeviceGetHandleByPciBusId(bus_of(1)),
        pynvml.nvmlDeviceGetHandleByPciBusId(bus_of(1)[4:].lower()),
    ):
        assert pynvml.nvmlDeviceGetName(handle) == "NVIDIA L4"
        assert pynvml.nvmlDeviceGetUUID(handle) == uuid_of(1)
        assert pynvml.nvmlDeviceGetIndex(handle) == 1
    pci = pynvml.nvmlDeviceGetPciInfo(by_index)
    assert (pci.busId, pci.busIdLegacy, pci.domain, pci.bus) == (bus_of(1), bus_of(1)[4:], 0, 0x21)
    assert pci.pciDeviceId == 0x233010DE
    assert error(pynvml.nvmlDeviceGetHandleByIndex, 2) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    assert error(pynvml.nvmlDeviceGetHandleByUUID, "GPU-none") == pynvml.NVML_ERROR_NOT_FOUND


def test_memory_is_told_with_and_without_what_the_driver_reserves(fake_nvml: FakeNvml) -> None:
    fake_nvml.write(Machine(gpus=(FakeGpu(memory_total=80 * GIB, memory_reserved=GIB, memory_used=30 * GIB),)))
    handle = first()
    old = pynvml.nvmlDeviceGetMemoryInfo(handle)
    new = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    assert (old.total, old.used, old.free) == (80 * GIB, 31 * GIB, 49 * GIB)
    assert (new.total, new.reserved, new.used, new.free) == (80 * GIB, GIB, 30 * GIB, 49 * GIB)
    bar = pynvml.nvmlDeviceGetBAR1MemoryInfo(handle)
    assert (bar.bar1Total, bar.bar1Used) == (131072 * MIB, 2 * MIB)


FIGURES = {
    "utilisation_gpu": 71,
    "utilisation_memory": 33,
    "utilisation_encoder": 5,
    "utilisation_decoder": 6,
    "temperature": 64,
    "power": 412_500,
    "power_limit": 650_000,
    "clock_graphics": 1755,
    "clock_sm": 1750,
    "clock_video": 1500,
    "throttle": 0x24,
    "fan": 40,
    "fans": 2,
    "pstate": 2,
    "pcie_generation": 4,
    "pcie_width": 8,
    "pcie_replays": 3,
    "ecc_corrected": 7,
    "ecc_uncorrected": 1,
    "ecc_corrected_ever": 70,
    "ecc_uncorrected_ever": 2,
    "retired_corrected": 2,
    "retired_uncorrected": 1,
    "retired_pending": 1,
    "remapped_corrected": 3,
    "remapped_uncorrected": 4,
    "remap_pending": 1,
    "compute_mode": 3,
    "persistence": 0,
}


def test_every_figure_comes_out_as_it_was_written(fake_nvml: FakeNvml) -> None:
    fake_nvml.write(Machine().changed(0, **FIGURES))
    h = first()
    n = pynvml
    rates = n.nvmlDeviceGetUtilizationRates(h)
    assert (rates.gpu, rates.memory) == (71, 33)
    assert (n.nvmlDeviceGetEncoderUtilization(h)[0], n.nvmlDeviceGetDecoderUtilization(h)[0]) == (5, 6)
    assert n.nvmlDeviceGetTemperature(h, n.NVML_TEMPERATURE_GPU) == 64
    assert n.nvmlDeviceGetTemperatureV(h, n.NVML_TEMPERATURE_GPU) == 64
    assert n.nvmlDeviceGetTemperatureThreshold(h, n.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN) == 92
    assert n.nvmlDeviceGetTemperatureThreshold(h, n.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN) == 89
    assert (n.nvmlDeviceGetPowerUsage(h), n.nvmlDeviceGetEnforcedPowerLimit(h)) == (412_500, 650_000)
    assert n.nvmlDeviceGetPowerManagementLimitConstraints(h) == [200_000, 700_000]
    clocks = [n.nvmlDeviceGetClockInfo(h, kind) for kind in range(4)]
    assert clocks == [1755, 1750, 2619, 1500]
    assert n.nvmlDeviceGetMaxClockInfo(h, n.NVML_CLOCK_MEM) == 2619
    assert n.nvmlDeviceGetCurrentClocksEventReasons(h) == 0x24
    assert n.nvmlDeviceGetCurrentClocksThrottleReasons(h) == 0x24
    assert (n.nvmlDeviceGetFanSpeed(h), n.nvmlDeviceGetFanSpeed_v2(h, 1)) == (40, 40)
    assert (n.nvmlDeviceGetPerformanceState(h), n.nvmlDeviceGetPowerState(h)) == (2, 2)
    assert (n.nvmlDeviceGetCurrPcieLinkGeneration(h), n.nvmlDeviceGetMaxPcieLinkGeneration(h)) == (4, 5)
    assert (n.nvmlDeviceGetCurrPcieLinkWidth(h), n.nvmlDeviceGetMaxPcieLinkWidth(h)) == (8, 16)
    assert n.nvmlDeviceGetPcieThroughput(h, n.NVML_PCIE_UTIL_TX_BYTES) == 120
    assert n.nvmlDeviceGetPcieThroughput(h, n.NVML_PCIE_UTIL_RX_BYTES) == 340
    assert n.nvmlDeviceGetEccMode(h) == [1, 1]
    counters = [n.nvmlDeviceGetTotalEccErrors(h, kind, since) for since in (0, 1) for kind in (0, 1)]
    assert counters == [7, 1, 70, 2]
    assert n.nvmlDeviceGetMemoryErrorCounter(h, 0, 0, n.NVML_MEMORY_LOCATION_DEVICE_MEMORY) == 7
    assert len(n.nvmlDeviceGetRetiredPages(h, 0)) == 2
    assert len(n.nvmlDeviceGetRetiredPages_v2(h, 1)) == 1
    assert n.nvmlDeviceGetRetiredPagesPendingStatus(h) == 1
    assert n.nvmlDeviceGetRemappedRows(h) == (3, 4, 1, 0)
    assert (n.nvmlDeviceGetComputeMode(h), n.nvmlDeviceGetPersistenceMode(h)) == (3, 0)
    assert n.nvmlDeviceGetCudaComputeCapability(h) == (9, 0)
    assert n.nvmlDeviceGetMinorNumber(h) == 0
    fields = n.nvmlDeviceGetFieldValues(h, [n.NVML_FI_DEV_MEMORY_TEMP, n.NVML_FI_DEV_PCIE_REPLAY_COUNTER, 12345])
    assert [(f.nvmlReturn, f.value.ullVal) for f in fields] == [(0, 42), (0, 3), (n.NVML_ERROR_NOT_SUPPORTED, 0)]


def test_a_figure_that_is_none_is_not_supported(fake_nvml: FakeNvml) -> None:
    fake_nvml.write(Machine().changed(0, temperature=None, memory_used=None, ecc=None))
    handle = first()
    assert error(pynvml.nvmlDeviceGetTemperature, handle, 0) == pynvml.NVML_ERROR_NOT_SUPPORTED
    assert error(pynvml.nvmlDeviceGetMemoryInfo, handle) == pynvml.NVML_ERROR_NOT_SUPPORTED
    assert error(pynvml.nvmlDeviceGetEccMode, handle) == pynvml.NVML_ERROR_NOT_SUPPORTED
    assert error(pynvml.nvmlDeviceGetFanSpeed, handle) == pynvml.NVML_ERROR_NOT_SUPPORTED


def test_a_change_of_the_file_is_seen_by_the_next_call(fake_nvml: FakeNvml) -> None:
    handle = first()
    for degrees in range(40, 60):
        fake_nvml.write(Machine().changed(0, temperature=degrees))
        assert pynvml.nvmlDeviceGetTemperature(handle, 0) == degrees


def test_a_busy_machine_has_other_figures_every_second(fake_nvml: FakeNvml) -> None:
    fake_nvml.write(Machine(busy=True))
    handle = first()
    seen: set[int] = set()
    ends = time.monotonic() + 10
    while len(seen) < 2 and time.monotonic() < ends:
        seen.add(pynvml.nvmlDeviceGetPowerUsage(handle))
        time.sleep(0.05)
    assert len(seen) == 2
    assert all(71_230 <= power < 121_230 for power in seen)
    assert pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).used == 4 * MIB


def test_nvlinks_tell_their_peer(fake_nvml: FakeNvml) -> None:
    links = (FakeLink(0, bus_of(1)), FakeLink(1, bus_of(1), active=False), FakeLink(2, "00000000:C1:00.0", type=2))
    fake_nvml.write(Machine(gpus=(FakeGpu(links=links), FakeGpu())))
    handle = first()
    assert [pynvml.nvmlDeviceGetNvLinkState(handle, link) for link in range(3)] == [1, 0, 1]
    assert pynvml.nvmlDeviceGetNvLinkVersion(handle, 0) == pynvml.NVML_NVLINK_VERSION_4_0
    assert pynvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, 0).busId == bus_of(1)
    assert pynvml.nvmlDeviceGetNvLinkRemoteDeviceType(handle, 2) == pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH
    assert error(pynvml.nvmlDeviceGetNvLinkState, handle, 3) == pynvml.NVML_ERROR_NOT_SUPPORTED


@pytest.mark.parametrize("version", ["", "_v2", "_v3"])
def test_processes_come_by_kind_in_every_version(fake_nvml: FakeNvml, version: str) -> None:
    told = (
        FakeProcess(11, 5 * GIB),
        FakeProcess(12, None),
        FakeProcess(13, MIB, "graphics"),
        FakeProcess(14, kind="mps"),
    )
    fake_nvml.write(Machine().changed(0, processes=told))
    handle = first()

    def listed(kind: str) -> list[tuple[int, int | None, int]]:
        found = getattr(pynvml, f"nvmlDeviceGet{kind}RunningProcesses{version}")(handle)
        return [(p.pid, p.usedGpuMemory, p.gpuInstanceId) for p in found]

    assert listed("Compute") == [(11, 5 * GIB, 0xFFFFFFFF), (12, None, 0xFFFFFFFF)]
    assert listed("Graphics") == [(13, MIB, 0xFFFFFFFF)]
    assert listed("MPSCompute") == [(14, 0, 0xFFFFFFFF)]


def test_a_function_that_an_older_library_lacks_is_not_found(fake_nvml: FakeNvml) -> None:
    newest = "nvmlDeviceGetComputeRunningProcesses_v3"
    machine = Machine().changed(0, processes=(FakeProcess(11, GIB),))
    fake_nvml.write(machine.failing(Fault(newest, code=FUNCTION_NOT_FOUND)))
    handle = first()
    with pytest.raises(pynvml.NVMLError_FunctionNotFound):
        pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)
    assert [p.pid for p in pynvml.nvmlDeviceGetComputeRunningProcesses_v2(handle)] == [11]


def test_use_by_process_comes_in_samples_and_only_newer_ones(fake_nvml: FakeNvml) -> None:
    fake_nvml.write(Machine().changed(0, processes=(FakeProcess(11, GIB, sm=60, mem=20), FakeProcess(12, GIB, sm=9))))
    handle = first()
    samples = pynvml.nvmlDeviceGetProcessUtilization(handle, 0)
    assert [(s.pid, s.smUtil, s.memUtil) for s in samples] == [(11, 60, 20), (12, 9, 0)]
    future = samples[0].timeStamp + 10_000_000
    assert error(pynvml.nvmlDeviceGetProcessUtilization, handle, future) == pynvml.NVML_ERROR_NOT_FOUND


def test_mig_instances_have_their_own_memory_names_and_processes(fake_nvml: FakeNvml) -> None:
    migs = (
        FakeMig(7, processes=(FakeProcess(21, 2 * GIB),), memory_used=2 * GIB),
        FakeMig(9, profile="3g.40gb", memory_total=40 * GIB, gpu_slices=3, compute_slices=3),
    )
    fake_nvml.write(Machine(gpus=(FakeGpu(migs=migs), FakeGpu())))
    gpu = first()
    assert pynvml.nvmlDeviceGetMigMode(gpu) == [1, 1]
    assert pynvml.nvmlDeviceGetMigMode(pynvml.nvmlDeviceGetHandleByIndex(1)) == [0, 0]
    assert pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu) == 7
    small, large = (pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, place) for place in (0, 1))
    assert error(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, gpu, 2) == pynvml.NVML_ERROR_NOT_FOUND
    assert pynvml.nvmlDeviceIsMigDeviceHandle(small).value == 1
    assert pynvml.nvmlDeviceIsMigDeviceHandle(gpu).value == 0
    assert pynvml.nvmlDeviceGetUUID(small) == uuid_of(0, 0)
    assert pynvml.nvmlDeviceGetName(large) == "NVIDIA H100 80GB HBM3 MIG 3g.40gb"
    assert (pynvml.nvmlDeviceGetGpuInstanceId(small), pynvml.nvmlDeviceGetComputeInstanceId(small)) == (7, 0)
    assert pynvml.nvmlDeviceGetMemoryInfo(large).total == 40 * GIB
    attributes = pynvml.nvmlDeviceGetAttributes(large)
    assert (attributes.gpuInstanceSliceCount, attributes.memorySizeMB) == (3, 40 * 1024)
    back = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(small)
    assert pynvml.nvmlDeviceGetUUID(back) == uuid_of(0)
    assert [p.pid for p in pynvml.nvmlDeviceGetComputeRunningProcesses(small)] == [21]
    assert [(p.pid, p.gpuInstanceId) for p in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)] == [(21, 7)]
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(large) == []
    assert error(pynvml.nvmlDeviceGetTemperature, small, 0) == pynvml.NVML_ERROR_NOT_SUPPORTED


def test_an_event_set_gets_each_event_once_and_in_order(fake_nvml: FakeNvml) -> None:
    handle = first()
    told = pynvml.nvmlEventSetCreate()
    pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError | ECC_CORRECTED, told)
    assert error(pynvml.nvmlEventSetWait, told, 0) == pynvml.NVML_ERROR_TIMEOUT
    events = (FakeEvent(2, 79), FakeEvent(1, 3, ECC_CORRECTED), FakeEvent(3, 0, ECC_UNCORRECTED))
    fake_nvml.write(Machine().changed(0, events=events))
    got = [pynvml.nvmlEventSetWait(told, 0) for _ in range(2)]
    assert [(e.eventType, e.eventData) for e in got] == [(1, 3), (8, 79)]
    assert pynvml.nvmlDeviceGetUUID(got[0].device) == uuid_of(0)
    assert error(pynvml.nvmlEventSetWait, told, 0) == pynvml.NVML_ERROR_TIMEOUT
    pynvml.nvmlEventSetFree(told)


def test_waiting_for_events_ends_with_the_event_or_the_timeout(fake_nvml: FakeNvml) -> None:
    handle = first()
    told = pynvml.nvmlEventSetCreate()
    pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, told)
    began = time.monotonic()
    assert error(pynvml.nvmlEventSetWait, told, 100) == pynvml.NVML_ERROR_TIMEOUT
    assert time.monotonic() - began >= 0.1
    writer = threading.Timer(0.1, fake_nvml.write, [Machine().changed(0, events=(FakeEvent(1, 48),))])
    writer.start()
    assert pynvml.nvmlEventSetWait(told, 20_000).eventData == 48
    writer.join()


def test_an_error_is_given_by_one_gpu_or_by_all(fake_nvml: FakeNvml) -> None:
    two = Machine(gpus=(FakeGpu(), FakeGpu()))
    fake_nvml.write(two)
    pynvml.nvmlInit()
    one, other = (pynvml.nvmlDeviceGetHandleByIndex(place) for place in (0, 1))
    fake_nvml.write(two.failing(Fault(gpu=1, code=GPU_IS_LOST), Fault("nvmlDeviceGetPowerUsage", code=NO_PERMISSION)))
    assert pynvml.nvmlDeviceGetTemperature(one, 0) == 31
    assert error(pynvml.nvmlDeviceGetPowerUsage, one) == NO_PERMISSION
    assert error(pynvml.nvmlDeviceGetTemperature, other, 0) == GPU_IS_LOST
    assert error(pynvml.nvmlDeviceGetHandleByIndex, 1) == GPU_IS_LOST
    assert pynvml.nvmlDeviceGetCount() == 2


def test_a_driver_that_is_absent_or_of_another_version_says_so(fake_nvml: FakeNvml) -> None:
    fake_nvml.write(Machine(loaded="absent"))
    assert error(pynvml.nvmlInit) == pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    fake_nvml.write(Machine(loaded="mismatch"))
    assert error(pynvml.nvmlInit) == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    fake_nvml.write(Machine())
    pynvml.nvmlInit()
    assert pynvml.nvmlDeviceGetCount() == 1


def test_a_driver_loaded_again_needs_nvmlinit_and_then_shows_its_gpus(fake_nvml: FakeNvml) -> None:
    handle = first()
    fake_nvml.write(Machine(gpus=(FakeGpu(), FakeGpu())))
    assert pynvml.nvmlDeviceGetCount() == 1
    fake_nvml.write(Machine().reloaded(FakeGpu(), FakeGpu(), FakeGpu()))
    assert error(pynvml.nvmlDeviceGetTemperature, handle, 0) == pynvml.NVML_ERROR_UNINITIALIZED
    pynvml.nvmlInit()
    assert pynvml.nvmlDeviceGetCount() == 3
    fake_nvml.write(Machine(gpus=(FakeGpu(),), generation=2))
    assert pynvml.nvmlDeviceGetCount() == 3
    assert error(pynvml.nvmlDeviceGetHandleByIndex, 2) == GPU_IS_LOST


def test_a_function_hangs_as_long_as_told_and_holds_up_no_other(fake_nvml: FakeNvml) -> None:
    handle = first()
    fake_nvml.write(Machine().failing(Fault("nvmlDeviceGetTemperature", seconds=60)))
    hanging = threading.Thread(target=pynvml.nvmlDeviceGetTemperature, args=(handle, 0), daemon=True)
    hanging.start()
    assert pynvml.nvmlDeviceGetPowerUsage(handle) == 71_230
    assert hanging.is_alive()
    fake_nvml.write(Machine())
    hanging.join(10)
    assert not hanging.is_alive()
    fake_nvml.write(Machine().failing(Fault("nvmlDeviceGetTemperature", seconds=0.2)))
    began = time.monotonic()
    assert pynvml.nvmlDeviceGetTemperature(handle, 0) == 31
    assert time.monotonic() - began >= 0.2


def test_many_threads_and_a_changing_file_give_whole_answers(fake_nvml: FakeNvml) -> None:
    handle = first()
    seen: list[bool] = []

    def read() -> None:
        for _ in range(300):
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
            seen.append(memory.total == memory.reserved * 2 + memory.used and memory.free == memory.reserved)

    def half(mib: int) -> Machine:
        return Machine().changed(0, memory_total=3 * mib * MIB, memory_reserved=mib * MIB, memory_used=mib * MIB)

    fake_nvml.write(half(1))
    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for mib in range(1, 100):
        fake_nvml.write(half(mib))
    for reader in readers:
        reader.join()
    assert len(seen) == 1200
    assert all(seen)


def test_a_process_that_is_started_with_the_environment_loads_it_as_the_drivers(
    tmp_path: Path, nvml_compiler: str
) -> None:
    fake = FakeNvml(tmp_path, Machine(gpus=tuple(FakeGpu(migs=tuple(FakeMig(i) for i in range(7))) for _ in range(8))))
    script = (
        "import pynvml as n; n.nvmlInit(); count = n.nvmlDeviceGetCount()\n"
        "gpus = [n.nvmlDeviceGetHandleByIndex(i) for i in range(count)]\n"
        "migs = [n.nvmlDeviceGetMigDeviceHandleByIndex(g, i) for g in gpus for i in range(7)]\n"
        "print(len(gpus), len({n.nvmlDeviceGetUUID(m) for m in migs}))"
    )
    environment = os.environ | fake.env
    ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert ran.stdout == "8 56\n", ran.stderr
