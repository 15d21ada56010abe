"""What `qd doctor --gpu` has torch do: real arithmetic in a child, here on the CPU, and every way it can end badly."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from quarterdeck_agent.gpus.torch_check import NEEDED, check_gpus
from quarterdeck_agent.protocol import Check, Gpu, GpuHealth

GPU = Gpu(0, "GPU-1", "NVIDIA H100", memory_free=80 << 30)
ON_CPU = (sys.executable, "-m", "quarterdeck_runtime.gpu_check", "--device", "cpu", "--side", "256",
          "--copy", "1000000", "--seconds", "0.01")  # fmt: skip


def checked(*gpus: Gpu, command: tuple[str, ...], deadline: float = 60.0) -> tuple[Check, ...]:
    return asyncio.run(check_gpus(gpus, command, deadline))


def child(folder: Path, text: str) -> tuple[str, ...]:
    script = folder / "child.py"
    script.write_text(text)
    return (sys.executable, str(script))


@pytest.mark.torch
def test_real_arithmetic_is_right_and_its_speed_is_told() -> None:
    (found,) = checked(GPU, command=ON_CPU)
    assert found.result == "ok"
    assert "float32" in found.detail
    assert "TFLOP/s" in found.detail
    assert "GB/s" in found.detail


@pytest.mark.torch
def test_a_torch_without_cuda_fails_with_its_own_words() -> None:
    import torch

    if torch.version.cuda is not None:
        pytest.skip("this torch has CUDA, so it cannot show what one without says")
    (found,) = checked(GPU, command=(sys.executable, "-m", "quarterdeck_runtime.gpu_check"))
    assert found.result == "failed"
    assert "not compiled with CUDA" in found.detail


def test_each_device_gets_a_child_that_sees_only_it(tmp_path: Path) -> None:
    command = child(
        tmp_path,
        "import json, os\nprint(json.dumps({'torch': '2', 'device': os.environ['CUDA_VISIBLE_DEVICES'],"
        " 'products': {}, 'copy_bytes': 0.0}))",
    )
    whole = Gpu(0, "GPU-0", "NVIDIA H100", mig=True)
    slices = [Gpu(0, f"MIG-{n}", "NVIDIA H100", parent="GPU-0", profile="1g.10gb") for n in range(2)]
    found = checked(whole, *slices, GPU, command=command)
    assert [check.detail.split(",")[0] for check in found] == ["MIG-0", "MIG-1", "GPU-1"]


def test_wrong_results_are_a_failure_that_says_by_how_much(tmp_path: Path) -> None:
    said = {
        "torch": "2.13.0", "device": "NVIDIA H100", "copy_bytes": 2e12,
        "products": {"float32": {"error": 0.3, "right": False, "tflops": 50.0}},
    }  # fmt: skip
    (found,) = checked(GPU, command=child(tmp_path, f"print({json.dumps(said)!r})"))
    assert found.result == "failed"
    assert "float32 is off by 3.0e-01" in found.detail


def test_a_child_that_hangs_is_ended_at_the_deadline(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    command = child(
        tmp_path, f"import os, pathlib, time\npathlib.Path({str(mark)!r}).write_text(str(os.getpid()))\ntime.sleep(600)"
    )
    (found,) = checked(GPU, command=command, deadline=3.0)
    assert found.result == "failed"
    assert "within 3 s" in found.detail
    assert not Path(f"/proc/{mark.read_text()}").exists()


@pytest.mark.parametrize(
    "text", ["raise SystemExit('no such module')", "print('[]')", "print('{}')", "print('nonsense')"]
)
def test_a_child_that_tells_no_result_is_a_failure_not_an_error(tmp_path: Path, text: str) -> None:
    (found,) = checked(GPU, command=child(tmp_path, text))
    assert found.result == "failed"
    assert "the check did not run" in found.detail


def test_what_is_lost_or_full_is_left_alone() -> None:
    lost = Gpu(0, "GPU-0", "NVIDIA H100", health=GpuHealth.LOST, why="Xid 79: reboot the host")
    full = Gpu(1, "GPU-1", "NVIDIA H100", memory_free=NEEDED - 1)
    never = ("/nonexistent",)
    first, second = checked(lost, full, command=never)
    assert (first.result, first.mend) == ("failed", "Xid 79: reboot the host")
    assert second.result == "warning"
    assert [check.result for check in checked(command=never)] == ["ok"]
