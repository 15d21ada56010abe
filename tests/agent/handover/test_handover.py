"""How one revision replaces another, by what fits: tables of claims against what the host has."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from quarterdeck_agent.drivers.base import Resources
from quarterdeck_agent.gpus.placement import Claim, Sight
from quarterdeck_agent.handover import Capacity, Choice, Group, Question, choose, start_times, with_pause
from quarterdeck_agent.protocol import Gpu, GpuProcess, GpuUse, Revision, Spec, StepRecord

GIB = 2**30
LIVE = Group(Resources(), 1)


def gpu(free: int, total: int = 80) -> Gpu:
    return Gpu(0, f"gpu-{free}", "x", total * GIB, (total - free) * GIB)


def capacity(free: int = 0, *gpus: Gpu) -> Capacity:
    return Capacity(64 * GIB, free * GIB, Sight(gpus))


def chosen(wish: Spec, asks: Resources, live: Group | None, host: Capacity, warm: Group | None = None) -> Choice:
    new = Group(asks, wish.replicas)
    return choose(wish, Question(new, live, host, warm, "m", "body-2", "m:1"))


def spec(handover: str = "auto", replicas: int = 1) -> Spec:
    return Spec("v", "m:2", replicas=replicas, handover=handover)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asks", "host", "wanted", "says"),
    [
        (Resources(), capacity(1), "overlap", "claims neither"),
        (Resources(memory=8 * GIB), capacity(20), "overlap", "both fit"),
        (Resources(memory=8 * GIB), capacity(8), "hold", "needs 8 GiB of memory, 4.8 GiB are free"),
        (Resources(memory=8 * GIB), Capacity(), "overlap", "both fit"),
        (Resources(gpus=1, vram=38 * GIB), capacity(60, gpu(19)), "hold", "one GPU; gpu0 has 19 GiB free"),
        (Resources(gpus=1, vram=38 * GIB), capacity(60, gpu(19), gpu(40)), "overlap", "both fit"),
        (Resources(gpus=1), capacity(60, gpu(80)), "overlap", "both fit"),
        (Resources(gpus=1), capacity(60, gpu(60)), "hold", "gpu0 is not empty"),
    ],
)
def test_auto_holds_exactly_where_both_do_not_fit(asks: Resources, host: Capacity, wanted: str, says: str) -> None:
    choice = chosen(spec(), asks, LIVE, host)
    assert choice.handover == wanted
    assert says in choice.why


def test_what_is_asked_for_by_name_wins_but_warns() -> None:
    short = capacity(8)
    asks = Resources(memory=8 * GIB)
    assert chosen(spec("hold"), Resources(), LIVE, capacity(60)).handover == "hold"
    overlap = chosen(spec("overlap"), asks, LIVE, short)
    assert overlap.handover == "overlap" and "although it needs 8 GiB" in overlap.warnings[0]


def test_the_warm_revision_makes_room_before_anybody_has_to_wait() -> None:
    asks = Resources(memory=8 * GIB)
    warm = Group(Resources(memory=8 * GIB), 1)
    choice = chosen(spec(), asks, LIVE, capacity(8), warm)
    assert choice.handover == "overlap" and choice.cools
    assert not chosen(spec(), asks, LIVE, capacity(30), warm).cools


def rolled_out(number: int, seconds: float, *, served: bool = True) -> Revision:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    steps = (StepRecord("start", "done", at, 1.0), StepRecord("ready", "done", at, seconds - 1.0))
    return Revision("m", number, spec(), at, "ana", "op", served_at=at if served else None, steps=steps)


def test_a_hold_is_expected_to_take_as_long_as_the_last_starts_that_went_through() -> None:
    history = [rolled_out(5, 31.0), rolled_out(4, 99.0, served=False), rolled_out(3, 22.0), rolled_out(2, 24.0)]
    starts = start_times([*history, rolled_out(1, 500.0)])
    assert starts == (31.0, 22.0, 24.0)
    hold = with_pause(chosen(spec("hold"), Resources(), LIVE, capacity(60)), starts, 768)
    assert hold.expected_pause == 24.0
    assert "31.0, 22.0, 24.0" in hold.warnings[0] and "768" in hold.warnings[0]
    unknown = with_pause(chosen(spec("hold"), Resources(), LIVE, capacity(60)), (), 768)
    assert unknown.expected_pause is None and "not known" in unknown.warnings[0]
    overlap = chosen(spec(), Resources(), LIVE, capacity(60))
    assert with_pause(overlap, starts, 768) is overlap


def test_every_replica_counts() -> None:
    asks = Resources(memory=8 * GIB)
    assert chosen(spec(replicas=1), asks, LIVE, capacity(20)).handover == "overlap"
    assert chosen(spec(replicas=3), asks, LIVE, capacity(20)).handover == "hold"


def test_nothing_has_to_be_held_where_nothing_serves() -> None:
    assert chosen(spec("hold"), Resources(memory=99 * GIB), None, capacity(1)).handover == "overlap"


# --- on GPUs -------------------------------------------------------------------------------------------------------


def serving_on(held: int, *, claims: int | None, peak: int | None = None) -> Group:
    asks = Resources(gpus=1, vram=None if claims is None else claims * GIB)
    return Group(asks, 1, ("m-1-0",), None if peak is None else peak * GIB)


def host_with(*held: tuple[str | None, int], total: int = 80, claims: int | None = None, spare: int = 0) -> Capacity:
    """One GPU on which replicas (or, without a name, strangers) hold so many GiB; m-1-0 claims `claims`.

    With `spare`, a second GPU is there whose every byte but so many GiB belongs to a stranger.
    """
    used = sum(gib for _, gib in held)
    processes = tuple(
        GpuProcess(100 + n, gib * GIB, user="bo", command="python", replica=name, deployment=name and "m")
        for n, (name, gib) in enumerate(held)
    )
    gpus = [Gpu(0, "a", "x", total * GIB, used * GIB)]
    uses = [GpuUse("a", processes, 0)]
    if spare:
        gpus.append(Gpu(1, "b", "x", total * GIB, (total - spare) * GIB))
        uses.append(GpuUse("b", (GpuProcess(7, (total - spare) * GIB, user="eve", command="train"),), 0))
    size = None if claims is None else claims * GIB
    mine = tuple(
        Claim("a", name, "m", "body-1" if name == "m-1-0" else "body-0", size) for name, _ in held if name is not None
    )
    return Capacity(64 * GIB, 60 * GIB, Sight(tuple(gpus), tuple(uses)), mine)


def test_the_reason_of_a_hold_names_the_need_the_room_beside_and_the_measured_peak() -> None:
    host = host_with(("m-1-0", 39), claims=38, total=60)
    choice = chosen(spec(), Resources(gpus=1, vram=38 * GIB), serving_on(39, claims=38, peak=41), host)
    assert choice.handover == "hold"
    assert choice.why == "needs 38 GiB on one GPU, 19 GiB free beside m:1 (measured peak 41 GiB)"
    assert choice.places == (("a",),)


def test_room_is_needed_on_one_gpu_and_not_in_sum() -> None:
    host = host_with(("m-1-0", 50), claims=50, spare=20)
    choice = chosen(spec(), Resources(gpus=1, vram=45 * GIB), serving_on(50, claims=50), host)
    assert choice.handover == "hold", "30 and 20 GiB are free, which is 50 only in sum"
    assert chosen(spec(), Resources(gpus=1, vram=30 * GIB), serving_on(50, claims=50), host).places == (("a",),)
    assert chosen(spec(), Resources(gpus=1, vram=20 * GIB), serving_on(50, claims=50), host).places == (("b",),)


@pytest.mark.parametrize(
    ("measured", "wanted"),
    [(None, "hold"), (30, "overlap"), (60, "hold")],
)
def test_the_measured_peak_of_the_version_counts_instead_of_its_claim(measured: int | None, wanted: str) -> None:
    host = host_with(("m-1-0", 38), claims=38)
    new = Group(Resources(gpus=1, vram=50 * GIB), 1, (), None if measured is None else measured * GIB)
    choice = choose(spec(), Question(new, serving_on(38, claims=38), host, None, "m", "body-2", "m:1"))
    assert choice.handover == wanted
    if measured is not None:
        assert f"{measured} GiB" in choice.why


def test_a_running_revision_counts_by_what_it_was_measured_to_need_and_not_by_its_claim() -> None:
    asks = Resources(gpus=1, vram=30 * GIB)
    host = host_with(("m-1-0", 20), claims=60)
    assert chosen(spec(), asks, serving_on(20, claims=60), host).handover == "hold"
    assert chosen(spec(), asks, serving_on(20, claims=60, peak=22), host).handover == "overlap"


def test_whole_gpus_overlap_only_where_another_one_is_empty() -> None:
    whole, live = Resources(gpus=1), serving_on(40, claims=None)
    choice = chosen(spec(), whole, live, host_with(("m-1-0", 40)))
    assert (choice.handover, choice.why) == ("hold", "needs one GPU for itself, which m:1 is on")
    assert chosen(spec(), whole, live, host_with(("m-1-0", 40), spare=80)).handover == "overlap"


def test_a_warm_revision_on_the_gpu_is_let_go_rather_than_holding_requests() -> None:
    asks = Resources(gpus=1, vram=30 * GIB)
    host = host_with(("m-1-0", 30), ("m-0-0", 30), claims=30)
    warm = Group(asks, 1, ("m-0-0",))
    choice = chosen(spec(), asks, serving_on(30, claims=30), host, warm)
    assert (choice.handover, choice.cools) == ("overlap", True)
    assert chosen(spec(), asks, serving_on(30, claims=30), host).handover == "hold"


def test_a_hold_that_would_not_make_room_says_so_beforehand() -> None:
    host = host_with(("m-1-0", 20), (None, 50), claims=20)
    choice = chosen(spec(), Resources(gpus=1, vram=38 * GIB), serving_on(20, claims=20), host)
    assert choice.handover == "hold"
    (warning,) = choice.warnings
    assert "even without m:1" in warning and "50 GiB held by unmanaged pid 101 (bo, python)" in warning
    assert "m:1 serves on" in warning


def test_while_nvml_does_not_answer_nothing_that_runs_is_stopped() -> None:
    blind = replace(host_with(("m-1-0", 40), claims=40), sight=Sight(trouble="the GPUs cannot be seen now: hangs"))
    choice = chosen(spec(), Resources(gpus=1, vram=GIB), serving_on(40, claims=40), blind)
    assert (choice.handover, choice.warnings) == ("overlap", ("the GPUs cannot be seen now: hangs",))


def test_a_first_deploy_that_would_wait_says_for_what() -> None:
    choice = chosen(spec(), Resources(gpus=1, vram=38 * GIB), None, host_with((None, 50)))
    assert choice.handover == "overlap"
    assert "it would wait for its place: needs 38 GiB on one GPU; gpu0 has 30 GiB free" in choice.warnings[0]
