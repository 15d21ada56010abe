"""What the doctor says of GPUs: each one's health with its mend, and what an operator would set otherwise. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta

from quarterdeck_agent.gpus.placement import IN_THE_WAY, Sight, gib, who
from quarterdeck_agent.gpus.xids import Action
from quarterdeck_agent.protocol import Check, Gpu, GpuFacts, GpuHealth, XidEvent

LATE = timedelta(hours=24)
SHOWN = 5


def examine_gpus(sight: Sight, now: datetime) -> tuple[Check, ...]:
    """Every finding about this host's GPUs; nothing where there are none."""
    whole = tuple(gpu for gpu in sight.gpus if gpu.parent is None)
    if not whole:
        return ()
    facts = {each.uuid: each for each in sight.facts}
    known = tuple((gpu, facts[gpu.uuid]) for gpu in whole if gpu.uuid in facts)
    others = (_xids(known, now), _rows(known), _persistence(known), _ecc(known), _unmanaged(whole, sight))
    return (*(_health(gpu, sight) for gpu in whole), *(check for check in others if check is not None))


def _health(gpu: Gpu, sight: Sight) -> Check:
    name, said = f"gpu{gpu.index}", f"{gpu.name}: {gpu.why}" if gpu.why else gpu.name
    match gpu.health:
        case GpuHealth.OK:
            return Check(name, "ok", f"{gpu.name}{_use(gpu, sight)}")
        case GpuHealth.DEGRADED:
            return Check(name, "warning", said, "it goes on taking deployments; do what is said when it suits")
        case _:
            leave = "deployments leave it where another GPU has room, and nothing new starts on it"
            mend = f"{leave}; after the reset or repair: qd gpus --trust {gpu.index} --why '...'"
            return Check(name, "failed", said, mend)


def _use(gpu: Gpu, sight: Sight) -> str:
    if gpu.memory_total is None or gpu.memory_used is None:
        return ""
    instances = sum(1 for other in sight.gpus if other.parent == gpu.uuid)
    cut = f", cut into {instances} MIG instances" if gpu.mig else ""
    return f": {gib(gpu.memory_used)} of {gib(gpu.memory_total)} in use{cut}"


Known = Sequence[tuple[Gpu, GpuFacts]]


def _xids(known: Known, now: datetime) -> Check | None:
    """Xids of late that ask for something. Those that a GPU's health tells already are told there."""
    found = sorted(
        ((xid, gpu) for gpu, facts in known for xid in facts.xids if _tells(xid, gpu, now)),
        key=lambda pair: pair[0].at,
        reverse=True,
    )
    if not found:
        return None
    lines = [f"gpu{gpu.index}: Xid {xid.code} at {xid.at:%H:%M} UTC, {xid.meaning}" for xid, gpu in found[:SHOWN]]
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    mend = "as a rule a program's own mistake: see the logs of the replicas on that GPU; it restarts by itself"
    return Check("Xids", "warning", "; ".join(lines) + more, mend)


def _tells(xid: XidEvent, gpu: Gpu, now: datetime) -> bool:
    return xid.action != Action.IGNORE and now - xid.at < LATE and f"Xid {xid.code} " not in gpu.why


def _rows(known: Known) -> Check | None:
    """Faulty memory that has been replaced so far: good to know before there are no spares left."""
    worn = [
        f"gpu{gpu.index} has replaced {count} faulty rows or pages of its memory"
        for gpu, facts in known
        if (count := (facts.remapped_rows or 0) + (facts.retired_pages or 0))
    ]
    return Check("GPU memory", "ok", "; ".join(worn)) if worn else None


def _persistence(known: Known) -> Check | None:
    off = _named(known, lambda facts: facts.persistence is False)
    if not off:
        return None
    mend = "systemctl enable --now nvidia-persistenced, or nvidia-smi -pm 1"
    return Check(
        "persistence mode", "warning", f"off on {off}: the driver starts anew whenever nobody uses a GPU", mend
    )


def _ecc(known: Known) -> Check | None:
    off = _named(known, lambda facts: facts.ecc_enabled is False)
    if not off:
        return None
    mend = "nvidia-smi -e 1, then reset the GPU; where the memory is needed more than its proof, leave it"
    return Check("ECC", "warning", f"off on {off}: errors of its memory go unnoticed", mend)


def _named(known: Known, which: Callable[[GpuFacts], bool]) -> str:
    return ", ".join(f"gpu{gpu.index}" for gpu, facts in known if which(facts))


def _unmanaged(whole: Sequence[Gpu], sight: Sight) -> Check | None:
    names = {gpu.uuid: f"gpu{gpu.index}" for gpu in whole}
    names |= {gpu.uuid: f"gpu{gpu.index} MIG {gpu.profile or gpu.uuid}" for gpu in sight.gpus if gpu.parent}
    lines = [
        f"{names[use.uuid]}: {gib(process.memory) if process.memory is not None else 'memory'} by {who(process)}"
        for use in sight.uses
        if use.uuid in names
        for process in use.processes
        if process.replica is None and (process.memory is None or process.memory >= IN_THE_WAY)
    ]
    if not lines:
        return None
    more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return Check("other GPU users", "ok", "; ".join(lines[:SHOWN]) + more)


def mends_of_nvml(detail: str) -> Iterator[str]:
    """How NVML gets well again, after what it said."""
    if "kernel module" in detail:
        yield "the driver was updated while the old one runs: reboot, or end all users of the GPUs and load it anew"
        yield "`systemctl stop nvidia-persistenced; rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia; modprobe nvidia`"
    else:
        yield "see `nvidia-smi` and `dmesg | grep -i xid`; a lost GPU comes back with a reset or a reboot"
