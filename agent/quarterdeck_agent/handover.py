"""How one revision replaces another on this host: beside it, or after it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Literal

from quarterdeck_agent.drivers.base import Resources
from quarterdeck_agent.gpus.placement import (
    Ask,
    Claim,
    Place,
    Placing,
    Sight,
    gib,
    needs,
    place,
    place_names,
    really_free,
    whose,
    without,
)
from quarterdeck_agent.protocol import Revision, Spec

HEADROOM = 0.05
"""Share of the host's memory that both revisions together must leave free."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the host could give right now, in bytes; `None` where it cannot be told. `claims` are those on its GPUs."""

    memory_total: int | None = None
    memory_available: int | None = None
    sight: Sight = field(default_factory=Sight)
    claims: tuple[Claim, ...] = ()

    def without(self, replicas: Iterable[str], memory: int = 0) -> Capacity:
        """What it could give without these replicas and the host memory they claim."""
        sight, claims = without(self.sight, self.claims, frozenset(replicas))
        available = None if self.memory_available is None else self.memory_available + memory
        return replace(self, memory_available=available, sight=sight, claims=claims)


@dataclass(frozen=True, slots=True)
class Group:
    """The replicas of one revision: what each claims, how many, and the ids of those that run."""

    asks: Resources = field(default_factory=Resources)
    replicas: int = 0
    running: tuple[str, ...] = ()
    peak: int | None = None

    @property
    def memory(self) -> int:
        return (self.asks.memory or 0) * self.replicas

    def leave(self, capacity: Capacity) -> Capacity:
        """What the host could give once this group is gone."""
        return capacity.without(self.running, self.memory)


@dataclass(frozen=True, slots=True)
class Choice:
    """The handover chosen and why. `replaces` is the label that serves now; with `cools` the warm revision must go.

    `places` is where the new replicas would go, as things are.
    """

    handover: Literal["overlap", "hold"]
    why: str
    expected_pause: float | None = 0.0
    replaces: str | None = None
    warnings: tuple[str, ...] = ()
    cools: bool = False
    places: tuple[Place, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """All that a choice depends on: the new replicas, those that serve (`None`: none do) and those kept warm.

    `spare` are the replicas with GPUs that other deployments (`spare_of`) keep warm: the planner ends them too when it
    has no other place.
    """

    new: Group
    live: Group | None
    capacity: Capacity
    warm: Group | None = None
    deployment: str = ""
    body: str = ""
    label: str | None = None
    spare: tuple[str, ...] = ()
    spare_of: str = ""

    def ways(self, capacity: Capacity) -> Iterator[tuple[Capacity, str]]:
        """What there is room in, from what costs nothing to what costs most; and who is let go for it."""
        yield capacity, ""
        if self.warm is not None:
            capacity = self.warm.leave(capacity)
            yield capacity, "the warm revision"
        if self.spare:
            yield capacity.without(self.spare), f"the warm revision of {self.spare_of}"


def choose(spec: Spec, asked: Question) -> Choice:
    """`overlap` where old and new fit side by side, `hold` where they do not; what was asked for by name wins.

    The revision kept for a rollback makes room before anybody has to wait.
    """
    if asked.live is None:
        return _first(asked)
    if not asked.new.replicas:
        return Choice("overlap", "its replicas are still warm", 0.0, asked.label)
    if spec.handover == "auto" and asked.new.asks.gpus and asked.capacity.sight.trouble:
        why = "whether both fit cannot be told, so what runs stays"
        return Choice("overlap", why, 0.0, asked.label, (asked.capacity.sight.trouble,))
    beside, let_go = _beside_what_runs(asked)
    cools = bool(let_go) and asked.warm is not None
    if spec.handover == "hold" or (spec.handover == "auto" and beside.lacks):
        why = "asked for by name" if spec.handover == "hold" else beside.lacks
        return _hold(asked, why)
    if spec.handover == "overlap":
        note = (f"asked for by name, although it {beside.lacks}",) if beside.lacks else ()
        return Choice("overlap", "asked for by name", 0.0, asked.label, note, cools, beside.places)
    why = f"both fit side by side once {let_go} is let go" if let_go else fits_because(asked)
    return Choice("overlap", why, 0.0, asked.label, (), cools, beside.places)


def _beside_what_runs(asked: Question) -> tuple[_Fit, str]:
    """Whether the new replicas fit beside the running ones, and who has to go for that."""
    tried = []
    for capacity, let_go in asked.ways(_by_peak(asked)):
        tried.append((_Fit.of(asked, capacity), let_go))
        if not tried[-1][0].lacks:
            break
    return tried[-1]


def _first(asked: Question) -> Choice:
    """Nothing serves: the new replicas just start, or wait for their place."""
    placing = _placing(asked)
    note = (f"it would wait for its place: {placing.refusal}",) if placing.refusal else ()
    return Choice("overlap", "nothing serves yet", warnings=note, places=placing.places)


def grow(asked: Question) -> Choice:
    """More replicas of what runs (or fewer): they just start, or wait for their place."""
    count, placing = asked.new.replicas, _placing(asked)
    why = f"{count} more replica{'s' if count != 1 else ''} to start"
    short = count - len(placing.places)
    note = f"{short} replica{'s' if short != 1 else ''} would wait for its place: {placing.refusal}"
    return Choice("overlap", why, 0.0, asked.label, (note,) if placing.refusal else (), places=placing.places)


def _placing(asked: Question) -> Placing:
    """Where new replicas go, once what is warm has made room if it must."""
    ask = Ask(asked.new.asks, asked.deployment, asked.body)
    placing = Placing(())
    for capacity, _ in asked.ways(asked.capacity):
        placing = place(ask, asked.new.replicas, capacity.sight, capacity.claims)
        if not placing.refusal:
            break
    return placing


def _hold(asked: Question, why: str) -> Choice:
    """Stop what runs first. Should the new revision not fit even then, it says so."""
    after = asked.capacity
    for group in (asked.warm, asked.live):
        after = group.leave(after) if group is not None else after
    fit = _Fit.of(asked, after, peak=False, alone=True)
    note = f"even without {asked.label} it {fit.lacks}; {asked.label} serves on until there is room"
    return Choice("hold", why, None, asked.label, (note,) if fit.lacks else (), places=fit.places)


@dataclass(frozen=True, slots=True)
class _Fit:
    """Where the new replicas go; `lacks` says in words why they do not fit, and is empty when they do."""

    lacks: str
    places: tuple[Place, ...] = ()

    @classmethod
    def of(cls, asked: Question, capacity: Capacity, *, peak: bool = True, alone: bool = False) -> _Fit:
        new = asked.new
        if not alone and (lacking := _lacking_memory(new, capacity)) is not None:
            return cls(lacking)
        ask = Ask(new.asks, asked.deployment, asked.body, new.peak if peak else None)
        placing = place(ask, new.replicas, capacity.sight, capacity.claims)
        if not placing.refusal:
            return cls("", placing.places)
        if alone or asked.live is None or not asked.live.running or capacity.sight.trouble:
            return cls(placing.refusal)
        return cls(_beside(asked, ask, capacity) or placing.refusal)


def _by_peak(asked: Question) -> Capacity:
    """The host with what runs of this deployment counted by its measured peaks, not by what it claims."""
    peaks = {replica: g.peak for g in (asked.live, asked.warm) if g and g.peak is not None for replica in g.running}
    claims = tuple(
        claim if claim.size is None or claim.replica not in peaks else replace(claim, size=peaks[claim.replica])
        for claim in asked.capacity.claims
    )
    return replace(asked.capacity, claims=claims)


def _lacking_memory(new: Group, capacity: Capacity) -> str | None:
    """What the new replicas lack of the host's memory beside the running ones, in words."""
    if new.asks.memory is None or capacity.memory_available is None:
        return None
    spare = capacity.memory_available - int((capacity.memory_total or 0) * HEADROOM)
    if new.memory <= spare:
        return None
    return f"needs {gib(new.memory)} of memory, {gib(max(0, spare))} are free beside the running revision"


def _beside(asked: Question, ask: Ask, capacity: Capacity) -> str | None:
    """Why there is no room beside the running revision, when it is the running revision that takes the room.

    Says the largest free memory that there is beside it, and what it was measured to hold.
    """
    assert asked.live is not None
    alone = asked.live.leave(capacity)
    if place(ask, asked.new.replicas, alone.sight, alone.claims).refusal:
        return None
    peak = f" (measured peak {gib(asked.live.peak)})" if asked.live.peak is not None else ""
    own = "" if asked.new.peak is None or ask.whole else f" (measured peak {gib(asked.new.peak)})"
    others = _promised_to_others(asked, ask, capacity)
    if ask.whole:
        return f"{needs(ask.resources)}, which {asked.label} is on{peak}{others}"
    best = _largest_hole(ask, capacity)
    return f"{needs(ask.resources)}{own}, {gib(best)} free beside {asked.label}{peak}{others}"


def _promised_to_others(asked: Question, ask: Ask, capacity: Capacity) -> str:
    """Who is to get the room that would do, when that is what is in the way: nothing on the GPUs shows it yet."""
    theirs = [claim for claim in capacity.claims if claim.note and claim.deployment != asked.deployment]
    rest = tuple(claim for claim in capacity.claims if claim not in theirs)
    if not theirs or place(ask, asked.new.replicas, capacity.sight, rest).refusal:
        return ""
    told = []
    for claim in theirs:
        what = "" if claim.size is None else f"{gib(claim.size)} on "
        told.append(f"{what}{place_names([(claim.uuid,)], capacity.sight)} {whose(claim, 'given to', 'kept for')}")
    return f"; {' and '.join(dict.fromkeys(told))}"


def _largest_hole(ask: Ask, capacity: Capacity) -> int:
    """The most bytes that one replica could still get on any one device, to the MiB."""
    low, high = 0, max((really_free(gpu) or 0 for gpu in capacity.sight.gpus), default=0) >> 20
    while low < high:
        middle = (low + high + 1) // 2
        tried = replace(ask, resources=replace(ask.resources, gpus=1), peak=middle << 20)
        if place(tried, 1, capacity.sight, capacity.claims).places:
            low = middle
        else:
            high = middle - 1
    return low << 20


START_STEPS = ("memory", "start", "ready", "dwell", "golden")
"""What happens while requests are held; draining the old revision comes before it and is not known beforehand."""


def start_times(history: Iterable[Revision], most: int = 3) -> tuple[float, ...]:
    """How long the last rollouts that went through took from start to switch, in seconds, the newest first."""
    taken = []
    for revision in history:
        steps = {step.name: step.elapsed for step in revision.steps if step.state == "done"}
        if revision.served_at is not None and "ready" in steps:
            taken.append(sum(steps.get(name, 0.0) for name in START_STEPS))
    return tuple(taken[:most])


def with_pause(choice: Choice, starts: tuple[float, ...], waiting: int) -> Choice:
    """A hold with the pause that is to be expected from earlier starts; other choices as they are."""
    if choice.handover != "hold":
        return choice
    if not starts:
        note = f"how long requests wait is not known yet: nothing was started before; up to {waiting} may wait"
        return replace(choice, warnings=(*choice.warnings, note))
    pause = round(median(starts), 1)
    seen = ", ".join(f"{each:.1f}" for each in starts)
    note = f"requests wait about {pause:g} s (last starts: {seen} s), up to {waiting} of them"
    return replace(choice, expected_pause=pause, warnings=(*choice.warnings, note))


def fits_because(asked: Question) -> str:
    """Why both fit, in words."""
    asks = asked.new.asks
    if asks.memory is None and not asks.gpus:
        return "the version claims neither memory nor GPUs, so both run side by side"
    if asked.new.peak is not None and not asks.exclusive and asks.vram is not None and asks.gpus:
        return f"both fit side by side: {gib(asked.new.peak)} measured peak"
    return "both fit side by side"
