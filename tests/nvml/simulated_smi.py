"""A stand-in for nvidia-smi that tells of a fake machine: `-q -x` and `-L`, in the layout that nvidia-smi writes.

It tells what is in the values, without any NVML: whoever agrees with it has read the fake library right.
"""

from __future__ import annotations

import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from tests.nvml.fake import MIB, FakeGpu, FakeMig, FakeProcess, Machine, completed

NONE = "N/A"


def simulated_smi(folder: Path, machine: Machine) -> Path:
    """An executable that tells of this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    xml, listing, program = folder / "machine.xml", folder / "machine.txt", folder / "simulated-nvidia-smi"
    xml.write_text(document(machine))
    listing.write_text(listed(machine))
    program.write_text(
        f'#!/bin/sh\ncase "$*" in\n"-q -x") cat {shlex.quote(str(xml))} ;;\n'
        f"-L) cat {shlex.quote(str(listing))} ;;\n*) exit 2 ;;\nesac\n"
    )
    program.chmod(0o755)
    return program


def listed(machine: Machine) -> str:
    """As `nvidia-smi -L`."""
    lines = []
    for number, gpu in enumerate(completed(machine)):
        lines.append(f"GPU {number}: {gpu.name} (UUID: {gpu.uuid})")
        lines += [f"  MIG {mig.profile}     Device  {place}: (UUID: {mig.uuid})" for place, mig in enumerate(gpu.migs)]
    return "\n".join(lines) + "\n"


def document(machine: Machine) -> str:
    """As `nvidia-smi -q -x`, with the elements that tell a figure."""
    root = ElementTree.Element("nvidia_smi_log")
    _put(root, "driver_version", machine.driver)
    _put(root, "cuda_version", f"{machine.cuda // 1000}.{machine.cuda % 1000 // 10}")
    gpus = completed(machine)
    _put(root, "attached_gpus", str(len(gpus)))
    for gpu in gpus:
        _gpu(ElementTree.SubElement(root, "gpu", id=gpu.bus), gpu)
    ElementTree.indent(root, "\t")
    return '<?xml version="1.0" ?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _gpu(at: ElementTree.Element, gpu: FakeGpu) -> None:
    for path, text in (
        ("product_name", gpu.name),
        ("persistence_mode", _switch(gpu.persistence)),
        ("mig_mode/current_mig", _switch(gpu.mig_mode)),
        ("mig_mode/pending_mig", _switch(gpu.mig_pending)),
        ("uuid", gpu.uuid),
        ("minor_number", str(gpu.minor)),
        ("pci/pci_bus_id", gpu.bus),
        ("pci/pci_gpu_link_info/pcie_gen/max_link_gen", _number(gpu.pcie_generation_max)),
        ("pci/pci_gpu_link_info/pcie_gen/current_link_gen", _number(gpu.pcie_generation)),
        ("pci/pci_gpu_link_info/link_widths/max_link_width", _number(gpu.pcie_width_max, "x", "")),
        ("pci/pci_gpu_link_info/link_widths/current_link_width", _number(gpu.pcie_width, "x", "")),
        ("pci/replay_counter", _number(gpu.pcie_replays)),
        ("temperature/memory_temp", _number(gpu.temperature_memory, "C")),
        ("fan_speed", _number(gpu.fan, "%")),
        ("performance_state", NONE if gpu.pstate is None else f"P{gpu.pstate}"),
        ("compute_mode", {0: "Default", 2: "Prohibited", 3: "Exclusive_Process"}.get(gpu.compute_mode or 0, NONE)),
        ("utilization/gpu_util", _number(gpu.utilisation_gpu, "%")),
        ("utilization/memory_util", _number(gpu.utilisation_memory, "%")),
        ("utilization/encoder_util", _number(gpu.utilisation_encoder, "%")),
        ("utilization/decoder_util", _number(gpu.utilisation_decoder, "%")),
        ("ecc_mode/current_ecc", _switch(gpu.ecc)),
        ("ecc_mode/pending_ecc", _switch(gpu.ecc_pending)),
        ("temperature/gpu_temp", _number(gpu.temperature, "C")),
        ("temperature/gpu_temp_max_threshold", _number(gpu.temperature_shutdown, "C")),
        ("temperature/gpu_temp_slow_threshold", _number(gpu.temperature_slowdown, "C")),
        ("gpu_power_readings/power_draw", _watts(gpu.power)),
        ("gpu_power_readings/current_power_limit", _watts(gpu.power_limit)),
        ("gpu_power_readings/max_power_limit", _watts(gpu.power_limit_max)),
        ("clocks/graphics_clock", _number(gpu.clock_graphics, "MHz")),
        ("clocks/sm_clock", _number(gpu.clock_sm, "MHz")),
        ("clocks/mem_clock", _number(gpu.clock_memory, "MHz")),
        ("max_clocks/graphics_clock", _number(gpu.clock_graphics_max, "MHz")),
        ("max_clocks/mem_clock", _number(gpu.clock_memory_max, "MHz")),
    ):
        _put(at, path, text)
    _memory(at, gpu)
    _errors(at, gpu)
    _instances(at, gpu)
    _processes(at, gpu)


def _memory(at: ElementTree.Element, device: FakeGpu | FakeMig) -> None:
    total, used, kept = device.memory_total, device.memory_used, device.memory_reserved or 0
    free = None if total is None or used is None else total - used - kept
    for name, value in (("total", total), ("reserved", kept), ("used", used), ("free", free)):
        _put(at, f"fb_memory_usage/{name}", NONE if value is None else f"{value // MIB} MiB")


def _errors(at: ElementTree.Element, gpu: FakeGpu) -> None:
    for path, value in (
        ("ecc_errors/volatile/sram_correctable", None if gpu.ecc_corrected is None else 0),
        ("ecc_errors/volatile/sram_uncorrectable", None if gpu.ecc_uncorrected is None else 0),
        ("ecc_errors/volatile/dram_correctable", gpu.ecc_corrected),
        ("ecc_errors/volatile/dram_uncorrectable", gpu.ecc_uncorrected),
        ("ecc_errors/aggregate/dram_correctable", gpu.ecc_corrected_ever),
        ("ecc_errors/aggregate/dram_uncorrectable", gpu.ecc_uncorrected_ever),
        ("retired_pages/multiple_single_bit_retirement/retired_count", gpu.retired_corrected),
        ("retired_pages/double_bit_retirement/retired_count", gpu.retired_uncorrected),
        ("remapped_rows/remapped_row_corr", gpu.remapped_corrected),
        ("remapped_rows/remapped_row_unc", gpu.remapped_uncorrected),
    ):
        _put(at, path, _number(value))
    for path, value in (
        ("retired_pages/pending_retirement", gpu.retired_pending),
        ("remapped_rows/remapped_row_pending", gpu.remap_pending),
        ("remapped_rows/remapped_row_failure", gpu.remap_failed),
    ):
        _put(at, path, NONE if value is None else "Yes" if value else "No")


def _instances(at: ElementTree.Element, gpu: FakeGpu) -> None:
    holder = ElementTree.SubElement(at, "mig_devices")
    holder.text = None if gpu.migs else "None"
    for place, mig in enumerate(gpu.migs):
        each = ElementTree.SubElement(holder, "mig_device")
        _put(each, "index", str(place))
        _put(each, "gpu_instance_id", str(mig.gpu_instance))
        _put(each, "compute_instance_id", str(mig.compute_instance))
        _memory(each, mig)


def _processes(at: ElementTree.Element, gpu: FakeGpu) -> None:
    holder = ElementTree.SubElement(at, "processes")
    for process in gpu.processes:
        _process(holder, process, None)
    for mig in gpu.migs:
        for process in mig.processes:
            _process(holder, process, mig)


def _process(holder: ElementTree.Element, process: FakeProcess, mig: FakeMig | None) -> None:
    at = ElementTree.SubElement(holder, "process_info")
    _put(at, "gpu_instance_id", NONE if mig is None else str(mig.gpu_instance))
    _put(at, "compute_instance_id", NONE if mig is None else str(mig.compute_instance))
    _put(at, "pid", str(process.pid))
    _put(at, "type", {"compute": "C", "graphics": "G", "mps": "M+C"}[process.kind])
    _put(at, "process_name", "program")
    _put(at, "used_memory", NONE if process.memory is None else f"{process.memory // MIB} MiB")


def _put(at: ElementTree.Element, path: str, text: str) -> None:
    for name in path.split("/"):
        below = at.find(name)
        at = ElementTree.SubElement(at, name) if below is None else below
    at.text = text


def _number(value: int | None, unit: str = "", gap: str = " ") -> str:
    return NONE if value is None else f"{value}{gap if unit else ''}{unit}"


def _switch(value: int | None) -> str:
    return NONE if value is None else "Enabled" if value else "Disabled"


def _watts(milliwatts: int | None) -> str:
    return NONE if milliwatts is None else f"{milliwatts / 1000:.2f} W"
