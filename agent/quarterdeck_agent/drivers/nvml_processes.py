"""The processes on one GPU or MIG instance: who is there, with how much memory, and what share of the GPU's time."""

from __future__ import annotations

from typing import Literal

from quarterdeck_agent.drivers.nvml_calls import NOT_FOUND, Ask
from quarterdeck_agent.drivers.nvml_seen import NvmlProcess

# The newest first. The functions without a number would do: in pynvml they are `_v3` again, and raise an exception of
# their own where the driver is older than that.
COMPUTE = ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2")
GRAPHICS = ("nvmlDeviceGetGraphicsRunningProcesses_v3", "nvmlDeviceGetGraphicsRunningProcesses_v2")
MPS = ("nvmlDeviceGetMPSComputeRunningProcesses_v3", "nvmlDeviceGetMPSComputeRunningProcesses_v2")
UTILISATION = "nvmlDeviceGetProcessUtilization"

_NONE_NEW = frozenset({0, NOT_FOUND})
"""What `nvmlDeviceGetProcessUtilization` ends with when nobody used the GPU; pynvml raises even success (0) then."""


class Processes:
    """Reads the processes of one handle. Remembers up to when their utilisation was read."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._seen_to = 0
        self._last: dict[int, float] = {}

    def read(self) -> tuple[NvmlProcess, ...] | None:
        """Everyone there, by pid; `None` where NVML does not tell who computes. Raises GpuLost, NvmlEnded."""
        lists = [self._ask.first(names) for names in (GRAPHICS, MPS, COMPUTE)]
        if lists[-1] is None:
            return None
        kinds: dict[int, Literal["compute", "graphics"]] = {}
        memory: dict[int, int | None] = {}
        # One that computes and draws is in two lists, with the same memory in each; so is a client of CUDA MPS.
        for number, listed in enumerate(lists):
            for process in listed or ():
                kinds[process.pid] = "compute" if number else "graphics"
                memory[process.pid] = _most(memory.get(process.pid), process.usedGpuMemory)
        kinds.pop(0, None)
        if not kinds:
            return ()
        shares = self._shares()
        return tuple(
            NvmlProcess(pid, memory[pid], None if shares is None else shares.get(pid, 0.0), kinds[pid])
            for pid in sorted(kinds)
        )

    def _shares(self) -> dict[int, float] | None:
        """The share of the GPU's time by pid since the last reading: whoever is not named used none of it."""
        samples = self._ask.keyed((UTILISATION,), UTILISATION, (self._seen_to,))
        if samples is None:
            # Drivers sample once a second or more often: one reading may come just before a sample, two may not.
            last, self._last = self._last, {}
            return last if self._ask.code in _NONE_NEW and not self._ask.refused(UTILISATION) else None
        newest: dict[int, tuple[int, float]] = {}
        for sample in samples:
            # The driver fills what it has no sample for with zeros, and now and then tells more than 100 %.
            if sample.pid and sample.timeStamp >= newest.get(sample.pid, (0, 0.0))[0]:
                newest[sample.pid] = (sample.timeStamp, min(sample.smUtil, 100) / 100)
        self._seen_to = max([self._seen_to, *(at for at, _ in newest.values())])
        self._last = {pid: share for pid, (_, share) in newest.items()}
        return self._last


def _most(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else max(one, other)
