"""Compares our figures of this machine's GPUs with nvidia-smi's, and our attribution with memory that a child takes.

The exit code is 0 when all agree, 1 when something differs, 2 when there is no GPU to compare.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from quarterdeck_agent.drivers.nvml import NvmlReader, NvmlSeen
from quarterdeck_agent.protocol import PartState
from tests.gpu_smoke.allocation import ATTRIBUTED, TORCH, LeftOut, allocated
from tests.gpu_smoke.compare import Row, compared, table
from tests.gpu_smoke.figures import ours, theirs

SMI_DEADLINE = 60.0

FIRST_PIDS = 0xEFFFFFFC
"""The inode of the first pid namespace (PROC_PID_INIT_INO in Linux' proc_ns.h)."""

APART = (
    "this container has pids of its own: with the host's (docker run --pid=host) it is checked too whose memory it is"
)


class NoGpu(Exception):
    """There is nothing to compare here."""


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_smoke", description=__doc__)
    parser.add_argument("--nvidia-smi", default="nvidia-smi", help="the program to compare with")
    parser.add_argument("--child", default=shlex.join([sys.executable, "-c", TORCH]), help="what takes memory")
    parser.add_argument("--pids", choices=("host", "own"), help="whose pids NVML tells (default: found out)")
    asked = parser.parse_args(words)
    apart = asked.pids == "host" if asked.pids else _apart()
    try:
        rows, notes = asyncio.run(_checked(asked.nvidia_smi, shlex.split(asked.child), apart=apart))
    except NoGpu as why:
        print(f"no GPU was checked: {why}", file=sys.stderr)
        return 2
    print(table(rows))
    for note in notes:
        print(note)
    wrong = [row for row in rows if not row.well]
    agree = sum(row.verdict == "ok" for row in rows)
    print(f"{agree} agree, {len(wrong)} differ, {len(rows) - agree - len(wrong)} are not told by both")
    return 1 if wrong else 0


async def _checked(smi: str, child: Sequence[str], *, apart: bool) -> tuple[list[Row], list[str]]:
    program = shutil.which(smi)
    reader = NvmlReader()
    try:
        before = await _seen(reader)
        if program is None:
            raise NoGpu(f"there is no {smi} on this machine")
        told = theirs(await _ran(program, "-q", "-x"), await _ran(program, "-L"))
        rows = compared(ours(before), told, ours(await _seen(reader)), apart=apart)
        taken = await allocated(reader, child)
    finally:
        reader.close()
    notes = [APART] if apart and not (isinstance(taken, Row) and taken.figure == ATTRIBUTED) else []
    if isinstance(taken, LeftOut):
        return rows, [*notes, f"attribution was not checked: {taken.why}"]
    return [*rows, taken], notes


def _apart() -> bool:
    """Whether this is another pid namespace than the kernel's first one: a container's."""
    with suppress(OSError):
        return Path("/proc/self/ns/pid").stat().st_ino != FIRST_PIDS  # else nothing is known of namespaces here
    return False


async def _seen(reader: NvmlReader) -> NvmlSeen:
    """A reading with everything in it: what is read seldom comes with the second one."""
    await reader.read()
    seen = await reader.read()
    if seen.state is PartState.ABSENT or not seen.gpus:
        raise NoGpu(seen.detail or "the driver knows none")
    return seen


async def _ran(program: str, *words: str) -> str:
    call = asyncio.to_thread(
        subprocess.run, [program, *words], capture_output=True, text=True, timeout=SMI_DEADLINE, check=False
    )
    ran = await call
    if ran.returncode != 0:
        raise NoGpu(f"{program} {' '.join(words)} ended with {ran.returncode}: {(ran.stderr or ran.stdout).strip()}")
    return ran.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
