"""Does arithmetic on one device and says how right and how fast: `python -m quarterdeck_runtime.gpu_check`.

Allocates a bounded amount, multiplies two matrices in each number format and compares with float64 on the CPU, copies
memory, and prints one JSON object. The device is the first that the process may see (`CUDA_VISIBLE_DEVICES`).
Exit codes: 0 when it could be checked, right or wrong; 1 when the device cannot be used, with `error` in the object.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

SIDE = 4096
"""Of the square matrices: 64 MiB each in float32, and 137 GFLOP a product, a few milliseconds on a GPU."""

ROWS = 64
"""So many rows of the product are worked out in float64 on the CPU and compared."""

COPY = 256 << 20
SECONDS = 0.5

TOLERANCES = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 2e-2}
"""The largest error allowed, as a share of the largest value of the product: what rounding the inputs' sums may cost.

Measured on sound devices errors stay below a fifth of these; a GPU that computes wrongly is off by orders.
"""


def main(arguments: list[str] | None = None) -> int:
    """Check one device and print what came out."""
    options = _options(arguments)
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return _tell({"error": "torch is not installed"}, 1)
    try:
        return _tell(check(torch, options.device, options.side, options.copy, options.seconds), 0)
    except (RuntimeError, AssertionError) as error:  # torch's own, CUDA's errors among them
        return _tell({"torch": str(torch.__version__), "error": str(error).splitlines()[0][:500]}, 1)


def check(torch: Any, device: str, side: int, copy: int, seconds: float) -> dict[str, Any]:
    """The device's name, and per format the error and the speed of a product; bytes copied per second.

    `tflops` counts 2·side³ operations a product; `copy_bytes` what is read plus what is written.
    """
    found: dict[str, Any] = {
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "device": _name(torch, device),
    }
    torch.manual_seed(0)
    # TF32 rounds inputs to 10 bits: a sound GPU would look wrong in float32.
    torch.backends.cuda.matmul.allow_tf32 = False
    left, right = torch.randn(side, side), torch.randn(side, side)
    exact = left[:ROWS].double() @ right.double()
    found["products"] = {
        name: _product(torch, device, left, right, exact, name, seconds) for name in _formats(torch, device)
    }
    found["copy_bytes"] = _copy(torch, device, copy, seconds)
    return found


def _formats(torch: Any, device: str) -> tuple[str, ...]:
    """The formats worth timing: half precision on a CPU is emulated and says nothing."""
    if not device.startswith("cuda"):
        return ("float32",)
    return ("float32", "float16", "bfloat16") if torch.cuda.is_bf16_supported() else ("float32", "float16")


def _product(torch: Any, device: str, left: Any, right: Any, exact: Any, name: str, seconds: float) -> dict[str, Any]:
    kind = getattr(torch, name)
    a, b = left.to(device, kind), right.to(device, kind)
    # Judged against the product of the rounded inputs: what is checked is the arithmetic, not the format.
    wanted = exact if name == "float32" else left[:ROWS].to(kind).double() @ right.to(kind).double()
    result = a @ b
    error = float((result[:ROWS].cpu().double() - wanted).abs().max() / wanted.abs().max())
    taken = _timed(torch, device, lambda: torch.matmul(a, b, out=result), seconds)
    right_enough = error <= TOLERANCES[name] and bool(torch.isfinite(result).all())
    return {"error": error, "right": right_enough, "tflops": 2 * left.shape[0] ** 3 / taken / 1e12}


def _copy(torch: Any, device: str, size: int, seconds: float) -> float:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    taken = _timed(torch, device, lambda: target.copy_(source), seconds)
    return 2 * size / taken


def _timed(torch: Any, device: str, work: Callable[[], Any], seconds: float) -> float:
    """Seconds that one run of `work` takes, over as many as fit into `seconds`, after one to warm up."""

    def finish() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    work()
    finish()
    began, runs = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds or not runs:
        for _ in range(4):
            work()
        finish()
        runs += 4
    finish()
    return max(elapsed, time.perf_counter() - began) / runs


def _name(torch: Any, device: str) -> str:
    return str(torch.cuda.get_device_name(0)) if device.startswith("cuda") else "CPU"


def _tell(found: dict[str, Any], code: int) -> int:
    sys.stdout.write(json.dumps(found) + "\n")
    return code


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m quarterdeck_runtime.gpu_check", description="Check one device.")
    parser.add_argument("--device", default="cuda:0", help="cuda:0 (default) or cpu")
    parser.add_argument("--side", type=int, default=SIDE, help=f"of the matrices (default: {SIDE})")
    parser.add_argument("--copy", type=int, default=COPY, help=f"bytes to copy (default: {COPY})")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"a measurement takes (default: {SECONDS})")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
