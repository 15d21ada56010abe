"""Where replicas go and why not, situation by situation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quarterdeck_agent.drivers.base import Life, Resources
from quarterdeck_agent.gpus.placement import (
    Sight,
    claims_of,
    never_fits,
    obstacle,
    place,
    place_names,
    without,
)
from quarterdeck_agent.protocol import Gpu, GpuHealth, GpuProcess, GpuUse
from tests.agent.placement.rack import GIB, Card, ask, asks, claim, sight
from tests.agent.plan.world import found


def test_what_asks_for_no_gpu_has_its_place_anywhere() -> None:
    assert place(ask(gpus=0), 2, Sight(trouble="NVML hangs"), ()).places == ((), ())


def test_the_tightest_hole_is_taken_so_that_large_ones_stay() -> None:
    cards = (Card(), Card(held=(("a-1-0", 50),)), Card(held=(("b-1-0", 20),)))
    assert place(ask(25), 1, sight(*cards), ()).places == (("gpu-1",),)
    assert place(ask(45), 1, sight(*cards), ()).places == (("gpu-2",),)
    assert place(ask(70), 1, sight(*cards), ()).places == (("gpu-0",),)


def test_replicas_of_one_body_are_spread_before_they_share() -> None:
    found = place(ask(20), 3, sight(Card(), Card(held=((None, 30),))), ())
    assert found.places == (("gpu-1",), ("gpu-0",), ("gpu-1",))


def test_another_revision_of_the_deployment_is_no_reason_to_spread() -> None:
    there = (claim(0, 20, "mine-1-0", body="old"),)
    cards = (Card(held=(("mine-1-0", 20),)), Card())
    assert place(ask(20), 1, sight(*cards), there).places == (("gpu-0",),)


def test_what_is_claimed_and_not_yet_held_is_not_free() -> None:
    loading = sight(Card(held=(("other-1-0", 5),)))
    placing = place(ask(45), 1, loading, (claim(0, 40),))
    assert placing.places == () and placing.held
    assert placing.refusal == "needs 45 GiB on one GPU; gpu0 has 40 GiB free: 40 GiB taken by other"
    assert place(ask(40), 1, loading, (claim(0, 40),)).places == (("gpu-0",),)


def test_who_holds_more_than_was_claimed_takes_it_from_what_is_free() -> None:
    assert not place(ask(30), 1, sight(Card(held=(("other-1-0", 60),))), (claim(0, 40),)).places


def test_a_refusal_names_who_holds_the_memory() -> None:
    placing = place(ask(40), 1, sight(Card(total=75, held=((None, 44),))), ())
    assert placing.refusal == (
        "needs 40 GiB on one GPU; gpu0 has 31 GiB free: 44 GiB held by unmanaged pid 4711 (alice, python)"
    )


def test_leaked_memory_is_named_as_such() -> None:
    placing = place(ask(40), 1, sight(Card(leaked=50)), ())
    assert "gpu0 has 30 GiB free: 50 GiB held by no process: leaked" in placing.refusal


def test_many_gpus_are_summed_up_with_the_nearest_first() -> None:
    cards = [Card(held=((None, 42 + n),)) for n in range(6)]
    cards += [Card(health=GpuHealth.LOST), Card(health=GpuHealth.SICK, why="Xid 79: drain the host")]
    placing = place(ask(40), 1, sight(*cards), ())
    assert placing.refusal.startswith("needs 40 GiB on one GPU; gpu0 has 38 GiB free: ")
    assert placing.refusal.endswith(", and 5 more")
    assert "gpu1 has 37" in placing.refusal and "gpu2 has 36" in placing.refusal


def test_sick_and_lost_gpus_take_nothing_and_the_refusal_says_why() -> None:
    cards = (Card(health=GpuHealth.SICK, why="Xid 48: reset the GPU"), Card(health=GpuHealth.LOST))
    placing = place(ask(1), 1, sight(*cards), ())
    assert placing.refusal == "needs 1 GiB on one GPU; gpu0 is sick: Xid 48: reset the GPU, gpu1 is lost"
    assert not placing.held


def test_a_degraded_gpu_is_taken_when_there_is_no_better_one() -> None:
    cards = (Card(held=((None, 40),), health=GpuHealth.DEGRADED), Card())
    assert place(ask(10), 1, sight(*cards), ()).places == (("gpu-1",),)
    assert place(ask(10), 1, sight(cards[0]), ()).places == (("gpu-0",),)


@pytest.mark.parametrize("more", [{}, {"vram": 10, "exclusive": True}])
def test_a_claim_on_the_whole_gpu_wants_it_empty(more: dict[str, object]) -> None:
    wish = ask(**more)  # type: ignore[arg-type]
    assert place(wish, 1, sight(Card()), ()).places == (("gpu-0",),)
    assert "gpu0 is shared by other" in place(wish, 1, sight(Card()), (claim(0, 5),)).refusal
    assert "gpu0 is claimed whole by other" in place(wish, 1, sight(Card()), (claim(0, None),)).refusal
    assert "gpu0 is not empty: 1 GiB held by unmanaged" in place(wish, 1, sight(Card(held=((None, 1),))), ()).refusal
    assert "gpu0 is not empty: 2 GiB held by no process" in place(wish, 1, sight(Card(leaked=2)), ()).refusal


def test_a_stranger_that_does_not_tell_its_memory_is_in_the_way_of_a_whole_gpu_while_memory_is_in_use() -> None:
    def silent(size: float) -> Sight:
        seen = sight(Card(held=((None, size),)))
        return replace(seen, uses=(GpuUse("gpu-0", (GpuProcess(4711, None, user="alice", command="python"),), None),))

    assert "memory held by unmanaged pid 4711 (alice, python)" in place(ask(), 1, silent(60), ()).refusal
    assert place(ask(), 1, silent(0.1), ()).places


def test_a_revision_that_takes_all_it_finds_comes_back_though_a_new_driver_keeps_a_little_more() -> None:
    assert place(ask(tolerant=True, peak=80 * GIB), 1, sight(Card(leaked=0.3)), ()).places


def test_a_desktop_and_a_few_megabytes_are_not_in_the_way_of_a_whole_gpu() -> None:
    assert place(ask(), 1, sight(Card(held=((None, 0.1),), leaked=0.2)), ()).places == (("gpu-0",),)


def test_what_is_free_in_a_moment_is_not_free_for_a_whole_claim_now() -> None:
    seen = sight(Card(leaked=30))
    told_late = replace(seen, uses=(GpuUse("gpu-0", (), 0),))
    assert "30 GiB held by no process: not free yet, or leaked" in place(ask(), 1, told_late, ()).refusal


def test_a_revision_that_comes_back_is_not_kept_away_by_a_leak_as_long_as_it_fits() -> None:
    assert place(ask(tolerant=True), 1, sight(Card(leaked=2)), ()).places == (("gpu-0",),)
    assert place(ask(tolerant=True, peak=70 * GIB), 1, sight(Card(leaked=2)), ()).places
    assert not place(ask(tolerant=True, peak=79 * GIB), 1, sight(Card(leaked=2)), ()).places
    assert not place(ask(tolerant=True), 1, sight(Card(held=((None, 2),))), ()).places, "a stranger may grow"


def test_nobody_is_put_on_a_gpu_that_is_claimed_whole() -> None:
    placing = place(ask(1), 1, sight(Card(), Card(held=((None, 79.5),))), (claim(0, None),))
    assert "gpu0 is claimed whole by other" in placing.refusal and "gpu1 has 512 MiB free" in placing.refusal


def in_mode(mode: str, *cards: Card) -> Sight:
    seen = sight(*cards)
    return replace(seen, facts=tuple(replace(facts, compute_mode=mode) for facts in seen.facts))


def test_a_gpu_that_lets_one_process_compute_takes_one_replica_and_only_when_nobody_is_there() -> None:
    assert place(ask(10), 2, in_mode("exclusive_process", Card(), Card()), ()).places == (("gpu-0",), ("gpu-1",))
    taken = in_mode("exclusive_process", Card(held=((None, 1),)), Card(held=(("other-1-0", 1),)))
    refusal = place(ask(10), 1, taken, (claim(1, 10),)).refusal
    assert "gpu0 lets one process compute (nvidia-smi -c DEFAULT): 1 GiB held by unmanaged pid 4711" in refusal
    assert "gpu1 lets one process compute (nvidia-smi -c DEFAULT): 10 GiB taken by other" in refusal
    assert "lets nobody compute" in place(ask(10), 1, in_mode("prohibited", Card()), ()).refusal


def test_what_computes_through_mps_shares_a_gpu_that_lets_one_process_compute() -> None:
    seen = in_mode("exclusive_process", Card(held=((None, 0.1), ("other-1-0", 10))))
    (use,) = seen.uses
    served = tuple(replace(p, command="nvidia-cuda-mps-server") if p.replica is None else p for p in use.processes)
    seen = replace(seen, uses=(replace(use, processes=served),))
    assert place(ask(10), 2, seen, (claim(0, 10),)).places == (("gpu-0",), ("gpu-0",))


def test_gpus_of_one_replica_are_nvlink_peers() -> None:
    cards = (Card(links=("gpu-2",)), Card(links=("gpu-3",)), Card(links=("gpu-0",)), Card(links=("gpu-1",)))
    assert place(ask(10, gpus=2), 1, sight(*cards), ()).places == (("gpu-0", "gpu-2"),)
    assert place(ask(gpus=2), 2, sight(*cards), ()).places == (("gpu-0", "gpu-2"), ("gpu-1", "gpu-3"))


def test_gpus_on_one_switch_are_peers_of_those_on_it() -> None:
    alone, switched = Card(held=((None, 30),)), Card(links=(None, None))
    assert place(ask(10, gpus=2), 1, sight(alone, switched, alone, switched), ()).places == (("gpu-1", "gpu-3"),)


def test_a_single_gpu_is_not_torn_from_a_pair_when_another_would_do() -> None:
    cards = (Card(links=("gpu-1",)), Card(links=("gpu-0",)), Card())
    assert place(ask(), 1, sight(*cards), ()).places == (("gpu-2",),)


def test_the_first_replica_leaves_room_for_the_second() -> None:
    cards = (Card(total=12), Card(total=12), Card(total=24))
    placing = place(ask(10, gpus=2), 2, sight(*cards), ())
    assert sorted(placing.places) == [("gpu-0", "gpu-2"), ("gpu-1", "gpu-2")], "not gpu-0 with gpu-1, then nothing"


def test_as_many_replicas_as_fit_get_a_place_and_the_refusal_tells_of_the_rest() -> None:
    placing = place(ask(50), 3, sight(Card(), Card()), ())
    assert len(placing.places) == 2
    assert "taken by mine" in placing.refusal


def test_mig_instances_are_devices_and_their_gpu_is_none() -> None:
    seen = sight(Card(slices=("1g.10gb", "1g.10gb", "2g.20gb")), Card())
    assert place(ask(mig="1g.10gb"), 2, seen, ()).places == (("mig-0-0",), ("mig-0-1",))
    assert place(ask(5), 2, seen, ()).places == (("gpu-1",), ("gpu-1",))
    refusal = place(ask(mig="3g.40gb"), 1, seen, ()).refusal
    assert refusal.startswith("needs one MIG instance 3g.40gb; MIG instances here: 2 × 1g.10gb, 1 × 2g.20gb")
    assert "every GPU here is cut into MIG instances" in place(ask(5), 1, sight(Card(slices=("1g.10gb",))), ()).refusal


def test_an_instance_of_a_sick_gpu_is_not_used() -> None:
    seen = sight(Card(slices=("1g.10gb",), health=GpuHealth.SICK, why="Xid 95"))
    assert "gpu0 MIG 1g.10gb is sick: Xid 95" in place(ask(mig="1g.10gb"), 1, seen, ()).refusal


def test_a_model_is_part_of_the_name_in_any_case_and_labels_must_all_be_there() -> None:
    cards = (Card(name="NVIDIA H100 PCIe", labels=("fast",)), Card(labels=("fast", "team-a")))
    assert place(ask(5, gpu_model="h100"), 1, sight(*cards), ()).places == (("gpu-0",),)
    assert place(ask(5, gpu_labels=("fast", "team-a")), 1, sight(*cards), ()).places == (("gpu-1",),)
    assert place(ask(5, gpu_model="H200"), 1, sight(*cards), ()).refusal == (
        "needs 5 GiB on one H200 GPU; this host has 1 × NVIDIA H100 PCIe, 1 × NVIDIA A100-SXM4-80GB"
    )
    assert "labels: fast, team-a" in place(ask(5, gpu_labels=("slow",)), 1, sight(*cards), ()).refusal


def test_a_place_that_was_held_before_is_taken_again_while_it_is_good() -> None:
    cards = (Card(), Card())
    assert place(ask(20), 1, sight(*cards), (), prefer=[("gpu-1",)]).places == (("gpu-1",),)
    assert place(ask(20), 1, sight(*cards), (claim(1, None),), prefer=[("gpu-1",)]).places == (("gpu-0",),)
    gone = place(ask(20), 1, sight(*cards), (), prefer=[("gpu-9",)])
    assert gone.places == (("gpu-0",),)


def test_while_nvml_cannot_be_trusted_there_is_no_place() -> None:
    placing = place(ask(1), 1, sight(Card(), trouble="the GPUs cannot be seen now: NVML hangs"), ())
    assert placing.refusal == "needs 1 GiB on one GPU; the GPUs cannot be seen now: NVML hangs"


def test_a_gpu_that_does_not_tell_its_memory_is_only_given_whole() -> None:
    seen = Sight((Gpu(0, "gpu-0", "NVIDIA GB10"),))
    assert "gpu0 does not tell its memory" in place(ask(1), 1, seen, ()).refusal
    assert place(ask(), 1, seen, ()).places == (("gpu-0",),)


def test_a_process_whose_memory_is_not_told_is_taken_to_hold_what_it_claimed() -> None:
    seen = sight(Card(held=(("other-1-0", 40),)))
    untold = replace(seen, uses=(GpuUse("gpu-0", (GpuProcess(1, None, replica="other-1-0"),)),))
    assert place(ask(40), 1, untold, (claim(0, 40),)).places == (("gpu-0",),)


def test_the_measured_peak_counts_instead_of_the_claim_where_it_is_given() -> None:
    seen = sight(Card(held=((None, 50),)))
    assert place(ask(40, peak=20 * GIB), 1, seen, ()).places == (("gpu-0",),)
    assert "(measured peak 35 GiB)" in place(ask(20, peak=35 * GIB), 1, seen, ()).refusal


def test_a_planned_place_is_checked_again_against_the_newest_look() -> None:
    free, taken = sight(Card()), sight(Card(held=((None, 70),)))
    assert obstacle(ask(40), ("gpu-0",), free, ()) is None
    assert "pid 4711" in (obstacle(ask(40), ("gpu-0",), taken, ()) or "")
    assert obstacle(ask(40), ("gpu-7",), free, ()) == "GPU gpu-7 is not there any more"
    assert obstacle(ask(gpus=0), (), replace(free, trouble="x"), ()) is None


# --- what could ever be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "replicas", "says"),
    [
        (asks(40), 2, None),
        (asks(90), 1, "needs 90 GiB on one GPU; the largest here has 80 GiB"),
        (asks(40), 5, "needs 40 GiB on one GPU for each of 5 replicas; this host has room for 4"),
        (asks(), 3, "needs one GPU for itself for each of 3 replicas; this host has room for 2"),
        (asks(gpus=3), 1, "needs 3 GPUs for itself; this host has 2 such"),
        (asks(mig="1g.10gb"), 1, "needs one MIG instance 1g.10gb; MIG instances here: none"),
        (asks(5, gpu_model="V100"), 1, "needs 5 GiB on one V100 GPU; this host has 2 × NVIDIA A100-SXM4-80GB"),
        (Resources(), 9, None),
    ],
)
def test_what_could_never_fit_is_known_however_full_the_host_is(
    wish: Resources, replicas: int, says: str | None
) -> None:
    full = sight(Card(held=((None, 79),)), Card(held=(("other-1-0", 80),)))
    told = never_fits(wish, replicas, full)
    assert told is None if says is None else (told or "").startswith(says)


def test_a_host_without_gpus_never_fits_and_a_blind_one_is_not_judged() -> None:
    assert never_fits(asks(1), 1, Sight()) == "needs 1 GiB on one GPU; NVML shows no GPU on this host"
    assert never_fits(asks(1), 1, Sight(trouble="NVML hangs")) is None


@pytest.mark.parametrize("health", [GpuHealth.LOST, GpuHealth.DEGRADED])
def test_a_gpu_that_is_lost_or_silent_may_come_back(health: GpuHealth) -> None:
    gone = Sight((Gpu(0, "gpu-0", "x", health=health),))
    assert never_fits(asks(40), 1, gone) is None
    assert never_fits(asks(), 1, gone) is None
    assert never_fits(asks(40, exclusive=True), 1, gone) is None
    assert never_fits(asks(40, exclusive=True), 2, gone) is not None


# --- without somebody ----------------------------------------------------------------------------------------------


def test_without_a_replica_its_claim_and_its_memory_are_free() -> None:
    seen = sight(Card(held=(("mine-1-0", 40), (None, 20))))
    there = (claim(0, 50, "mine-1-0", "old"), claim(0, 10))
    after, claims = without(seen, there, {"mine-1-0"})
    assert claims == there[1:]
    assert place(ask(50), 1, after, claims).places == (("gpu-0",),)
    assert not place(ask(51), 1, after, claims).places


def test_a_replica_whose_memory_is_not_attributed_is_taken_to_hold_what_nobody_knows() -> None:
    seen = sight(Card(held=((None, 60), ("other-1-0", 10))))
    (use,) = seen.uses
    hidden = tuple(replace(p, user=None, command=None) if p.replica is None else p for p in use.processes)
    seen = replace(seen, uses=(replace(use, processes=hidden),))
    after, claims = without(seen, (claim(0, 50, "mine-1-0", "old"),), {"mine-1-0"})
    assert place(ask(70), 1, after, claims).places == (("gpu-0",),)


def test_a_replica_that_holds_nothing_does_not_free_what_a_stranger_holds() -> None:
    seen = sight(Card(held=((None, 60),)))
    after, claims = without(seen, (claim(0, 15, "mine-1-0", "old"),), {"mine-1-0"})
    assert place(ask(20), 1, after, claims).places == (("gpu-0",),)
    assert not place(ask(30), 1, after, claims).places


def test_claims_are_read_from_the_replicas_that_run() -> None:
    shared = replace(found("m-1-0", "b"), gpus=("x",), vram=5)
    whole = replace(found("m-1-1", "b"), gpus=("y", "z"), exclusive=True)
    old = replace(found("m-1-2", "b"), gpus=("w",))
    ended = replace(found("m-1-3", "b"), gpus=("v",), life=Life.EXITED)
    sizes = [(c.uuid, c.size) for c in claims_of((shared, whole, old, ended))]
    assert sizes == [("x", 5), ("y", None), ("z", None), ("w", 0)]


def test_devices_have_names_that_people_use() -> None:
    seen = sight(Card(), Card(slices=("1g.10gb",)), Card())
    assert place_names((("gpu-0",), ("mig-1-0",), ("gpu-2",)), seen) == "gpu0, gpu1 MIG 1g.10gb and gpu2"
    assert place_names((), seen) == ""
