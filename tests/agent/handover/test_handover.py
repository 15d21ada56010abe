"""How one revision replaces another, by what fits: tables of claims against what the host has."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from quarterdeck_agent.drivers.base import Resources
from quarterdeck_agent.handover import Capacity, Claim, choose, start_times, with_pause
from quarterdeck_agent.protocol import Gpu, Revision, RevisionOutcome, Spec, StepRecord
from tests.agent.plan.world import revision

GIB = 2**30
LIVE = replace(revision(1), outcome=RevisionOutcome.SERVING)


def gpu(free: int, total: int = 80) -> Gpu:
    return Gpu(0, f"gpu-{free}", "x", total * GIB, (total - free) * GIB)


def capacity(free: int = 0, *gpus: Gpu) -> Capacity:
    return Capacity(64 * GIB, free * GIB, gpus)


def spec(handover: str = "auto", replicas: int = 1) -> Spec:
    return Spec("v", "m:2", replicas=replicas, handover=handover)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asks", "host", "wanted", "says"),
    [
        (Resources(), capacity(1), "overlap", "claims neither"),
        (Resources(memory=8 * GIB), capacity(20), "overlap", "both fit"),
        (Resources(memory=8 * GIB), capacity(8), "hold", "needs 8.0 GiB of memory, 4.8 GiB are free"),
        (Resources(memory=8 * GIB), Capacity(), "overlap", "both fit"),
        (Resources(gpus=1, vram=38 * GIB), capacity(60, gpu(19)), "hold", "the emptiest has 19.0 GiB free"),
        (Resources(gpus=1, vram=38 * GIB), capacity(60, gpu(19), gpu(40)), "overlap", "both fit"),
        (Resources(gpus=1), capacity(60, gpu(80)), "hold", "does not say how much"),
        (Resources(gpus=1, vram=GIB), capacity(60), "overlap", "no GPU can be seen"),
    ],
)
def test_auto_holds_exactly_where_both_do_not_fit(asks: Resources, host: Capacity, wanted: str, says: str) -> None:
    choice = choose(spec(), asks, LIVE, host)
    assert choice.handover == wanted
    assert says in choice.why


def test_what_is_asked_for_by_name_wins_but_warns() -> None:
    short = capacity(8)
    asks = Resources(memory=8 * GIB)
    assert choose(spec("hold"), Resources(), LIVE, capacity(60)).handover == "hold"
    overlap = choose(spec("overlap"), asks, LIVE, short)
    assert overlap.handover == "overlap" and "although it needs 8.0 GiB" in overlap.warnings[0]


def test_the_warm_revision_makes_room_before_anybody_has_to_wait() -> None:
    asks = Resources(memory=8 * GIB)
    warm = Claim(Resources(memory=8 * GIB), 1)
    choice = choose(spec(), asks, LIVE, capacity(8), warm)
    assert choice.handover == "overlap" and choice.cools
    assert not choose(spec(), asks, LIVE, capacity(30), warm).cools
    vram = Resources(gpus=1, vram=20 * GIB)
    assert choose(spec(), vram, LIVE, capacity(60, gpu(5)), Claim(vram, 1)).handover == "overlap"
    assert choose(spec(), vram, LIVE, capacity(60, gpu(5)), None).handover == "hold"


def rolled_out(number: int, seconds: float, *, served: bool = True) -> Revision:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    steps = (StepRecord("start", "done", at, 1.0), StepRecord("ready", "done", at, seconds - 1.0))
    return Revision("m", number, spec(), at, "ana", "op", served_at=at if served else None, steps=steps)


def test_a_hold_is_expected_to_take_as_long_as_the_last_starts_that_went_through() -> None:
    history = [rolled_out(5, 31.0), rolled_out(4, 99.0, served=False), rolled_out(3, 22.0), rolled_out(2, 24.0)]
    starts = start_times([*history, rolled_out(1, 500.0)])
    assert starts == (31.0, 22.0, 24.0)
    hold = with_pause(choose(spec("hold"), Resources(), LIVE, capacity(60)), starts, 768)
    assert hold.expected_pause == 24.0
    assert "31.0, 22.0, 24.0" in hold.warnings[0] and "768" in hold.warnings[0]
    unknown = with_pause(choose(spec("hold"), Resources(), LIVE, capacity(60)), (), 768)
    assert unknown.expected_pause is None and "not known" in unknown.warnings[0]
    overlap = choose(spec(), Resources(), LIVE, capacity(60))
    assert with_pause(overlap, starts, 768) is overlap


def test_every_replica_counts() -> None:
    asks = Resources(memory=8 * GIB)
    assert choose(spec(replicas=1), asks, LIVE, capacity(20)).handover == "overlap"
    assert choose(spec(replicas=3), asks, LIVE, capacity(20)).handover == "hold"


def test_nothing_has_to_be_held_where_nothing_serves() -> None:
    stopped = replace(LIVE, spec=replace(LIVE.spec, stopped=True))
    for live in (None, stopped):
        assert choose(spec("hold"), Resources(memory=99 * GIB), live, capacity(1)).handover == "overlap"
