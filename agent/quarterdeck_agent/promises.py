"""What is promised on the GPUs that no replica has claimed yet: kept for what comes back, or about to be taken. Pure.

Whoever places a replica counts these claims of others as if they were there. In which order deployments keep places
from each other is decided here; where a replica goes, and why not, is not.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from quarterdeck_agent.counts import recent_crashes, rolling, waits_for_hold
from quarterdeck_agent.drivers.base import Resources
from quarterdeck_agent.gpus.placement import KEPT, STARTING, Ask, Claim, Place, place
from quarterdeck_agent.places import ask_of, claims_seen, place_after_hold
from quarterdeck_agent.seen import Seen
from quarterdeck_agent.wanted import WantedDeployment

Promises = Mapping[str, tuple[Claim, ...]]
"""By deployment, what is promised to it."""

Asks = Mapping[str, Resources]
"""What a replica of each body claims."""


def kept(deployments: Iterable[WantedDeployment], asks: Asks, seen: Seen, starting: Promises, now: float) -> Promises:
    """What each deployment keeps from the others: what serves comes first, then who has held the longest, then
    rollouts that have begun.

    `starting` are claims of starts under way.
    """
    kept: dict[str, tuple[Claim, ...]] = {}
    for d in deployments:
        if d.live is not None:
            kept[d.name] = kept_for_live(d, asks[d.live.body], promised(kept, starting, seen))
    holding = [d for d in deployments if d.holding and rolling(d)]
    for d in sorted(holding, key=lambda d: d.holding_since.seconds if d.holding_since else 0.0):
        target = kept_for_hold(d, asks[d.target.body], promised(kept, starting, seen))
        kept[d.name] = either(kept.get(d.name, ()), target)
    for d in deployments:
        if begun := kept_for_rollout(d, asks[d.target.body], promised(kept, starting, seen), now):
            kept[d.name] = (*kept.get(d.name, ()), *begun)
    return kept


def promised(kept: Promises, starting: Promises, seen: Seen) -> Seen:
    """What is seen, with what is about to be claimed by starts under way, and what is kept."""
    both = {name: either(starting.get(name, ()), kept.get(name, ())) for name in (*kept, *starting)}
    claims = tuple(claim for claims in both.values() for claim in claims)
    return replace(seen, promised=claims) if claims != seen.promised else seen


def foreseen(
    deployments: Iterable[WantedDeployment], asks: Asks, seen: Seen, kept: Promises, starting: Promises
) -> tuple[Claim, ...]:
    """What is promised, and what rollouts will take that are on their way to their places: for who asks what a later
    one would find. No plan waits for the latter."""
    for d in deployments:
        if rolling(d) and not starting.get(d.name) and not kept.get(d.name):
            kept = {**kept, d.name: coming(d, asks[d.target.body], promised(kept, starting, seen))}
    return promised(kept, starting, seen).promised


def kept_for_live(d: WantedDeployment, live_asks: Resources, seen: Seen) -> tuple[Claim, ...]:
    """The places that other deployments must leave alone: those of live replicas that are gone and will come back.

    They may have just ended, be waiting for their next start, or have made room for their successor in a hold. Where
    nobody knows any more where they were (the host has booted), it is where they would go now.
    """
    if d.live is None or d.live.spec.stopped or d.removing or not live_asks.gpus:
        return ()
    held = {d.live.body, d.target.body} if d.holding else {d.live.body}
    missing = max(0, d.live.spec.replicas - _running(d, held, seen))
    return _kept(d, Ask(live_asks, d.name, d.live.body, tolerant=True), missing, seen)


def kept_for_rollout(d: WantedDeployment, asks: Resources, seen: Seen, now: float) -> tuple[Claim, ...]:
    """The same of the target's replicas, once it has had its places: until it serves or fails it gives none back.

    It got them all at once, so no two rollouts can each have a part of what they need and wait for the other's.
    """
    body = d.target.body
    if not _places_its_target(d, asks):
        return ()
    if not any(r.found.body == body for r in seen.of(d.name)) and not recent_crashes(d.target, seen.boot_id, now):
        return ()
    missing = max(0, d.target.spec.replicas - _running(d, {body}, seen))
    return _kept(d, ask_of(d, d.target, asks), missing, seen)


def _places_its_target(d: WantedDeployment, asks: Resources) -> bool:
    """Whether a rollout is on its way that has to find places for its target's replicas beside what runs."""
    if not rolling(d) or d.target.spec.stopped or not asks.gpus or d.holding or waits_for_hold(d):
        return False
    return d.live is None or d.live.body != d.target.body


def _running(d: WantedDeployment, bodies: Collection[str], seen: Seen) -> int:
    return sum(1 for r in seen.of(d.name) if r.running and r.found.body in bodies)


def _kept(d: WantedDeployment, ask: Ask, missing: int, seen: Seen) -> tuple[Claim, ...]:
    """Where as many replicas were as are missing, or would go now."""
    ended = (r.found.gpus for r in seen.of(d.name) if not r.running and r.found.body == ask.body and r.found.gpus)
    places = tuple(dict.fromkeys((*ended, *seen.left.get(ask.body, ()))))[:missing]
    taken = (*seen.claims(d.name), *_claims(ask, places, KEPT))
    return _claims(ask, (*places, *place(ask, missing - len(places), seen.sight, taken).places), KEPT)


def _claims(ask: Ask, places: tuple[Place, ...], note: str) -> tuple[Claim, ...]:
    named = ((f"{ask.deployment} {n}, {note}", each) for n, each in enumerate(places))
    return tuple(claim for name, each in named for claim in ask.claims(name, each, note))


def coming(d: WantedDeployment, asks: Resources, seen: Seen) -> tuple[Claim, ...]:
    """What a rollout that has no places yet is going to take, as things are: for who asks what a later one would find.

    None where it has to wait for its own places: then who comes next may well be first.
    """
    if rolling(d) and waits_for_hold(d) and not d.target.spec.stopped:
        return tuple(replace(claim, note=STARTING) for claim in kept_for_hold(d, asks, seen))
    if not _places_its_target(d, asks):
        return ()
    ask = ask_of(d, d.target, asks)
    missing = max(0, d.target.spec.replicas - _running(d, {d.target.body}, seen))
    placing = place(ask, missing, seen.sight, claims_seen(d, seen))
    return () if placing.refusal else _claims(ask, placing.places, STARTING)


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
            kept.append(Claim(uuid, f"{d.name}, held", d.name, d.target.body, None if ask.whole else more, KEPT))
    return tuple(kept)


def either(one: tuple[Claim, ...], other: tuple[Claim, ...]) -> tuple[Claim, ...]:
    """Claims that leave room for whichever of two comes: on each device those that take more."""
    kept: list[Claim] = []
    for uuid in dict.fromkeys(claim.uuid for claim in (*one, *other)):
        groups = ([claim for claim in claims if claim.uuid == uuid] for claims in (one, other))
        kept.extend(max(groups, key=lambda group: sum(math.inf if c.size is None else c.size for c in group)))
    return tuple(kept)
