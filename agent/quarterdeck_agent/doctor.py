"""Looks at a host the way an experienced operator would: one line a finding, each with its mend.

Every check has a deadline of its own and none can hide another. It reads only and changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from quarterdeck_agent.drivers import gpu_door
from quarterdeck_agent.errors import AgentError
from quarterdeck_agent.gpus.doctor import examine_gpus, mends_of_nvml
from quarterdeck_agent.gpus.placement import Sight
from quarterdeck_agent.history import Minutes
from quarterdeck_agent.historyfile import aside
from quarterdeck_agent.protocol import Check, HostGauges, Part, PartState

log = logging.getLogger(__name__)

DEADLINE = 6.0
OPEN_FILES = 4096
MEMORY_SHORT = 0.05
DISK_SHORT = 0.10
WAYS = {"nvidia": "NVIDIA's runtime", "cdi": "CDI"}


class Versioned(Protocol):
    """The engine."""

    name: str

    async def version(self) -> str: ...


@dataclass(frozen=True, slots=True)
class DoctorContext:
    """What the doctor may look at.

    `gateway` tells the gateway's version or raises `AgentError`; `docker_info` gives `GET /info`, `None`
    where the engine is not docker; `nvml` and `gauges` are what the sampler last published; `clock_synchronised` is
    `drivers.host.clock_synchronised`. `history` is where gauges are kept for weeks. `min_free` bytes is below what
    uploads are refused. `sight` is what NVML showed of the GPUs last.
    """

    data_folder: Path
    engine: Versioned
    gateway: Callable[[], Awaitable[str]]
    sqlite_version: str
    min_free: int
    nvml: Callable[[], Part | None]
    gauges: Callable[[], HostGauges | None]
    clock_synchronised: Callable[[], bool | None]
    history: Minutes | None = None
    sight: Callable[[], Sight] = Sight
    docker_info: Callable[[], Awaitable[dict[str, Any]]] | None = None
    cgroup_root: Path = Path("/sys/fs/cgroup")
    deadline: float = DEADLINE


Examination = Callable[[DoctorContext], Awaitable[Check]]


async def examine(context: DoctorContext) -> tuple[Check, ...]:
    """Every check, in a steady order, all at once; takes no longer than the slowest one's deadline."""
    wanted = [(name, check) for name, check in CHECKS if name != "docker" or context.docker_info is not None]
    sight = context.sight()
    if sight.gpus and context.docker_info is not None:
        wanted.append(("container toolkit", _toolkit))
    found = await asyncio.gather(*(_one(name, check, context) for name, check in wanted))
    return (*found, *examine_gpus(sight, datetime.now(UTC)))


async def _one(name: str, check: Examination, context: DoctorContext) -> Check:
    try:
        async with asyncio.timeout(context.deadline):
            return await check(context)
    except TimeoutError:
        return Check(name, "failed", f"no answer within {context.deadline:g} s", "see the agent's log")
    except AgentError as error:
        return Check(name, "failed", error.detail, error.hint or "")
    except Exception as error:
        log.exception("the check of %s failed", name)
        return Check(
            name, "failed", f"the check itself failed: {error!r}", "please report this; the agent's log has more"
        )


async def _memory(context: DoctorContext) -> Check:
    gauges = context.gauges()
    if gauges is None or gauges.memory_total is None or gauges.memory_used is None:
        return Check("memory", "warning", "not measured yet", "wait a second and ask again")
    free = gauges.memory_total - gauges.memory_used
    detail = f"{_size(free)} of {_size(gauges.memory_total)} available"
    if free < MEMORY_SHORT * gauges.memory_total:
        mend = "stop a deployment or lower its replicas; handovers use `hold` while memory is short"
        return Check("memory", "warning", detail, mend)
    return Check("memory", "ok", detail)


async def _engine(context: DoctorContext) -> Check:
    version = await context.engine.version()
    return Check("engine", "ok", f"{context.engine.name} {version}")


async def _docker(context: DoctorContext) -> Check:
    assert context.docker_info is not None
    try:
        info = await context.docker_info()
    except AgentError as error:
        return Check("docker", "failed", error.detail, "systemctl status docker")
    if info.get("LiveRestoreEnabled"):
        return Check("docker", "ok", "live-restore is on: containers outlive a restart of dockerd")
    return Check(
        "docker",
        "warning",
        "live-restore is off: a restart of dockerd ends every container (the agent starts them again)",
        'set {"live-restore": true} in /etc/docker/daemon.json, then `systemctl reload docker`',
    )


async def _gateway(context: DoctorContext) -> Check:
    return Check("gateway", "ok", f"Envoy {await context.gateway()}".rstrip())


async def _sqlite(context: DoctorContext) -> Check:
    version = tuple(int(part) for part in context.sqlite_version.split(".")[:3] if part.isdecimal())
    if (3, 7, 0) <= version < (3, 51, 3):
        return Check(
            "sqlite",
            "warning",
            f"SQLite {context.sqlite_version} has the WAL-reset race (3.7.0 to 3.51.2); one connection does all of our "
            "writes and checkpoints and the readers are query_only, so that it cannot happen through the agent",
            "open store.sqlite with no other program while the agent runs; SQLite 3.51.3 ends the warning",
        )
    return Check("sqlite", "ok", f"SQLite {context.sqlite_version}")


async def _history(context: DoctorContext) -> Check:
    kept = context.history
    if kept is None:
        return Check("history", "ok", "gauges are kept for an hour, in memory")
    if kept.trouble:
        mend = f"free disk space, and see that {kept.path} can be written; it is tried again every minute"
        return Check("history", "warning", f"gauges are kept for an hour only: {kept.trouble}", mend)
    damaged = aside(kept.path)
    if await asyncio.to_thread(damaged.exists):
        mend = "look for errors of the disk (`dmesg`), then remove that file"
        return Check("history", "warning", f"a damaged history was put aside as {damaged}", mend)
    size = await asyncio.to_thread(lambda: kept.path.stat().st_size if kept.path.exists() else 0)
    return Check("history", "ok", f"{_size(size)}, for at most {kept.days} days")


async def _disk(context: DoctorContext) -> Check:
    usage = await asyncio.to_thread(shutil.disk_usage, context.data_folder)
    usable = usage.used + usage.free  # less than the total: a part is root's
    detail = f"{_size(usage.free)} of {_size(usable)} free for {context.data_folder}"
    mend = "remove versions that nothing uses, or move data_folder to a larger disk"
    if usage.free < context.min_free:
        return Check("disk", "failed", f"{detail}; uploads are refused below {_size(context.min_free)}", mend)
    if usage.free < DISK_SHORT * usage.total:
        return Check("disk", "warning", detail, mend)
    return Check("disk", "ok", detail)


async def _folder(context: DoctorContext) -> Check:
    facts = await asyncio.to_thread(context.data_folder.stat)
    mode, place = facts.st_mode & 0o777, context.data_folder
    if facts.st_uid != os.geteuid():
        return Check("data folder", "failed", f"{place} belongs to user {facts.st_uid}", f"chown it to {os.geteuid()}")
    if mode & 0o077:
        return Check("data folder", "warning", f"others may enter {place} (mode {mode:o})", f"chmod 700 {place}")
    return Check("data folder", "ok", f"{place} is the agent's alone")


async def _clock(context: DoctorContext) -> Check:
    synchronised = await asyncio.to_thread(context.clock_synchronised)
    if synchronised is None:
        return Check("clock", "ok", "the kernel does not tell whether the clock is synchronised")
    if synchronised:
        return Check("clock", "ok", "synchronised")
    mend = "run chrony or systemd-timesyncd; times in logs and history are only as good as the clock"
    return Check("clock", "warning", "not synchronised by NTP", mend)


async def _cgroups(context: DoctorContext) -> Check:
    root = context.cgroup_root
    if (root / "cgroup.controllers").exists():
        have = set((root / "cgroup.controllers").read_text().split())
        missing = sorted({"cpu", "memory", "pids"} - have)
        if missing:
            mend = "enable the controllers on the kernel's command line"
            return Check("cgroups", "warning", f"version 2, without {', '.join(missing)}", mend)
        return Check("cgroups", "ok", "version 2")
    if (root / "memory" / "memory.limit_in_bytes").exists():
        return Check("cgroups", "ok", "version 1")
    mend = "mount cgroups (most distributions do); gauges and limits of replicas are coarse without them"
    return Check("cgroups", "warning", f"none under {root}", mend)


async def _open_files(_: DoctorContext) -> Check:
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        mend = "set LimitNOFILE=65536 in the agent's unit, or `ulimit -n 65536`"
        return Check("open files", "warning", f"limit {soft}, wanted {OPEN_FILES}", mend)
    return Check("open files", "ok", "no limit" if soft == resource.RLIM_INFINITY else f"limit {soft}")


async def _nvml(context: DoctorContext) -> Check:
    part = context.nvml()
    if part is None:
        return Check("nvml", "warning", "not asked yet", "wait a second and ask again")
    if part.state is PartState.OK:
        return Check("nvml", "ok", f"driver {part.version}")
    if part.state is PartState.ABSENT:
        return Check("nvml", "ok", part.detail or "no NVIDIA driver on this host")
    return Check("nvml", "failed", part.detail, ": ".join(mends_of_nvml(part.detail)))


async def _toolkit(context: DoctorContext) -> Check:
    """Whether containers can be given GPUs."""
    assert context.docker_info is not None
    way = await asyncio.to_thread(gpu_door.door, await context.docker_info())
    return Check("container toolkit", "ok", f"containers get their GPUs by {WAYS[way]}")


CHECKS: tuple[tuple[str, Examination], ...] = (
    ("engine", _engine),
    ("docker", _docker),
    ("gateway", _gateway),
    ("sqlite", _sqlite),
    ("history", _history),
    ("disk", _disk),
    ("data folder", _folder),
    ("memory", _memory),
    ("clock", _clock),
    ("cgroups", _cgroups),
    ("open files", _open_files),
    ("nvml", _nvml),
)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
