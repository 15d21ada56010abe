"""The figures that both sides tell of a GPU, in one unit each: how ours and nvidia-smi's are read into them. Pure.

nvidia-smi's side is the XML of `nvidia-smi -q -x` and the list of `nvidia-smi -L`. Names of elements differ between its
versions, so each figure has the paths that it was seen under; "N/A" and what is deprecated are no figure.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from quarterdeck_agent.drivers.nvml_seen import NvmlSeen
from quarterdeck_agent.protocol import Gpu, GpuFacts

Value = str | float | bool | None

MIB = 1 << 20
MHZ = 1_000_000


@dataclass(frozen=True, slots=True)
class Told:
    """What one side tells of one GPU or MIG instance. `processes` are bytes by pid."""

    name: str
    values: Mapping[str, Value]
    processes: Mapping[int, float | None] | None = field(default_factory=dict)


# --- ours ----------------------------------------------------------------------------------------------------------


def ours(seen: NvmlSeen) -> dict[str, Told]:
    """By uuid, as the agent reads them."""
    facts = {each.uuid: each for each in seen.facts}
    told = {}
    for gpu in seen.gpus:
        processes = seen.processes.get(gpu.uuid)
        by_pid = None if processes is None else {process.pid: process.memory for process in processes}
        name = f"gpu{gpu.index}" + (f" mig {gpu.profile}" if gpu.parent else "")
        about = facts.get(gpu.uuid, GpuFacts(gpu.uuid))
        told[gpu.uuid] = Told(name, _instance(gpu) if gpu.parent else _ours(gpu, about, seen.version), by_pid)
    return told


def _instance(gpu: Gpu) -> dict[str, Value]:
    return {"profile": gpu.profile, "memory_total": gpu.memory_total, "memory_used": gpu.memory_used}


def _ours(gpu: Gpu, facts: GpuFacts, driver: str) -> dict[str, Value]:
    gauges = (
        "name memory_total memory_used memory_free memory_reserved temperature power power_limit clock_graphics "
        "clock_memory utilisation utilisation_memory utilisation_encoder utilisation_decoder fan"
    )
    known = (
        "cuda persistence mig_enabled pcie_generation pcie_generation_max pcie_width pcie_width_max power_limit_max "
        "temperature_slowdown temperature_shutdown clock_graphics_max clock_memory_max ecc_enabled ecc_corrected "
        "ecc_uncorrected ecc_corrected_ever ecc_uncorrected_ever retired_pages retired_pending remapped_rows "
        "remap_pending remap_failed temperature_memory pcie_replays"
    )
    return (
        {"driver": driver}
        | {key: getattr(gpu, key) for key in gauges.split()}
        | {key: getattr(facts, key) for key in known.split()}
        | {"pci_bus": None if facts.pci_bus is None else facts.pci_bus.lower()}
        | {"performance_state": None if gpu.performance_state is None else f"P{gpu.performance_state}"}
        | {"compute_mode": facts.compute_mode}
    )


# --- nvidia-smi's ----------------------------------------------------------------------------------------------------

NOTHING = ("N/A", "[N/A", "Not Supported", "[Not Supp", "Requested func", "Unknown Error", "[Unknown", "Insufficient")
"""How what it cannot tell begins."""

SCALES = {"MiB": MIB, "GiB": MIB * 1024, "KiB": 1024, "C": 1, "W": 1, "MHz": MHZ, "%": 0.01, "x": 1, "": 1}

PATHS: dict[str, tuple[str, ...]] = {
    "memory_total": ("fb_memory_usage/total",),
    "memory_used": ("fb_memory_usage/used",),
    "memory_free": ("fb_memory_usage/free",),
    "memory_reserved": ("fb_memory_usage/reserved",),
    "temperature": ("temperature/gpu_temp",),
    "temperature_memory": ("temperature/memory_temp",),
    "pcie_replays": ("pci/replay_counter",),
    "temperature_slowdown": ("temperature/gpu_temp_slow_threshold",),
    "temperature_shutdown": ("temperature/gpu_temp_max_threshold",),
    "power": (
        "gpu_power_readings/power_draw",
        "gpu_power_readings/average_power_draw",
        "gpu_power_readings/instant_power_draw",
        "power_readings/power_draw",
    ),
    "power_limit": (
        "gpu_power_readings/current_power_limit",
        "gpu_power_readings/power_limit",
        "power_readings/enforced_power_limit",
        "power_readings/power_limit",
    ),
    "power_limit_max": ("gpu_power_readings/max_power_limit", "power_readings/max_power_limit"),
    "clock_graphics": ("clocks/graphics_clock",),
    "clock_memory": ("clocks/mem_clock",),
    "clock_graphics_max": ("max_clocks/graphics_clock",),
    "clock_memory_max": ("max_clocks/mem_clock",),
    "utilisation": ("utilization/gpu_util",),
    "utilisation_memory": ("utilization/memory_util",),
    "utilisation_encoder": ("utilization/encoder_util",),
    "utilisation_decoder": ("utilization/decoder_util",),
    "fan": ("fan_speed",),
    "pcie_generation": ("pci/pci_gpu_link_info/pcie_gen/current_link_gen",),
    "pcie_generation_max": ("pci/pci_gpu_link_info/pcie_gen/max_link_gen",),
    "pcie_width": ("pci/pci_gpu_link_info/link_widths/current_link_width",),
    "pcie_width_max": ("pci/pci_gpu_link_info/link_widths/max_link_width",),
}
"""The first path that has a number counts."""

FLAGS: dict[str, tuple[str, ...]] = {
    "persistence": ("persistence_mode",),
    "mig_enabled": ("mig_mode/current_mig",),
    "ecc_enabled": ("ecc_mode/current_ecc",),
    "retired_pending": ("retired_pages/pending_retirement", "retired_pages/pending_blacklist"),
    "remap_pending": ("remapped_rows/remapped_row_pending",),
    "remap_failed": ("remapped_rows/remapped_row_failure",),
}

SUMS: dict[str, tuple[tuple[str, ...], ...]] = {
    "ecc_corrected": (
        ("ecc_errors/volatile/sram_correctable", "ecc_errors/volatile/dram_correctable"),
        ("ecc_errors/volatile/single_bit/total",),
    ),
    "ecc_uncorrected": (
        (
            "ecc_errors/volatile/sram_uncorrectable",
            "ecc_errors/volatile/sram_uncorrectable_parity",
            "ecc_errors/volatile/sram_uncorrectable_secded",
            "ecc_errors/volatile/dram_uncorrectable",
        ),
        ("ecc_errors/volatile/double_bit/total",),
    ),
    "ecc_corrected_ever": (
        ("ecc_errors/aggregate/sram_correctable", "ecc_errors/aggregate/dram_correctable"),
        ("ecc_errors/aggregate/single_bit/total",),
    ),
    "ecc_uncorrected_ever": (
        (
            "ecc_errors/aggregate/sram_uncorrectable",
            "ecc_errors/aggregate/sram_uncorrectable_parity",
            "ecc_errors/aggregate/sram_uncorrectable_secded",
            "ecc_errors/aggregate/dram_uncorrectable",
        ),
        ("ecc_errors/aggregate/double_bit/total",),
    ),
    "retired_pages": (
        (
            "retired_pages/multiple_single_bit_retirement/retired_count",
            "retired_pages/double_bit_retirement/retired_count",
        ),
    ),
    "remapped_rows": (("remapped_rows/remapped_row_corr", "remapped_rows/remapped_row_unc"),),
}
"""Figures that it tells in parts; the first row of paths counts of which at least one has a number."""


ABOUT = {"driver": ("driver_version", "kmd_version"), "cuda": ("cuda_version", "cuda_umd_version")}
"""Of all GPUs together; from driver 610 on it tells those of the kernel's part and the user's part apart."""


def theirs(xml: str, listing: str) -> dict[str, Told]:
    """By uuid, as `nvidia-smi -q -x` tells them. Raises ValueError for what is not its XML."""
    try:
        root = ElementTree.fromstring(xml[max(0, xml.find("<?xml")) :])  # a GPU that is lost is complained of before it
    except ElementTree.ParseError as error:
        raise ValueError(f"nvidia-smi -q -x gave no XML: {error}") from error
    if root.tag != "nvidia_smi_log":
        raise ValueError(f"nvidia-smi -q -x gave <{root.tag}>, not <nvidia_smi_log>")
    told = {}
    named = _instances(listing)
    about = {key: next(filter(None, (_text(root, path) for path in paths)), None) for key, paths in ABOUT.items()}
    for index, gpu in enumerate(root.iterfind("gpu")):
        uuid = _text(gpu, "uuid") or f"gpu-{index}"
        values = _theirs(gpu) | about
        told[uuid] = Told(f"gpu{index}", values, _processes(gpu, None))
        for instance in gpu.iterfind("mig_devices/mig_device"):
            number = int(_text(instance, "index") or 0)
            profile, its = named.get(uuid, {}).get(number, (None, f"{uuid} mig {number}"))
            told[its] = Told(
                f"gpu{index} mig {profile}",
                {
                    "profile": profile,
                    "memory_total": _number(instance, PATHS["memory_total"]),
                    "memory_used": _number(instance, PATHS["memory_used"]),
                },
                _processes(gpu, instance),
            )
    return told


def _theirs(gpu: ElementTree.Element) -> dict[str, Value]:
    mode = _text(gpu, "compute_mode")
    bus = _text(gpu, "pci/pci_bus_id")
    return (
        {"name": _text(gpu, "product_name"), "performance_state": _text(gpu, "performance_state")}
        | {"compute_mode": None if mode is None else mode.lower().replace(" ", "_")}
        | {"pci_bus": None if bus is None else bus.lower()}
        | {key: _number(gpu, paths) for key, paths in PATHS.items()}
        | {key: _flag(gpu, paths) for key, paths in FLAGS.items()}
        | {key: _sum(gpu, rows) for key, rows in SUMS.items()}
    )


def _text(element: ElementTree.Element, path: str) -> str | None:
    found = (element.findtext(path) or "").strip()
    return None if not found or found.startswith(NOTHING) else found


def _number(element: ElementTree.Element, paths: Iterable[str]) -> float | None:
    for path in paths:
        told = re.fullmatch(r"(-?[\d.]+)\s*(\w*|%)", _text(element, path) or "")
        if told is not None and told[2] in SCALES:
            return float(told[1]) * SCALES[told[2]]
    return None


def _flag(element: ElementTree.Element, paths: Iterable[str]) -> bool | None:
    words = {"Enabled": True, "Disabled": False, "Yes": True, "No": False}
    return next((words[text] for path in paths if (text := _text(element, path)) in words), None)


def _sum(element: ElementTree.Element, rows: Iterable[tuple[str, ...]]) -> float | None:
    for row in rows:
        parts = [part for path in row if (part := _number(element, (path,))) is not None]
        if parts:
            return sum(parts)
    return None


def _processes(gpu: ElementTree.Element, instance: ElementTree.Element | None) -> dict[int, float | None] | None:
    """Of a MIG instance, or of the GPU itself; `None` where it cannot list them."""
    if _text(gpu, "processes") is None and gpu.find("processes/process_info") is None and gpu.find("processes") is None:
        return None
    wanted = None if instance is None else _text(instance, "gpu_instance_id")
    found: dict[int, float | None] = {}
    for process in gpu.iterfind("processes/process_info"):
        if _text(process, "gpu_instance_id") == wanted:
            pid, memory = int(process.findtext("pid") or 0), _number(process, ("used_memory",))
            found[pid] = max((known for known in (found.get(pid), memory) if known is not None), default=None)
    return found


def _instances(listing: str) -> dict[str, dict[int, tuple[str, str]]]:
    """GPU's uuid → number → profile and uuid of its MIG instances, from `nvidia-smi -L`."""
    found: dict[str, dict[int, tuple[str, str]]] = {}
    gpu = ""
    for line in listing.splitlines():
        if told := re.match(r"GPU \d+: .*\(UUID: ([^)]+)\)", line):
            gpu = told[1]
        elif told := re.match(r"\s+MIG (\S+)\s+Device\s+(\d+): \(UUID: ([^)]+)\)", line):
            found.setdefault(gpu, {})[int(told[2])] = told[1], told[3]
    return found
