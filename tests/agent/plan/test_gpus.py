"""What the planner asks for on a host with GPUs: a start needs a place; what has none waits, fails or comes back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quarterdeck_agent.drivers.base import Life, Resources
from quarterdeck_agent.places import ask_of, place_lost, room_by, waits_for, warm_on_gpus
from quarterdeck_agent.plan import plan
from quarterdeck_agent.promises import kept_for_live
from quarterdeck_agent.protocol import FailureReason, RevisionOutcome
from quarterdeck_agent.seen import Seen
from quarterdeck_agent.steps import Cool, Fail, Hold, Promote, Start, Stop
from quarterdeck_agent.wanted import WantedDeployment, WantedRevision
from tests.agent.plan.test_plan import situations
from tests.agent.plan.world import World, deploying, found, revision, seen_replica, serving

GIB = 2**30
SHARED = Resources(gpus=1, vram=40 * GIB)
WHOLE = Resources(gpus=1)


def on_gpus(world: World, asks: Resources = SHARED, *, sizes: tuple[int, ...] = (80,), **changes: object) -> World:
    """The same host with GPUs a, b, …, on which replicas of every body hold 38 GiB; those there are on the first."""
    world.asks = asks
    world.gpus = {"abcdefgh"[n]: size * GIB for n, size in enumerate(sizes)}
    world.holds = {f"body-{n}": 38 * GIB for n in range(5)}
    for name, value in changes.items():
        setattr(world, name, value)
    for slot, (name, replica) in enumerate(world.replicas.items()):
        at = ("abcdefgh"[slot % len(sizes)],)
        there = replace(replica.found, gpus=at, vram=asks.vram, exclusive=asks.whole_gpus)
        world.replicas[name] = replace(replica, found=there)
    return world


def first(number: int = 1, **changes: object) -> World:
    return World(WantedDeployment("m", 1, target=revision(number, "", **changes)))


def starts(world: World) -> list[tuple[str, ...]]:
    return [step.gpus for step in world.taken if isinstance(step, Start)]


def failure(world: World) -> Fail:
    (failed,) = [step for step in world.taken if isinstance(step, Fail)]
    return failed


def until_held(world: World) -> None:
    """Stage and hold, no further."""
    for _ in range(2):
        for step in world.steps():
            world.perform(step)
    assert isinstance(world.taken[-1], Hold)


# --- no start without a place ----------------------------------------------------------------------------------------


def test_a_start_names_the_devices_it_was_given() -> None:
    world = on_gpus(first(replicas=2), sizes=(80, 80)).run()
    assert starts(world) == [("a",), ("b",)]
    assert world.d.live is not None


def test_a_first_deploy_waits_for_its_place_and_starts_once_there_is_one() -> None:
    world = on_gpus(first(deadline=600.0), strangers={"a": 60 * GIB})
    world.now = 1.0
    world.run(passes=20)
    assert world.names() == ["Stage"]
    why = waits_for(world.d, SHARED, None, world.seen(), world.now)
    assert why == "needs 40 GiB on one GPU; gpu0 has 20 GiB free: 60 GiB held by unmanaged pid 4711 (alice, train)"
    world.strangers.clear()
    world.run()
    assert world.d.live is not None and world.d.live.number == 1


def test_a_first_deploy_without_a_place_fails_at_its_deadline_with_the_explanation() -> None:
    world = on_gpus(first(deadline=30.0), strangers={"a": 60 * GIB})
    world.now = 1.0
    world.run(passes=40)
    assert "Fail" not in world.names()
    world.now = 31.0
    world.run()
    failed = failure(world)
    assert (failed.reason, failed.step) == (FailureReason.NO_GPU, "start")
    assert "60 GiB held by unmanaged pid 4711 (alice, train) (waited 31 s)" in failed.message


def test_the_deadline_counts_from_when_the_files_were_there() -> None:
    world = on_gpus(first(deadline=30.0, image=""), strangers={"a": 60 * GIB})
    world.staged.add("v-1")
    seen = replace(world.seen(), staged_since={"v-1": 90.0})
    assert plan(world.d, SHARED, seen, 100.0) == ()
    assert [type(s) for s in plan(world.d, SHARED, seen, 121.0)] == [Fail]


@pytest.mark.parametrize(
    ("asks", "says"),
    [
        (Resources(gpus=1, vram=90 * GIB), "the largest here has 80 GiB"),
        (Resources(gpus=2), "this host has 1 such"),
        (Resources(gpus=1, mig="1g.10gb"), "MIG instances here: none"),
        (Resources(gpus=1, gpu_model="H100"), "this host has 1 × x"),
    ],
)
def test_what_can_never_fit_fails_at_once(asks: Resources, says: str) -> None:
    world = on_gpus(first(), asks)
    world.now = 1.0
    world.run()
    assert world.names() == ["Fail"]
    assert failure(world).reason is FailureReason.NO_GPU and says in failure(world).message
    assert world.now < 30


def test_a_host_without_gpus_refuses_and_starts_nothing_without() -> None:
    world = on_gpus(first(), sizes=()).run()
    assert world.names() == ["Fail"] and "NVML shows no GPU on this host" in failure(world).message


def test_while_nvml_hangs_nothing_is_started_and_what_runs_is_left_alone() -> None:
    world = on_gpus(serving(), trouble="the GPUs cannot be seen now: NVML hangs", sizes=(80, 80))
    assert world.run().names() == []
    deploying(world, revision(2)).run(passes=20)
    assert world.names() == ["Stage"] and world.running("body-1") == 1
    assert waits_for(world.d, SHARED, None, world.seen(), world.now).endswith("NVML hangs")
    world.trouble = ""
    world.run()
    assert world.d.live is not None and world.d.live.number == 2


def test_an_overlap_without_a_place_leaves_the_old_revision_serving() -> None:
    world = deploying(on_gpus(serving(), strangers={"a": 30 * GIB}), revision(2, deadline=120.0)).run(
        passes=600, rest=600
    )
    assert failure(world).reason is FailureReason.NO_GPU
    assert world.running("body-1") == 1 and None not in world.served


def test_a_planned_start_is_checked_once_more_against_the_newest_look() -> None:
    world = on_gpus(first(image=""))
    world.staged.add("v-1")
    (start,) = world.steps()
    assert isinstance(start, Start)
    assert place_lost(world.d, SHARED, start.revision, start, world.seen()) is None
    world.strangers["a"] = 70 * GIB
    lost = place_lost(world.d, SHARED, start.revision, start, world.seen())
    assert lost is not None and "pid 4711 (alice, train)" in lost


def test_two_deployments_planned_at_one_moment_do_not_get_one_place() -> None:
    world = on_gpus(first(image=""), WHOLE)
    world.staged.add("v-1")
    seen = world.seen()
    (start,) = plan(world.d, WHOLE, seen, world.now)
    assert isinstance(start, Start)
    promised = ask_of(world.d, start.revision, WHOLE).claims(start.replica, start.gpus)
    other = replace(world.d, name="other")
    assert plan(other, WHOLE, replace(seen, promised=promised), world.now) == ()


# --- overlap and hold ------------------------------------------------------------------------------------------------


def test_an_overlap_chosen_by_the_measured_peak_starts_by_the_measured_peak() -> None:
    asks = Resources(gpus=1, vram=60 * GIB)
    world = on_gpus(serving(gpu_memory_peak=39 * GIB), asks)
    world = deploying(world, revision(2, gpu_memory_peak=39 * GIB)).run()
    assert starts(world) == [("a",)]
    assert world.d.live is not None and world.d.live.number == 2 and not world.overfull()


def test_a_hold_starts_only_once_the_memory_of_the_old_is_really_free() -> None:
    world = deploying(on_gpus(serving(), sizes=(50,), release=7.0), revision(2, handover="hold"))
    stopped = started = 0.0
    for _ in range(60):
        for step in world.steps():
            stopped = world.now if isinstance(step, Stop) else stopped
            started = world.now if isinstance(step, Start) else started
            world.perform(step)
        if stopped and not started:
            why = waits_for(world.d, SHARED, None, world.seen(), world.now)
            assert why.startswith("needs 40 GiB on one GPU; gpu0 has 12 GiB free")
        assert not world.overfull()
        world.turn(0.5)
    assert started - stopped >= 7.0
    assert world.d.live is not None and world.d.live.number == 2
    assert None not in world.served


@pytest.mark.parametrize("asks", [SHARED, WHOLE])
def test_a_whole_gpu_too_is_waited_for_until_it_is_empty(asks: Resources) -> None:
    world = deploying(on_gpus(serving(), asks, sizes=(50,), release=5.0), revision(2, handover="hold")).run()
    assert world.d.live is not None and world.d.live.number == 2
    assert starts(world) == [("a",)]


def test_memory_that_is_not_released_fails_the_hold_by_name_and_the_old_comes_back() -> None:
    world = on_gpus(serving(), Resources(gpus=1, vram=60 * GIB), live_asks=SHARED)
    world = deploying(world, revision(2, handover="hold"))
    until_held(world)
    world.leaks["a"] = 30 * GIB
    world.run(passes=600, rest=600)
    failed = failure(world)
    assert (failed.reason, failed.step) == (FailureReason.MEMORY_NOT_FREE, "memory")
    assert "gpu0 has 50 GiB free: 30 GiB held by no process: leaked (waited 120 s)" in failed.message
    assert world.running("body-1") == 1 and not world.d.holding
    assert None not in world.served


def test_a_stranger_that_takes_the_memory_during_a_hold_is_named() -> None:
    world = deploying(on_gpus(serving(), sizes=(60,)), revision(2, handover="hold"))
    until_held(world)
    world.replicas.clear()
    world.strangers["a"] = 30 * GIB
    world.run(passes=400, rest=400)
    assert "30 GiB held by unmanaged pid 4711 (alice, train)" in failure(world).message
    assert world.d.live is not None and world.d.live.number == 1
    assert world.running("body-1") == 0 and world.d.holding, "it does not fit either, so requests go on waiting"
    why = waits_for(world.d, SHARED, None, world.seen(), world.now)
    assert "pid 4711" in why
    world.strangers.clear()
    world.run()
    assert world.running("body-1") == 1 and not world.d.holding


def test_a_revision_with_a_whole_gpu_comes_back_on_it_although_a_little_leaked() -> None:
    world = on_gpus(serving(), WHOLE, leaks={"a": 2 * GIB})
    world.replicas.clear()
    world.run()
    assert world.running("body-1") == 1


def test_no_hold_begins_that_would_not_make_room() -> None:
    world = on_gpus(serving(), Resources(gpus=1, vram=60 * GIB), live_asks=SHARED, strangers={"a": 30 * GIB})
    world = deploying(world, revision(2, handover="hold", deadline=300.0)).run(passes=100)
    assert "Hold" not in world.names() and world.running("body-1") == 1
    why = waits_for(world.d, world.asks, SHARED, world.seen(), world.now)
    assert "gpu0 has 50 GiB free: 30 GiB held by unmanaged pid 4711" in why
    world.strangers.clear()
    world.run()
    assert world.d.live is not None and world.d.live.number == 2


def test_a_hold_that_never_could_begin_fails_at_the_deadline_and_the_old_served_all_the_time() -> None:
    world = on_gpus(serving(), Resources(gpus=1, vram=60 * GIB), live_asks=SHARED, strangers={"a": 30 * GIB})
    world = deploying(world, revision(2, handover="hold", deadline=150.0)).run(passes=600, rest=600)
    assert failure(world).reason is FailureReason.NO_GPU
    assert "Hold" not in world.names() and world.running("body-1") == 1 and None not in world.served


def test_a_hold_whose_old_replicas_cannot_be_ended_is_given_up_and_they_serve_on() -> None:
    world = deploying(on_gpus(serving(), sizes=(50,)), revision(2, handover="hold"))
    for _ in range(400):
        for step in world.steps():
            if not isinstance(step, Stop):
                world.perform(step)
        world.turn(0.5)
    failed = failure(world)
    assert (failed.reason, failed.step) == (FailureReason.MEMORY_NOT_FREE, "memory")
    assert failed.message.startswith("m-1-0 cannot be ended (waited ")
    assert world.d.target.number == 1 and not world.d.holding and world.served[-1] == 1


def test_a_hold_is_not_given_up_for_the_time_in_which_the_agent_was_away() -> None:
    world = deploying(on_gpus(serving(), sizes=(50,)), revision(2, handover="hold"))
    until_held(world)
    world.replicas.clear()
    world.now += 3600.0
    world.trouble = "the GPUs have not been looked at yet"
    began = {"v-2": world.now}
    assert plan(world.d, SHARED, replace(world.seen(), staged_since=began), world.now) == ()
    world.trouble = ""
    (start,) = plan(world.d, SHARED, replace(world.seen(), staged_since=began), world.now)
    assert isinstance(start, Start) and start.revision.number == 2
    world.strangers["a"] = 30 * GIB
    (failed,) = plan(world.d, SHARED, replace(world.seen(), staged_since=began), world.now + 130.0)
    assert isinstance(failed, Fail) and "(waited 130 s)" in failed.message


# --- who goes first --------------------------------------------------------------------------------------------------


def test_a_crashed_replica_gets_its_device_again() -> None:
    world = on_gpus(serving(), WHOLE, sizes=(80, 80))
    moved = replace(world.replicas["m-1-0"].found, gpus=("b",), life=Life.EXITED, exit_code=1)
    world.replicas["m-1-0"] = replace(world.replicas["m-1-0"], found=moved, ready=False)
    world.run()
    assert starts(world) == [("b",)]


def test_a_crashed_replica_whose_device_is_gone_gets_another() -> None:
    world = on_gpus(serving(), WHOLE, sizes=(80, 80))
    moved = replace(world.replicas["m-1-0"].found, gpus=("b",), life=Life.EXITED, exit_code=1)
    world.replicas["m-1-0"] = replace(world.replicas["m-1-0"], found=moved, ready=False)
    del world.gpus["b"]
    world.run()
    assert starts(world) == [("a",)]


def test_a_rollout_does_not_take_the_place_of_a_live_replica_that_has_to_come_back() -> None:
    world = deploying(on_gpus(serving(), WHOLE), revision(2, image=""))
    world.staged.add("v-2")
    world.replicas.clear()
    assert [step.revision.number for step in world.steps() if isinstance(step, Start)] == [1]


def test_the_place_of_a_live_replica_is_kept_for_it_until_it_is_back() -> None:
    world = on_gpus(serving(), WHOLE)
    assert kept_for_live(world.d, WHOLE, world.seen()) == ()
    world.replicas.clear()
    world.left = {"body-1": (("a",),)}
    kept = kept_for_live(world.d, WHOLE, world.seen())
    assert [(claim.uuid, claim.size) for claim in kept] == [("a", None)]
    other = first(image="").d
    seen = replace(world.seen(), promised=kept)
    assert plan(replace(other, name="other"), WHOLE, seen, world.now) == ()


def test_the_warm_revision_goes_when_its_memory_is_needed() -> None:
    world = deploying(on_gpus(serving(), sizes=(80,)), revision(2)).run()
    assert (world.running("body-1"), world.running("body-2")) == (1, 1)
    crashed = replace(world.replicas["m-2-0"].found, life=Life.EXITED, exit_code=1)
    world.replicas["m-2-0"] = replace(world.replicas["m-2-0"], found=crashed, ready=False)
    world.strangers["a"] = 30 * GIB
    world.holds["body-2"] = 0
    world.run()
    assert any(isinstance(step, Cool) and step.why == "its GPU memory is needed" for step in world.taken)
    assert (world.running("body-1"), world.running("body-2")) == (0, 1)


def test_the_warm_revision_of_another_deployment_goes_when_its_memory_is_needed() -> None:
    world = deploying(on_gpus(serving(), sizes=(80, 80)), revision(2)).run()
    assert [r.found.gpus for r in world.replicas.values()] == [("a",), ("a",)]
    warm = {"m": warm_on_gpus(world.d, world.seen()), "n": frozenset({"n-1-0"})}
    assert warm["m"] == {"m-1-0"}
    other = replace(first(image="").d, name="other")
    seen = replace(world.seen(), staged=frozenset({"v-1", "v-2"}))
    assert room_by(other, SHARED, None, seen, world.now, warm) == (), "there is room as it is"
    world.strangers["b"] = 60 * GIB
    seen = replace(world.seen(), staged=seen.staged)
    assert room_by(other, SHARED, None, seen, world.now, warm) == ("m",)
    assert room_by(other, Resources(gpus=1, vram=60 * GIB), None, seen, world.now, warm) == (), "not enough either"
    cooled = plan(world.d, SHARED, replace(seen, needed=frozenset({"m"})), world.now)
    assert [step.why for step in cooled if isinstance(step, Cool)] == ["another deployment needs its GPU memory"]


def test_the_warm_revision_of_another_deployment_goes_where_a_hold_could_begin_without_it() -> None:
    world = on_gpus(serving(), Resources(gpus=1, vram=60 * GIB), live_asks=SHARED)
    world = deploying(world, revision(2, image="", handover="hold"))
    world.staged.add("v-2")
    mine = world.replicas["m-1-0"]
    warm = replace(mine, found=replace(mine.found, id="n-1-0", deployment="n", body="warm", vram=30 * GIB))
    world.replicas["n-1-0"] = warm
    seen = world.seen()
    assert world.steps() == (), "no hold begins that would not make room"
    assert room_by(world.d, world.asks, SHARED, seen, world.now, {"n": frozenset({"n-1-0"})}) == ("n",)
    assert room_by(world.d, SHARED, SHARED, seen, world.now, {"n": frozenset({"n-1-0"})}) == ()


def test_a_replica_made_for_a_gpu_that_is_taken_now_gives_way_to_one_elsewhere() -> None:
    world = on_gpus(first(image=""), sizes=(80, 80), strangers={"a": 70 * GIB})
    world.staged.add("v-1")
    made = found("m-1-0", "body-1", 1, life=Life.CREATED, gpus=("a",), vram=40 * GIB)
    world.replicas["m-1-0"] = replace(seen_replica("m-1-0", "body-1", ready=False), found=made)
    world.run()
    assert starts(world) == [("b",)] and world.d.live is not None


def test_a_rollback_to_a_warm_revision_needs_no_new_place() -> None:
    world = deploying(on_gpus(serving()), revision(2)).run()
    world.taken.clear()
    back = replace(revision(3, "body-1"), spec=revision(1).spec, passed=True, image="")
    deploying(world, back).run()
    assert [type(step) for step in world.taken] == [Promote]


# --- from anywhere ---------------------------------------------------------------------------------------------------


@st.composite
def crowded(draw: st.DrawFn) -> World:
    """Any situation on a host with GPUs, with strangers and leaks there."""
    world: World = draw(situations())
    vram = draw(st.sampled_from([None, 10, 30]))
    asks = Resources(gpus=draw(st.integers(0, 2)), vram=None if vram is None else vram * GIB)
    sizes = tuple(draw(st.lists(st.sampled_from([24, 80]), min_size=1, max_size=4)))
    world.holds = dict.fromkeys(("a", "b", "c"), (vram or 20) * GIB)
    world.d = measured(world.d, (vram or 20) * GIB)
    world.asks, world.release = asks, draw(st.sampled_from([0.0, 3.0]))
    world.gpus = {"abcd"[n]: size * GIB for n, size in enumerate(sizes)}
    for name, replica in list(world.replicas.items()):
        free = [gpu.uuid for gpu in world.seen().gpus if (gpu.memory_free or 0) >= (vram or 20) * GIB]
        if vram is None:
            free = [uuid for uuid in free if not any(uuid in r.found.gpus for r in world.replicas.values())]
        if len(free) < asks.gpus:
            del world.replicas[name]
            continue
        at = replace(replica.found, gpus=tuple(free[: asks.gpus]), vram=asks.vram, exclusive=asks.whole_gpus)
        world.replicas[name] = replace(replica, found=at)
    for uuid in world.gpus:
        free_now = next(gpu.memory_free or 0 for gpu in world.seen().gpus if gpu.uuid == uuid)
        if draw(st.booleans()) and free_now > 8 * GIB:
            draw(st.sampled_from([world.strangers, world.leaks]))[uuid] = 8 * GIB
    return world


def measured(d: WantedDeployment, peak: int) -> WantedDeployment:
    """The same with the peak of every revision known."""
    target, live, previous = (
        None if r is None else replace(r, gpu_memory_peak=peak) for r in (d.target, d.live, d.previous)
    )
    return replace(d, target=target or d.target, live=live, previous=previous)


@settings(max_examples=400, deadline=None)
@given(crowded())
def test_from_any_situation_no_gpu_is_ever_overfull_and_planning_comes_to_rest(world: World) -> None:
    for _ in range(700):
        if world.gone:
            break
        for step in world.steps():
            world.perform(step)
            assert not world.overfull()
        world.turn(1.0)
    if world.gone:
        return
    assert world.steps() == ()
    d = world.d
    if d.live is None or d.live.spec.stopped:
        return
    if world.running(d.live.body) < d.live.spec.replicas:
        assert waits_for(d, world.asks, None, world.seen(), world.now), "what is missing waits for something"
    else:
        assert not d.holding


def test_a_world_without_gpus_has_none() -> None:
    assert serving().seen().sight == Seen("x").sight


def live_of(world: World) -> WantedRevision:
    assert world.d.live is not None and world.d.live.outcome is RevisionOutcome.SERVING
    return world.d.live


def test_a_hold_is_begun_where_it_makes_room() -> None:
    world = deploying(on_gpus(serving(), sizes=(50,)), revision(2, handover="hold", image=""))
    world.staged.add("v-2")
    assert [type(step) for step in world.steps()] == [Hold]
    assert live_of(world).number == 1
