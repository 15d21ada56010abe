"""A stand-in for a program that computes on a GPU: takes memory on a fake machine, in the words of the smoke test.

`python -m tests.nvml.simulated_program FOLDER FACTOR [PID]` takes FACTOR times what it is told to. NVML lists it under
PID instead of its own, as in a container; not at all with "none".
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.nvml.fake import MIB, FakeNvml, FakeProcess, Machine, uuid_of

CONTEXT = 430 * MIB


def main(folder: str, factor: str, pid: str = "") -> None:
    def hold(memory: int) -> None:
        listed = () if pid == "none" else (FakeProcess(int(pid or os.getpid()), CONTEXT + memory),)
        fake.write(Machine().changed(0, processes=listed, memory_used=CONTEXT + memory))

    fake = FakeNvml(Path(folder))
    hold(0)
    print(json.dumps({"uuid": uuid_of(0)}), flush=True)
    amount = int(sys.stdin.readline())
    hold(int(amount * float(factor)))
    print(json.dumps({"taken": amount}), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main(*sys.argv[1:])
