"""Reads NVIDIA GPUs through NVML, in a thread of its own and with a deadline: a driver may hang or lose a GPU.

What NVML cannot tell is `None` in a gauge; that there is no NVML, or that it does not answer, is a state and never an
error. Nothing here changes a setting of a GPU.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from quarterdeck_agent.drivers.nvml_seen import NvmlEvent, NvmlProcess, NvmlSeen
from quarterdeck_agent.protocol import Gpu, PartState

DEADLINE = 5.0
NAME = "nvml"

__all__ = ["NAME", "NvmlEvent", "NvmlProcess", "NvmlReader", "NvmlSeen"]


class NvmlReader:
    """Asks NVML. While a call hangs, no second one is begun; it is tried again once the first has come back."""

    def __init__(self, library: Any = None, deadline: float = DEADLINE) -> None:
        self._library = library
        self._deadline = deadline
        self._hanging: Future[NvmlSeen] | None = None
        self._ready = False
        self._last: tuple[Gpu, ...] = ()

    def close(self) -> None:
        """Nothing is asked after this; a call that hangs is left to its thread."""

    async def read(self) -> NvmlSeen:
        """The GPUs now, or the state that keeps NVML from telling them; returns within the deadline."""
        call, self._hanging = self._hanging, None
        if call is None:
            call = self._begin()
        elif not call.done():
            self._hanging = call
            return self._unresponsive()
        try:
            async with asyncio.timeout(self._deadline):
                return await asyncio.shield(asyncio.wrap_future(call))
        except TimeoutError:
            self._hanging = call
            return self._unresponsive()

    def _begin(self) -> Future[NvmlSeen]:
        # A daemon thread: one that hangs in the driver must not keep the agent from ending.
        call: Future[NvmlSeen] = Future()

        def work() -> None:
            try:
                call.set_result(self._read())
            except BaseException as error:  # noqa: BLE001 - handed on to whoever waits
                call.set_exception(error)

        threading.Thread(target=work, name="nvml", daemon=True).start()
        return call

    def _unresponsive(self) -> NvmlSeen:
        gpus = tuple(Gpu(gpu.index, gpu.uuid, gpu.name) for gpu in self._last)
        detail = f"NVML has not answered within {self._deadline:g} s; the driver may hang (see dmesg for Xid errors)"
        return NvmlSeen(PartState.UNRESPONSIVE, detail, "", gpus)

    def _read(self) -> NvmlSeen:
        if self._library is None:
            import pynvml

            self._library = pynvml
        nvml = self._library
        try:
            if not self._ready:
                nvml.nvmlInit()
                self._ready = True
            version = _text(nvml.nvmlSystemGetDriverVersion())
            gpus = tuple(_gpu(nvml, index, self._last) for index in range(nvml.nvmlDeviceGetCount()))
        except nvml.NVMLError as error:
            self._ready = False
            if type(error) in _absent(nvml):
                return NvmlSeen(PartState.ABSENT, f"no NVIDIA driver on this host ({error})")
            return NvmlSeen(PartState.FAILED, f"NVML: {error}; nvidia-smi shows more", "", self._last)
        self._last = gpus
        lost = [gpu.index for gpu in gpus if gpu.memory_total is None and gpu.utilisation is None]
        if lost:
            return NvmlSeen(PartState.FAILED, f"GPU {', '.join(map(str, lost))} does not answer", version, gpus)
        return NvmlSeen(PartState.OK, "", version, gpus)


def _absent(nvml: Any) -> tuple[type, ...]:
    names = ("NVMLError_LibraryNotFound", "NVMLError_DriverNotLoaded")
    return tuple(getattr(nvml, name) for name in names if hasattr(nvml, name))


def _gpu(nvml: Any, index: int, last: tuple[Gpu, ...]) -> Gpu:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid, name = _text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle))
    except nvml.NVMLError:
        # A GPU that fell off the bus keeps its place under the name it had.
        known = next((gpu for gpu in last if gpu.index == index), None)
        return Gpu(index, known.uuid if known else f"gpu-{index}", known.name if known else "unknown GPU")

    def ask(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except nvml.NVMLError:
            return None

    memory = ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
    use = ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    milliwatts = ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
    limit = ask(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle))
    heat = ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
    return Gpu(
        index=index,
        uuid=uuid,
        name=name,
        memory_total=None if memory is None else int(memory.total),
        memory_used=None if memory is None else int(memory.used),
        utilisation=None if use is None else use.gpu / 100,
        temperature=None if heat is None else float(heat),
        power=None if milliwatts is None else milliwatts / 1000,
        power_limit=None if limit is None else limit / 1000,
    )


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
