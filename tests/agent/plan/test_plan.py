"""What the planner asks for, situation by situation, and that from any situation it converges and then is quiet."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quarterdeck_agent.counts import CRASHES_TO_FAIL, next_start
from quarterdeck_agent.drivers.base import Life, Resources
from quarterdeck_agent.plan import plan
from quarterdeck_agent.protocol import FailureReason, Gpu, RevisionOutcome
from quarterdeck_agent.steps import Bury, Fail, Hold, Promote, Stage, Start, Stop
from quarterdeck_agent.traffic import route
from quarterdeck_agent.wanted import Instant, WantedDeployment
from tests.agent.plan.world import BOOT, World, deploying, found, revision, seen_replica, serving

GIB = 2**30


def test_a_first_deploy_stages_starts_checks_and_promotes_in_this_order() -> None:
    world = World(WantedDeployment("m", 1, target=revision(1))).run()
    assert world.names() == ["Stage", "Start", "Check", "Promote"]
    assert world.running("body-1") == 1
    assert world.d.live is not None and world.d.live.number == 1


def test_a_replica_that_was_made_but_not_started_is_started_under_its_name() -> None:
    world = deploying(serving(), revision(2))
    world.replicas["m-2-0"] = seen_replica("m-2-0", "body-2", 2, ready=False)
    world.replicas["m-2-0"] = replace(world.replicas["m-2-0"], found=found("m-2-0", "body-2", 2, life=Life.CREATED))
    assert world.run().names() == ["Stage", "Start", "Check", "Promote"]
    assert world.running("body-2") == 1


def test_a_replica_that_another_revision_made_but_did_not_start_gives_way_to_a_new_one() -> None:
    world = deploying(serving(), revision(3, body="body-2"))
    world.replicas["m-2-0"] = seen_replica("m-2-0", "body-2", 2, ready=False)
    world.replicas["m-2-0"] = replace(world.replicas["m-2-0"], found=found("m-2-0", "body-2", 2, life=Life.CREATED))
    world.run()
    assert "m-2-0" not in world.replicas and "m-3-0" in world.replicas


def test_an_overlap_keeps_the_old_revision_until_the_new_one_serves_and_then_warm() -> None:
    world = deploying(serving(), revision(2)).run()
    assert world.names() == ["Stage", "Start", "Check", "Promote"]
    assert None not in world.served
    assert (world.running("body-1"), world.running("body-2")) == (1, 1)
    world.now += 601
    world.run()
    assert set(world.names()[-2:]) == {"Cool", "Stop"}
    assert world.running("body-1") == 0


def test_without_warmth_the_old_revision_is_stopped_once_it_is_drained() -> None:
    world = deploying(serving(warm=0.0), revision(2, warm=0.0)).run()
    assert world.names()[:4] == ["Stage", "Start", "Check", "Promote"]
    assert set(world.names()[4:]) == {"Cool", "Stop"}


def test_a_replica_with_requests_is_not_stopped_before_the_drain_limit() -> None:
    world = deploying(serving(warm=0.0), revision(2, warm=0.0))
    for _ in range(20):
        for step in world.steps():
            world.perform(step)
        world.turn(0.5)
        old = world.replicas["m-1-0"]
        world.replicas["m-1-0"] = replace(old, requests=3)
    assert world.running("body-1") == 1
    world.now += 61
    assert any(isinstance(step, Stop) and step.replica.id == "m-1-0" for step in world.steps())


def test_a_hold_stops_the_old_before_it_starts_the_new_and_no_request_is_refused() -> None:
    world = deploying(serving(warm=0.0), revision(2, handover="hold")).run()
    assert world.names()[:6] == ["Stage", "Hold", "Stop", "Start", "Check", "Promote"]
    assert "Release" in world.names()
    assert not world.d.holding
    assert None not in world.served


def test_a_hold_that_fails_brings_the_old_revision_back_and_keeps_requests_waiting() -> None:
    world = deploying(serving(), revision(2, handover="hold"))
    world.wrong = frozenset({"body-2"})
    world.run()
    assert world.d.live is not None and world.d.live.number == 1
    assert world.running("body-1") == 1 and world.running("body-2") == 0
    assert not world.d.holding
    assert None not in world.served


def test_a_hold_waits_until_the_memory_is_really_free_and_then_gives_up() -> None:
    asks = Resources(memory=8 * GIB)
    world = deploying(serving(), revision(2, handover="hold", image="", passed=False))
    world.staged.add("v-2")
    world.replicas.clear()
    world.d = replace(world.d, holding=True, holding_since=Instant(BOOT, world.now))
    short = replace(world.seen(), memory_total=64 * GIB, memory_available=7 * GIB)
    assert plan(world.d, asks, short, world.now) == ()
    enough = replace(short, memory_available=9 * GIB)
    assert [type(s) for s in plan(world.d, asks, enough, world.now)] == [Start]
    (failed,) = plan(world.d, asks, short, world.now + 200)
    assert isinstance(failed, Fail) and failed.reason is FailureReason.MEMORY_NOT_FREE
    assert "8 GiB" in failed.message and "7 GiB" in failed.message


def test_golden_answers_that_differ_fail_the_rollout_and_leave_the_old_one_alone() -> None:
    world = deploying(serving(), revision(2))
    world.wrong = frozenset({"body-2"})
    world.run()
    assert world.d.target.number == 1
    assert set(world.replicas) == {"m-1-0"}
    assert None not in world.served


def test_a_version_that_never_gets_ready_fails_at_its_deadline_not_before() -> None:
    world = deploying(serving(), revision(2, deadline=30.0))
    world.never_ready = frozenset({"body-2"})
    for _ in range(50):
        for step in world.steps():
            world.perform(step)
        world.turn(0.5)
    assert "Fail" not in world.names()
    world.now += 10
    world.run()
    failed = next(s for s in world.taken if isinstance(s, Fail))
    assert failed.reason is FailureReason.NEVER_READY
    assert world.d.target.number == 1 and world.running("body-1") == 1


def test_a_version_that_ends_at_once_is_tried_three_times_with_growing_pauses() -> None:
    world = deploying(serving(), revision(2))
    world.breaks = frozenset({"body-2"})
    world.run()
    assert world.names().count("Start") == 3
    assert world.names()[-1] == "Fail"
    assert world.d.target.number == 1


def test_a_deploy_of_what_failed_before_is_really_tried_again() -> None:
    crashes = tuple(Instant(BOOT, 90.0 + second) for second in range(3))
    world = deploying(serving(), revision(2, crashes=crashes))
    world.d = replace(world.d, target=replace(world.d.target, created=Instant(BOOT, 95.0)))
    world.now = 95.5
    world.run()
    assert world.d.live is not None and world.d.live.number == 2
    assert "Fail" not in world.names()


@pytest.mark.parametrize("handover", ["overlap", "hold"])
def test_a_revision_that_passed_once_fails_when_its_replicas_end_now(handover: str) -> None:
    world = deploying(serving(), revision(2, passed=True, handover=handover))
    world.breaks = frozenset({"body-2"})
    world.run()
    assert "Fail" in world.names(), "or its rollout would go on for ever"
    assert world.d.target.number == 1 and world.running("body-1") == 1


def test_a_live_replica_that_never_gets_ready_again_is_replaced_after_the_deadline() -> None:
    world = serving(deadline=100.0)
    starting = seen_replica("m-1-0", "body-1", ready=False, unready_since=90.0, detail="/health answered 503")
    world.replicas["m-1-0"] = starting
    world.now = 189.0
    assert "Bury" not in {type(step).__name__ for step in world.steps()}
    world.now = 191.0
    buried = next(step for step in world.steps() if isinstance(step, Bury))
    assert (buried.reason, buried.message) == (FailureReason.NEVER_READY, "not ready for 100 s: /health answered 503")


def test_a_live_replica_that_ends_is_started_again_after_a_pause_that_grows_to_a_minute() -> None:
    world = serving()
    pauses = []
    for _ in range(9):
        name = next(iter(world.replicas))
        world.replicas[name] = replace(
            world.replicas[name], found=replace(world.replicas[name].found, life=Life.EXITED)
        )
        died = world.now
        world.breaks = frozenset()
        while not any(isinstance(step, Start) for step in world.taken):
            for step in world.steps():
                world.perform(step)
            world.turn(0.25)
        pauses.append(world.now - died)
        world.taken.clear()
    assert pauses == sorted(pauses)
    assert pauses[0] < 2 and 45 <= pauses[-1] <= 62


def test_crashes_long_past_are_forgotten_once_the_revision_runs_well() -> None:
    world = serving(crashes=(Instant(BOOT, 10.0),))
    world.now = 700.0
    assert world.run().names() == ["Recover"]


def test_a_rollback_to_a_warm_revision_promotes_at_once_and_starts_nothing() -> None:
    world = deploying(serving(), revision(2)).run()
    world.taken.clear()
    back = replace(revision(3, "body-1"), spec=replace(revision(1).spec), passed=True, image="")
    world = deploying(world, back)
    assert [type(s) for s in world.steps()] == [Promote]
    world.run()
    assert world.names() == ["Promote"]
    assert (world.running("body-1"), world.running("body-2")) == (1, 1)


def test_a_third_version_lets_the_oldest_go_only_when_it_has_replaced_the_second() -> None:
    world = deploying(serving(), revision(2)).run()
    world = deploying(world, revision(3))
    world.wrong = frozenset({"body-3"})
    world.run()
    assert (world.running("body-1"), world.running("body-2"), world.running("body-3")) == (1, 1, 0)
    world.wrong = frozenset()
    deploying(world, revision(4, "body-3")).run()
    assert (world.running("body-1"), world.running("body-2"), world.running("body-3")) == (0, 1, 1)


def test_nothing_stays_warm_when_memory_is_short() -> None:
    world = deploying(serving(), revision(2)).run()
    short = replace(world.seen(), memory_total=100 * GIB, memory_available=5 * GIB)
    assert {type(s).__name__ for s in plan(world.d, world.asks, short, world.now)} == {"Cool", "Stop"}


def test_scaling_up_and_down_keeps_the_replicas_that_serve() -> None:
    up = deploying(serving(), replace(revision(2, "body-1", replicas=3), passed=True, image="")).run()
    assert up.running("body-1") == 3
    assert "m-1-0" in up.replicas
    down = deploying(up, replace(revision(3, "body-1", replicas=1), passed=True, image="")).run()
    assert down.running("body-1") == 1
    assert None not in down.served


def test_stopping_closes_the_route_before_it_ends_the_replicas() -> None:
    world = deploying(serving(), revision(2, "body-1", stopped=True))
    assert [type(s) for s in world.steps()] == [Promote]
    world.run()
    assert world.replicas == {}
    assert route(world.d, world.seen(), world.now).stopped


def test_removing_ends_everything_and_then_forgets_the_deployment() -> None:
    world = serving(replicas=2)
    world.d = replace(world.d, removing=True)
    world.run()
    assert world.gone and world.replicas == {}


def test_an_engine_that_does_not_answer_gets_no_steps_but_a_warm_rollback_still_goes_through() -> None:
    world = deploying(serving(), revision(2)).run()
    back = replace(revision(3, "body-1"), passed=True, image="")
    world = deploying(world, replace(back, spec=replace(back.spec, version="v-1")))
    deaf = replace(world.seen(), engine_ok=False)
    assert [type(s) for s in plan(world.d, world.asks, deaf, world.now)] == [Promote]
    fresh = deploying(serving(), revision(2))
    assert plan(fresh.d, fresh.asks, replace(fresh.seen(), engine_ok=False), fresh.now) == ()


def test_a_replica_adopted_from_before_a_restart_is_drained_as_if_it_had_requests() -> None:
    world = serving(warm=0.0)
    stranger = seen_replica("m-0-0", "body-0", routed=True, unrouted_since=None, requests=None)
    world.replicas["m-0-0"] = replace(stranger, was_ready=False)
    assert world.steps() == ()
    world.turn(0.5)
    world.replicas["m-0-0"] = replace(world.replicas["m-0-0"], requests=0)
    assert [type(s) for s in world.steps()] == [Stop]


def test_a_live_replica_that_ends_during_a_rollout_gets_the_gpus_it_asks_for_itself() -> None:
    world = deploying(serving(), revision(2, image=""))
    world.replicas.clear()
    gpu = Gpu(0, "gpu-0", "x", 80 * GIB, 0)
    seen = replace(world.seen(), gpus=(gpu,), staged=frozenset({"v-1", "v-2"}))
    steps = plan(world.d, Resources(), seen, world.now, Resources(gpus=1))
    assert {step.revision.number: step.gpus for step in steps if isinstance(step, Start)} == {1: ("gpu-0",), 2: ()}


def test_crashes_of_another_boot_do_not_count() -> None:
    crashed = revision(1, crashes=tuple(Instant("other boot", float(n)) for n in range(CRASHES_TO_FAIL)))
    assert next_start(crashed, BOOT, 5.0) == 0.0


@pytest.mark.parametrize("code", [0, 1, 139])
def test_an_end_nobody_asked_for_is_a_crash_whatever_the_code(code: int) -> None:
    world = serving()
    ended = found("m-1-0", "body-1", life=Life.EXITED, exit_code=code)
    world.replicas["m-1-0"] = seen_replica("m-1-0", "body-1", ready=False)
    world.replicas["m-1-0"] = replace(world.replicas["m-1-0"], found=ended)
    (step,) = world.steps()
    assert isinstance(step, Bury) and str(code) in step.message


def test_a_failed_first_deploy_leaves_nothing_running_and_asks_for_nothing_more() -> None:
    world = World(WantedDeployment("m", 1, target=revision(1)))
    world.wrong = frozenset({"body-1"})
    world.run()
    assert world.replicas == {} and world.steps() == ()
    assert world.d.target.outcome is RevisionOutcome.FAILED


# --- from anywhere it converges ------------------------------------------------------------------------------------

_BODIES = ("a", "b", "c")


@st.composite
def situations(draw: st.DrawFn) -> World:
    """Any deployment in any state, with any replicas, as a killed agent might find it."""
    number = 10
    body = draw(st.sampled_from(_BODIES))
    handover = draw(st.sampled_from(["overlap", "hold"]))
    warm = draw(st.sampled_from([0.0, 30.0]))
    target = revision(
        number,
        body,
        replicas=draw(st.integers(1, 3)),
        stopped=draw(st.integers(0, 9)) == 0,
        golden=draw(st.booleans()),
        warm=warm,
        handover=handover,
        passed=draw(st.booleans()),
        image=draw(st.sampled_from([None, ""])),
    )
    live = None
    if draw(st.booleans()):
        body = draw(st.sampled_from(_BODIES))
        live = revision(9, body, replicas=draw(st.integers(1, 3)), warm=warm, passed=True, image="")
        live = replace(live, outcome=RevisionOutcome.SERVING)
    if live is not None and draw(st.booleans()):
        target = live
    previous = None
    if live is not None and draw(st.booleans()):
        previous = revision(8, draw(st.sampled_from(_BODIES)), passed=True, image="")
        previous = None if previous.body == live.body else previous
    holding = live is not None and draw(st.booleans())
    d = WantedDeployment(
        "m",
        1,
        target=target,
        live=live,
        previous=previous,
        replaced_at=Instant(BOOT, 90.0) if previous else None,
        holding=holding,
        holding_since=Instant(BOOT, 95.0) if holding else None,
        removing=draw(st.integers(0, 9)) == 0,
    )
    world = World(d)
    world.staged = set(draw(st.lists(st.sampled_from([f"v-{b}" for b in _BODIES]), unique=True)))
    for index in range(draw(st.integers(0, 5))):
        body = draw(st.sampled_from(_BODIES))
        name = f"m-9-{index}"
        ready = draw(st.booleans())
        world.replicas[name] = seen_replica(name, body, 9, ready=ready, routed=draw(st.booleans()))
        life = draw(st.sampled_from([Life.RUNNING, Life.RUNNING, Life.RUNNING, Life.CREATED, Life.EXITED]))
        if life is not Life.RUNNING:
            number = draw(st.sampled_from([9, target.number]))
            world.replicas[name] = replace(
                world.replicas[name], ready=False, was_ready=False, found=found(name, body, number, life=life)
            )
    world.wrong = frozenset(draw(st.lists(st.sampled_from(_BODIES), unique=True, max_size=1)))
    if live is not None:
        world.wrong -= {live.body}
    return world


@settings(max_examples=400, deadline=None)
@given(situations())
def test_from_any_situation_it_converges_and_then_asks_for_nothing(world: World) -> None:
    world.run(passes=600)
    if world.gone:
        assert world.replicas == {}
        return
    assert world.steps() == ()
    d = world.d
    if d.live is not None and not d.live.spec.stopped:
        assert world.running(d.live.body) == d.live.spec.replicas
        assert not d.holding
    wanted = {r.body for r in (d.live, d.previous) if r is not None}
    assert {r.found.body for r in world.replicas.values()} <= wanted


@settings(max_examples=200, deadline=None)
@given(situations())
def test_a_ready_live_revision_is_never_left_without_a_route_by_a_rollout(world: World) -> None:
    d = world.d
    if d.live is None or d.live.spec.stopped or d.target.spec.stopped or d.removing or d.holding:
        return
    if not any(r.ready and r.found.body == d.live.body for r in world.replicas.values()):
        return
    world.run(passes=600)
    assert None not in world.served


@settings(max_examples=200, deadline=None)
@given(situations())
def test_planning_is_pure(world: World) -> None:
    assert world.steps() == world.steps()


def test_a_hold_begins_only_after_staging() -> None:
    world = deploying(serving(), revision(2, handover="hold"))
    assert [type(s) for s in world.steps()] == [Stage]
    world.perform(Stage(world.d.target))
    assert [type(s) for s in world.steps()] == [Hold]
