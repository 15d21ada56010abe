"""How a Docker daemon gives GPUs to containers: by NVIDIA's hook, by CDI, or not at all; and how either is asked.

Pure but for a look at the daemon's CDI folders and at the hook's program, which lie on this host.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from quarterdeck_agent.errors import StartRefused

Door = Literal["nvidia", "cdi"]

KIND = "nvidia.com/gpu"
"""How NVIDIA's CDI specifications call GPUs and MIG instances (https://github.com/cncf-tags/container-device-interface)."""

HOOK = "nvidia-container-runtime-hook"
"""The program that makes Docker offer its driver "nvidia", also where no runtime is configured."""


def door(info: Mapping[str, Any]) -> Door:
    """The way in for GPUs, by what the daemon tells of itself (`GET /info`). Raises `StartRefused` without one."""
    if "nvidia" in (info.get("Runtimes") or {}):
        return "nvidia"
    if has_cdi(info):
        return "cdi"
    if shutil.which(HOOK):
        return "nvidia"
    raise StartRefused(
        "Docker on this host cannot give GPUs to containers: it has neither NVIDIA's runtime nor its CDI devices.",
        field="gpus",
        hint="Install nvidia-container-toolkit, run nvidia-ctk runtime configure --runtime=docker, restart docker.",
    )


def has_cdi(info: Mapping[str, Any]) -> bool:
    """Whether the daemon takes CDI names and NVIDIA's devices are among them."""
    known = [str(device.get("ID", "")) for device in info.get("DiscoveredDevices") or () if isinstance(device, dict)]
    if any(name.startswith(KIND) for name in known):
        return True
    return any(_specifies(Path(folder)) for folder in info.get("CDISpecDirs") or ())


def _specifies(folder: Path) -> bool:
    """Whether a folder of CDI specifications has one of NVIDIA's."""
    try:
        files = [path for path in folder.iterdir() if path.suffix in (".yaml", ".yml", ".json")]
        return any(KIND in path.read_text(errors="replace") for path in files)
    except OSError:
        return False


def request(gpus: tuple[str, ...], way: Door) -> dict[str, Any]:
    """The device request for these GPUs or MIG instances, by uuid."""
    if way == "cdi":
        names = [f"{KIND}={uuid}" for uuid in gpus]
        return {"Driver": "cdi", "Count": 0, "DeviceIDs": names, "Capabilities": [], "Options": {}}
    return {"Driver": "nvidia", "Count": 0, "DeviceIDs": list(gpus), "Capabilities": [["gpu"]], "Options": {}}


def visible(gpus: tuple[str, ...], way: Door) -> str:
    """What NVIDIA_VISIBLE_DEVICES has to be, or an image's own value lets in what nobody asked for.

    By CDI the devices come without the hook, which must then add none, should it be there as well.
    """
    return ",".join(gpus) if gpus and way == "nvidia" else "void"
