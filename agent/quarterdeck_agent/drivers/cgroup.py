"""Reads what each replica uses straight from cgroup files (v1 and v2) or, without a cgroup of its own, from /proc.

Descriptors stay open between two samples: twenty replicas cost about a millisecond. It never asks an engine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from quarterdeck_agent.drivers.base import Found, Life

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
TREE_EVERY = 5.0
"""Seconds between two looks for new children of replicas without a cgroup: a pass over all of /proc."""

UNLIMITED = 1 << 60
"""cgroup v1 says "no limit" with a number near 2**63."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one replica uses: `cpu_seconds` since its start, memory in bytes. `None` is what could not be read.

    Memory is what could not be given back at once: usage less inactive file cache, as `docker stats` has it.
    """

    cpu_seconds: float | None = None
    memory: int | None = None
    memory_limit: int | None = None
    processes: int | None = None


@dataclass(slots=True)
class _Files:
    """Open descriptors of one replica's cgroup."""

    cgroups: dict[str, Path]
    open: dict[str, int] = field(default_factory=dict)

    def read(self, controller: str, name: str) -> bytes | None:
        folder = self.cgroups.get(controller)
        if folder is None:
            return None
        key = f"{controller}/{name}"
        try:
            if key not in self.open:
                self.open[key] = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(self.open[key], 8192, 0)
        except OSError:
            return None

    def number(self, controller: str, name: str) -> int | None:
        raw = self.read(controller, name)
        return int(raw) if raw is not None and raw.strip().isdigit() else None

    def named(self, controller: str, name: str, key: bytes) -> int | None:
        raw = self.read(controller, name)
        at = -1 if raw is None else 0 if raw.startswith(key + b" ") else raw.find(b"\n" + key + b" ") + 1 or -1
        return None if raw is None or at < 0 else int(raw[at + len(key) + 1 :].split(b"\n", 1)[0])

    def close(self) -> None:
        for descriptor in self.open.values():
            os.close(descriptor)
        self.open.clear()


class CgroupReader:
    """Reads usage by replica. For one thread at a time; `close` lets go of all descriptors."""

    def __init__(self) -> None:
        self._files: dict[str, _Files] = {}
        self._tree: dict[int, list[int]] = {}
        self._tree_of: frozenset[str] = frozenset()
        self._tree_at = 0.0

    def read(self, replicas: Iterable[Found]) -> dict[str, Usage]:
        """Replica id → usage, of those that run. Descriptors of others are closed."""
        running = {found.handle: found for found in replicas if found.life is Life.RUNNING}
        for handle in [handle for handle in self._files if handle not in running]:
            self._files.pop(handle).close()
        usage = {}
        for handle, found in running.items():
            if found.cgroups:
                files = self._files.get(handle)
                if files is None:
                    files = self._files[handle] = _Files(found.cgroups)
                seen = _version2(files) if "unified" in found.cgroups else _version1(files)
            else:
                seen = Usage()
            if seen.cpu_seconds is None:
                seen = _complete(seen, found, self._children(frozenset(running)))
            usage[found.id] = seen
        return usage

    def _children(self, running: frozenset[str]) -> dict[int, list[int]]:
        now = time.monotonic()
        if self._tree_of != running or now - self._tree_at > TREE_EVERY:
            self._tree, self._tree_of, self._tree_at = children(), running, now
        return self._tree

    def close(self) -> None:
        for files in self._files.values():
            files.close()
        self._files.clear()


def _version1(files: _Files) -> Usage:
    nanoseconds = files.number("cpuacct", "cpuacct.usage")
    if nanoseconds is None:
        nanoseconds = files.number("cpu", "cpuacct.usage")
    used, cache = (
        files.number("memory", "memory.usage_in_bytes"),
        files.named("memory", "memory.stat", b"total_inactive_file"),
    )
    limit = files.number("memory", "memory.limit_in_bytes")
    return Usage(
        cpu_seconds=None if nanoseconds is None else nanoseconds / 1e9,
        memory=_net(used, cache),
        memory_limit=None if limit is None or limit >= UNLIMITED else limit,
        processes=files.number("pids", "pids.current"),
    )


def _version2(files: _Files) -> Usage:
    microseconds = files.named("unified", "cpu.stat", b"usage_usec")
    used = files.number("unified", "memory.current")
    return Usage(
        cpu_seconds=None if microseconds is None else microseconds / 1e6,
        memory=_net(used, files.named("unified", "memory.stat", b"inactive_file")),
        memory_limit=files.number("unified", "memory.max"),
        processes=files.number("unified", "pids.current"),
    )


def _net(used: int | None, cache: int | None) -> int | None:
    return None if used is None else max(0, used - (cache or 0))


# --- without a cgroup ------------------------------------------------------------------------------------------


def _complete(seen: Usage, found: Found, tree: dict[int, list[int]]) -> Usage:
    """Fill in from /proc what the cgroup did not tell."""
    if not found.pids:
        return seen
    processes = _usage_of(_descendants(found.pids, tree))
    return Usage(
        cpu_seconds=processes.cpu_seconds,
        memory=processes.memory if seen.memory is None else seen.memory,
        memory_limit=seen.memory_limit,
        processes=processes.processes if seen.processes is None else seen.processes,
    )


def children() -> dict[int, list[int]]:
    """Parent pid → pids, of the whole host; one pass of /proc."""
    tree: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - names only, every second
        if name.isdigit() and (fields := _stat(int(name))) is not None:
            tree.setdefault(int(fields[1]), []).append(int(name))
    return tree


def _descendants(roots: Iterable[int], tree: dict[int, list[int]]) -> list[int]:
    found, waiting = [], list(roots)
    seen = set(waiting)
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        fresh = [child for child in tree.get(pid, ()) if child not in seen]
        seen.update(fresh)
        waiting += fresh
    return found


def _usage_of(pids: Iterable[int]) -> Usage:
    """Sums over processes: CPU with what their ended children took, resident memory without shared file pages."""
    ticks, memory, count = 0, 0, 0
    for pid in pids:
        fields = _stat(pid)
        if fields is None:
            continue
        # proc(5): utime, stime, cutime, cstime are fields 14 to 17; `fields` begins with the third.
        ticks += sum(int(value) for value in fields[11:15])
        memory += _resident(pid)
        count += 1
    return Usage(ticks / TICKS, memory, None, count) if count else Usage()


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123 - every second, for every process
            _, resident, shared, *_ = file.read().split()
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * PAGE


def _stat(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat after the command's name, which may hold anything."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - every second, for every process
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return None
