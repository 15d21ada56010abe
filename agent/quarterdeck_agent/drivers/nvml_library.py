"""pynvml and the driver's library behind it: load them late, and take the library anew after the driver's upgrade."""

from __future__ import annotations

import _ctypes
import re
from pathlib import Path
from typing import Any

from quarterdeck_agent.drivers.gpu_driver import MODULE, load_id

_LIBRARY, _POINTERS = "nvmlLib", "_nvmlGetFunctionPointer_cache"

PROC = Path("/proc/driver/nvidia")
DEV = Path("/dev")


def load() -> Any:
    """pynvml, which loads the driver's library in `nvmlInit`. Raises ImportError where there is no nvidia-ml-py."""
    import pynvml

    return pynvml


def drop(nvml: Any) -> bool:
    """Unload the driver's library, so that the next `nvmlInit` takes the file that is there now.

    Only for when no thread is inside of it and `nvmlShutdown` was called; NVIDIA's go-nvml unloads it then too
    (https://github.com/NVIDIA/go-nvml, pkg/nvml/lib.go). False where this pynvml keeps it in another way.
    """
    library, pointers = getattr(nvml, _LIBRARY, None), getattr(nvml, _POINTERS, None)
    if library is None or pointers is None or not isinstance(getattr(library, "_handle", None), int):
        return False
    pointers.clear()
    setattr(nvml, _LIBRARY, None)
    try:
        _ctypes.dlclose(library._handle)
    except OSError:
        return False
    return True


def module_version(proc: Path = PROC) -> str:
    """The version of the kernel module that is loaded, empty where it cannot be told."""
    try:
        first = (proc / "version").read_text()
    except OSError:
        return ""
    found = re.search(r"Module(?: for \S+)?\s+(\d+(?:\.\d+)+)", first)
    return found[1] if found else ""


def gpu_nodes(proc: Path = PROC, dev: Path = DEV, module: Path = MODULE) -> tuple[object, ...]:
    """Something that is another when GPUs came or went or the kernel module was loaded anew: NVML does not tell that.

    The kernel lists its GPUs under /proc/driver/nvidia/gpus, as /dev/nvidia<N>, and gives each load of a module a
    folder in /sys with another inode. In a container any of these may be missing, and then stays so.
    """
    nodes = [name for name in _names(dev) if name.startswith("nvidia") and name[6:].isdecimal()]
    return load_id(module), *sorted(_names(proc / "gpus")), *sorted(nodes)


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:
        return []
