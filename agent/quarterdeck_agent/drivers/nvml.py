"""Reads NVIDIA GPUs through NVML, off the event loop and with a deadline: a driver may hang, lose a GPU or be reloaded.

What NVML cannot tell is `None`; that there is no NVML, or that it does not answer, is a state and never an error.
Nothing here changes a setting of a GPU.

One thread reads all GPUs. When a call about one GPU hangs, that thread is left behind with it and another one reads the
rest: no second call about a GPU is begun while the first has not come back. When the second thread hangs as well, it
is the driver that hangs, and nothing is begun until one of them comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from itertools import chain
from time import monotonic
from typing import Any

from quarterdeck_agent.clock import Clock, SystemClock
from quarterdeck_agent.drivers.lane import Lane, finished
from quarterdeck_agent.drivers.nvml_device import Device, DeviceSeen, without_gauges
from quarterdeck_agent.drivers.nvml_events import WAIT
from quarterdeck_agent.drivers.nvml_gpus import LOST_RETRY, RENEW, RETRY, Gpus, Turn
from quarterdeck_agent.drivers.nvml_library import gpu_nodes
from quarterdeck_agent.drivers.nvml_seen import NvmlEvent, NvmlProcess, NvmlSeen
from quarterdeck_agent.protocol import GpuHealth, PartState

DEADLINE = 5.0
NAME = "nvml"

STUCK = 2
"""As many threads may hang before it is the driver that hangs, and not a GPU."""

__all__ = ["NAME", "NvmlEvent", "NvmlProcess", "NvmlReader", "NvmlSeen"]


class NvmlReader:
    """Asks NVML. `library` stands in for pynvml, `nodes` for what the kernel shows of its GPUs.

    Each reading returns within `deadline` seconds, and at once while nothing can be asked. Call `read` from one task.
    """

    def __init__(
        self,
        library: Any = None,
        deadline: float = DEADLINE,
        *,
        clock: Clock | None = None,
        nodes: Callable[[], object] = gpu_nodes,
        retry: float = RETRY,
        lost_retry: float = LOST_RETRY,
        renew: float = RENEW,
        event_wait: float = WAIT,
    ) -> None:
        self._deadline = deadline
        self._gpus = Gpus(
            library,
            clock or SystemClock(),
            nodes,
            retry=retry,
            lost_retry=lost_retry,
            renew=renew,
            event_wait=event_wait,
        )
        self._lane = Lane(NAME)
        self._asked: tuple[Turn, Future[None]] | None = None
        self._stuck: dict[Device, tuple[Lane, Future[None]]] = {}

    async def read(self) -> NvmlSeen:
        """What NVML tells now, or the state that keeps it from telling."""
        self._stuck = {device: (lane, done) for device, (lane, done) in self._stuck.items() if not done.done()}
        if len(self._stuck) >= STUCK:
            return self._unresponsive()
        within = 0.0
        if self._asked is None:
            turn, within = Turn(frozenset(self._stuck)), self._deadline
            self._asked = turn, self._lane.do(lambda: self._gpus.turn(turn))
        turn, done = self._asked
        if not await finished(done, within):
            self._leave(turn, done)
            return self._unresponsive()
        self._asked = None
        return self._unresponsive() if self._stuck else self._told(self._gpus.state, self._gpus.detail)

    def close(self, within: float = 0.0) -> None:
        """Give NVML back, and wait for that at most `within` seconds. What hangs is left to its thread."""
        done = self._lane.do(lambda: self._gpus.close(inside=bool(self._stuck)))
        self._lane.end()
        with suppress(TimeoutError):
            done.result(within)

    def _leave(self, turn: Turn, done: Future[None]) -> None:
        """Leave the thread that hangs about one GPU behind. While NVML itself hangs there is nothing else to do."""
        device = turn.device
        # A turn may also take long for all of its GPUs together, or have come to this one only now.
        if device is not None and monotonic() - turn.since >= self._deadline / 2:
            turn.left = True
            self._stuck[device] = self._lane, done
            self._lane.end()
            self._lane, self._asked = Lane(NAME), None

    def _unresponsive(self) -> NvmlSeen:
        hanging = sorted(self._stuck, key=lambda device: device.index)
        if self._asked is None and len(hanging) < STUCK:
            numbers = ", ".join(str(device.index) for device in hanging)
            detail = f"GPU {numbers} has not answered {hanging[0].progress.call} within {self._deadline:g} s"
        else:
            call = self._asked[0].progress.call if self._asked is not None else hanging[0].progress.call
            detail = f"NVML has not answered {call} within {self._deadline:g} s"
        return self._told(PartState.UNRESPONSIVE, f"{detail}; the driver may hang (see dmesg for Xid errors)")

    def _told(self, state: PartState, detail: str) -> NvmlSeen:
        gpus = self._gpus
        devices = sorted((*gpus.devices, *gpus.gone), key=lambda device: device.index)
        seen = [self._known(device, detail) for device in devices]
        return NvmlSeen(
            state,
            detail,
            gpus.version,
            tuple(chain.from_iterable(each.gpus for each in seen)),
            tuple(chain.from_iterable(each.facts for each in seen)),
            {uuid: processes for each in seen for uuid, processes in each.processes.items()},
            gpus.events(),
        )

    def _known(self, device: Device, detail: str) -> DeviceSeen:
        """What is known of a GPU now: nothing but its name where it was not asked, or did not answer."""
        if device in self._stuck:
            return without_gauges(device.seen, GpuHealth.DEGRADED, device.why_hanging)
        if self._asked is not None or len(self._stuck) >= STUCK:
            return without_gauges(device.seen, GpuHealth.DEGRADED, detail)
        if not self._gpus.opened:
            return without_gauges(device.seen, GpuHealth.LOST if self._gpus.unloaded else GpuHealth.DEGRADED, detail)
        return device.seen
