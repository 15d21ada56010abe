"""Has torch do arithmetic on each GPU, in a child process of its own, and tells how right and how fast it was.

One GPU after the other; each takes a few seconds of it and at most 2 GiB of its memory, which must be free. A child
that hangs in the driver is ended at the deadline, or left behind where the driver keeps it from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from quarterdeck_agent.protocol import Check, Gpu, GpuHealth

DEADLINE = 60.0
NEEDED = 2 << 30
COMMAND = (sys.executable, "-m", "quarterdeck_runtime.gpu_check")
ENDS_WITHIN = 2.0


async def check_gpus(
    gpus: Sequence[Gpu], command: Sequence[str] = COMMAND, deadline: float = DEADLINE
) -> tuple[Check, ...]:
    """One check for each GPU and MIG instance, in the order of `gpus`."""
    devices = [gpu for gpu in gpus if not gpu.mig]
    if not devices:
        return (Check("torch", "ok", "no GPU can be seen on this host, so there is nothing to check"),)
    return tuple([await _check(gpu, command, deadline) for gpu in devices])


async def _check(gpu: Gpu, command: Sequence[str], deadline: float) -> Check:
    name = f"torch on gpu{gpu.index}" + (f" {gpu.profile} {gpu.uuid[-8:]}" if gpu.profile else "")
    if gpu.health is GpuHealth.LOST:
        return Check(name, "failed", "the GPU is lost", gpu.why)
    if gpu.memory_free is not None and gpu.memory_free < NEEDED:
        free = f"{gpu.memory_free / 2**30:.1f} GiB"
        return Check(
            name, "warning", f"not checked: {free} are free, the check needs 2 GiB", "free some, and ask again"
        )
    try:
        return _judged(name, await _ask(gpu.uuid, command, deadline))
    except TimeoutError:
        mend = "see `dmesg | grep -i xid` and `qd gpus`; the driver or the GPU may hang"
        return Check(name, "failed", f"no result within {deadline:g} s", mend)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Check(name, "failed", f"the check did not run: {error!r}"[:400], "see the agent's log")


async def _ask(uuid: str, command: Sequence[str], deadline: float) -> dict[str, Any]:
    child = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": uuid, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(deadline):
            out, err = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ENDS_WITHIN):
                    await child.wait()
    if not out.strip():
        last = err.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
        raise ValueError(last[0])
    said = json.loads(out)
    if not isinstance(said, dict):
        raise ValueError("it said something else than a result")
    return said


def _judged(name: str, said: dict[str, Any]) -> Check:
    if "error" in said:
        torch = f"torch {said['torch']}: " if said.get("torch") else ""
        mend = "see `qd gpus` for the driver; the build of torch has to fit it (pip install 'quarterdeck[torch]')"
        return Check(name, "failed", f"{torch}{said['error']}"[:400], mend)
    speeds = ", ".join(f"{kind} {each['tflops']:.1f} TFLOP/s" for kind, each in said["products"].items())
    detail = f"{said['device']}, torch {said['torch']}: {speeds}, copies {said['copy_bytes'] / 1e9:.0f} GB/s"
    wrong = [f"{kind} is off by {each['error']:.1e}" for kind, each in said["products"].items() if not each["right"]]
    if wrong:
        mend = "take the GPU out of use: it computes wrongly; run `dcgmi diag -r 3` and see its ECC errors"
        return Check(name, "failed", f"wrong results: {'; '.join(wrong)} ({detail})", mend)
    return Check(name, "ok", detail)
