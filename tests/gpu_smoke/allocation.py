"""Whether memory that a child process takes on a GPU is said to be that child's, to the MiB.

The child takes a context first, and then a known amount: the difference is ours to find. It talks by lines, so that
another program can stand in for torch where there is no GPU.
"""

from __future__ import annotations

import asyncio
import json
import time
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quarterdeck_agent.drivers.base import Found, Life
from quarterdeck_agent.drivers.nvml import NvmlReader
from quarterdeck_agent.drivers.processes import ProcessReader
from quarterdeck_agent.gpus.attribution import attribute, held
from tests.gpu_smoke.compare import Row, Verdict
from tests.gpu_smoke.figures import MIB

AMOUNT = 512 * MIB
"""A whole number of the 2 MiB pieces that CUDA takes from the driver."""

DEADLINE = 120.0

TORCH = """
import json, sys
def say(**told):
    print(json.dumps(told), flush=True)
try:
    import torch
except ImportError:
    say(left_out="torch is not installed"); sys.exit()
if not torch.cuda.is_available():
    say(left_out=f"torch {torch.__version__} has no CUDA, or finds no GPU"); sys.exit()
device = torch.device("cuda:0")
small = torch.ones(1, device=device)
torch.cuda.synchronize()
uuid = str(torch.cuda.get_device_properties(0).uuid)
say(uuid=uuid if uuid.startswith(("GPU-", "MIG-")) else "GPU-" + uuid, torch=torch.__version__)
amount = int(sys.stdin.readline())
large = torch.empty(amount, dtype=torch.uint8, device=device)
torch.cuda.synchronize()
say(taken=amount)
sys.stdin.readline()
"""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The check could not be made here, and why."""

    why: str


async def allocated(reader: NvmlReader, child: Sequence[str], amount: int = AMOUNT) -> Row | LeftOut:
    """Start the child, let it take `amount` bytes, and see whose they are said to be."""
    process = await asyncio.create_subprocess_exec(*child, stdin=PIPE, stdout=PIPE)
    try:
        hello = await _heard(process)
        if "left_out" in hello:
            return LeftOut(hello["left_out"])
        before = await _attributed(reader, process.pid, hello["uuid"], at_least=1)
        assert process.stdin is not None
        process.stdin.write(f"{amount}\n".encode())
        await _heard(process)
        after = await _attributed(reader, process.pid, hello["uuid"], at_least=(before or 0) + amount)
        if before is None or after is None:
            return Row("child", f"pid {process.pid}", "is not found by its pid", f"took {amount // MIB} MiB", "differs")
        found = after - before
        verdict: Verdict = "ok" if abs(found - amount) < MIB else "differs"
        return Row("child", "memory attributed", f"{found / MIB:g} MiB", f"{amount / MIB:g} MiB taken", verdict)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _heard(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE):
        line = await process.stdout.readline()
    if not line:
        raise RuntimeError(f"the child that takes memory ended with {await process.wait()}")
    told: dict[str, Any] = json.loads(line)
    return told


async def _attributed(reader: NvmlReader, pid: int, uuid: str, at_least: int) -> int | None:
    """Bytes that the child holds, as soon as they are `at_least` that, or what there is after a few seconds."""
    ends = time.monotonic() + 5.0
    while True:
        seen = await reader.read()
        pids = [process.pid for processes in seen.processes.values() for process in processes]
        people = ProcessReader().read([*pids, pid])
        child = people[pid]
        ours = Found("smoke", "smoke", 1, "", "", f"{pid}:{child.start}", Life.RUNNING)
        found = held(attribute(seen.processes, people, [ours], seen.gpus)).get("smoke", {}).get(uuid)
        if (found is not None and found >= at_least) or time.monotonic() > ends:
            return found
        await asyncio.sleep(0.2)
