"""What the reader makes of NVML's answers: units, gaps, facts, and how seldom it asks for what seldom changes."""

from __future__ import annotations

import asyncio
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import pytest

from quarterdeck_agent.drivers.nvml import NvmlReader
from quarterdeck_agent.drivers.nvml_library import gpu_nodes, module_version
from quarterdeck_agent.protocol import Gpu, GpuFacts, GpuHealth, NvLink, PartState
from tests.agent.gpus.nvml_host import facts, gpu, host
from tests.nvml.fake import (
    FUNCTION_NOT_FOUND,
    MIB,
    NO_PERMISSION,
    UNKNOWN,
    FakeGpu,
    FakeLink,
    FakeNvml,
    Fault,
    Machine,
    bus_of,
    uuid_of,
)

BUSY = FakeGpu(
    memory_total=81920 * MIB,
    memory_used=40000 * MIB,
    memory_reserved=600 * MIB,
    utilisation_gpu=87,
    utilisation_memory=41,
    utilisation_encoder=5,
    utilisation_decoder=12,
    temperature=74,
    power=650_500,
    power_limit=700_000,
    clock_graphics=1755,
    clock_memory=2619,
    throttle=0x4 | 0x20,
    fan=63,
    pstate=0,
    pcie_sent=1_200,
    pcie_received=51_000,
)


def test_gauges_are_in_the_units_of_the_wire(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        with host(fake_nvml, Machine((BUSY,))) as there:
            await there.read()
            seen = await there.read(after=11)
        assert (seen.state, seen.detail, seen.version) == (PartState.OK, "", "550.127.05")
        assert seen.gpus == (
            Gpu(
                index=0,
                uuid=uuid_of(0),
                name="NVIDIA H100 80GB HBM3",
                memory_total=81920 * MIB,
                memory_used=40000 * MIB,
                memory_free=(81920 - 40000 - 600) * MIB,
                memory_reserved=600 * MIB,
                utilisation=0.87,
                utilisation_memory=0.41,
                utilisation_encoder=0.05,
                utilisation_decoder=0.12,
                temperature=74.0,
                power=650.5,
                power_limit=700.0,
                clock_graphics=1_755_000_000,
                clock_memory=2_619_000_000,
                throttle=("power", "thermal"),
                fan=0.63,
                performance_state=0,
                pcie_sent=1_200_000,
                pcie_received=51_000_000,
            ),
        )

    asyncio.run(run())


def test_facts_are_told_with_the_first_reading(fake_nvml: FakeNvml) -> None:
    damaged = FakeGpu(
        ecc_corrected=3,
        ecc_uncorrected=1,
        ecc_corrected_ever=30,
        ecc_uncorrected_ever=2,
        retired_corrected=4,
        retired_uncorrected=1,
        retired_pending=1,
        remapped_corrected=2,
        remapped_uncorrected=5,
        remap_pending=1,
        compute_mode=3,
        persistence=0,
        pcie_generation=3,
        pcie_width=8,
        pcie_replays=6,
    )

    async def run() -> None:
        with host(fake_nvml, Machine((damaged,))) as there:
            seen = await there.read()
        assert seen.facts == (
            GpuFacts(
                uuid=uuid_of(0),
                pci_bus=bus_of(0).lower(),
                driver="550.127.05",
                cuda="12.4",
                compute_capability=(9, 0),
                compute_mode="exclusive_process",
                persistence=False,
                mig_enabled=False,
                pcie_generation=3,
                pcie_generation_max=5,
                pcie_width=8,
                pcie_width_max=16,
                power_limit_max=700.0,
                temperature_slowdown=89.0,
                temperature_shutdown=92.0,
                clock_graphics_max=1_980_000_000,
                clock_memory_max=2_619_000_000,
                ecc_enabled=True,
                ecc_corrected=3,
                ecc_uncorrected=1,
                ecc_corrected_ever=30,
                ecc_uncorrected_ever=2,
                retired_pages=5,
                retired_pending=True,
                remapped_rows=7,
                remapped_rows_uncorrectable=5,
                remap_pending=True,
                remap_failed=False,
                temperature_memory=42.0,
                pcie_replays=6,
            ),
        )

    asyncio.run(run())


def test_nvlinks_name_the_gpu_at_their_other_end_and_no_switch(fake_nvml: FakeNvml) -> None:
    linked = FakeGpu(
        links=(FakeLink(0, bus_of(1)), FakeLink(1, "00000000:F0:00.0", type=2), FakeLink(2, bus_of(1), active=False))
    )

    async def run() -> None:
        machine = Machine((linked, FakeGpu()))
        with host(fake_nvml, machine) as there:
            seen = await there.read()
            assert facts(seen, uuid_of(0)).nvlinks == (
                NvLink(0, True, 6, uuid_of(1)),
                NvLink(1, True, 6, None),
                NvLink(2, False),
            )
            assert facts(seen, uuid_of(1)).nvlinks == ()
            there.write(machine.changed(0, links=(FakeLink(0, bus_of(1), active=False),)))
            seen = await there.read(after=30)
            assert facts(seen, uuid_of(0)).nvlinks == (NvLink(0, False),)

    asyncio.run(run())


TELLS: dict[str, Any] = {field.name: None for field in fields(FakeGpu) if isinstance(field.default, int)}
NOTHING = FakeGpu(**TELLS)


def test_a_gpu_that_tells_nothing_but_its_name_is_no_error(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        with host(fake_nvml, Machine((NOTHING,))) as there:
            seen = [await there.read(after=11) for _ in range(3)][-1]
        assert seen.state is PartState.OK
        assert seen.gpus == (Gpu(0, uuid_of(0), "NVIDIA H100 80GB HBM3"),)
        (told,) = seen.facts
        assert (told.pci_bus, told.driver, told.ecc_enabled, told.retired_pages) == (
            bus_of(0).lower(),
            "550.127.05",
            None,
            None,
        )

    asyncio.run(run())


def test_a_limit_that_is_told_as_a_distance_below_the_next_one_is_no_temperature(fake_nvml: FakeNvml) -> None:
    below = (1 << 32) - 2
    machine = Machine().changed(0, temperature_slowdown=below, temperature_shutdown=below - 6)

    async def go() -> None:
        with host(fake_nvml, machine) as there:
            (told,) = (await there.read()).facts
            assert (told.temperature_slowdown, told.temperature_shutdown) == (None, None)

    asyncio.run(go())


@pytest.mark.parametrize("code", [FUNCTION_NOT_FOUND, NO_PERMISSION, UNKNOWN, 4711])
def test_an_error_of_one_function_is_none_of_that_alone(fake_nvml: FakeNvml, code: int) -> None:
    async def run() -> None:
        faults = [Fault(name, None, code) for name in ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetRemappedRows")]
        with host(fake_nvml, Machine().failing(*faults)) as there:
            seen = await there.read()
        assert (seen.state, gpu(seen).health) == (PartState.OK, GpuHealth.OK)
        assert (gpu(seen).power, gpu(seen).temperature) == (None, 31.0)
        assert (seen.facts[0].remapped_rows, seen.facts[0].ecc_enabled) == (None, True)

    asyncio.run(run())


def test_an_older_driver_is_asked_in_older_ways(fake_nvml: FakeNvml) -> None:
    newest = (
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetTemperatureV",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlSystemGetCudaDriverVersion_v2",
    )

    async def run() -> None:
        machine = Machine((replace(BUSY, fan=None),)).failing(
            *(Fault(name, None, FUNCTION_NOT_FOUND) for name in newest)
        )
        with host(fake_nvml, machine) as there:
            seen = await there.read()
        assert (gpu(seen).temperature, gpu(seen).throttle) == (74.0, ("power", "thermal"))
        assert (gpu(seen).memory_used, gpu(seen).memory_reserved) == (40600 * MIB, None)
        assert seen.facts[0].cuda == "12.4"

    asyncio.run(run())


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        (0x0, ()),
        (0x1 | 0x2 | 0x100, ()),
        (0x8, ("hw_slowdown",)),
        (0x10 | 0x40 | 0x80, ("sync_boost", "hw_thermal", "power_brake")),
        (0x200 | 0x400 | 0x8000, ("board_limit", "reliability")),
        (None, ()),
    ],
)
def test_only_reasons_that_cost_speed_are_throttling(fake_nvml: FakeNvml, reasons: int | None, words: Any) -> None:
    async def run() -> None:
        with host(fake_nvml, Machine((FakeGpu(throttle=reasons),))) as there:
            assert gpu(await there.read()).throttle == words

    asyncio.run(run())


def test_an_idle_gpus_noise_is_not_told(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        machine = Machine()
        with host(fake_nvml, machine) as there:
            first = gpu(await there.read())
            for noise in (71_900, 70_400, 72_100):
                there.write(machine.changed(0, power=noise))
                assert gpu(await there.read()) == first
            there.write(machine.changed(0, power=72_300))
            assert gpu(await there.read()).power == 72.3

    asyncio.run(run())


def test_what_seldom_changes_is_asked_every_ten_seconds(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        machine = Machine()
        with host(fake_nvml, machine) as there:
            await there.read()
            there.write(machine.changed(0, power_limit=400_000, ecc_corrected=9, memory_used=1 << 30))
            seen = await there.read()
            assert (gpu(seen).memory_used, gpu(seen).power_limit, seen.facts[0].ecc_corrected) == (1 << 30, 700.0, 0)
            seen = await there.read(after=10)
            assert (gpu(seen).power_limit, seen.facts[0].ecc_corrected) == (400.0, 9)

    asyncio.run(run())


def test_slow_calls_are_spread_over_the_gpus(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        with host(fake_nvml, Machine(tuple(FakeGpu() for _ in range(5)))) as there:
            known = []
            for _ in range(11):
                seen = await there.read()
                known.append(sum(gpu.pcie_sent is not None for gpu in seen.gpus))
        assert known[0] == 0 and known[-1] == 5
        assert max(later - now for now, later in pairwise(known)) == 1

    asyncio.run(run())


def test_the_real_library_gives_a_state_on_any_host() -> None:
    async def run() -> None:
        reader = NvmlReader()
        seen = await reader.read()
        reader.close(10)
        assert seen.state in (PartState.ABSENT, PartState.OK, PartState.FAILED)

    asyncio.run(run())


def test_nodes_change_with_gpus_and_with_a_load_of_the_module(tmp_path: Any) -> None:
    proc, dev, module = tmp_path / "proc", tmp_path / "dev", tmp_path / "module"
    nothing = gpu_nodes(proc, dev, module)
    (proc / "gpus" / "0000:19:00.0").mkdir(parents=True)
    dev.mkdir()
    module.mkdir()
    loaded = gpu_nodes(proc, dev, module)
    for name in ("nvidia0", "nvidiactl", "null"):
        (dev / name).touch()
    with_node = gpu_nodes(proc, dev, module)
    assert len({nothing, loaded, with_node}) == 3
    assert with_node[1:] == ("0000:19:00.0", "nvidia0")
    assert gpu_nodes(proc, dev, module) == with_node


@pytest.mark.parametrize(
    "line",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.127.05  Tue Oct  8 03:22:07 UTC 2024\nGCC version: 12",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.127.05  Release Build\n",
    ],
)
def test_the_kernel_modules_version_is_told_by_the_kernel(tmp_path: Any, line: str) -> None:
    (tmp_path / "version").write_text(line)
    assert module_version(tmp_path) == "550.127.05"
    assert module_version(tmp_path / "none") == ""
