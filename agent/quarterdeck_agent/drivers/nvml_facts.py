"""What seldom changes about one GPU: asked once when it is met, or every few seconds, never with each reading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from quarterdeck_agent.drivers.nvml_calls import INVALID_ARGUMENT, Ask, text
from quarterdeck_agent.protocol import GpuFacts, NvLink

# Of nvml.h: nvmlClockType_t, nvmlTemperatureThresholds_t, nvmlMemoryErrorType_t, nvmlEccCounterType_t,
# nvmlPageRetirementCause_t, nvmlComputeMode_t. pynvml has them under longer names.
GRAPHICS_CLOCK, MEMORY_CLOCK = 0, 2
_SHUTDOWN, _SLOWDOWN = 0, 1
_CORRECTED, _UNCORRECTED = 0, 1
_VOLATILE, _AGGREGATE = 0, 1
_PAGE_CAUSES = (0, 1)
_COMPUTE_MODES = {0: "default", 1: "exclusive_thread", 2: "prohibited", 3: "exclusive_process"}

_MEMORY_TEMPERATURE = 82
"""NVML_FI_DEV_MEMORY_TEMP."""

_FIELD_KINDS = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal"}
"""Of nvmlValueType_t, the member of nvmlValue_t that holds a value of it."""

MOST_DEGREES = 200

LINKS = 36
"""More links than any GPU has (NVML_NVLINK_MAX_LINKS); the first one that NVML does not know ends the list."""


@dataclass(frozen=True, slots=True)
class Versions:
    """Of the driver, and of the newest CUDA that it can run."""

    driver: str = ""
    cuda: str | None = None


def versions(nvml: Any) -> Versions:
    """What the driver says of itself. Raises NVMLError where NVML itself is not well."""
    return Versions(text(nvml.nvmlSystemGetDriverVersion()), _cuda(nvml))


def _cuda(nvml: Any) -> str | None:
    for name in ("nvmlSystemGetCudaDriverVersion_v2", "nvmlSystemGetCudaDriverVersion"):
        try:
            number = int(getattr(nvml, name)())
        except (nvml.NVMLError, AttributeError):
            continue
        return f"{number // 1000}.{number % 1000 // 10}"
    return None


def bus(address: str) -> str:
    """A PCI address in the form that NVML's own differ from: lower case, the domain with eight digits."""
    domain, _, rest = address.lower().partition(":")
    return f"{domain:0>8}:{rest}"


def fixed(ask: Ask, uuid: str, about: Versions) -> GpuFacts:
    """What cannot change while the driver is loaded."""
    pci = ask.first(("nvmlDeviceGetPciInfo_v3", "nvmlDeviceGetPciInfo"))
    capability = ask("nvmlDeviceGetCudaComputeCapability")
    return GpuFacts(
        uuid=uuid,
        pci_bus=None if pci is None else bus(text(pci.busId)),
        driver=about.driver or None,
        cuda=about.cuda,
        compute_capability=None if capability is None else (int(capability[0]), int(capability[1])),
        pcie_generation_max=ask("nvmlDeviceGetMaxPcieLinkGeneration"),
        pcie_width_max=ask("nvmlDeviceGetMaxPcieLinkWidth"),
        power_limit_max=_power_limit_max(ask),
        temperature_slowdown=_degrees(ask("nvmlDeviceGetTemperatureThreshold", _SLOWDOWN)),
        temperature_shutdown=_degrees(ask("nvmlDeviceGetTemperatureThreshold", _SHUTDOWN)),
        clock_graphics_max=hertz(ask("nvmlDeviceGetMaxClockInfo", GRAPHICS_CLOCK)),
        clock_memory_max=hertz(ask("nvmlDeviceGetMaxClockInfo", MEMORY_CLOCK)),
    )


def changing(ask: Ask, facts: GpuFacts, mig_enabled: bool | None, nvlinks: tuple[NvLink, ...]) -> GpuFacts:
    """`facts` with everything that can change read anew."""
    ecc = ask("nvmlDeviceGetEccMode")
    rows = ask("nvmlDeviceGetRemappedRows")
    mode = ask("nvmlDeviceGetComputeMode")
    return replace(
        facts,
        compute_mode=None if mode is None else _COMPUTE_MODES.get(mode, f"mode {mode}"),
        persistence=_flag(ask("nvmlDeviceGetPersistenceMode")),
        mig_enabled=mig_enabled,
        pcie_generation=ask("nvmlDeviceGetCurrPcieLinkGeneration"),
        pcie_width=ask("nvmlDeviceGetCurrPcieLinkWidth"),
        nvlinks=nvlinks,
        ecc_enabled=None if ecc is None else bool(ecc[0]),
        ecc_corrected=ask("nvmlDeviceGetTotalEccErrors", _CORRECTED, _VOLATILE),
        ecc_uncorrected=ask("nvmlDeviceGetTotalEccErrors", _UNCORRECTED, _VOLATILE),
        ecc_corrected_ever=ask("nvmlDeviceGetTotalEccErrors", _CORRECTED, _AGGREGATE),
        ecc_uncorrected_ever=ask("nvmlDeviceGetTotalEccErrors", _UNCORRECTED, _AGGREGATE),
        retired_pages=_retired_pages(ask),
        retired_pending=_flag(ask("nvmlDeviceGetRetiredPagesPendingStatus")),
        remapped_rows=None if rows is None else rows[0] + rows[1],
        remapped_rows_uncorrectable=None if rows is None else rows[1],
        remap_pending=None if rows is None else bool(rows[2]),
        remap_failed=None if rows is None else bool(rows[3]),
        temperature_memory=_degrees(_field(ask, _MEMORY_TEMPERATURE)),
        pcie_replays=ask("nvmlDeviceGetPcieReplayCounter"),
    )


def _field(ask: Ask, number: int) -> int | None:
    """The value of one of NVML's fields, `None` where this GPU has none."""
    values = ask("nvmlDeviceGetFieldValues", (number,))
    if values is None or values[0].nvmlReturn != 0:
        return None
    return int(getattr(values[0].value, _FIELD_KINDS.get(values[0].valueType, "ullVal")))


def hertz(megahertz: int | None) -> int | None:
    """NVML's MHz in hertz."""
    return None if megahertz is None else megahertz * 1_000_000


def watts(milliwatts: int | None) -> float | None:
    """NVML's mW in watts."""
    return None if milliwatts is None else milliwatts / 1000


class Links:
    """The NVLinks of one GPU: up or down each time, what they lead to only when one came up."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._ends: dict[int, tuple[int | None, str | None]] = {}

    def read(self, uuid_at: Mapping[str, str]) -> tuple[NvLink, ...]:
        """All links; `uuid_at` has the uuids of this host's GPUs by PCI address. Raises GpuLost, NvmlEnded."""
        links = []
        for number in range(LINKS):
            state = self._ask("nvmlDeviceGetNvLinkState", number)
            if state is None:
                if self._ask.refused("nvmlDeviceGetNvLinkState", number) or self._ask.code == INVALID_ARGUMENT:
                    break
                self._ends.pop(number, None)
                continue
            if not state:
                self._ends.pop(number, None)
            elif number not in self._ends:
                self._ends[number] = self._end(number)
            version, address = self._ends.get(number, (None, None))
            links.append(NvLink(number, bool(state), version, None if address is None else uuid_at.get(address)))
        return tuple(links)

    def _end(self, number: int) -> tuple[int | None, str | None]:
        pci = self._ask("nvmlDeviceGetNvLinkRemotePciInfo", number)
        version = self._ask("nvmlDeviceGetNvLinkVersion", number)
        return version, None if pci is None else bus(text(pci.busId))


def _power_limit_max(ask: Ask) -> float | None:
    limits = ask("nvmlDeviceGetPowerManagementLimitConstraints")
    return None if limits is None else watts(limits[1])


def _retired_pages(ask: Ask) -> int | None:
    pages = [ask("nvmlDeviceGetRetiredPages", cause) for cause in _PAGE_CAUSES]
    known = [len(some) for some in pages if some is not None]
    return sum(known) if known else None


def _degrees(value: int | None) -> float | None:
    """A temperature. From Ada on NVIDIA tells how far the next limit is instead: below it, as NVML's unsigned numbers
    have it, are billions of degrees."""
    return None if value is None or value >= MOST_DEGREES else float(value)


def _flag(value: int | None) -> bool | None:
    return None if value is None else bool(value)
