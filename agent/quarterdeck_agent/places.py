"""Which replicas of a deployment are missing, where each would go on the GPUs, and what is kept for whom. Pure.

It turns revisions into what `gpus.placement` takes, asks and claims, and says in words why a place is not there; it
takes no steps.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from quarterdeck_agent.counts import (
    Count,
    counts_wanted,
    is_staged,
    may_start,
    on_ailing,
    rolling,
    surplus,
    waits_for_hold,
)
from quarterdeck_agent.drivers.base import Life, Resources
from quarterdeck_agent.gpus.placement import Ask, Claim, Place, Placing, gib, obstacle, place, without
from quarterdeck_agent.seen import Seen, SeenReplica
from quarterdeck_agent.steps import Start
from quarterdeck_agent.wanted import WantedDeployment, WantedRevision


@dataclass(frozen=True, slots=True)
class Missing:
    """Replicas of one body that should run and do not: those `made` but not started, and `places` for the `rest`."""

    count: Count
    ask: Ask
    made: tuple[SeenReplica, ...]
    rest: int
    placing: Placing


def all_missing(
    d: WantedDeployment, counts: dict[str, Count], asks: Resources, live_asks: Resources, seen: Seen
) -> Iterator[Missing]:
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


def _missing(count: Count, ask: Ask, mine: list[SeenReplica], seen: Seen, taken: tuple[Claim, ...]) -> Missing:
    missing = count.replicas - sum(1 for r in mine if r.found.life is Life.RUNNING and not on_ailing(r, seen))
    made = tuple(r for r in mine if may_start(r, count))[:missing]
    rest = missing - len(made)
    return Missing(count, ask, made, rest, place(ask, rest, seen.sight, taken, seen.left.get(ask.body, ())))


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


def _may_begin_hold(d: WantedDeployment, seen: Seen) -> bool:
    """Whether nothing but room is missing for a hold."""
    return rolling(d) and waits_for_hold(d) and is_staged(d.target, seen) and not d.target.spec.stopped


def place_after_hold(d: WantedDeployment, asks: Resources, seen: Seen, others: frozenset[str] = frozenset()) -> Placing:
    """Where the target's replicas would go once all others of the deployment are gone, and these `others`."""
    mine = seen.of(d.name)
    gone = others.union(r.found.id for r in mine if r.found.body != d.target.body)
    running = sum(1 for r in mine if r.found.body == d.target.body and r.running)
    sight, claims = without(seen.sight, claims_seen(d, seen), gone)
    return place(ask_of(d, d.target, asks), max(0, d.target.spec.replicas - running), sight, claims)


def holds_for(d: WantedDeployment, revision: WantedRevision) -> bool:
    """Whether requests are held for this revision: it may not start before all others are gone."""
    return d.holding and rolling(d) and revision.number == d.target.number


def waits_for(d: WantedDeployment, asks: Resources, live_asks: Resources | None, seen: Seen, now: float) -> str:
    """What keeps a deployment's replicas from being started, in words; empty when nothing does."""
    if d.removing:
        return ""
    if _may_begin_hold(d, seen):
        return place_after_hold(d, asks, seen).refusal
    for missing in all_missing(d, counts_wanted(d, seen, now), asks, live_asks or asks, seen):
        revision = missing.count.revision
        if holds_for(d, revision) and (lacking := lacking_memory(missing.ask.resources, seen)) is not None:
            return lacking
        if missing.placing.refusal and is_staged(revision, seen):
            return missing.placing.refusal
    return ""


def lacking_memory(asks: Resources, seen: Seen) -> str | None:
    """What one replica asks for of the host's memory and is not free, in words; `None` when it is."""
    if asks.memory is not None and seen.memory_available is not None and asks.memory > seen.memory_available:
        return f"needs {gib(asks.memory)} of memory, {gib(seen.memory_available)} are free"
    return None


def room_by(
    d: WantedDeployment,
    asks: Resources,
    live_asks: Resources | None,
    seen: Seen,
    now: float,
    warm: Mapping[str, frozenset[str]],
) -> tuple[str, ...]:
    """The deployments whose warm replicas, by name, make room for what this one waits for; one if one is enough."""
    groups = [(name,) for name in sorted(warm)] + ([tuple(sorted(warm))] if len(warm) > 1 else [])
    choices = [(names, frozenset[str]().union(*(warm[name] for name in names))) for names in groups]
    if _may_begin_hold(d, seen) and place_after_hold(d, asks, seen).refusal:
        for names, gone in choices:
            if not place_after_hold(d, asks, seen, gone).refusal:
                return names
    for missing in all_missing(d, counts_wanted(d, seen, now), asks, live_asks or asks, seen):
        if not missing.placing.refusal or not is_staged(missing.count.revision, seen):
            continue
        for names, gone in choices:
            if fits_better_without(d, missing, seen, gone):
                return names
    return ()


def fits_better_without(d: WantedDeployment, missing: Missing, seen: Seen, gone: Collection[str]) -> bool:
    """Whether more of what is missing had a place if these replicas were gone."""
    sight, claims = without(seen.sight, claims_seen(d, seen), gone)
    return len(place(missing.ask, missing.rest, sight, claims).places) > len(missing.placing.places)


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
    placing = place_after_hold(d, asks, seen)
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
