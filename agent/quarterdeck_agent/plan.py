"""From what is wanted and what is seen to the next steps. Pure: no clock, no I/O, no memory.

Called after every change with the newest facts, it gives the steps that can be taken now, for one deployment at a
time. A rollout has no position of its own: where it stands is read off the facts each time, so an agent that was
killed between any two steps simply goes on.

A rollout's way:  overlap  Stage ▶ Start ▶ (ready for `dwell`) ▶ Check ▶ Promote ▶ (drained) Cool ▶ Stop old
                  hold     Stage ▶ Hold ▶ (drained) Stop old ▶ (memory free) Start ▶ … ▶ Promote ▶ Release
                  and from anywhere before Promote: Fail, after which the live revision is the target again.

A replica on a GPU that is sick or lost does not count: another one starts on another GPU, if one has room, takes over
when it is ready, and only then does the first one go. Without such a place it stays where it is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256

from quarterdeck_agent.drivers.base import Found, Life, Resources
from quarterdeck_agent.gpus.placement import Ask, Claim, Place, Placing, gib, never_fits, obstacle, place, without
from quarterdeck_agent.protocol import FailureReason, GpuHealth, RevisionOutcome
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

SHORT_MEMORY = 0.08
"""Below this share of free memory no revision is kept warm."""

STOP_GRACE = 10.0

MOST_CURES = 2
"""Crashes of late after which another new container would not get its GPUs back either: then it is left as it is."""


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
    yield from _stop(d, counts, mine, seen, now)
    if failure := _rollout_failure(d, mine, seen, now) or _unfit(d, asks, mine, seen):
        yield failure
        return
    yield from _advance(d, asks, mine, seen, now)
    for missing in _all_missing(d, counts, asks, live_asks, seen):
        yield from _start(d, missing, seen, now)
    yield from _settle(d, mine, seen, now)
    if d.previous is not None and d.name in seen.needed:
        yield Cool("another deployment needs its GPU memory")


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
    yield from _bury_without_gpus(counts, mine, seen, now)


def _bury_without_gpus(
    counts: dict[str, _Count], mine: tuple[SeenReplica, ...], seen: Seen, now: float
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
        if revision.body in counted or (losses and _started(replica) < losses[-1].seconds):
            yield Stop(replica.found, 0.0, f"its container has lost its GPUs: {replica.gpu_lost}")
        elif len(losses) < MOST_CURES:
            message = f"its container lost its GPUs ({replica.gpu_lost}); it is made anew"
            yield Bury(revision, replica.found, FailureReason.GPU_LOST, message)
            counted.add(revision.body)


def _lost_inside(replica: SeenReplica, seen: Seen) -> bool:
    """Whether a container lost its GPUs while the host has them. A GPU that is ill itself is another matter."""
    well = {gpu.uuid for gpu in seen.gpus if gpu.health in (GpuHealth.OK, GpuHealth.DEGRADED)}
    return bool(replica.gpu_lost) and replica.running and not seen.gpu_trouble and well.issuperset(replica.found.gpus)


def on_ailing(replica: SeenReplica, seen: Seen) -> bool:
    """Whether a replica is on a GPU that it is to leave."""
    return not seen.ailing.isdisjoint(replica.found.gpus)


def _on_lost(replica: SeenReplica, seen: Seen) -> bool:
    """Whether a replica is on a GPU that does not answer now: reason enough not to switch to it yet."""
    lost = {gpu.uuid for gpu in seen.gpus if gpu.health is GpuHealth.LOST}
    return not lost.isdisjoint(replica.found.gpus)


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


def _stop(
    d: WantedDeployment, counts: dict[str, _Count], mine: tuple[SeenReplica, ...], seen: Seen, now: float
) -> Iterator[Step]:
    """Running replicas nobody wants, once nothing is sent to them and what they had is done or out of time."""
    drain = (d.live or d.target).spec.limits.drain
    leaving = surplus(counts, mine, seen)
    for replica in leaving:
        if _drained(replica, drain, now):
            yield Stop(replica.found, STOP_GRACE, "it is not wanted any more")
    for replica in mine:
        count = counts.get(replica.found.body)
        if count and replica.found.life is Life.CREATED and not _may_start(replica, count) and replica not in leaving:
            yield Stop(replica.found, 0.0, "it was made and never started")


def surplus(counts: dict[str, _Count], mine: tuple[SeenReplica, ...], seen: Seen) -> tuple[SeenReplica, ...]:
    """Running replicas beyond what is wanted, those least ready and youngest first.

    Those on ailing GPUs do not count, and go one by one as others are ready in their place.
    """
    result: list[SeenReplica] = []
    by_body: dict[str, list[SeenReplica]] = {}
    for replica in mine:
        if replica.running:
            by_body.setdefault(replica.found.body, []).append(replica)
    for body, replicas in by_body.items():
        keep = counts[body].replicas if body in counts else 0
        replicas.sort(key=lambda r: (r.ready, -_started(r), r.found.id))
        ailing = [r for r in replicas if on_ailing(r, seen)]
        well = [r for r in replicas if not on_ailing(r, seen)]
        stay = max(0, keep - sum(1 for r in well if r.ready))
        result.extend(ailing[: max(0, len(ailing) - stay)])
        result.extend(well[: max(0, len(well) - keep)])
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
    elif _waits_for_hold(d):
        yield from _begin_hold(d, asks, seen, now)
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


@dataclass(frozen=True, slots=True)
class _Missing:
    """Replicas of one body that should run and do not: those `made` but not started, and `places` for the `rest`."""

    count: _Count
    ask: Ask
    made: tuple[SeenReplica, ...]
    rest: int
    placing: Placing


def _all_missing(
    d: WantedDeployment, counts: dict[str, _Count], asks: Resources, live_asks: Resources, seen: Seen
) -> Iterator[_Missing]:
    """What is missing and where it goes. The live revision chooses first: a rollout never takes its place."""
    live = d.live.body if d.live else None
    taken: tuple[Claim, ...] | None = None
    for body in sorted(counts, key=lambda body: body != live):
        count = counts[body]
        if not count.start:
            continue
        mine = [r for r in seen.of(d.name) if r.found.body == body]
        if count.replicas <= sum(1 for r in mine if r.found.life is Life.RUNNING and not on_ailing(r, seen)):
            continue
        taken = claims_seen(d, seen) if taken is None else taken
        ask = ask_of(d, count.revision, asks if body == d.target.body else live_asks)
        leaving = surplus(counts, seen.of(d.name), seen)
        missing = _missing(count, ask, [r for r in mine if r not in leaving], seen, taken)
        yield missing
        for number, each in enumerate(missing.placing.places):
            taken = (*taken, *ask.claims(f"{body} {number}", each))


def _missing(count: _Count, ask: Ask, mine: list[SeenReplica], seen: Seen, taken: tuple[Claim, ...]) -> _Missing:
    missing = count.replicas - sum(1 for r in mine if r.found.life is Life.RUNNING and not on_ailing(r, seen))
    made = tuple(r for r in mine if _may_start(r, count))[:missing]
    rest = missing - len(made)
    return _Missing(count, ask, made, rest, place(ask, rest, seen.sight, taken, seen.left.get(ask.body, ())))


def ask_of(d: WantedDeployment, revision: WantedRevision, asks: Resources) -> Ask:
    """What each replica of a revision asks of the GPUs now.

    In an overlap the measured peak counts, as it did when the overlap was chosen. One of the live revision that has to
    come back is not kept away by memory that nobody holds, as long as it still fits.
    """
    comes_back = d.live is not None and revision.body == d.live.body
    peak = revision.gpu_memory_peak if _by_peak(d) or (comes_back and asks.vram is None) else None
    return Ask(asks, d.name, revision.body, peak, tolerant=comes_back)


def _by_peak(d: WantedDeployment) -> bool:
    return rolling(d) and d.target.handover == "overlap" and d.live is not None


def claims_seen(d: WantedDeployment, seen: Seen) -> tuple[Claim, ...]:
    """The claims on the GPUs, as they count for this deployment: in an overlap its own by their measured peaks."""
    if not _by_peak(d):
        return seen.claims(d.name)
    peaks = {r.body: r.gpu_memory_peak for r in (d.target, d.live, d.previous) if r is not None}
    return tuple(
        _measured(claim, peaks.get(claim.body) if claim.deployment == d.name else None) for claim in seen.claims(d.name)
    )


def _measured(claim: Claim, peak: int | None) -> Claim:
    return claim if peak is None or claim.size is None else replace(claim, size=peak)


def place_lost(d: WantedDeployment, asks: Resources, revision: WantedRevision, start: Start, seen: Seen) -> str | None:
    """Why a start that was planned must not go on by the newest look; `None` when its place is still good."""
    ask = ask_of(d, revision, asks)
    others = tuple(claim for claim in claims_seen(d, seen) if claim.replica != start.replica)
    return obstacle(ask, start.gpus, seen.sight, others)


def room_by(
    d: WantedDeployment,
    asks: Resources,
    live_asks: Resources | None,
    seen: Seen,
    now: float,
    warm: Mapping[str, frozenset[str]],
) -> tuple[str, ...]:
    """The deployments whose warm replicas, by name, make room for what this one waits for; one if one is enough."""
    choices = [(name,) for name in sorted(warm)] + ([tuple(sorted(warm))] if len(warm) > 1 else [])
    if _may_begin_hold(d, seen) and (names := _room_to_hold(d, asks, seen, warm, choices)):
        return names
    for missing in _all_missing(d, counts_wanted(d, seen, now), asks, live_asks or asks, seen):
        if not missing.placing.refusal or not is_staged(missing.count.revision, seen):
            continue
        for names in choices:
            gone = frozenset[str]().union(*(warm[name] for name in names))
            sight, claims = without(seen.sight, claims_seen(d, seen), gone)
            if len(place(missing.ask, missing.rest, sight, claims).places) > len(missing.placing.places):
                return names
    return ()


def _room_to_hold(
    d: WantedDeployment, asks: Resources, seen: Seen, warm: Mapping[str, frozenset[str]], choices: list[tuple[str, ...]]
) -> tuple[str, ...]:
    """The same for a hold that would not make room by itself."""
    if not _place_after_hold(d, asks, seen).refusal:
        return ()
    for names in choices:
        gone = frozenset[str]().union(*(warm[name] for name in names))
        if not _place_after_hold(d, asks, seen, gone).refusal:
            return names
    return ()


def warm_on_gpus(d: WantedDeployment, seen: Seen) -> frozenset[str]:
    """The replicas with GPUs that are kept for a rollback only."""
    if d.previous is None or d.previous.body in {r.body for r in (d.target, d.live) if r is not None}:
        return frozenset()
    mine = (r for r in seen.of(d.name) if r.found.body == d.previous.body and r.running)
    return frozenset(r.found.id for r in mine if r.found.gpus)


def kept_places(d: WantedDeployment, live_asks: Resources, seen: Seen) -> tuple[Claim, ...]:
    """The places that other deployments must leave alone: those of live replicas that are gone and will come back.

    They may have just ended, be waiting for their next start, or have made room for their successor in a hold. Where
    nobody knows any more where they were (the host has booted), it is where they would go now.
    """
    if d.live is None or d.live.spec.stopped or d.removing or not live_asks.gpus:
        return ()
    held = {d.live.body, d.target.body} if d.holding else {d.live.body}
    mine = seen.of(d.name)
    missing = max(0, d.live.spec.replicas - sum(1 for r in mine if r.running and r.found.body in held))
    ended = (r.found.gpus for r in mine if not r.running and r.found.body == d.live.body and r.found.gpus)
    places = tuple(dict.fromkeys((*ended, *seen.left.get(d.live.body, ()))))[:missing]
    ask = Ask(live_asks, d.name, d.live.body, tolerant=True)
    taken = (*seen.claims(d.name), *_kept(ask, places))
    return _kept(ask, (*places, *place(ask, missing - len(places), seen.sight, taken).places))


def _kept(ask: Ask, places: tuple[Place, ...]) -> tuple[Claim, ...]:
    return tuple(claim for n, each in enumerate(places) for claim in ask.claims(f"{ask.deployment} {n}, kept", each))


def kept_for_hold(d: WantedDeployment, asks: Resources, seen: Seen) -> tuple[Claim, ...]:
    """What a hold's target is going to take beyond what is there of its deployment now: it is made room for."""
    if not asks.gpus or d.removing:
        return ()
    placing = _place_after_hold(d, asks, seen)
    ask = ask_of(d, d.target, asks)
    own = [claim for claim in claims_seen(d, seen) if claim.deployment == d.name]
    kept = []
    for uuid in dict.fromkeys(uuid for each in placing.places if not placing.refusal for uuid in each):
        there = sum(claim.size or 0 for claim in own if claim.uuid == uuid and claim.body != d.target.body)
        more = sum(ask.need for each in placing.places if uuid in each) - there
        if ask.whole or more > 0:
            kept.append(Claim(uuid, f"{d.name}, held", d.name, d.target.body, None if ask.whole else more))
    return tuple(kept)


def either(one: tuple[Claim, ...], other: tuple[Claim, ...]) -> tuple[Claim, ...]:
    """Claims that leave room for whichever of two comes: on each device those that take more."""
    kept: list[Claim] = []
    for uuid in dict.fromkeys(claim.uuid for claim in (*one, *other)):
        groups = ([claim for claim in claims if claim.uuid == uuid] for claims in (one, other))
        kept.extend(max(groups, key=lambda group: sum(math.inf if c.size is None else c.size for c in group)))
    return tuple(kept)


def _start(d: WantedDeployment, missing: _Missing, seen: Seen, now: float) -> Iterator[Step]:
    revision, mine = missing.count.revision, seen.of(d.name)
    if any(r.found.body == revision.body and not r.running for r in mine):
        return  # its end has to be counted first, or the pause before the next start is lost
    if now < next_start(revision, seen.boot_id, now):
        return
    if not is_staged(revision, seen):
        if not (rolling(d) and revision.number == d.target.number):
            yield Stage(revision)  # a rollout's own staging is a step of its own
        return
    if _holds_for(d, revision):
        if old := [r.found.id for r in mine if r.found.body != revision.body]:
            if _held_for(d, seen, now) >= d.target.spec.limits.drain + STOP_GRACE:
                yield from _give_up(d, Placing((), f"{' and '.join(old)} cannot be ended", held=True), seen, now)
            return
        if (lacking := lacking_memory(missing.ask.resources, seen)) is not None:
            yield from _give_up(d, Placing((), lacking, held=True), seen, now)
            return
    yield from _start_made(d, missing, seen)
    taken = {r.found.id for r in mine}
    names = _free_names(d.name, revision, taken, len(missing.placing.places))
    for name, gpus in zip(names, missing.placing.places, strict=True):
        yield Start(revision, name, gpus)
    if missing.placing.refusal:
        yield from _without_place(d, missing, seen, now)


def _holds_for(d: WantedDeployment, revision: WantedRevision) -> bool:
    """Whether requests are held for this revision: it may not start before all others are gone."""
    return d.holding and rolling(d) and revision.number == d.target.number


def _start_made(d: WantedDeployment, missing: _Missing, seen: Seen) -> Iterator[Step]:
    """Start what is made already, if the GPUs it was made for are still there for it; another takes its place else."""
    for replica in missing.made:
        start = Start(missing.count.revision, replica.found.id, replica.found.gpus)
        why = place_lost(d, missing.ask.resources, missing.count.revision, start, seen)
        yield start if why is None else Stop(replica.found, 0.0, f"it was made and cannot be started: {why}")


def _without_place(d: WantedDeployment, missing: _Missing, seen: Seen, now: float) -> Iterator[Step]:
    """What follows when not every replica has a place: the warm revision goes, or a rollout ends at its deadline."""
    if d.previous is not None and d.previous.body != missing.ask.body:
        warm = {r.found.id for r in seen.of(d.name) if r.found.body == d.previous.body}
        sight, claims = without(seen.sight, claims_seen(d, seen), warm)
        if len(place(missing.ask, missing.rest, sight, claims).places) > len(missing.placing.places):
            yield Cool("its GPU memory is needed")
            return
    running = sum(1 for r in seen.of(d.name) if r.running and r.found.body == d.target.body)
    if d.holding and running >= d.target.spec.replicas:
        return  # on a GPU that got sick, to which the old revision could not come back either
    if rolling(d) and missing.count.revision.number == d.target.number:
        yield from _give_up(d, missing.placing, seen, now)


def _give_up(d: WantedDeployment, placing: Placing, seen: Seen, now: float) -> Iterator[Step]:
    """The end of a rollout that waited for its place until the deadline."""
    if d.holding:
        waited = _held_for(d, seen, now)
        limit = d.target.spec.limits.drain + d.target.spec.limits.release
    else:
        waited = _waited(d.target.created, d.target, seen, now)
        limit = d.target.spec.deadline
    if waited < limit:
        return
    message = f"{placing.refusal} (waited {waited:.0f} s)"
    if d.holding and placing.held:
        yield Fail(d.target, "memory", FailureReason.MEMORY_NOT_FREE, message)
    else:
        yield Fail(d.target, "start", FailureReason.NO_GPU, message)


def _held_for(d: WantedDeployment, seen: Seen, now: float) -> float:
    """Seconds for which requests have been held, as far as this agent could do something about it."""
    return 0.0 if d.holding_since is None else _waited(d.holding_since, d.target, seen, now)


def _waited(since: Instant, target: WantedRevision, seen: Seen, now: float) -> float:
    """Seconds since then, or since this agent has the target's files: before that it could start nothing."""
    age, staged = since.age(seen.boot_id, now), seen.staged_since.get(target.spec.version)
    return age if staged is None else min(age, now - staged)


def _begin_hold(d: WantedDeployment, asks: Resources, seen: Seen, now: float) -> Iterator[Step]:
    """Hold requests, unless the target would not fit even then: as long as that is so, the old revision serves on."""
    placing = _place_after_hold(d, asks, seen)
    if placing.refusal:
        yield from _give_up(d, placing, seen, now)
    else:
        yield Hold(d.target)


def _may_begin_hold(d: WantedDeployment, seen: Seen) -> bool:
    """Whether nothing but room is missing for a hold."""
    return rolling(d) and _waits_for_hold(d) and is_staged(d.target, seen) and not d.target.spec.stopped


def _place_after_hold(
    d: WantedDeployment, asks: Resources, seen: Seen, others: frozenset[str] = frozenset()
) -> Placing:
    """Where the target's replicas would go once all others of the deployment are gone, and these `others`."""
    mine = seen.of(d.name)
    gone = others.union(r.found.id for r in mine if r.found.body != d.target.body)
    running = sum(1 for r in mine if r.found.body == d.target.body and r.running)
    sight, claims = without(seen.sight, claims_seen(d, seen), gone)
    return place(ask_of(d, d.target, asks), max(0, d.target.spec.replicas - running), sight, claims)


def waits_for(d: WantedDeployment, asks: Resources, live_asks: Resources | None, seen: Seen, now: float) -> str:
    """What keeps a deployment's replicas from being started, in words; empty when nothing does."""
    if d.removing:
        return ""
    if _may_begin_hold(d, seen):
        return _place_after_hold(d, asks, seen).refusal
    for missing in _all_missing(d, counts_wanted(d, seen, now), asks, live_asks or asks, seen):
        revision = missing.count.revision
        if _holds_for(d, revision) and (lacking := lacking_memory(missing.ask.resources, seen)) is not None:
            return lacking
        if missing.placing.refusal and is_staged(revision, seen):
            return missing.placing.refusal
    return ""


def lacking_memory(asks: Resources, seen: Seen) -> str | None:
    """What one replica asks for of the host's memory and is not free, in words; `None` when it is."""
    if asks.memory is not None and seen.memory_available is not None and asks.memory > seen.memory_available:
        return f"needs {gib(asks.memory)} of memory, {gib(seen.memory_available)} are free"
    return None


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
