"""The driver's library under a running process: never loaded before it is needed, and replaced with its driver."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quarterdeck_agent.drivers import nvml_library
from quarterdeck_agent.drivers.nvml import NvmlReader
from quarterdeck_agent.protocol import GpuHealth, PartState
from tests.agent.gpus.nvml_host import gpu, host
from tests.nvml.fake import STATE, FakeNvml, Machine, uuid_of

UPGRADED = """
import asyncio, os, sys
from pathlib import Path
from quarterdeck_agent.drivers.nvml import NvmlReader
from tests.nvml.fake import FakeNvml, Machine

folder, newer, state = (Path(argument) for argument in sys.argv[1:])
fake = FakeNvml(state.parent)

def mapped():
    lines = [line.split() for line in open("/proc/self/maps") if str(folder) in line]
    return {int(line[4]) for line in lines}, any("(deleted)" in line for line in lines)

async def main():
    reader = NvmlReader(retry=0.0, event_wait=0.05)
    first = await reader.read()
    old = mapped()[0]
    newer.replace(folder / "libnvidia-ml.so.1")
    fake.write(Machine(loaded="mismatch", generation=2))
    second = await reader.read()
    fake.write(Machine(generation=3, driver="560.1"))
    third = await reader.read()
    new, deleted = mapped()
    print(first.state, second.state, third.state, third.version, len(third.gpus))
    print(old.isdisjoint(new), new == {(folder / "libnvidia-ml.so.1").stat().st_ino}, deleted)
    reader.close(5)

asyncio.run(main())
"""


def test_the_library_of_an_upgraded_driver_is_loaded_in_place_of_the_old_one(
    tmp_path: Path, nvml_compiler: str
) -> None:
    fake = FakeNvml(tmp_path / "machine")
    folder = tmp_path / "lib"
    folder.mkdir()
    shutil.copy(fake.library, folder / "libnvidia-ml.so.1")
    shutil.copy(fake.library, tmp_path / "newer.so")
    env = os.environ | {STATE: str(fake.state), "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, "-c", UPGRADED, *map(str, (folder, tmp_path / "newer.so", fake.state))]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["ok failed ok 560.1 1", "True True False"]


def test_a_host_without_pynvml_has_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)

    async def run() -> None:
        reader = NvmlReader()
        seen = await reader.read()
        reader.close(5)
        assert (seen.state, seen.gpus) == (PartState.ABSENT, ())
        assert "nvidia-ml-py is not installed" in seen.detail

    asyncio.run(run())


def test_pynvml_is_not_imported_before_the_first_reading() -> None:
    code = "import sys, quarterdeck_agent.drivers.nvml as nvml; nvml.NvmlReader(); print('pynvml' in sys.modules)"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


def test_a_library_that_pynvml_keeps_elsewhere_is_left_alone() -> None:
    class Other:
        nvmlLib = object()

    assert nvml_library.drop(Other()) is False


def test_a_fault_of_our_own_shows_no_old_values_and_passes(
    fake_nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        with host(fake_nvml, Machine()) as there:
            await there.read()
            with monkeypatch.context() as broken:
                broken.setattr("quarterdeck_agent.drivers.nvml_device.Device.read", lambda *_: 1 / 0)
                seen = await there.read()
            assert (seen.state, gpu(seen).uuid) == (PartState.FAILED, uuid_of(0))
            assert (gpu(seen).memory_free, gpu(seen).health) == (None, GpuHealth.DEGRADED)
            assert "ZeroDivisionError" in caplog.text
            assert (await there.read(after=5)).state is PartState.OK

    asyncio.run(run())
