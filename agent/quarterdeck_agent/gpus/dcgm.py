"""GPUs in Prometheus' text format under the names, units and labels of NVIDIA's dcgm-exporter.

So dashboards and alerts made for that exporter work on a host that runs none. Fields and labels are those of its
`etc/default-counters.csv` and of DCGM's field identifiers; of both, what NVML tells. What was not measured is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quarterdeck_agent.protocol import Gpu, GpuFacts, HostStatus

Read = Callable[[Gpu, GpuFacts], float | int | None]


@dataclass(frozen=True, slots=True)
class Field:
    """One of DCGM's fields. `split` are those that a MIG instance has for itself: its GPU then tells none."""

    name: str
    type: str
    text: str
    read: Read
    split: bool = False


def _gauge(name: str, text: str, read: Read, *, split: bool = False) -> Field:
    return Field(f"DCGM_FI_{name}", "gauge", text, read, split)


def _counter(name: str, text: str, read: Read) -> Field:
    return Field(f"DCGM_FI_{name}", "counter", text, read)


def _mib(size: int | None) -> int | None:
    return None if size is None else size >> 20


def _megahertz(clock: int | None) -> int | None:
    return None if clock is None else clock // 1_000_000


def _percent(ratio: float | None) -> float | None:
    return None if ratio is None else round(ratio * 100, 2)


def _kilobytes(rate: int | None) -> int | None:
    return None if rate is None else rate // 1000


def _flag(value: bool | None) -> int | None:
    return None if value is None else int(value)


def _used_share(gpu: Gpu) -> float | None:
    """Of the memory that is not reserved, the share in use."""
    if gpu.memory_total is None or gpu.memory_used is None:
        return None
    usable = gpu.memory_total - (gpu.memory_reserved or 0)
    return round(gpu.memory_used / usable, 6) if usable > 0 else None


def _xid(facts: GpuFacts) -> int | None:
    if facts.xids:
        return facts.xids[0].code
    return None if facts.driver is None else 0


def _correctable(facts: GpuFacts) -> int | None:
    if facts.remapped_rows is None or facts.remapped_rows_uncorrectable is None:
        return None
    return facts.remapped_rows - facts.remapped_rows_uncorrectable


FIELDS = (
    _gauge("DEV_SM_CLOCK", "Clock of the SMs, in MHz.", lambda g, f: _megahertz(g.clock_graphics)),
    _gauge("DEV_MEM_CLOCK", "Clock of the memory, in MHz.", lambda g, f: _megahertz(g.clock_memory)),
    _gauge("DEV_MAX_SM_CLOCK", "Highest clock of the SMs, in MHz.", lambda g, f: _megahertz(f.clock_graphics_max)),
    _gauge("DEV_MAX_MEM_CLOCK", "Highest clock of the memory, in MHz.", lambda g, f: _megahertz(f.clock_memory_max)),
    _gauge("DEV_GPU_TEMP", "Temperature, in °C.", lambda g, f: g.temperature),
    _gauge("DEV_MEMORY_TEMP", "Temperature of the memory, in °C.", lambda g, f: f.temperature_memory),
    _gauge("DEV_SLOWDOWN_TEMP", "Temperature at which it slows down, in °C.", lambda g, f: f.temperature_slowdown),
    _gauge("DEV_SHUTDOWN_TEMP", "Temperature at which it turns off, in °C.", lambda g, f: f.temperature_shutdown),
    _gauge("DEV_POWER_USAGE", "Power drawn, in W.", lambda g, f: g.power),
    _gauge("DEV_ENFORCED_POWER_LIMIT", "Power allowed, in W.", lambda g, f: g.power_limit),
    _gauge("DEV_POWER_MGMT_LIMIT_MAX", "Most power that can be allowed, in W.", lambda g, f: f.power_limit_max),
    _gauge("DEV_FAN_SPEED", "Speed of the fan, in %.", lambda g, f: _percent(g.fan)),
    _gauge("DEV_PSTATE", "Performance state, 0 is the fastest.", lambda g, f: g.performance_state),
    # A rate that the exporter calls a counter: the type is kept, for the dashboards' sake.
    _counter("DEV_PCIE_TX_THROUGHPUT", "Sent over PCIe, in KB/s now.", lambda g, f: _kilobytes(g.pcie_sent)),
    _counter("DEV_PCIE_RX_THROUGHPUT", "Received over PCIe, in KB/s now.", lambda g, f: _kilobytes(g.pcie_received)),
    _gauge("PROF_PCIE_TX_BYTES", "Sent over PCIe, in bytes a second.", lambda g, f: g.pcie_sent),
    _gauge("PROF_PCIE_RX_BYTES", "Received over PCIe, in bytes a second.", lambda g, f: g.pcie_received),
    _counter("DEV_PCIE_REPLAY_COUNTER", "What had to be sent over PCIe again.", lambda g, f: f.pcie_replays),
    _gauge("DEV_PCIE_LINK_GEN", "Generation of the PCIe link now.", lambda g, f: f.pcie_generation),
    _gauge("DEV_PCIE_LINK_WIDTH", "Lanes of the PCIe link now.", lambda g, f: f.pcie_width),
    _gauge("DEV_PCIE_MAX_LINK_GEN", "Highest generation of the PCIe link.", lambda g, f: f.pcie_generation_max),
    _gauge("DEV_PCIE_MAX_LINK_WIDTH", "Most lanes of the PCIe link.", lambda g, f: f.pcie_width_max),
    _gauge("DEV_GPU_UTIL", "Time with work on the GPU, in %.", lambda g, f: _percent(g.utilisation)),
    _gauge("PROF_GR_ENGINE_ACTIVE", "Time with work as NVML samples it, 0 to 1.", lambda g, f: g.utilisation),
    _gauge("DEV_MEM_COPY_UTIL", "Time in which memory was moved, in %.", lambda g, f: _percent(g.utilisation_memory)),
    _gauge("DEV_ENC_UTIL", "Use of the encoder, in %.", lambda g, f: _percent(g.utilisation_encoder)),
    _gauge("DEV_DEC_UTIL", "Use of the decoder, in %.", lambda g, f: _percent(g.utilisation_decoder)),
    _gauge("DEV_XID_ERRORS", "The newest Xid, 0 where there was none.", lambda g, f: _xid(f)),
    _gauge("DEV_FB_TOTAL", "Memory, in MiB.", lambda g, f: _mib(g.memory_total), split=True),
    _gauge("DEV_FB_FREE", "Memory that is free, in MiB.", lambda g, f: _mib(g.memory_free), split=True),
    _gauge("DEV_FB_USED", "Memory in use, in MiB.", lambda g, f: _mib(g.memory_used), split=True),
    _gauge("DEV_FB_RESERVED", "Memory kept by the driver, in MiB.", lambda g, f: _mib(g.memory_reserved), split=True),
    _gauge("DEV_FB_USED_PERCENT", "Share of usable memory in use, 0 to 1.", lambda g, f: _used_share(g), split=True),
    _counter("DEV_ECC_SBE_VOL_TOTAL", "Corrected errors since the driver came.", lambda g, f: f.ecc_corrected),
    _counter("DEV_ECC_DBE_VOL_TOTAL", "Uncorrected errors since the driver came.", lambda g, f: f.ecc_uncorrected),
    _counter("DEV_ECC_SBE_AGG_TOTAL", "Corrected errors ever.", lambda g, f: f.ecc_corrected_ever),
    _counter("DEV_ECC_DBE_AGG_TOTAL", "Uncorrected errors ever.", lambda g, f: f.ecc_uncorrected_ever),
    _counter("DEV_RETIRED_PENDING", "Whether pages wait to be retired.", lambda g, f: _flag(f.retired_pending)),
    _counter("DEV_CORRECTABLE_REMAPPED_ROWS", "Rows remapped for corrected errors.", lambda g, f: _correctable(f)),
    _counter(
        "DEV_UNCORRECTABLE_REMAPPED_ROWS",
        "Rows remapped for uncorrected errors.",
        lambda g, f: f.remapped_rows_uncorrectable,
    ),
    _gauge("DEV_ROW_REMAP_PENDING", "Whether rows wait for a reset.", lambda g, f: _flag(f.remap_pending)),
    _gauge("DEV_ROW_REMAP_FAILURE", "Whether remapping of rows has failed.", lambda g, f: _flag(f.remap_failed)),
    _gauge("DEV_MIG_MODE", "Whether MIG is on.", lambda g, f: _flag(f.mig_enabled)),
)


def exposition(status: HostStatus) -> str:
    """The GPUs of `status`, one family after the other; empty where there are none.

    A MIG instance has its GPU's labels and its own `GPU_I_ID` and `GPU_I_PROFILE`. It tells its memory; what the whole
    GPU shares, such as power, is told once, so that sums are right.
    """
    facts = {facts.uuid: facts for facts in status.gpu_facts}
    by_uuid = {gpu.uuid: gpu for gpu in status.gpus}
    cut = {gpu.parent for gpu in status.gpus}
    told = []
    for gpu in status.gpus:
        whole = by_uuid.get(gpu.parent or "", gpu)
        about = facts.get(whole.uuid, GpuFacts(whole.uuid))
        part = facts.get(gpu.uuid, GpuFacts(gpu.uuid)).gpu_instance if gpu.parent else None
        told.append((gpu, about, _labels(gpu, whole, about, part, status.info.name)))
    lines: list[str] = []
    for field in FIELDS:
        rows = [
            f"{field.name}{labels} {value}"
            for gpu, about, labels in told
            if (field.split if gpu.parent else not (field.split and gpu.uuid in cut))
            and (value := field.read(gpu, about)) is not None
        ]
        if rows:
            lines += [f"# HELP {field.name} {field.text}", f"# TYPE {field.name} {field.type}", *rows]
    return "".join(f"{line}\n" for line in lines)


def _labels(gpu: Gpu, whole: Gpu, facts: GpuFacts, part: int | None, host: str) -> str:
    labels = {
        "gpu": str(whole.index),
        "UUID": whole.uuid,
        "pci_bus_id": facts.pci_bus or "",
        "device": f"nvidia{whole.index}",
        "modelName": whole.name,
    }
    if gpu.parent is not None:
        labels |= {"GPU_I_PROFILE": gpu.profile or "", "GPU_I_ID": "" if part is None else str(part)}
    labels["Hostname"] = host
    if facts.driver is not None:
        labels["DCGM_FI_DRIVER_VERSION"] = facts.driver
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
