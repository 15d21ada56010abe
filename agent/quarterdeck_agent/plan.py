"""From what is wanted and what is seen to the next steps. Pure: no clock, no I/O, no memory.

Called after every change with the newest facts, it gives the steps that can be taken now, for one deployment at a
time. A rollout has no position of its own: where it stands is read off the facts each time, so an agent that was
killed between any two steps simply goes on.

A rollout's way:  overlap  Stage ▶ Start ▶ (ready for `dwell`) ▶ Check ▶ Promote ▶ (drained) Cool ▶ Stop old
                  hold     Stage ▶ Hold ▶ (drained) Stop old ▶ (memory free) Start ▶ … ▶ Promote ▶ Release
                  and from anywhere before Promote: Fail, after which the live revision is the target again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from quarterdeck_agent.drivers.base import Found, Life, Resources
from quarterdeck_agent.protocol import FailureReason, Gpu, RevisionOutcome
from quarterdeck_agent.seen import Seen, SeenReplica
from quarterdeck_agent.steps import (
    Bury,
    Check,
    Cool,
    Fail,
    Forget,
    Hold,
    Promote,
    Recover,
    Release,
    Stage,
    Start,
    Step,
    Stop,
)
from quarterdeck_agent.wanted import Instant, WantedDeployment, WantedRevision

CRASH_WINDOW = 600.0
"""Seconds over which crashes are counted, and after which a healthy revision's crashes are forgotten."""

CRASHES_TO_FAIL = 5
"""Crashes within the window after which a live revision counts as failed. It is still tried again every minute."""

ROLLOUT_CRASHES = {"overlap": 3, "hold": 1}
"""Crashes after which a rollout fails. During a hold requests wait, so the first one is enough."""

LONGEST_BACKOFF = 60.0
UNREADY_LIMIT = 60.0
"""A replica that was ready and has not been for this long is replaced."""

MEMORY_RELEASE_LIMIT = 60.0
"""Seconds that a hold waits for memory to come free once the old replicas are gone."""

SHORT_MEMORY = 0.08
"""Below this share of free memory no revision is kept warm."""

STOP_GRACE = 10.0


@dataclass(frozen=True, slots=True)
class _Count:
    """How many replicas of a body there should be, and the revision under whose name new ones start."""

    revision: WantedRevision
    replicas: int
    start: bool = True


def plan(
    wanted: WantedDeployment, asks: Resources, seen: Seen, now: float, live_asks: Resources | None = None
) -> tuple[Step, ...]:
    """The steps to take now for one deployment.

    `asks` is what one replica of the target claims, `live_asks` one of the live revision where that is another: it may
    have to be started again while its successor is on its way.
    """
    steps = tuple(_steps(wanted, asks, live_asks or asks, seen, now))
    return steps if seen.engine_ok else tuple(s for s in steps if not s.needs_engine)


def _steps(d: WantedDeployment, asks: Resources, live_asks: Resources, seen: Seen, now: float) -> Iterator[Step]:
    mine = seen.of(d.name)
    if d.removing and not mine:
        yield Forget()
        return
    counts = counts_wanted(d, seen, now)
    yield from _bury(d, counts, mine, seen, now)
    yield from _stop(d, counts, mine, now)
    if failure := _rollout_failure(d, mine, seen, now):
        yield failure
        return
    yield from _advance(d, mine, seen, now)
    for body, count in counts.items():
        yield from _start(d, body, count, asks if body == d.target.body else live_asks, seen, now)
    yield from _settle(d, mine, seen, now)


# --- what there should be --------------------------------------------------------------------------------------


def rolling(d: WantedDeployment) -> bool:
    """Whether a rollout is on its way: the target is not live and has not failed."""
    live = d.live.number if d.live else None
    return d.target.number != live and d.target.outcome is RevisionOutcome.PENDING and not d.removing


def counts_wanted(d: WantedDeployment, seen: Seen, now: float) -> dict[str, _Count]:
    """By body, how many replicas there should be right now."""
    counts: dict[str, _Count] = {}
    if d.removing:
        return counts
    live_serves = d.live is not None and not d.live.spec.stopped
    if rolling(d) and not d.target.spec.stopped and not _waits_for_hold(d):
        counts[d.target.body] = _Count(d.target, d.target.spec.replicas)
    if d.live is not None and live_serves and not (d.holding and rolling(d)):
        more = counts.get(d.live.body)
        replicas = max(d.live.spec.replicas, more.replicas if more else 0)
        counts[d.live.body] = _Count(d.live, replicas)
    if d.previous is not None and d.previous.body not in counts and stays_warm(d, seen, now):
        counts[d.previous.body] = _Count(d.previous, d.previous.spec.replicas, start=False)
    return counts


def _waits_for_hold(d: WantedDeployment) -> bool:
    """Whether the target may not start yet because a hold handover has not begun."""
    return _is_hold(d) and not d.holding


def _is_hold(d: WantedDeployment) -> bool:
    return (
        d.target.handover == "hold" and d.live is not None and not d.live.spec.stopped and d.live.body != d.target.body
    )


def stays_warm(d: WantedDeployment, seen: Seen, now: float) -> bool:
    """Whether the previous revision's replicas are still kept: warm, or with requests to finish."""
    if d.previous is None or d.replaced_at is None or d.live is None:
        return False
    age = d.replaced_at.age(seen.boot_id, now)
    busy = any(r.requests for r in seen.of(d.name) if r.found.body == d.previous.body and r.running)
    if busy and age < d.live.spec.limits.drain:
        return True
    return warm_left(d, seen, now) > 0


def warm_left(d: WantedDeployment, seen: Seen, now: float) -> float:
    """Seconds for which the previous revision is kept warm, 0 when it is not."""
    if d.previous is None or d.replaced_at is None or d.live is None or d.live.spec.stopped or d.removing:
        return 0.0
    if d.holding:
        return 0.0  # a hold is there because memory is short
    if _memory_is_short(seen):
        return 0.0
    return max(0.0, d.live.spec.warm - d.replaced_at.age(seen.boot_id, now))


def _memory_is_short(seen: Seen) -> bool:
    if seen.memory_total is None or seen.memory_available is None:
        return False
    return seen.memory_available < seen.memory_total * SHORT_MEMORY


# --- ends --------------------------------------------------------------------------------------------------------


def _bury(
    d: WantedDeployment, counts: dict[str, _Count], mine: tuple[SeenReplica, ...], seen: Seen, now: float
) -> Iterator[Step]:
    """Ended replicas: those still wanted have crashed, the others may just go. Hung ones are ended first."""
    for replica in mine:
        count = counts.get(replica.found.body)
        crashed = count is not None and count.start
        if not replica.running:
            if count is not None and crashed:
                reason, message = how_it_ended(replica.found)
                yield Bury(count.revision, replica.found, reason, message)
            else:
                yield Stop(replica.found, 0.0, "it has ended")
        elif count is not None and crashed and (limit := _hangs(d, count.revision, replica, now)):
            message = f"not ready for {limit:.0f} s: {replica.detail or 'no answer'}"
            yield Bury(count.revision, replica.found, FailureReason.NEVER_READY, message)


def _may_start(replica: SeenReplica, count: _Count) -> bool:
    """Whether a replica that was made and never started (the agent ended in between) is one that shall start now."""
    made = replica.found
    return made.life is Life.CREATED and count.start and made.revision == count.revision.number


def _hangs(d: WantedDeployment, revision: WantedRevision, replica: SeenReplica, now: float) -> float | None:
    """For how many seconds at least a replica has not been ready that is not waited for any longer.

    One that was never ready gets as long as a rollout would give it; in a rollout it is the rollout that fails.
    """
    if replica.unready_since is None or (not replica.was_ready and rolling(d) and revision.body == d.target.body):
        return None
    limit = UNREADY_LIMIT if replica.was_ready else max(UNREADY_LIMIT, revision.spec.deadline)
    return limit if now - replica.unready_since > limit else None


def how_it_ended(found: Found) -> tuple[FailureReason, str]:
    """A replica's end in words."""
    if found.out_of_memory:
        return FailureReason.OUT_OF_MEMORY, found.reason or "killed: it used more memory than it may"
    if found.signal is not None:
        return FailureReason.EXITED, f"killed by signal {found.signal}"
    if found.exit_code is not None:
        return FailureReason.EXITED, f"exited with code {found.exit_code}"
    return FailureReason.LOST, found.reason or "it is gone and nobody saw how it ended"


def _stop(d: WantedDeployment, counts: dict[str, _Count], mine: tuple[SeenReplica, ...], now: float) -> Iterator[Step]:
    """Running replicas nobody wants, once nothing is sent to them and what they had is done or out of time."""
    drain = (d.live or d.target).spec.limits.drain
    leaving = surplus(counts, mine)
    for replica in leaving:
        if _drained(replica, drain, now):
            yield Stop(replica.found, STOP_GRACE, "it is not wanted any more")
    for replica in mine:
        count = counts.get(replica.found.body)
        if count and replica.found.life is Life.CREATED and not _may_start(replica, count) and replica not in leaving:
            yield Stop(replica.found, 0.0, "it was made and never started")


def surplus(counts: dict[str, _Count], mine: tuple[SeenReplica, ...]) -> tuple[SeenReplica, ...]:
    """Running replicas beyond what is wanted, those least ready and youngest first."""
    result: list[SeenReplica] = []
    by_body: dict[str, list[SeenReplica]] = {}
    for replica in mine:
        if replica.running:
            by_body.setdefault(replica.found.body, []).append(replica)
    for body, replicas in by_body.items():
        keep = counts[body].replicas if body in counts else 0
        replicas.sort(key=lambda r: (r.ready, -_started(r), r.found.id))
        result.extend(replicas[: max(0, len(replicas) - keep)])
    return tuple(result)


def _started(replica: SeenReplica) -> float:
    return replica.found.started if replica.found.started is not None else 0.0


def _drained(replica: SeenReplica, drain: float, now: float) -> bool:
    if not replica.routed or replica.found.life is Life.CREATED:
        return True
    if replica.unrouted_since is None:
        return False
    return replica.requests == 0 or now - replica.unrouted_since >= drain


# --- how a rollout goes on ---------------------------------------------------------------------------------------


def _rollout_failure(d: WantedDeployment, mine: tuple[SeenReplica, ...], seen: Seen, now: float) -> Step | None:
    """The reason to give a rollout up now, if there is one."""
    if not rolling(d):
        return None
    crashes = recent_crashes(d.target, seen.boot_id, now)
    if len(crashes) >= ROLLOUT_CRASHES[d.target.handover if _is_hold(d) else "overlap"]:
        reason = d.target.reason or FailureReason.EXITED
        ended = "a replica ended" if len(crashes) == 1 else f"its replicas ended {len(crashes)} times"
        return Fail(d.target, "start", reason, f"{ended} before the switch")
    for replica in mine:
        if replica.found.body != d.target.body or not replica.running or replica.was_ready:
            continue
        waited = now - _started(replica) if replica.found.started is not None else 0.0
        if waited > d.target.spec.deadline:
            text = f"not ready after {waited:.0f} s: {replica.detail or 'no answer yet'}"
            return Fail(d.target, "ready", FailureReason.NEVER_READY, text, replica.found)
    return None


def _advance(d: WantedDeployment, mine: tuple[SeenReplica, ...], seen: Seen, now: float) -> Iterator[Step]:
    """Stage, hold, check and promote a rollout's target."""
    if not rolling(d):
        return
    same_body = d.live is not None and d.live.body == d.target.body and not d.live.spec.stopped
    if d.target.spec.stopped or (same_body and not d.holding):
        yield Promote(d.target)
        return
    ready = [r for r in mine if r.found.body == d.target.body and r.running and _dwelt(r, d.target, now)]
    enough = len(ready) >= d.target.spec.replicas
    if enough and d.target.passed:
        yield Promote(d.target)  # a warm revision: nothing to stage, to hold or to check
    elif not is_staged(d.target, seen):
        yield Stage(d.target)
    elif _waits_for_hold(d):
        yield Hold(d.target)
    elif enough and d.target.spec.golden:
        yield Check(d.target, ready[0].found)
    elif enough:
        yield Promote(d.target)


def is_staged(revision: WantedRevision, seen: Seen) -> bool:
    """Whether a revision's files and image are on the host."""
    return revision.spec.version in seen.staged and revision.image is not None


def _dwelt(replica: SeenReplica, target: WantedRevision, now: float) -> bool:
    if not replica.ready or replica.ready_since is None:
        return False
    return target.passed or now - replica.ready_since >= target.spec.dwell


def _settle(d: WantedDeployment, mine: tuple[SeenReplica, ...], seen: Seen, now: float) -> Iterator[Step]:
    """Tidy up what a rollout left: the hold, the warm revision, crashes long past."""
    if rolling(d) or d.removing or d.live is None:
        return
    serving = [r for r in mine if r.found.body == d.live.body and r.ready]
    if d.holding and (serving or d.live.spec.stopped):
        yield Release()
    if d.previous is not None and not stays_warm(d, seen, now):
        yield Cool("its time is over" if not _memory_is_short(seen) else "memory is short")
    if d.live.crashes and d.live.crashes[-1].age(seen.boot_id, now) > CRASH_WINDOW and serving:
        yield Recover(d.live)


# --- starts ------------------------------------------------------------------------------------------------------


def _start(d: WantedDeployment, body: str, count: _Count, asks: Resources, seen: Seen, now: float) -> Iterator[Step]:
    if not count.start:
        return
    mine = seen.of(d.name)
    if any(r.found.body == body and not r.running for r in mine):
        return  # its end has to be counted first, or the pause before the next start is lost
    made = [r for r in mine if r.found.body == body and _may_start(r, count)]
    missing = count.replicas - sum(1 for r in mine if r.found.body == body and r.found.life is Life.RUNNING)
    if missing <= 0 or now < next_start(count.revision, seen.boot_id, now):
        return
    if not is_staged(count.revision, seen):
        if not (rolling(d) and count.revision.number == d.target.number):
            yield Stage(count.revision)  # a rollout's own staging is a step of its own
        return
    blocked = _memory_in_the_way(d, count, mine, asks, seen, now)
    if blocked is not None:
        yield from blocked
        return
    taken = {r.found.id for r in mine}
    claimed = [gpu for r in seen.replicas if r.running for gpu in r.found.gpus]
    for replica in made[:missing]:
        yield Start(count.revision, replica.found.id, replica.found.gpus)
    for name in _free_names(d.name, count.revision, taken, max(0, missing - len(made))):
        gpus = choose_gpus(asks, seen.gpus, claimed)
        claimed.extend(gpus)
        yield Start(count.revision, name, gpus)


def _memory_in_the_way(
    d: WantedDeployment, count: _Count, mine: tuple[SeenReplica, ...], asks: Resources, seen: Seen, now: float
) -> tuple[Step, ...] | None:
    """During a hold: nothing may start before the old replicas are gone and what it asks for is free."""
    if not (d.holding and rolling(d) and count.revision.number == d.target.number):
        return None
    if any(r.found.body != d.target.body for r in mine):
        return ()
    lacking = lacking_memory(asks, seen)
    if lacking is None:
        return None
    held = d.holding_since.age(seen.boot_id, now) if d.holding_since else 0.0
    if held < d.target.spec.limits.drain + MEMORY_RELEASE_LIMIT:
        return ()
    return (Fail(d.target, "memory", FailureReason.MEMORY_NOT_FREE, lacking),)


def lacking_memory(asks: Resources, seen: Seen) -> str | None:
    """What one replica asks for and the host cannot give now, in words; `None` when all is there."""
    if asks.memory is not None and seen.memory_available is not None and asks.memory > seen.memory_available:
        return f"needs {gib(asks.memory)} of memory, {gib(seen.memory_available)} are free"
    if asks.gpus and asks.vram is not None and seen.gpus:
        fitting = [g for g in seen.gpus if (free := free_vram(g)) is not None and free >= asks.vram]
        if len(fitting) < asks.gpus:
            best = max((free_vram(g) or 0 for g in seen.gpus), default=0)
            return f"needs {gib(asks.vram)} on {asks.gpus} GPU(s), the emptiest has {gib(best)} free"
    return None


def gib(size: int) -> str:
    """A size for people, in GiB or MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def free_vram(gpu: Gpu) -> int | None:
    """Bytes free on a GPU, `None` when NVML does not tell."""
    if gpu.memory_total is None or gpu.memory_used is None:
        return None
    return gpu.memory_total - gpu.memory_used


def choose_gpus(asks: Resources, gpus: tuple[Gpu, ...], claimed: list[str]) -> tuple[str, ...]:
    """The GPUs least claimed and with most free memory; fewer than asked when the host has fewer."""
    order = sorted(gpus, key=lambda g: (claimed.count(g.uuid), -(free_vram(g) or 0), g.index))
    return tuple(g.uuid for g in order[: asks.gpus])


def _free_names(deployment: str, revision: WantedRevision, taken: set[str], count: int) -> Iterator[str]:
    """Names that no replica has: a slot number, and after crashes their number, so that logs stay apart."""
    suffix = f"-{len(revision.crashes)}" if revision.crashes else ""
    slot = 0
    while count:
        name = f"{deployment}-{revision.number}-{slot}{suffix}"
        if name not in taken:
            count -= 1
            yield name
        slot += 1


def recent_crashes(revision: WantedRevision, boot_id: str, now: float) -> tuple[Instant, ...]:
    """The crashes within the window; of a revision on its way only its own, not those of an earlier try of its body."""
    window = CRASH_WINDOW
    if revision.outcome is RevisionOutcome.PENDING:
        window = min(window, revision.created.age(boot_id, now))
    return tuple(c for c in revision.crashes if c.age(boot_id, now) <= window)


def next_start(revision: WantedRevision, boot_id: str, now: float) -> float:
    """When a replica may start again: 1, 2, 4 … 60 s after the last crash, spread by up to a fifth."""
    crashes = recent_crashes(revision, boot_id, now)
    if not crashes:
        return 0.0
    delay = min(LONGEST_BACKOFF, 2.0 ** (len(crashes) - 1))
    spread = sha256(f"{revision.body}{len(crashes)}".encode()).digest()[0] / 255 * 0.2
    return crashes[-1].seconds + delay * (1 - spread)


def given_up(revision: WantedRevision, boot_id: str, now: float) -> bool:
    """Whether a live revision crashed so often that it counts as failed."""
    return len(recent_crashes(revision, boot_id, now)) >= CRASHES_TO_FAIL
