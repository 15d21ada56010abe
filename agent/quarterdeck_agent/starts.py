"""The steps by which missing replicas start, or make room, or give up when their place never comes. Pure.

Which replicas are missing and where they go it takes from `places`; how a rollout goes on is not its matter.
"""

from __future__ import annotations

from collections.abc import Iterator

from quarterdeck_agent.counts import is_staged, next_start, rolling
from quarterdeck_agent.drivers.base import Resources
from quarterdeck_agent.gpus.placement import Placing
from quarterdeck_agent.places import (
    Missing,
    fits_better_without,
    holds_for,
    lacking_memory,
    place_after_hold,
    place_lost,
    placing_now,
)
from quarterdeck_agent.protocol import FailureReason
from quarterdeck_agent.seen import Seen
from quarterdeck_agent.steps import STOP_GRACE, Cool, Fail, Hold, Stage, Start, Step, Stop
from quarterdeck_agent.wanted import Instant, WantedDeployment, WantedRevision


def start_missing(d: WantedDeployment, missing: Missing, seen: Seen, now: float) -> Iterator[Step]:
    """The steps for what is missing of one body: starts where there is a place, else what follows from having none."""
    revision, mine = missing.count.revision, seen.of(d.name)
    if any(r.found.body == revision.body and not r.running for r in mine):
        return  # its end has to be counted first, or the pause before the next start is lost
    if now < next_start(revision, seen.boot_id, now):
        return
    if not is_staged(revision, seen):
        if not (rolling(d) and revision.number == d.target.number):
            yield Stage(revision)  # a rollout's own staging is a step of its own
        return
    if holds_for(d, revision):
        if old := [r.found.id for r in mine if r.found.body != revision.body]:
            if _held_for(d, seen, now) >= d.target.spec.limits.drain + STOP_GRACE:
                yield from _give_up(d, Placing((), f"{' and '.join(old)} cannot be ended", held=True), seen, now)
            return
        if (lacking := lacking_memory(missing.ask.resources, seen)) is not None:
            yield from _give_up(d, Placing((), lacking, held=True), seen, now)
            return
    yield from _start_made(d, missing, seen)
    taken = {r.found.id for r in mine}
    places = placing_now(d, missing).places
    for name, gpus in zip(_free_names(d.name, revision, taken, len(places)), places, strict=True):
        yield Start(revision, name, gpus)
    if missing.placing.refusal:
        yield from _without_place(d, missing, seen, now)


def _start_made(d: WantedDeployment, missing: Missing, seen: Seen) -> Iterator[Step]:
    """Start what is made already, if the GPUs it was made for are still there for it; another takes its place else."""
    for replica in missing.made:
        start = Start(missing.count.revision, replica.found.id, replica.found.gpus)
        why = place_lost(d, missing.ask.resources, missing.count.revision, start, seen)
        yield start if why is None else Stop(replica.found, 0.0, f"it was made and cannot be started: {why}")


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


def begin_hold(d: WantedDeployment, asks: Resources, seen: Seen, now: float) -> Iterator[Step]:
    """Hold requests, unless the target would not fit even then: as long as that is so, the old revision serves on."""
    placing = place_after_hold(d, asks, seen)
    if placing.refusal:
        yield from _give_up(d, placing, seen, now)
    else:
        yield Hold(d.target)


def _without_place(d: WantedDeployment, missing: Missing, seen: Seen, now: float) -> Iterator[Step]:
    """What follows when not every replica has a place: the warm revision goes, or a rollout ends at its deadline."""
    if d.previous is not None and d.previous.body != missing.ask.body:
        warm = {r.found.id for r in seen.of(d.name) if r.found.body == d.previous.body}
        if fits_better_without(d, missing, seen, warm):
            yield Cool("its GPU memory is needed")
            return
    running = sum(1 for r in seen.of(d.name) if r.running and r.found.body == d.target.body)
    if d.holding and running >= d.target.spec.replicas:
        return  # on a GPU that got sick, to which the old revision could not come back either
    if rolling(d) and missing.count.revision.number == d.target.number:
        yield from _give_up(d, placing_now(d, missing), seen, now)


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
