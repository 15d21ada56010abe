"""Where a process sits among the host's control groups, v1 and v2, and where groups for replicas may be made.

Only finds and names folders; limits are written by the shim, figures are read by the sampler.
"""

from __future__ import annotations

import errno
import os
import time
from functools import cache
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
# Our name for a controller → the v1 controller whose folder holds the files to read (`cpu`: cpuacct.usage).
CONTROLLERS = {"cpu": "cpuacct", "memory": "memory", "pids": "pids"}
REMOVE_TRIES, REMOVE_PAUSE = 25, 0.02
LEAF = "agent"
"""The leaf that the agent's unit puts it in (systemd's DelegateSubgroup): a v2 group with processes cannot have
limited children."""


def is_unified() -> bool:
    """Whether the host uses cgroup v2 alone (a hybrid host keeps its controllers in v1)."""
    return (ROOT / "cgroup.controllers").exists()


def of_process(pid: int | str) -> dict[str, Path]:
    """The control groups of a process, as `Found.cgroups` has them; empty when it is gone or not visible from here."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return {}
    paths = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path.lstrip("/")
    if is_unified():
        return {"unified": ROOT / paths[""]} if "" in paths else {}
    return {
        ours: mount_of(theirs) / paths[theirs]
        for ours, theirs in CONTROLLERS.items()
        if theirs in paths and mount_of(theirs).exists()
    }


def started(pid: int) -> float | None:
    """When a process began, in seconds on the boot clock (proc(5), field 22); `None` when it is gone."""
    try:
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
    return int(ticks) / os.sysconf("SC_CLK_TCK")


@cache
def mount_of(controller: str) -> Path:
    """Where a v1 controller is mounted: under its own name, or together with others."""
    return next(
        (path for path in ROOT.glob(f"*{controller}*") if controller in path.name.split(",")), ROOT / controller
    )


def own_children(name: str) -> dict[str, str]:
    """Where groups called `name` may be made for a replica: below the agent's own, never beside or above it."""
    if not is_unified():
        return {key: str(path / name) for key, path in of_process("self").items() if os.access(path, os.W_OK)}
    own = of_process("self").get("unified")
    if own is None:
        return {}
    parent = own.parent if own.name == LEAF else own
    return {"unified": str(parent / name)} if enable_memory(parent) else {}


def enable_memory(parent: Path) -> bool:
    """Let children of a v2 group have memory and cpu limits; False where the kernel or the owner says no."""
    try:
        (parent / "cgroup.subtree_control").write_text("+memory +cpu +pids")
    except OSError:
        return False
    return True


def remove(path: Path) -> None:
    """Remove an empty group; one that is gone, or still in use after a moment, stays as it is."""
    for _ in range(REMOVE_TRIES):
        try:
            path.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                return
            # A killed process leaves its group a little after it left the process table.
            time.sleep(REMOVE_PAUSE)
        else:
            return
