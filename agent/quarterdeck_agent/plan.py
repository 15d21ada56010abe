"""From what is wanted and what is seen to the next steps. Pure: no clock, no I/O, no memory.

Called after every change with the newest facts, it gives the steps that can be taken now, for one deployment at a
time. A rollout has no position of its own: where it stands is read off the facts each time, so an agent that was
killed between any two steps simply goes on.

A rollout's way:  overlap  Stage ▶ Start ▶ (ready for `dwell`) ▶ Check ▶ Promote ▶ (drained) Cool ▶ Stop old
                  hold     Stage ▶ Hold ▶ (drained) Stop old ▶ (memory free) Start ▶ … ▶ Promote ▶ Release
                  and from anywhere before Promote: Fail, after which the live revision is the target again.

A replica on a GPU that is sick or lost does not count: another one starts on another GPU, if one has room, takes over
when it is ready, and only then does the first one go. Without such a place it stays where it is, and comes
back there after a crash, unless the GPU is lost or nothing works on it before a reset.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from quarterdeck_agent.counts import (
    CRASH_WINDOW,
    Count,
    began,
    counts_wanted,
    is_hold,
    is_staged,
    may_start,
    memory_is_short,
    on_ailing,
    recent_crashes,
    rolling,
    stays_warm,
    surplus,
    waits_for_hold,
)
from quarterdeck_agent.drivers.base import Found, Life, Resources
from quarterdeck_agent.gpus.placement import never_fits
from quarterdeck_agent.places import all_missing
from quarterdeck_agent.protocol import FailureReason, GpuHealth
from quarterdeck_agent.seen import Seen, SeenReplica
from quarterdeck_agent.starts import begin_hold, start_missing
from quarterdeck_agent.steps import (
    STOP_GRACE,
    Bury,
    Check,
    Cool,
    Fail,
    Forget,
    Promote,
    Recover,
    Release,
    Stage,
    Step,
    Stop,
)
from quarterdeck_agent.wanted import WantedDeployment, WantedRevision

ROLLOUT_CRASHES = {"overlap": 3, "hold": 1}
"""Crashes after which a rollout fails. During a hold requests wait, so the first one is enough."""

UNREADY_LIMIT = 60.0
"""A replica that was ready and has not been for this long is replaced."""

MOST_CURES = 2
"""Crashes of late after which another new container would not get its GPUs back either: then it is left as it is."""


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
    yield from _stop(d, counts, mine, seen, now)
    if failure := _rollout_failure(d, mine, seen, now) or _unfit(d, asks, mine, seen):
        yield failure
        return
    yield from _advance(d, asks, mine, seen, now)
    for missing in all_missing(d, counts, asks, live_asks, seen):
        yield from start_missing(d, missing, seen, now)
    yield from _settle(d, mine, seen, now)
    if d.previous is not None and d.name in seen.needed:
        yield Cool("another deployment needs its GPU memory")


# --- ends --------------------------------------------------------------------------------------------------------


def _bury(
    d: WantedDeployment, counts: dict[str, Count], mine: tuple[SeenReplica, ...], seen: Seen, now: float
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
    yield from _bury_without_gpus(counts, mine, seen, now)


def _bury_without_gpus(
    counts: dict[str, Count], mine: tuple[SeenReplica, ...], seen: Seen, now: float
) -> Iterator[Step]:
    """Containers that lost GPUs which the host has: only new ones help, and those that serve on go one by one.

    What takes the GPUs from one takes them from all: only what is younger than the last loss is a crash of its own.
    """
    ready = Counter(replica.found.body for replica in mine if replica.ready)
    counted = set[str]()
    for replica in mine:
        count = counts.get(replica.found.body)
        if count is None or not count.start or not _lost_inside(replica, seen):
            continue
        revision = count.revision
        if replica.ready and ready[revision.body] < count.replicas:
            continue
        ready[revision.body] -= replica.ready
        losses = recent_crashes(revision, seen.boot_id, now) if revision.reason is FailureReason.GPU_LOST else ()
        if revision.body in counted or (losses and began(replica) < losses[-1].seconds):
            yield Stop(replica.found, 0.0, f"its container has lost its GPUs: {replica.gpu_lost}")
        elif len(losses) < MOST_CURES:
            message = f"its container lost its GPUs ({replica.gpu_lost}); it is made anew"
            yield Bury(revision, replica.found, FailureReason.GPU_LOST, message)
            counted.add(revision.body)


def _lost_inside(replica: SeenReplica, seen: Seen) -> bool:
    """Whether a container lost its GPUs while the host has them. A GPU that is ill itself is another matter."""
    well = {gpu.uuid for gpu in seen.gpus if gpu.health in (GpuHealth.OK, GpuHealth.DEGRADED)}
    return bool(replica.gpu_lost) and replica.running and not seen.gpu_trouble and well.issuperset(replica.found.gpus)


def _on_lost(replica: SeenReplica, seen: Seen) -> bool:
    """Whether a replica is on a GPU that does not answer now: reason enough not to switch to it yet."""
    lost = {gpu.uuid for gpu in seen.gpus if gpu.health is GpuHealth.LOST}
    return not lost.isdisjoint(replica.found.gpus)


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


def _stop(
    d: WantedDeployment, counts: dict[str, Count], mine: tuple[SeenReplica, ...], seen: Seen, now: float
) -> Iterator[Step]:
    """Running replicas nobody wants, once nothing is sent to them and what they had is done or out of time."""
    drain = (d.live or d.target).spec.limits.drain
    leaving = surplus(counts, mine, seen)
    for replica in leaving:
        if _drained(replica, drain, now):
            yield Stop(replica.found, STOP_GRACE, "it is not wanted any more")
    for replica in mine:
        count = counts.get(replica.found.body)
        if count and replica.found.life is Life.CREATED and not may_start(replica, count) and replica not in leaving:
            yield Stop(replica.found, 0.0, "it was made and never started")


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
    if len(crashes) >= ROLLOUT_CRASHES[d.target.handover if is_hold(d) else "overlap"]:
        reason = d.target.reason or FailureReason.EXITED
        ended = "a replica ended" if len(crashes) == 1 else f"its replicas ended {len(crashes)} times"
        return Fail(d.target, "start", reason, f"{ended} before the switch")
    for replica in mine:
        if replica.found.body != d.target.body or not replica.running or replica.was_ready:
            continue
        waited = now - began(replica) if replica.found.started is not None else 0.0
        if waited > d.target.spec.deadline:
            text = f"not ready after {waited:.0f} s: {replica.detail or 'no answer yet'}"
            return Fail(d.target, "ready", FailureReason.NEVER_READY, text, replica.found)
    return None


def _unfit(d: WantedDeployment, asks: Resources, mine: tuple[SeenReplica, ...], seen: Seen) -> Step | None:
    """The end of a rollout that this host's GPUs could not carry even if they were all free."""
    running = sum(1 for r in mine if r.found.body == d.target.body and r.running)
    if not rolling(d) or d.target.spec.stopped or running >= d.target.spec.replicas:
        return None
    why = never_fits(asks, d.target.spec.replicas, seen.sight)
    return Fail(d.target, "start", FailureReason.NO_GPU, why) if why else None


def _advance(
    d: WantedDeployment, asks: Resources, mine: tuple[SeenReplica, ...], seen: Seen, now: float
) -> Iterator[Step]:
    """Stage, hold, check and promote a rollout's target."""
    if not rolling(d):
        return
    same_body = d.live is not None and d.live.body == d.target.body and not d.live.spec.stopped
    if d.target.spec.stopped or (same_body and not d.holding):
        yield Promote(d.target)
        return
    ready = [r for r in mine if r.found.body == d.target.body and r.running and _dwelt(r, d.target, now)]
    if not d.target.passed:  # one that is warm is better than none, and moves once it serves
        ready = [r for r in ready if not _on_lost(r, seen)]
    if not d.target.passed and not d.holding:  # in a hold the old one could not come back to the sick GPU either
        ready = [r for r in ready if not on_ailing(r, seen)]
    enough = len(ready) >= d.target.spec.replicas
    if enough and d.target.passed:
        yield Promote(d.target)  # a warm revision: nothing to stage, to hold or to check
    elif not is_staged(d.target, seen):
        yield Stage(d.target)
    elif waits_for_hold(d):
        yield from begin_hold(d, asks, seen, now)
    elif enough and d.target.spec.golden:
        yield Check(d.target, ready[0].found)
    elif enough:
        yield Promote(d.target)


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
        yield Cool("its time is over" if not memory_is_short(seen) else "memory is short")
    if d.live.crashes and d.live.crashes[-1].age(seen.boot_id, now) > CRASH_WINDOW and serving:
        yield Recover(d.live)
