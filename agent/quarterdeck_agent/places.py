"""Which replicas of a deployment are missing, and where each would go on the GPUs. Pure.

It turns revisions into what `gpus.placement` takes, asks and claims, and says in words why a place is not there; it
takes no steps.
"""

from __future__ import annotations

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
from quarterdeck_agent.gpus.placement import Ask, Claim, Placing, gib, obstacle, place, without
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
        missing = _missing(d, count, ask, [r for r in mine if r not in leaving], seen, taken)
        yield missing
        for number, each in enumerate(missing.placing.places):
            taken = (*taken, *ask.claims(f"{body} {number}", each))


def _missing(
    d: WantedDeployment, count: Count, ask: Ask, mine: list[SeenReplica], seen: Seen, taken: tuple[Claim, ...]
) -> Missing:
    missing = count.replicas - sum(1 for r in mine if r.found.life is Life.RUNNING and not on_ailing(r, seen))
    made = tuple(r for r in mine if may_start(r, count))[:missing]
    rest = missing - len(made)
    placing = place(ask, rest, seen.sight, taken, seen.left.get(ask.body, ()))
    if placing.refusal and _returns(d, count.revision):
        gone = count.replicas - len(made) - sum(1 for r in mine if r.found.life is Life.RUNNING)
        placing = _with_places_on_sick(ask, placing, gone, seen, taken)
    return Missing(count, ask, made, rest, placing)


def _returns(d: WantedDeployment, revision: WantedRevision) -> bool:
    """Whether a revision's missing replicas come back to where they were: they crashed, or made room in a hold."""
    return d.live is not None and revision.body == d.live.body and (bool(revision.crashes) or d.holding)


def _with_places_on_sick(ask: Ask, placing: Placing, gone: int, seen: Seen, taken: tuple[Claim, ...]) -> Placing:
    """The places, and as many as then are `gone` still where replicas were on a sick GPU that takes them back.

    A sick GPU is given nothing new. But what served there and has nowhere else to go is worth more up than down, for
    as long as NVIDIA does not say that nothing works on that GPU before a reset.
    """
    places, back = placing.places, replace(ask, returning=True)
    for number, each in enumerate(places):
        taken = (*taken, *ask.claims(f"new {number}", each))
    for before in seen.left.get(ask.body, ()):
        if len(places) < gone and obstacle(back, before, seen.sight, taken) is None:
            taken = (*taken, *ask.claims(f"new {len(places)}", before))
            places = (*places, before)
    return replace(placing, places=places)


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
    ask = replace(ask_of(d, revision, asks), returning=_returns(d, revision))
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


def placing_now(d: WantedDeployment, missing: Missing) -> Placing:
    """The places to take now. A rollout takes all or none: with a part of them it would serve no sooner, and two that
    each had a part could wait for one another. What serves takes whatever there is, and a hold has its room kept."""
    found = missing.placing
    whole = rolling(d) and missing.count.revision.number == d.target.number and not d.holding
    if not whole or not found.refusal or not found.places:
        return found
    room = f"there is room for {len(found.places)} of {missing.rest} replicas"
    return replace(found, places=(), refusal=f"{room}; the next one {found.refusal}")


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
            return placing_now(d, missing).refusal
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
