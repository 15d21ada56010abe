"""Whether memory that a child process takes on a GPU is said to be that child's, to the MiB.

The child takes a context first, and then a known amount: the difference is ours to find. It talks by lines, so that
another program can stand in for torch where there is no GPU.
"""

from __future__ import annotations

import asyncio
import json
import time
from asyncio.subprocess import PIPE
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quarterdeck_agent.drivers.base import Found, Life
from quarterdeck_agent.drivers.nvml import NvmlReader
from quarterdeck_agent.drivers.processes import ProcessReader
from quarterdeck_agent.gpus.attribution import attribute, held
from tests.gpu_smoke.compare import Row, Verdict
from tests.gpu_smoke.figures import MIB

AMOUNT = 512 * MIB
"""A whole number of the 2 MiB pieces that CUDA takes from the driver."""

ATTRIBUTED = "memory attributed"
DEADLINE = 120.0

PATIENCE = 5.0
"""Seconds in which NVML must show what a process took."""

SHARED = 32 * MIB
"""What else may change on a GPU meanwhile, where no process of it is listed."""

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
uuid = str(getattr(torch.cuda.get_device_properties(0), "uuid", ""))
if not uuid:
    say(left_out=f"torch {torch.__version__} does not tell which GPU it is on"); sys.exit()
try:
    small = torch.ones(1, device=device)
    torch.cuda.synchronize()
    say(uuid=uuid, torch=torch.__version__)
    amount = int(sys.stdin.readline())
    large = torch.empty(amount, dtype=torch.uint8, device=device)
    torch.cuda.synchronize()
except RuntimeError as error:
    say(left_out=f"torch {torch.__version__}: {str(error).splitlines()[0]}"); sys.exit()
say(taken=amount)
sys.stdin.readline()
"""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The check could not be made here, and why."""

    why: str


@dataclass(frozen=True, slots=True)
class Held:
    """What is held on one device: by the child as we attribute it, by each pid that NVML lists, and in all."""

    child: int | None
    by_pid: Mapping[int, int]
    used: int | None


async def allocated(reader: NvmlReader, child: Sequence[str], amount: int = AMOUNT) -> Row | LeftOut:
    """Start the child, let it take `amount` bytes, and see whose they are said to be."""
    process = await asyncio.create_subprocess_exec(*child, stdin=PIPE, stdout=PIPE)
    try:
        hello = await _heard(process)
        if "left_out" in hello:
            return LeftOut(hello["left_out"])
        uuid = await _device(reader, hello["uuid"])
        before = await _held(reader, process.pid, uuid, at_least=1)
        assert process.stdin is not None
        process.stdin.write(f"{amount}\n".encode())
        told = await _heard(process)
        if "left_out" in told:
            return LeftOut(told["left_out"])
        return judged(process.pid, amount, before, await _held(reader, process.pid, uuid, (before.child or 0) + amount))
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def judged(pid: int, amount: int, before: Held, after: Held) -> Row:
    """Whether the child's memory was found to be its own, or, where NVML hides its pid, to be somebody's at all.

    In a container NVML lists the pids of the host, or none. Then the child's is the one that grew by the amount.
    """
    taken = f"{amount / MIB:g} MiB taken"
    if before.child is not None and after.child is not None:
        return _row(ATTRIBUTED, after.child - before.child, taken, amount, MIB)
    grown = {other: size - before.by_pid.get(other, 0) for other, size in after.by_pid.items()}
    if any(other not in people(grown) and abs(size - amount) < MIB for other, size in grown.items()):
        return Row("child", "memory of a pid outside", taken.removesuffix(" taken"), taken, "ok")
    if not after.by_pid and before.used is not None and after.used is not None:
        return _row("memory used (no pids)", after.used - before.used, taken, amount, SHARED)
    return Row("child", f"pid {pid}", "is not found by its pid", f"took {taken.removesuffix(' taken')}", "differs")


def people(pids: Iterable[int]) -> set[int]:
    """Those of the pids that are there in this pid namespace."""
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


def _row(figure: str, found: int, taken: str, amount: int, slack: int) -> Row:
    verdict: Verdict = "ok" if abs(found - amount) < slack else "differs"
    return Row("child", figure, f"{found / MIB:g} MiB", taken, verdict)


async def _device(reader: NvmlReader, told: str) -> str:
    """NVML's uuid of what torch calls `told`: it leaves out whether that is a GPU or a MIG instance."""
    seen = await reader.read()
    return next((gpu.uuid for gpu in seen.gpus if gpu.uuid.endswith(told)), told)


async def _heard(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE):
        line = await process.stdout.readline()
    if not line:
        raise RuntimeError(f"the child that takes memory ended with {await process.wait()}")
    told: dict[str, Any] = json.loads(line)
    return told


async def _held(reader: NvmlReader, pid: int, uuid: str, at_least: int) -> Held:
    """What is held on a device, as soon as the child has `at_least` that, or after a few seconds."""
    ends = time.monotonic() + PATIENCE
    while True:
        seen = await reader.read()
        pids = [process.pid for processes in seen.processes.values() for process in processes]
        known = ProcessReader().read([*pids, pid])
        ours = Found("smoke", "smoke", 1, "", "", f"{pid}:{known[pid].start}", Life.RUNNING)
        found = held(attribute(seen.processes, known, [ours], seen.gpus)).get("smoke", {}).get(uuid)
        if (found is not None and found >= at_least) or time.monotonic() > ends:
            listed = {process.pid: process.memory or 0 for process in seen.processes.get(uuid, ())}
            used = next((gpu.memory_used for gpu in seen.gpus if gpu.uuid == uuid), None)
            return Held(found, listed, used)
        await asyncio.sleep(0.2)
