"""Whose memory is it: from NVML's processes and the host's process table to replicas and their revisions. Pure.

A process is a replica's when it runs in the replica's control group, or when it descends from the replica's main
process or session. Everything else is unmanaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from quarterdeck_agent.drivers.base import Found
from quarterdeck_agent.drivers.nvml_seen import NvmlProcess
from quarterdeck_agent.drivers.processes import HostProcess, Kin
from quarterdeck_agent.protocol import Gpu, GpuProcess, GpuUse

Number = TypeVar("Number", int, float)

UNEXPLAINED_FROM = 256 << 20
"""Bytes without an owner that are worth telling. A CUDA context alone takes more, so what a program left behind is
larger; less is the driver's own bookkeeping, which it counts differently from release to release."""


def attribute(
    processes: Mapping[str, tuple[NvmlProcess, ...]],
    people: Mapping[int, HostProcess],
    replicas: Sequence[Found],
    gpus: Sequence[Gpu],
) -> tuple[GpuUse, ...]:
    """Whose every byte is, per GPU and MIG instance that could be asked (`processes` by uuid).

    `people` are the processes that the host knows. A GPU that is cut into instances lists only those of its processes
    that are in none of them.
    """
    owners = Owners(replicas)
    within: dict[str, set[int]] = {}
    for gpu in gpus:
        if gpu.parent is not None:
            within.setdefault(gpu.parent, set()).update(one.pid for one in processes.get(gpu.uuid, ()))
    uses = []
    for gpu in gpus:
        listed = processes.get(gpu.uuid)
        if listed is None:
            continue
        whole = _once(one for one in listed if one.pid not in within.get(gpu.uuid, ()))
        told = [_told(one, people.get(one.pid), owners) for one in whole]
        told.sort(key=lambda one: (-(one.memory or 0), one.pid))
        lost = None if gpu.mig or gpu.uuid in within else _unexplained(gpu, whole)
        uses.append(GpuUse(gpu.uuid, tuple(told), lost))
    return tuple(uses)


def held(uses: Iterable[GpuUse]) -> dict[str, dict[str, int | None]]:
    """Replica id → uuid → bytes that it holds there; `None` where the driver does not tell of all its processes."""
    found: dict[str, dict[str, int | None]] = {}
    for use in uses:
        for one in use.processes:
            if one.replica is not None:
                there = found.setdefault(one.replica, {})
                before = there.get(use.uuid, 0)
                there[use.uuid] = None if before is None or one.memory is None else before + one.memory
    return found


class Owners:
    """Finds the replica that a process belongs to."""

    def __init__(self, replicas: Sequence[Found]) -> None:
        self._of_group: dict[str, Found] = {}
        self._of_kin: dict[Kin, Found] = {}
        for found in replicas:
            kin = _kin(found)
            if kin is not None:
                self._of_kin[kin] = found
            else:
                # A container's id names its groups: bare, or in the scope that systemd makes for it.
                self._of_group[found.handle] = self._of_group[f"docker-{found.handle}.scope"] = found
            for path in found.cgroups.values():
                if found.id in path.name:
                    self._of_group[path.name] = found

    def of(self, person: HostProcess) -> Found | None:
        """The replica, by its control group or else by kin; `None` for a process that is nobody's here."""
        for name in person.groups:
            if name in self._of_group:
                return self._of_group[name]
        return next((self._of_kin[kin] for kin in person.kin if kin in self._of_kin), None)


def _kin(found: Found) -> Kin | None:
    """The main process of a replica that is a process: its handle is `pid:start time`."""
    pid, colon, start = found.handle.partition(":")
    return (int(pid), int(start)) if colon and pid.isdecimal() and start.isdecimal() else None


def _once(processes: Iterable[NvmlProcess]) -> list[NvmlProcess]:
    """Each pid once: a process that computes and draws is listed twice, both times with all that it holds."""
    found: dict[int, NvmlProcess] = {}
    for one in processes:
        before = found.get(one.pid)
        if before is not None:
            one = replace(
                one,
                memory=_most(before.memory, one.memory),
                utilisation=_most(before.utilisation, one.utilisation),
                kind="compute" if "compute" in (before.kind, one.kind) else one.kind,
            )
        found[one.pid] = one
    return list(found.values())


def _most(left: Number | None, right: Number | None) -> Number | None:
    return left if right is None else right if left is None else max(left, right)


def _told(one: NvmlProcess, person: HostProcess | None, owners: Owners) -> GpuProcess:
    found = None if person is None else owners.of(person)
    return GpuProcess(
        pid=one.pid,
        memory=one.memory,
        utilisation=one.utilisation,
        kind=one.kind,
        user=person.user if person else None,
        command=person.command if person else None,
        replica=found.id if found else None,
        deployment=found.deployment if found else None,
        revision=found.revision if found else None,
    )


def _unexplained(gpu: Gpu, processes: Iterable[NvmlProcess]) -> int | None:
    """What is neither free nor the driver's own nor any process's; 0 where that is too little to tell."""
    if gpu.memory_total is None or gpu.memory_free is None or gpu.memory_reserved is None:
        return None
    lost = gpu.memory_total - gpu.memory_free - gpu.memory_reserved
    for one in processes:
        if one.memory is None:
            return None
        lost -= one.memory
    return lost if lost >= UNEXPLAINED_FROM else 0
