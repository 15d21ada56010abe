"""Judges how far a GPU can be trusted, from what NVML says now and what is remembered of it. Pure.

`observe` carries the memory from one sample to the next, `judge` turns it into a state and a sentence that says what is
and what to do. What NVIDIA recommends for each Xid stands in `xids.toml`; for memory errors see its "GPU Memory Error
Management" (row remapping) and "Dynamic Page Retirement" guides.

ok ──▶ degraded ──▶ sick ──▶ lost     each judged anew at every sample; only Xids and counted memory errors stay, until
                                      the host boots, the driver is loaded anew or somebody trusts the GPU again
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from quarterdeck_agent.gpus.xids import Action
from quarterdeck_agent.protocol import Gpu, GpuFacts, GpuHealth, GpuUse, XidEvent

SLOW_FOR = 60.0
"""Seconds of throttling after which a GPU counts as degraded. Less is how a busy GPU keeps its limits."""

HOT_FOR = 10.0
LEAKED_FOR = 60.0
"""Seconds after which memory without a process counts as leaked: the driver clears up a little after an end."""

PAUSE = 15.0
"""A state that shows again within this many seconds has gone on all the time: the flags of NVML flicker."""

LEAK_ALONE = 256 << 20
LEAK_BESIDE = 1 << 30
"""Bytes without an owner that nobody wonders about: where no process is listed, and beside some (shared contexts)."""

CAPPED_BELOW = 0.6
"""Share of the highest clock below which a power limit costs so much that it counts. Above it a limit is a limit."""

REPEATS = 600.0
"""An Xid that comes again within this many seconds is the same one still: a program may cause hundreds."""

KEEP_XIDS = 20
LEVELS = (GpuHealth.OK, GpuHealth.DEGRADED, GpuHealth.SICK, GpuHealth.LOST)

XID_LEVELS = {
    Action.SUPPORT: GpuHealth.DEGRADED,
    Action.DRAIN: GpuHealth.SICK,
    Action.RESET: GpuHealth.SICK,
    Action.REBOOT: GpuHealth.SICK,
}
MENDS = {
    Action.SUPPORT: "look at it in the kernel's log and ask the vendor's support",
    Action.DRAIN: "drain the GPU and reset it",
    Action.RESET: "drain the GPU and reset it",
    Action.REBOOT: "drain the host and reboot",
}


@dataclass(frozen=True, slots=True)
class Spell:
    """How long something has gone on: seconds on the boot clock when it began and when it was seen last."""

    since: float
    last: float

    def lasted(self, seconds: float) -> bool:
        return self.last - self.since >= seconds


@dataclass(frozen=True, slots=True)
class Record:
    """What is remembered of one GPU.

    `xids` are newest first, and none that came before somebody trusted the GPU again; of the uncorrectable memory
    errors the first `trusted_errors` do not count any more. The spells tell what goes on now.
    """

    xids: tuple[XidEvent, ...] = ()
    trusted_errors: int = 0
    slow: Spell | None = None
    capped: Spell | None = None
    hot: Spell | None = None
    leaked: Spell | None = None


Finding = tuple[GpuHealth, str]


def observe(
    record: Record, gpu: Gpu, facts: GpuFacts | None, use: GpuUse | None, events: Sequence[XidEvent], now: float
) -> Record:
    """The record after one more sample; `events` are the Xids that came since the last one."""
    errors = facts.ecc_uncorrected if facts is not None else None
    return Record(
        xids=with_xids(record.xids, events),
        # A counter that went back was reset with the GPU: what is counted from now on is new.
        trusted_errors=record.trusted_errors if errors is None else min(record.trusted_errors, errors),
        slow=_spell(record.slow, any(map(_is_slow, gpu.throttle)), now),
        capped=_spell(record.capped, _is_capped(gpu, facts), now),
        hot=_spell(record.hot, _is_hot(gpu, facts), now),
        leaked=_spell(record.leaked, leaked_memory(gpu, use) is not None, now),
    )


def judge(gpu: Gpu, facts: GpuFacts | None, use: GpuUse | None, record: Record) -> tuple[GpuHealth, str]:
    """How far the GPU can be trusted, and in words why not, the worst first; the words are empty for one that is well.

    `gpu.health` and `gpu.why` are what the reader of NVML found: it never gets better than that.
    """
    findings = [*_from_xids(record), *_from_memory(facts, record), *_from_spells(gpu, facts, use, record)]
    if gpu.health is GpuHealth.DEGRADED:
        findings.append((GpuHealth.DEGRADED, gpu.why))
    findings.sort(key=lambda finding: -LEVELS.index(finding[0]))
    words = [said for _, said in findings]
    if gpu.health is GpuHealth.LOST:
        if not findings or findings[0][0] is not GpuHealth.SICK:  # else it is said already what led to this
            words.insert(0, gpu.why or "the driver has lost it, or it does not answer; drain the host and reboot")
        return GpuHealth.LOST, ". ".join(words)
    return (findings[0][0] if findings else GpuHealth.OK), ". ".join(words)


def with_xids(known: tuple[XidEvent, ...], new: Sequence[XidEvent]) -> tuple[XidEvent, ...]:
    """All of them without repeats, newest first: the last `KEEP_XIDS`, and of each number at least the newest."""
    merged = list(known)
    for xid in new:
        if all(xid.code != other.code or (xid.at - other.at).total_seconds() >= REPEATS for other in merged):
            merged.append(xid)
    if len(merged) == len(known):
        return known
    kept, codes = list[XidEvent](), set[int]()
    for xid in sorted(merged, key=lambda xid: xid.at, reverse=True):
        if len(kept) < KEEP_XIDS or xid.code not in codes:
            kept.append(xid)
        codes.add(xid.code)
    return tuple(kept)


def trusted(record: Record, at: datetime, errors: int) -> Record:
    """The record once somebody trusts the GPU again: what was until then does not count, `errors` included."""
    return replace(record, xids=tuple(xid for xid in record.xids if xid.at > at), trusted_errors=errors)


def leaked_memory(gpu: Gpu, use: GpuUse | None) -> int | None:
    """Bytes in use that belong to no process, where that is worth a word."""
    if use is None or use.unexplained is None or gpu.mig:
        return None
    return use.unexplained if use.unexplained >= (LEAK_BESIDE if use.processes else LEAK_ALONE) else None


# --- findings ----------------------------------------------------------------------------------------------------


def _from_xids(record: Record) -> Iterator[Finding]:
    """What the Xids ask for: of each action the newest one, the worst action first."""
    for action in (Action.REBOOT, Action.RESET, Action.DRAIN, Action.SUPPORT):
        found = next((xid for xid in record.xids if xid.action == action.value), None)
        if found is not None:
            when = f"{found.at:%H:%M} UTC on {found.at.day} {found.at:%b}"
            yield XID_LEVELS[action], f"Xid {found.code} at {when}: {found.meaning}; {MENDS[action]}"


def _from_memory(facts: GpuFacts | None, record: Record) -> Iterator[Finding]:
    if facts is None:
        return
    if facts.remap_failed:
        yield GpuHealth.SICK, "a faulty memory row could not be replaced; drain the GPU and ask for a new one"
    errors = (facts.ecc_uncorrected or 0) - record.trusted_errors
    if errors > 0:
        count = "1 memory error" if errors == 1 else f"{errors} memory errors"
        yield GpuHealth.SICK, f"{count} that ECC could not correct; drain the GPU and reset it"
    if facts.retired_pending:
        # Until the driver is loaded anew the page may be handed to the next program.
        yield GpuHealth.SICK, "a faulty memory page waits to be retired; drain the GPU and load the driver anew"
    if facts.remap_pending:
        # The row is out of use already where rows can be remapped: programs go on safely until the reset.
        yield GpuHealth.DEGRADED, "a faulty memory row waits to be replaced; reset the GPU when nothing runs on it"


def _from_spells(gpu: Gpu, facts: GpuFacts | None, use: GpuUse | None, record: Record) -> Iterator[Finding]:
    if record.leaked is not None and record.leaked.lasted(LEAKED_FOR):
        size = leaked_memory(gpu, use)
        much = f"{size / 2**30:.1f} GiB of memory are" if size is not None else "memory is"
        mend = "end what may hold it (`fuser -v /dev/nvidia*`), or drain the GPU and reset it"
        yield GpuHealth.DEGRADED, f"{much} in use by no process that the driver lists; {mend}"
    if record.slow is not None and record.slow.lasted(SLOW_FOR):
        reasons = ", ".join(sorted(filter(_is_slow, gpu.throttle)))
        named = f" ({reasons})" if reasons else ""
        yield GpuHealth.DEGRADED, f"slowed down for more than {SLOW_FOR:.0f} s{named}; look at its cooling and power"
    elif record.capped is not None and record.capped.lasted(SLOW_FOR):
        limit = f" of {gpu.power_limit:.0f} W" if gpu.power_limit is not None else ""
        mend = f"raise it (`nvidia-smi -i {gpu.index} -pl WATTS`)"
        yield GpuHealth.DEGRADED, f"its power limit{limit} costs more than a third of its clock; {mend}"
    if record.hot is not None and record.hot.lasted(HOT_FOR):
        limit = f" ({facts.temperature_slowdown:.0f} °C)" if facts and facts.temperature_slowdown else ""
        yield GpuHealth.DEGRADED, f"hotter than where it slows down{limit}; look at its cooling and airflow"


# --- what goes on ------------------------------------------------------------------------------------------------


def _spell(before: Spell | None, goes_on: bool, now: float) -> Spell | None:
    if goes_on:
        return Spell(before.since if before is not None else now, now)
    return before if before is not None and now - before.last < PAUSE else None


def _is_slow(reason: str) -> bool:
    """Whether a reason for lower clocks means trouble: heat, or the power supply. A power limit is set on purpose."""
    return any(word in reason.lower() for word in ("therm", "brake", "hw", "hardware"))


def _is_capped(gpu: Gpu, facts: GpuFacts | None) -> bool:
    limited = any("power" in reason.lower() and not _is_slow(reason) for reason in gpu.throttle)
    if not limited or facts is None or not facts.clock_graphics_max or gpu.clock_graphics is None:
        return False
    return gpu.clock_graphics < facts.clock_graphics_max * CAPPED_BELOW


def _is_hot(gpu: Gpu, facts: GpuFacts | None) -> bool:
    limit = facts.temperature_slowdown if facts is not None else None
    return limit is not None and gpu.temperature is not None and gpu.temperature >= limit
