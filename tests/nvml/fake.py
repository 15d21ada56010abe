"""A machine with GPUs that exists only in a file: the values a test writes, and the library that answers from them.

`FakeNvml` builds `fake_nvml.c` to a real libnvidia-ml.so.1, for this process (`load`) or for one that is started with
`env`. pynvml and the agent take it for the driver's. What is `None` here is "Not Supported" there.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

SOURCE = Path(__file__).with_name("fake_nvml.c")
SONAME = "libnvidia-ml.so.1"
STATE = "QUARTERDECK_FAKE_NVML"
FLAGS = ("-std=gnu11", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror")

MIB = 1 << 20
GIB = 1 << 30

XID = 8
ECC_CORRECTED = 1
ECC_UNCORRECTED = 2

UNINITIALIZED = 1
NOT_SUPPORTED = 3
NO_PERMISSION = 4
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
RESET_REQUIRED = 16
UNKNOWN = 999

TELLS_EVENTS = 1 | 2 | 4 | 8 | 0x10


@dataclass(frozen=True, slots=True)
class FakeProcess:
    """One process on a device. `memory` in bytes, `None` where the driver does not tell; the rest in percent."""

    pid: int
    memory: int | None = 0
    kind: Literal["compute", "graphics", "mps"] = "compute"
    sm: int = 0
    mem: int = 0
    encoder: int = 0
    decoder: int = 0


@dataclass(frozen=True, slots=True)
class FakeEvent:
    """One event of the driver. Every event set gets each `serial` once, in their order, also an older one."""

    serial: int
    data: int = 0
    type: int = XID
    gpu_instance: int = 0xFFFFFFFF
    compute_instance: int = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class FakeLink:
    """One NVLink; `bus` is the PCI address at its other end, `type` 0 for a GPU there and 2 for a switch."""

    number: int
    bus: str
    active: bool = True
    version: int = 6
    type: int = 0


@dataclass(frozen=True, slots=True)
class FakeMig:
    """One MIG instance. Without a `uuid` it gets one of its GPU's and its own number."""

    gpu_instance: int = 1
    compute_instance: int = 0
    profile: str = "1g.10gb"
    memory_total: int | None = 9728 * MIB
    memory_used: int | None = 0
    memory_reserved: int | None = 12 * MIB
    uuid: str = ""
    multiprocessors: int | None = 16
    gpu_slices: int | None = 1
    compute_slices: int | None = 1
    processes: tuple[FakeProcess, ...] = ()


@dataclass(frozen=True, slots=True)
class FakeGpu:
    """One GPU in NVML's own units: bytes, percent, °C, milliwatts, MHz, KB/s. The defaults are an idle H100's.

    `memory_used` does not hold `memory_reserved`, as in nvmlDeviceGetMemoryInfo_v2. MIG is switched on where there are
    `migs`, or `mig_mode` is 1. Without a `uuid` or `bus` it gets one of its place on the machine.
    """

    name: str = "NVIDIA H100 80GB HBM3"
    uuid: str = ""
    bus: str = ""
    serial: str = "1650523001234"
    part: str = "692-2G520-0200-000"
    vbios: str = "96.00.74.00.01"
    minor: int | None = None
    memory_total: int | None = 81559 * MIB
    memory_reserved: int | None = 551 * MIB
    memory_used: int | None = 4 * MIB
    bar1_total: int | None = 131072 * MIB
    bar1_used: int | None = 2 * MIB
    utilisation_gpu: int | None = 0
    utilisation_memory: int | None = 0
    utilisation_encoder: int | None = 0
    utilisation_decoder: int | None = 0
    temperature: int | None = 31
    temperature_memory: int | None = 42
    temperature_shutdown: int | None = 92
    temperature_slowdown: int | None = 89
    temperature_memory_max: int | None = 95
    power: int | None = 71_230
    power_limit: int | None = 700_000
    power_limit_default: int | None = 700_000
    power_limit_min: int | None = 200_000
    power_limit_max: int | None = 700_000
    energy: int | None = 123_456_789
    clock_graphics: int | None = 345
    clock_sm: int | None = 345
    clock_memory: int | None = 2619
    clock_video: int | None = 765
    clock_graphics_max: int | None = 1980
    clock_sm_max: int | None = 1980
    clock_memory_max: int | None = 2619
    clock_video_max: int | None = 1545
    throttle: int | None = 1
    fan: int | None = None
    fans: int | None = None
    pstate: int | None = 0
    pcie_generation: int | None = 5
    pcie_generation_max: int | None = 5
    pcie_generation_device: int | None = 5
    pcie_width: int | None = 16
    pcie_width_max: int | None = 16
    pcie_sent: int | None = 120
    pcie_received: int | None = 340
    pcie_replays: int | None = 0
    ecc: int | None = 1
    ecc_pending: int | None = 1
    ecc_corrected: int | None = 0
    ecc_uncorrected: int | None = 0
    ecc_corrected_ever: int | None = 0
    ecc_uncorrected_ever: int | None = 0
    retired_corrected: int | None = None
    retired_uncorrected: int | None = None
    retired_pending: int | None = None
    remapped_corrected: int | None = 0
    remapped_uncorrected: int | None = 0
    remap_pending: int | None = 0
    remap_failed: int | None = 0
    compute_mode: int | None = 0
    persistence: int | None = 1
    display_mode: int | None = 0
    display_active: int | None = 0
    mig_mode: int | None = 0
    mig_pending: int | None = None
    mig_max: int | None = 7
    capability_major: int | None = 9
    capability_minor: int | None = 0
    architecture: int | None = 9
    brand: int | None = 16
    cores: int | None = 16896
    event_types: int | None = TELLS_EVENTS
    pci_device: int | None = 0x233010DE
    links: tuple[FakeLink, ...] = ()
    migs: tuple[FakeMig, ...] = ()
    processes: tuple[FakeProcess, ...] = ()
    events: tuple[FakeEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong in one function (`*`: in all) for one GPU (`None`: for all).

    It hangs `seconds`, or until the fault is written away; or gives the error `code`. FUNCTION_NOT_FOUND is what an
    older driver's library comes to that does not have the function.
    """

    function: str = "*"
    gpu: int | None = None
    code: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Machine:
    """All that NVML can tell. A new `generation` is a driver that was loaded again: nvmlInit must be called anew.

    GPUs that come are seen after the next nvmlInit only; one that goes is "lost" until then. A `busy` machine's use,
    power, temperature and clocks are a little more than what is written, other ones every second.
    """

    gpus: tuple[FakeGpu, ...] = (FakeGpu(),)
    driver: str = "550.127.05"
    cuda: int = 12040
    nvml: str = "12.550.127.05"
    loaded: Literal["yes", "absent", "mismatch"] = "yes"
    generation: int = 1
    busy: bool = False
    faults: tuple[Fault, ...] = ()

    def changed(self, gpu: int, **values: Any) -> Machine:
        """This machine with other values of one GPU."""
        changed = replace(self.gpus[gpu], **values)
        return replace(self, gpus=(*self.gpus[:gpu], changed, *self.gpus[gpu + 1 :]))

    def failing(self, *faults: Fault) -> Machine:
        """This machine with these faults and no others."""
        return replace(self, faults=faults)

    def reloaded(self, *gpus: FakeGpu) -> Machine:
        """This machine after its driver was loaded again, with other GPUs if any are named."""
        return replace(self, generation=self.generation + 1, gpus=gpus or self.gpus)


def uuid_of(gpu: int, mig: int | None = None) -> str:
    """The UUID of a GPU, or of its nth MIG instance, that was given none."""
    if mig is None:
        return f"GPU-{gpu:08x}-0000-4000-8000-0000000000{gpu:02x}"
    return f"MIG-{gpu:08x}-0000-4000-9000-0000000000{mig:02x}"


def bus_of(gpu: int) -> str:
    """The PCI address of a GPU that was given none, as the driver writes it."""
    return f"00000000:{0x19 + 8 * gpu:02X}:00.0"


def completed(machine: Machine) -> tuple[FakeGpu, ...]:
    """The GPUs with the UUIDs, addresses and modes that a test left open."""

    def whole(place: int, gpu: FakeGpu) -> FakeGpu:
        cut = 1 if gpu.migs else gpu.mig_mode
        return replace(
            gpu,
            uuid=gpu.uuid or uuid_of(place),
            bus=gpu.bus or bus_of(place),
            minor=place if gpu.minor is None else gpu.minor,
            mig_mode=cut,
            mig_pending=cut if gpu.mig_pending is None else gpu.mig_pending,
            migs=tuple(
                mig if mig.uuid else replace(mig, uuid=uuid_of(place, number)) for number, mig in enumerate(gpu.migs)
            ),
        )

    return tuple(whole(place, gpu) for place, gpu in enumerate(machine.gpus))


# --- the file ----------------------------------------------------------------------------------------------------


def written(machine: Machine) -> str:
    """The file's text: `key value` a line, as fake_nvml.c reads it."""
    lines = [f"{key} {getattr(machine, key)}" for key in ("driver", "cuda", "nvml", "loaded", "generation")]
    lines.append(f"busy {int(machine.busy)}")
    for fault in machine.faults:
        place = -1 if fault.gpu is None else fault.gpu
        lines.append(f"fault {fault.function} {place} {fault.code} {fault.seconds:g}")
    for gpu in completed(machine):
        lines += [f"gpu {gpu.uuid}", *_plain(gpu)]
        lines += [f"nvlink {x.number} {int(x.active)} {x.version} {x.type} {x.bus}" for x in gpu.links]
        lines += [f"event {x.serial} {x.type} {x.data} {x.gpu_instance} {x.compute_instance}" for x in gpu.events]
        lines += _processes(gpu.processes)
        for mig in gpu.migs:
            lines += [f"mig {mig.uuid}", f"name {gpu.name} MIG {mig.profile}", *_plain(mig), *_processes(mig.processes)]
    return "\n".join(lines) + "\n"


def _plain(device: FakeGpu | FakeMig) -> list[str]:
    own = {field.name: getattr(device, field.name) for field in fields(device)}
    kept = {key: value for key, value in own.items() if isinstance(value, int | str) and key not in ("uuid", "profile")}
    return [f"{key} {value}" for key, value in kept.items() if value != ""]


def _processes(processes: tuple[FakeProcess, ...]) -> list[str]:
    return [
        f"process {x.kind[0]} {x.pid} {-1 if x.memory is None else x.memory} {x.sm} {x.mem} {x.encoder} {x.decoder}"
        for x in processes
    ]


# --- the library -------------------------------------------------------------------------------------------------


def compiler() -> str | None:
    """The C compiler that builds the library, `None` where there is none."""
    return shutil.which("gcc") or shutil.which("cc")


def built() -> Path:
    """The library, built once for each text of its source and kept in the temporary folder."""
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"quarterdeck-fake-nvml-{os.getuid()}-{key}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else; no library is loaded from there")
    library = folder / SONAME
    if not library.exists():
        command = compiler()
        if command is None:
            raise FileNotFoundError("no C compiler: the fake NVML cannot be built (install gcc and libc6-dev)")
        part = folder / f"{SONAME}.{os.getpid()}"
        subprocess.run([command, *FLAGS, f"-Wl,-soname,{SONAME}", "-o", part, SOURCE, "-lpthread"], check=True)
        part.replace(library)
    return library


class FakeNvml:
    """One fake machine: its state file in `folder`, and the library that answers from it."""

    def __init__(self, folder: Path, machine: Machine | None = None) -> None:
        self.library = built()
        self.state = folder / "machine"
        folder.mkdir(parents=True, exist_ok=True)
        self.machine = machine or Machine()
        self.write(self.machine)

    @property
    def env(self) -> dict[str, str]:
        """What a process must have in its environment to find this machine as its driver."""
        others = os.environ.get("LD_LIBRARY_PATH")
        path = os.pathsep.join((str(self.library.parent), *([others] if others else ())))
        return {"LD_LIBRARY_PATH": path, STATE: str(self.state)}

    def write(self, machine: Machine) -> None:
        """Make the machine this one, at once for the next call of any function."""
        self.machine = machine
        part = self.state.with_suffix(".part")
        part.write_text(written(machine))
        part.replace(self.state)

    def load(self) -> None:
        """Make pynvml in this process use this machine, from nothing: not yet initialised."""
        import pynvml

        library = ctypes.CDLL(str(self.library))
        library.fakeNvmlUse(str(self.state).encode())
        _point(pynvml, library)

    def unload(self) -> None:
        """Give pynvml back as it was before any library was loaded; a call that still hangs ends."""
        import pynvml

        self.write(Machine(gpus=(), loaded="absent"))
        _point(pynvml, None)


def _point(pynvml: object, library: ctypes.CDLL | None) -> None:
    pynvml.nvmlLib = library  # type: ignore[attr-defined]
    pynvml._nvmlLib_refcount = 0  # type: ignore[attr-defined]
    pynvml._nvmlGetFunctionPointer_cache.clear()  # type: ignore[attr-defined]


@contextmanager
def loaded(folder: Path, machine: Machine | None = None) -> Iterator[FakeNvml]:
    """A fake machine loaded into this process, and taken away afterwards."""
    fake = FakeNvml(folder, machine)
    fake.load()
    try:
        yield fake
    finally:
        fake.unload()
