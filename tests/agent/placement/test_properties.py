"""What holds of every placing: no more is given than is there, and what fits is found."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from quarterdeck_agent.gpus.placement import Claim, Sight, place
from quarterdeck_agent.protocol import GpuHealth
from tests.agent.placement.rack import GIB, Card, ask, claim, sight

HEALTH = [GpuHealth.OK, GpuHealth.OK, GpuHealth.OK, GpuHealth.DEGRADED, GpuHealth.SICK, GpuHealth.LOST]


@st.composite
def racks(draw: st.DrawFn, most: int = 5) -> tuple[Sight, tuple[Claim, ...]]:
    """Up to five GPUs, with strangers, leaks and claims of replicas that hold part of them."""
    cards: list[Card] = []
    claims: list[Claim] = []
    for index in range(draw(st.integers(1, most))):
        total, room = draw(st.sampled_from([16, 24, 80])), 0.0
        held: list[tuple[str | None, float]] = []
        for number in range(draw(st.integers(0, 2))):
            wanted = draw(st.sampled_from([None, 4, 8]))
            if wanted is None and (room or (claims and claims[-1].uuid == f"gpu-{index}")):
                continue
            if room + (wanted or total) > total:
                continue
            name = f"o{index}-1-{number}"
            claims.append(claim(index, wanted, name))
            has = draw(st.integers(0, wanted or 8))
            if has:
                held.append((name, has))
            room += wanted or total
        stranger = draw(st.sampled_from([0, 0, 3, 7]))
        if stranger and room + stranger <= total:
            held.append((None, stranger))
        leaked = draw(st.sampled_from([0, 0, 2]))
        leaked = leaked if room + stranger + leaked <= total else 0
        links = tuple(f"gpu-{draw(st.integers(0, most - 1))}" for _ in range(draw(st.integers(0, 2))))
        cards.append(Card(total, tuple(held), leaked, health=draw(st.sampled_from(HEALTH)), links=links))
    return sight(*cards), tuple(claims)


@st.composite
def wishes(draw: st.DrawFn) -> tuple[float | None, int, int]:
    """vram, GPUs of each replica, replicas."""
    return draw(st.sampled_from([None, 3, 5, 8, 12, 20])), draw(st.integers(1, 3)), draw(st.integers(1, 4))


def free_now(seen: Sight, claims: tuple[Claim, ...], uuid: str) -> int:
    """The rule, said once more and otherwise: NVML's free less what is promised and not yet held."""
    gpu = next(g for g in seen.gpus if g.uuid == uuid)
    held = Counter[str]()
    for use in seen.uses:
        if use.uuid == uuid:
            for process in use.processes:
                held[process.replica or ""] += process.memory or 0
    promised = sum(max(0, (c.size or 0) - held[c.replica]) for c in claims if c.uuid == uuid)
    assert gpu.memory_free is not None
    return gpu.memory_free - promised


def room(seen: Sight, claims: tuple[Claim, ...], vram: float | None, most: int) -> dict[str, int]:
    """By device, how many replicas could be on it at once."""
    slots = {}
    for gpu in seen.gpus:
        mine = [c for c in claims if c.uuid == gpu.uuid]
        use = next(u for u in seen.uses if u.uuid == gpu.uuid)
        if gpu.health in (GpuHealth.SICK, GpuHealth.LOST) or any(c.size is None for c in mine):
            slots[gpu.uuid] = 0
        elif vram is None:
            slots[gpu.uuid] = int(not mine and not use.processes and not use.unexplained)
        else:
            slots[gpu.uuid] = min(most, max(0, free_now(seen, claims, gpu.uuid)) // int(vram * GIB))
    return slots


def fits(slots: dict[str, int], each: int, count: int) -> bool:
    """By trying every way: whether `count` replicas can each have `each` different devices."""
    if count == 0:
        return True
    for chosen in combinations([uuid for uuid, n in slots.items() if n], each):
        if fits({uuid: n - (uuid in chosen) for uuid, n in slots.items()}, each, count - 1):
            return True
    return False


@settings(max_examples=400, deadline=None)
@given(racks(), wishes())
def test_no_more_is_given_than_is_really_free_and_whole_gpus_are_given_once(
    rack: tuple[Sight, tuple[Claim, ...]], wish: tuple[float | None, int, int]
) -> None:
    seen, claims = rack
    vram, each, count = wish
    given_ = place(ask(vram, each), count, seen, claims).places
    times = Counter(uuid for one in given_ for uuid in one)
    for one in given_:
        assert len(set(one)) == each
    for uuid, number in times.items():
        gpu = next(g for g in seen.gpus if g.uuid == uuid)
        assert gpu.health in (GpuHealth.OK, GpuHealth.DEGRADED)
        assert not any(c.size is None for c in claims if c.uuid == uuid)
        if vram is None:
            assert number == 1 and not any(c.uuid == uuid for c in claims)
        else:
            assert number * vram * GIB <= free_now(seen, claims, uuid)
            promised = sum(c.size or 0 for c in claims if c.uuid == uuid)
            assert promised + number * vram * GIB <= (gpu.memory_total or 0)


@settings(max_examples=400, deadline=None)
@given(racks(most=4), wishes())
def test_as_many_replicas_get_a_place_as_any_way_of_placing_could_give_one(
    rack: tuple[Sight, tuple[Claim, ...]], wish: tuple[float | None, int, int]
) -> None:
    seen, claims = rack
    vram, each, count = wish
    placing = place(ask(vram, each), count, seen, claims)
    slots = room(seen, claims, vram, count)
    best = max(n for n in range(count + 1) if fits(slots, each, n))
    assert len(placing.places) == best
    assert bool(placing.refusal) == (best < count)
    assert "\n" not in placing.refusal


@settings(max_examples=200, deadline=None)
@given(racks(), wishes(), st.randoms(use_true_random=False))
def test_the_same_facts_in_any_order_give_the_same_places(
    rack: tuple[Sight, tuple[Claim, ...]], wish: tuple[float | None, int, int], chance: object
) -> None:
    seen, claims = rack
    vram, each, count = wish
    first = place(ask(vram, each), count, seen, claims)
    gpus, uses, facts, shuffled = list(seen.gpus), list(seen.uses), list(seen.facts), list(claims)
    for order in (gpus, uses, facts, shuffled):
        chance.shuffle(order)  # type: ignore[attr-defined]
    again = place(ask(vram, each), count, Sight(tuple(gpus), tuple(uses), tuple(facts)), tuple(shuffled))
    assert again.places == first.places


@settings(max_examples=200, deadline=None)
@given(racks(), wishes(), st.data())
def test_a_claim_that_goes_away_makes_room_and_never_takes_any(
    rack: tuple[Sight, tuple[Claim, ...]], wish: tuple[float | None, int, int], data: st.DataObject
) -> None:
    seen, claims = rack
    vram, each, count = wish
    gone = data.draw(st.sampled_from([c.replica for c in claims])) if claims else None
    before = place(ask(vram, each), count, seen, claims)
    after = place(ask(vram, each), count, seen, tuple(c for c in claims if c.replica != gone))
    assert len(after.places) >= len(before.places)


@settings(max_examples=200, deadline=None)
@given(racks(), wishes())
def test_places_one_by_one_are_as_good_as_places_at_once(
    rack: tuple[Sight, tuple[Claim, ...]], wish: tuple[float | None, int, int]
) -> None:
    """With one GPU each, whoever comes later finds what is left: nobody is started beyond the memory."""
    seen, claims = rack
    vram, _, count = wish
    one = ask(vram)
    taken, places = claims, 0
    while places < count and (found := place(one, 1, seen, taken).places):
        taken += one.claims(f"step {places}", found[0])
        places += 1
    assert places == len(place(one, count, seen, claims).places)
