"""Which builds of torch run on which GPUs, and how the agent learns of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from quarterdeck_agent.gpus.torch_build import OwnTorch, TorchBuild, unsupported
from quarterdeck_agent.protocol import GpuFacts

CODE = ("sm_75", "sm_80", "sm_86", "sm_90", "compute_90")
BUILD = TorchBuild("2.13.0", "12.8", CODE)


def gpu(capability: tuple[int, int] | None = (9, 0), cuda: str | None = "12.4", driver: str = "550.54.15") -> GpuFacts:
    return GpuFacts("GPU-1", driver=driver, cuda=cuda, compute_capability=capability)


@pytest.mark.parametrize(
    ("build", "facts", "says"),
    [
        (BUILD, gpu(), None),
        (BUILD, gpu((8, 9)), None),  # machine code of 8.6 runs on 8.9
        (BUILD, gpu((10, 0), "13.0"), None),  # the driver compiles PTX of 9.0
        (BUILD, gpu((7, 0)), "no code for compute capability 7.0"),
        (BUILD, gpu(cuda="11.8", driver="520.1"), "built for CUDA 12.8, and the driver 520.1 runs CUDA up to 11.8"),
        (BUILD, gpu(None, None), None),  # nobody can tell
        (TorchBuild("2.13.0", "12.8", ("sm_80", "sm_90")), gpu((10, 0), "13.0"), "no code for compute capability 10.0"),
        (TorchBuild("2.13.0", "12.8", ("sm_90a",)), gpu(), None),
        (TorchBuild("2.13.0+cpu", None), gpu(), "build for CPUs"),
        (TorchBuild(), gpu(), "has no torch"),
    ],
)
def test_a_build_is_refused_with_the_reason_and_only_with_one(
    build: TorchBuild, facts: GpuFacts, says: str | None
) -> None:
    why = unsupported(build, (facts,))
    assert (why is None) if says is None else (why is not None and says in why)


def test_one_gpu_that_fits_is_enough() -> None:
    assert unsupported(BUILD, (gpu((6, 1)), gpu())) is None
    assert unsupported(BUILD, (gpu((6, 1)), gpu((7, 0)))) is not None


@pytest.mark.torch
def test_the_agents_own_build_is_the_installed_one() -> None:
    import torch

    build = OwnTorch().build()
    assert build is not None
    assert build.torch == torch.__version__
    assert build.cuda == torch.version.cuda


def test_a_build_that_cannot_be_read_is_asked_for_again_and_one_that_can_only_once(tmp_path: Path) -> None:
    script, calls = tmp_path / "build.py", tmp_path / "calls"
    script.write_text(
        f"import pathlib, sys\ncalls = pathlib.Path({str(calls)!r})\n"
        "count = len(calls.read_text()) if calls.exists() else 0\ncalls.write_text('x' * (count + 1))\n"
        "if count == 0: sys.exit(1)\n"
        """print('{"torch": "2.0", "cuda": null, "architectures": []}')\n"""
    )
    own = OwnTorch((sys.executable, str(script)))
    assert own.build() is None
    assert own.build() == TorchBuild("2.0")
    assert own.build() == TorchBuild("2.0")
    assert calls.read_text() == "xx"
