"""What a deployment is said to be, situation by situation."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from quarterdeck_agent.drivers.base import Life
from quarterdeck_agent.protocol import (
    DeploymentState,
    DeploymentStatus,
    Failure,
    FailureReason,
    ReplicaState,
    RevisionOutcome,
)
from quarterdeck_agent.status import Facts, deployment_status, rollout_phase
from quarterdeck_agent.wanted import Instant
from tests.agent.plan.world import BOOT, World, deploying, revision, seen_replica, serving

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
FACTS = Facts("http://127.0.0.1:8080/m", "/predict", NOON, "ada", "process")


def failure(message: str, step: str = "run") -> Failure:
    return Failure(NOON, step, FailureReason.EXITED, message)


def told(world: World, facts: Facts = FACTS) -> DeploymentStatus:
    return deployment_status(world.d, world.seen(), facts, world.now, NOON)


def crashed(world: World, times: int) -> World:
    """The same host whose live replica has just ended for the n-th time."""
    assert world.d.live is not None
    live = replace(world.d.live, crashes=tuple(Instant(BOOT, world.now) for _ in range(times)))
    world.d = replace(world.d, live=live, target=live)
    world.replicas.clear()
    return world


def test_a_revision_that_serves_is_said_to_serve() -> None:
    status = told(serving())
    assert (status.state, status.summary) == (DeploymentState.SERVING, "serving m:1")
    assert (status.replicas_wanted, status.replicas_ready, status.operation) == (1, 1, None)
    assert [r.state for r in status.replicas] == [ReplicaState.READY]


SHORT = "needs 40 GiB on one GPU; gpu0 has 31 GiB free: 44 GiB held by unmanaged pid 4711 (alice, python)"


def test_a_rollout_without_a_place_says_what_it_waits_for() -> None:
    world = deploying(serving(), revision(2, image=""))
    world.staged.add("v-2")
    status = told(world, replace(FACTS, waits=SHORT))
    assert (status.state, status.summary) == (DeploymentState.DEPLOYING, f"m:2: start (0 of 1; {SHORT})")


def test_a_hold_that_waits_for_memory_is_in_a_step_of_its_own() -> None:
    world = deploying(serving(), revision(2, handover="hold", image=""))
    world.staged.add("v-2")
    assert told(world, replace(FACTS, waits=SHORT)).summary == f"m:2: hold ({SHORT})"
    world.d = replace(world.d, holding=True, holding_since=Instant(BOOT, world.now))
    world.replicas.clear()
    status = told(world, replace(FACTS, waits=SHORT))
    assert (status.state, status.summary) == (DeploymentState.HOLDING, f"m:2: memory ({SHORT})")
    assert told(world).summary == "m:2: start (0 of 1)"


def test_a_live_revision_without_a_place_says_what_keeps_it_from_coming_back() -> None:
    world = serving()
    world.replicas.clear()
    status = told(world, replace(FACTS, waits=SHORT))
    assert status.state is DeploymentState.DEGRADED
    assert status.summary == f"0 of 1 replicas ready, 0 crashes in 10 minutes; waits for its GPUs: {SHORT}"
    world.d = replace(world.d, holding=True)
    status = told(world, replace(FACTS, waits=SHORT))
    assert (status.state, status.summary) == (DeploymentState.HOLDING, f"m:1 is coming back, but {SHORT}")


def test_a_deploy_that_failed_does_not_explain_why_the_live_one_crashes() -> None:
    never = failure("not ready after 30 s", "ready")
    world = crashed(serving(), 2)
    status = told(world, replace(FACTS, failure=never, crash=failure("exited with code 7")))
    assert status.state is DeploymentState.DEGRADED
    assert "2 crashes in 10 minutes: exited with code 7" in status.summary
    assert "30 s" not in status.summary
    assert status.failure == never, "the record that people are after is still the refused deploy's"


def test_a_refused_deploy_is_told_beside_what_goes_on_serving() -> None:
    status = told(serving(), replace(FACTS, failure=failure("golden 'g' differs", "golden")))
    assert status.state is DeploymentState.SERVING
    assert status.summary == "serving m:1; the last deploy failed: golden 'g' differs"


def test_crashes_got_over_are_not_told_as_a_refused_deploy() -> None:
    crash = failure("exited with code 7")
    assert told(serving(), replace(FACTS, failure=crash, crash=crash)).summary == "serving m:1"


@pytest.mark.parametrize(("times", "state"), [(1, DeploymentState.DEGRADED), (5, DeploymentState.FAILED)])
def test_a_live_revision_counts_as_failed_after_five_crashes(times: int, state: DeploymentState) -> None:
    assert told(crashed(serving(), times)).state is state


def test_why_a_live_replica_is_not_ready_is_told() -> None:
    world = serving()
    world.replicas["m-1-0"] = seen_replica("m-1-0", "body-1", ready=False, detail="/health answered 503")
    assert told(world).summary == "0 of 1 replicas ready, 0 crashes in 10 minutes; /health answered 503"


def test_a_replica_started_again_says_how_often() -> None:
    world = crashed(serving(), 3)
    world.replicas["m-1-0-3"] = seen_replica("m-1-0-3", "body-1")
    assert [r.restarts for r in told(world).replicas] == [3]


def test_a_first_deploy_that_failed_is_failed_with_its_reason() -> None:
    target = revision(1, outcome=RevisionOutcome.FAILED)
    world = deploying(serving(), target)
    world.d, world.replicas = replace(world.d, live=None), {}
    status = told(world, replace(FACTS, failure=failure("exited with code 1", "start")))
    assert (status.state, status.live_revision) == (DeploymentState.FAILED, None)
    assert "exited with code 1" in status.summary


def test_a_warm_revision_is_told_with_the_end_of_its_warmth_only_while_it_runs() -> None:
    world = deploying(serving(), revision(2, warm=600.0))
    world.run(20)
    status = told(world)
    assert status.warm_revision == 1
    assert status.warm_until is not None and NOON < status.warm_until <= NOON + timedelta(seconds=600)
    assert {r.revision: r.state for r in status.replicas} == {1: ReplicaState.READY, 2: ReplicaState.READY}
    world.replicas = {key: one for key, one in world.replicas.items() if one.found.revision == 2}
    assert (told(world).warm_revision, told(world).warm_until) == (None, None)


def test_times_are_given_on_the_wall_clock() -> None:
    world = serving()
    world.now = 100.0  # its replica started at 0
    (replica,) = told(world).replicas
    assert replica.started_at == NOON - timedelta(seconds=100)


def test_a_replica_nobody_wants_is_stopping_and_one_that_ended_has_exited() -> None:
    world = serving()
    world.replicas["m-0-0"] = seen_replica("m-0-0", "older")
    ended = seen_replica("m-1-1", "body-1", ready=False)
    world.replicas["m-1-1"] = replace(ended, found=replace(ended.found, life=Life.EXITED, exit_code=3))
    states = {r.id: (r.state, r.exit_code) for r in told(world).replicas}
    assert states["m-0-0"] == (ReplicaState.STOPPING, None)
    assert states["m-1-1"] == (ReplicaState.EXITED, 3)


def test_a_rollout_passes_through_its_phases_in_order() -> None:
    world = deploying(serving(), revision(2))
    phases: list[str] = []
    for _ in range(40):
        if world.d.target.outcome is RevisionOutcome.PENDING:
            name = rollout_phase(world.d, world.seen(), world.now).name
            phases += [name] if phases[-1:] != [name] else []
        for step in world.steps():
            world.perform(step)
        world.turn(0.5)
    # The pretended replicas are ready as soon as they run.
    assert phases == ["stage", "start", "dwell", "golden", "switch"]


def test_a_hold_is_told_as_holding_until_somebody_serves_again() -> None:
    world = deploying(serving(), revision(2, handover="hold"))
    states = set()
    while "Promote" not in world.names():
        for step in world.steps():
            world.perform(step)
        if world.d.holding:
            states.add(told(world).state)
        world.turn(0.5)
    assert states == {DeploymentState.HOLDING}
    world.run()
    assert told(world).state is DeploymentState.SERVING
