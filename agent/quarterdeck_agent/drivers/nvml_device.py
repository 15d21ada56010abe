"""One GPU with its MIG instances: reads its gauges each time, its facts now and then, and knows when it is lost.

Belongs to whichever thread reads it, one at a time; `seen` is replaced as a whole and may be looked at from anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any, TypeVar

from quarterdeck_agent.drivers.nvml_calls import Ask, GpuLost, Progress, describe, raise_if_ended, text
from quarterdeck_agent.drivers.nvml_facts import (
    GRAPHICS_CLOCK,
    MEMORY_CLOCK,
    Links,
    Versions,
    changing,
    fixed,
    hertz,
    watts,
)
from quarterdeck_agent.drivers.nvml_processes import Processes
from quarterdeck_agent.drivers.nvml_seen import NvmlProcess
from quarterdeck_agent.protocol import Gpu, GpuFacts, GpuHealth

N = TypeVar("N", int, float)

FACTS_EVERY = 10.0

_MEMORY_V2 = 0x02000028
"""nvmlMemory_v2: version 2 with the size of its struct. Its `used` leaves out what the driver reserves."""

POWER_NOISE = 1.0
PCIE_NOISE = 1e6

_MEMORY = "nvmlDeviceGetMemoryInfo"
_GPU_SENSOR = 0
_SENT, _RECEIVED = 0, 1
_UNKNOWN_STATE = 32

_PROFILE = re.compile(r"\bMIG (\S+)$")

THROTTLE = (
    (0x004, "power"),
    (0x008, "hw_slowdown"),
    (0x010, "sync_boost"),
    (0x020, "thermal"),
    (0x040, "hw_thermal"),
    (0x080, "power_brake"),
    (0x200, "board_limit"),
    (0x400, "reliability"),
)
"""Of nvmlClocksEventReasons those that cost speed: not idle (1), clocks that somebody set (2), a display (0x100)."""


@dataclass(frozen=True, slots=True)
class DeviceSeen:
    """One GPU and then its MIG instances, as last read."""

    gpus: tuple[Gpu, ...]
    facts: tuple[GpuFacts, ...] = ()
    processes: Mapping[str, tuple[NvmlProcess, ...]] = field(default_factory=dict)


@dataclass(slots=True)
class _Instance:
    """One MIG instance."""

    ask: Ask
    uuid: str
    number: int
    profile: str | None
    gpu_instance: int | None = None
    processes: Processes = field(init=False)

    def __post_init__(self) -> None:
        self.processes = Processes(self.ask)


class Device:
    """The GPU at one index of NVML's. While it could not be asked for its uuid, it has one of our own making.

    `attached` says whether that was tried; `lost` says why the GPU cannot be reached, empty while it can. `facts_in`
    puts off the second reading of its facts, so that not all GPUs' are due in the same second.
    """

    def __init__(self, nvml: Any, index: int, about: Versions, *, facts_in: float, lost_retry: float) -> None:
        self.index, self.uuid, self.name = index, f"gpu-{index}", "unknown GPU"
        self.handle: Any = None
        self.lost = ""
        self.attached = self.mig = False
        self.progress = Progress()
        self.facts = GpuFacts(self.uuid)
        self.seen = DeviceSeen((Gpu(index, self.uuid, self.name),))
        self._nvml, self._about, self._lost_retry = nvml, about, lost_retry
        self._facts_in: float | None = facts_in
        self._facts_at = self._retry_at = 0.0
        self._instances: tuple[_Instance, ...] = ()
        self._power_limit: float | None = None
        self._traffic: tuple[int | None, int | None] = (None, None)
        self._bind(None)

    def _bind(self, handle: Any) -> None:
        self.handle = handle
        self._ask = Ask(self._nvml, handle, self.progress)
        self._processes, self._links = Processes(self._ask), Links(self._ask)

    @property
    def named(self) -> bool:
        """Whether the uuid is the GPU's own."""
        return self.uuid != f"gpu-{self.index}"

    @property
    def why_hanging(self) -> str:
        """What to say of this GPU while a call about it does not come back."""
        return f"the driver has not answered {self.progress.call or 'NVML'} for this GPU; see dmesg for Xid errors"

    def remember(self, uuid: str, name: str, facts: GpuFacts) -> None:
        """Go by the name of a GPU that was here before: this one is lost and does not tell its own."""
        self.uuid, self.name, self.facts = uuid, name, facts
        self._show_lost()

    # --- the GPU ---------------------------------------------------------------------------------------------------

    def attach(self, now: float) -> None:
        """Find the GPU and what is fixed about it. One that does not answer is lost. Raises NvmlEnded."""
        self._retry_at, self._facts_at = now + self._lost_retry, 0.0
        try:
            self.progress.call = "nvmlDeviceGetHandleByIndex"
            handle = self._nvml.nvmlDeviceGetHandleByIndex(self.index)
            self.progress.call = "nvmlDeviceGetUUID"
            uuid, name = text(self._nvml.nvmlDeviceGetUUID(handle)), text(self._nvml.nvmlDeviceGetName(handle))
        except self._nvml.NVMLError as error:
            raise_if_ended(error)
            self._bind(None)
            self._lose(describe(error))
            return
        finally:
            self.attached = True
        self.uuid, self.name = uuid, name
        self._bind(handle)
        try:
            self.facts = fixed(self._ask, uuid, self._about)
        except GpuLost as error:
            self._lose(str(error))

    def read(self, now: float, uuid_at: Mapping[str, str]) -> None:
        """Read what is due into `seen`; a GPU that does not answer is lost, and found again. Raises NvmlEnded."""
        if self.lost and now >= self._retry_at:
            self.attach(now)
        if self.handle is None:
            return
        try:
            if now >= self._facts_at:
                self._read_facts(now, uuid_at)
            gpu = self._read_gauges()
            rest = self._read_instances() if self.mig else ()
        except GpuLost as error:
            self._lose(str(error))
            return
        self.lost = ""
        self._show(gpu, rest)

    def _read_facts(self, now: float, uuid_at: Mapping[str, str]) -> None:
        first = self._facts_in is not None
        self._facts_at = now + (FACTS_EVERY if self._facts_in is None else self._facts_in)
        self._facts_in = None
        self._ask.forget()
        mode = self._ask("nvmlDeviceGetMigMode")
        self.mig = mode is not None and bool(mode[0])
        self._instances = self._find_instances() if self.mig else ()
        self.facts = changing(self._ask, self.facts, None if mode is None else self.mig, self._links.read(uuid_at))
        self._power_limit = watts(self._ask("nvmlDeviceGetEnforcedPowerLimit"))
        # Each of the two takes 20 ms, in which the driver counts bytes (NVML's reference of this call), so the first
        # reading of all GPUs goes without.
        if not first:
            counted = [self._ask("nvmlDeviceGetPcieThroughput", counter) for counter in (_SENT, _RECEIVED)]
            sent, received = (None if some is None else some * 1000 for some in counted)
            self._traffic = (
                _steady(self._traffic[0], sent, PCIE_NOISE),
                _steady(self._traffic[1], received, PCIE_NOISE),
            )

    def _read_gauges(self) -> Gpu:
        ask = self._ask
        ask.trouble, ask.answers = "", 0
        total, used, free, reserved = _memory(ask)
        use = ask("nvmlDeviceGetUtilizationRates")
        encoder, decoder = ask("nvmlDeviceGetEncoderUtilization"), ask("nvmlDeviceGetDecoderUtilization")
        temperature = ask.first(("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature"), _GPU_SENSOR)
        power = watts(ask("nvmlDeviceGetPowerUsage"))
        reasons = ask.first(("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"))
        fan = ask("nvmlDeviceGetFanSpeed")
        state = ask("nvmlDeviceGetPerformanceState")
        graphics, memory = ask("nvmlDeviceGetClockInfo", GRAPHICS_CLOCK), ask("nvmlDeviceGetClockInfo", MEMORY_CLOCK)
        if not ask.answers and ask.trouble:
            raise GpuLost(ask.trouble)
        return Gpu(
            index=self.index,
            uuid=self.uuid,
            name=self.name,
            memory_total=total,
            memory_used=used,
            memory_free=free,
            memory_reserved=reserved,
            utilisation=None if use is None else use.gpu / 100,
            utilisation_memory=None if use is None else use.memory / 100,
            utilisation_encoder=None if encoder is None else encoder[0] / 100,
            utilisation_decoder=None if decoder is None else decoder[0] / 100,
            temperature=None if temperature is None else float(temperature),
            power=_steady(self.seen.gpus[0].power, power, POWER_NOISE),
            power_limit=self._power_limit,
            clock_graphics=hertz(graphics),
            clock_memory=hertz(memory),
            throttle=tuple(word for bit, word in THROTTLE if (reasons or 0) & bit),
            fan=None if fan is None else fan / 100,
            performance_state=None if state == _UNKNOWN_STATE else state,
            pcie_sent=self._traffic[0],
            pcie_received=self._traffic[1],
            mig=self.mig,
        )

    # --- its MIG instances -----------------------------------------------------------------------------------------

    def _find_instances(self) -> tuple[_Instance, ...]:
        found = []
        known = {instance.uuid: instance for instance in self._instances}
        for number in range(self._ask("nvmlDeviceGetMaxMigDeviceCount") or 0):
            handle = self._ask("nvmlDeviceGetMigDeviceHandleByIndex", number)
            if handle is None:
                continue
            ask = Ask(self._nvml, handle, self.progress)
            uuid = ask("nvmlDeviceGetUUID")
            if uuid is None:
                continue
            instance = known.get(text(uuid)) or _Instance(ask, text(uuid), number, _profile(ask, self._ask))
            instance.ask.handle, instance.number = handle, number
            instance.gpu_instance = ask("nvmlDeviceGetGpuInstanceId")
            instance.ask.forget()
            found.append(instance)
        return tuple(found)

    def _read_instances(self) -> tuple[tuple[Gpu, tuple[NvmlProcess, ...] | None], ...]:
        """Each instance with its processes. One that has trouble may be gone, so they are looked for again at once."""
        try:
            read = tuple(self._read_instance(instance) for instance in self._instances)
            if not any(instance.ask.trouble for instance in self._instances):
                return read
        except GpuLost:
            pass
        self._instances = self._find_instances()
        return tuple(self._read_instance(instance) for instance in self._instances)

    def _read_instance(self, instance: _Instance) -> tuple[Gpu, tuple[NvmlProcess, ...] | None]:
        instance.ask.trouble = ""
        total, used, free, reserved = _memory(instance.ask)
        gpu = Gpu(
            index=self.index,
            uuid=instance.uuid,
            name=self.name,
            memory_total=total,
            memory_used=used,
            memory_free=free,
            memory_reserved=reserved,
            parent=self.uuid,
            profile=instance.profile,
            instance=instance.number,
        )
        return gpu, instance.processes.read()

    # --- showing ---------------------------------------------------------------------------------------------------

    def _show(self, gpu: Gpu, instances: tuple[tuple[Gpu, tuple[NvmlProcess, ...] | None], ...]) -> None:
        # With MIG on, processes are with the instance that they run in, and not with the GPU a second time.
        listed = instances if self.mig else ((gpu, self._processes.read()),)
        self.seen = DeviceSeen(
            (gpu, *(instance for instance, _ in instances)),
            (self.facts, *(self._instance_facts(instance.uuid) for instance, _ in instances)),
            {owner.uuid: processes for owner, processes in listed if processes is not None},
        )

    def _instance_facts(self, uuid: str) -> GpuFacts:
        facts = self.facts
        known = {instance.uuid: instance.gpu_instance for instance in self._instances}
        return GpuFacts(
            uuid, facts.pci_bus, facts.driver, facts.cuda, facts.compute_capability, gpu_instance=known.get(uuid)
        )

    def _lose(self, why: str) -> None:
        self.lost = why
        self._show_lost()

    def _show_lost(self) -> None:
        seen = without_gauges(self.seen, GpuHealth.LOST, self.lost)
        first = replace(seen.gpus[0], uuid=self.uuid, name=self.name)
        rest = tuple(replace(gpu, parent=self.uuid) for gpu in seen.gpus[1:])
        self.seen = DeviceSeen((first, *rest), (self.facts, *seen.facts[1:]))


def without_gauges(seen: DeviceSeen, health: GpuHealth, why: str) -> DeviceSeen:
    """The same GPUs with nothing known about them now."""
    gpus = tuple(
        Gpu(
            gpu.index,
            gpu.uuid,
            gpu.name,
            mig=gpu.mig,
            parent=gpu.parent,
            profile=gpu.profile,
            instance=gpu.instance,
            health=health,
            why=why,
        )
        for gpu in seen.gpus
    )
    return DeviceSeen(gpus, seen.facts)


def _memory(ask: Ask) -> tuple[int | None, int | None, int | None, int | None]:
    """Total, used, free and reserved bytes; what is reserved counts as used where only version 1 is to be had."""
    memory = ask(_MEMORY, _MEMORY_V2)
    if memory is not None:
        return memory.total, memory.used, memory.free, memory.reserved
    if ask.refused(_MEMORY, _MEMORY_V2) and (memory := ask(_MEMORY)) is not None:
        return memory.total, memory.used, memory.free, None
    return None, None, None, None


def _profile(ask: Ask, parent: Ask) -> str | None:
    """A MIG instance's profile as its name tells it, else as its slices of the parent make it."""
    name = ask("nvmlDeviceGetName")
    told = _PROFILE.search(text(name)) if name is not None else None
    if told is not None:
        return told[1]
    attributes = ask.first(("nvmlDeviceGetAttributes_v2", "nvmlDeviceGetAttributes"))
    if attributes is None or not attributes.gpuInstanceSliceCount:
        return None
    slices = f"{attributes.gpuInstanceSliceCount}g.{_gigabytes(attributes.memorySizeMB, _memory(parent)[0])}gb"
    compute = attributes.computeInstanceSliceCount
    return slices if compute == attributes.gpuInstanceSliceCount else f"{compute}c.{slices}"


def _gigabytes(megabytes: int, gpu_memory: int | None) -> int:
    """The size that NVIDIA names a profile by: the eighths of the GPU that it is cut from, of its memory in full GiB.

    As https://github.com/NVIDIA/go-nvlib (pkg/nvlib/device/mig_profile.go) computes it.
    """
    if not gpu_memory:
        return round(megabytes / 1024)
    eighths = ceil(megabytes * 2**20 * 8 / gpu_memory)
    return round(eighths / 8 * ceil(gpu_memory / 2**30))


def _steady(before: N | None, now: N | None, noise: float) -> N | None:
    """`now`, or what was told before where the two differ by less than noise: an idle GPU then publishes nothing."""
    return before if before is not None and now is not None and abs(now - before) < noise else now
