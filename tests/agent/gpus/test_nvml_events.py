"""Xid and ECC events come with the reading after them, and nothing that goes wrong with them stops the readings."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from quarterdeck_agent.drivers import nvml_events
from quarterdeck_agent.drivers.nvml import NvmlEvent, NvmlSeen
from quarterdeck_agent.protocol import PartState
from tests.agent.gpus.nvml_host import Host, host
from tests.nvml.fake import (
    ECC_CORRECTED,
    ECC_UNCORRECTED,
    GPU_IS_LOST,
    UNKNOWN,
    FakeEvent,
    FakeGpu,
    FakeMig,
    FakeNvml,
    Fault,
    Machine,
    uuid_of,
)


async def events(there: Host, many: int, within: float = 20.0) -> list[NvmlEvent]:
    """Read until that many events came."""
    came: list[NvmlEvent] = []

    def enough(seen: NvmlSeen) -> bool:
        came.extend(seen.events)
        assert seen.state is PartState.OK
        return len(came) >= many

    await there.until(enough, within)
    return came


def test_events_come_once_with_gpu_kind_and_code(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        machine = Machine((FakeGpu(), FakeGpu()))
        with host(fake_nvml, machine) as there:
            assert (await there.read()).events == ()
            there.write(machine.changed(1, events=(FakeEvent(1, 79), FakeEvent(2, type=ECC_UNCORRECTED))))
            came = await events(there, 2)
            there.write(
                machine.changed(1, events=(FakeEvent(1, 79), FakeEvent(2, type=ECC_UNCORRECTED))).changed(
                    0, events=(FakeEvent(3, 5, type=ECC_CORRECTED), FakeEvent(4, 13))
                )
            )
            came += await events(there, 2)
            assert (await there.read()).events == ()
        assert [(event.uuid, event.kind, event.code) for event in came] == [
            (uuid_of(1), "xid", 79),
            (uuid_of(1), "ecc_uncorrected", None),
            (uuid_of(0), "ecc_corrected", None),
            (uuid_of(0), "xid", 13),
        ]
        assert all(abs(datetime.now(UTC) - event.at) < timedelta(minutes=1) for event in came)

    asyncio.run(run())


def test_an_instances_events_are_its_gpus(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        machine = Machine((FakeGpu(migs=(FakeMig(1), FakeMig(2))),))
        with host(fake_nvml, machine) as there:
            await there.read()
            there.write(machine.changed(0, events=(FakeEvent(1, 45, gpu_instance=2, compute_instance=0),)))
            (event,) = await events(there, 1)
        assert (event.uuid, event.code) == (uuid_of(0), 45)

    asyncio.run(run())


def test_a_gpu_without_events_leaves_the_others_theirs(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        machine = Machine((FakeGpu(event_types=None), FakeGpu(event_types=0), FakeGpu()))
        machine = machine.failing(Fault("nvmlDeviceRegisterEvents", 1, UNKNOWN))
        with host(fake_nvml, machine) as there:
            await there.read()
            there.write(machine.changed(2, events=(FakeEvent(1, 31),)))
            assert [event.uuid for event in await events(there, 1)] == [uuid_of(2)]

    asyncio.run(run())


@pytest.mark.parametrize("function", ["nvmlEventSetCreate", "nvmlEventSetWait_v2", "nvmlDeviceRegisterEvents"])
def test_a_set_that_fails_is_made_anew_and_stops_no_reading(
    fake_nvml: FakeNvml, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvml_events, "RETRY", 0.02)

    async def run() -> None:
        machine = Machine((FakeGpu(events=(FakeEvent(1, 79),)),))
        with host(fake_nvml, machine.failing(Fault(function, None, GPU_IS_LOST))) as there:
            for _ in range(5):
                seen = await there.read()
                assert (seen.state, seen.events) == (PartState.OK, ())
                await asyncio.sleep(0.02)
            there.write(machine)
            assert [event.code for event in await events(there, 1)] == [79]

    asyncio.run(run())


def test_a_wait_that_hangs_stops_no_reading_and_no_new_beginning(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        machine = Machine().failing(Fault("nvmlEventSetWait_v2", None, seconds=60))
        with host(fake_nvml, machine) as there:
            assert (await there.read()).state is PartState.OK
            there.nodes = "another"
            seen = await there.until(lambda seen: seen.state is PartState.OK)
            assert len(seen.gpus) == 1
            assert (await there.read()).state is PartState.OK
            # What could not be shut down then is shut down with the next change.
            there.write(Machine((FakeGpu(), FakeGpu())))
            there.nodes = "two"
            assert len((await there.read(after=10)).gpus) == 2

    asyncio.run(run())


def test_a_storm_of_events_is_bounded(fake_nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml_events, "PAUSE", 0.0)
    monkeypatch.setattr(nvml_events, "KEPT", 10)

    async def run() -> None:
        machine = Machine((FakeGpu(events=tuple(FakeEvent(n, n) for n in range(1, 31))),))
        with host(fake_nvml, machine) as there:
            await there.read()
            await asyncio.sleep(0.5)
            assert len((await there.read()).events) <= 10

    asyncio.run(run())


def test_events_go_on_after_the_driver_was_loaded_again(fake_nvml: FakeNvml) -> None:
    async def run() -> None:
        machine = Machine((FakeGpu(events=(FakeEvent(1, 13),)),))
        with host(fake_nvml, machine) as there:
            await events(there, 1)
            machine = machine.reloaded(FakeGpu(events=(FakeEvent(2, 31),)))
            there.write(machine)
            assert 31 in [event.code for event in await events(there, 1)]

    asyncio.run(run())
