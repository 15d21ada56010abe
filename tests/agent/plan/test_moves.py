"""Replicas leave GPUs that are sick for others, without a moment in which nobody serves, or stay with a reason."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quarterdeck_agent.counts import on_ailing
from quarterdeck_agent.drivers.base import Life, Resources
from quarterdeck_agent.gpus.xids import Action
from quarterdeck_agent.places import waits_for
from quarterdeck_agent.plan import MOST_CURES, plan
from quarterdeck_agent.protocol import DeploymentState, FailureReason, Gpu, GpuFacts, GpuHealth, GpuUse, XidEvent
from quarterdeck_agent.seen import Seen
from quarterdeck_agent.status import Facts, deployment_status
from quarterdeck_agent.steps import Bury, Start, Step, Stop
from quarterdeck_agent.traffic import route
from quarterdeck_agent.wanted import Instant
from tests.agent.plan.world import BOOT, World, deploying, revision
from tests.agent.plan.world import serving as serving_without

GIB = 1 << 30
WHY = "Xid 79 at 13:58 UTC on 23 Nov: the GPU fell off the bus; drain the host and reboot"


@dataclass
class GpuWorld(World):
    """A host with GPUs of 80 GiB, of which those in `sick` are ill; those in `silent` are lost since just now.

    `asked` is what the Xids of the sick ones ask for; without it they are sick for memory errors that were counted.
    """

    sick: set[int] = field(default_factory=set)
    silent: set[int] = field(default_factory=set)
    asked: Action | None = None
    ready_least: int = 10**9

    def seen(self) -> Seen:
        ailing = frozenset(f"GPU-{number}" for number in self.sick)
        xids = () if self.asked is None else (XidEvent(datetime(2026, 11, 23, tzinfo=UTC), 95, "x", self.asked.value),)
        facts = tuple(GpuFacts(uuid, xids=xids) for uuid in sorted(ailing))
        return replace(super().seen(), ailing=ailing, gpu_facts=facts)

    def _gpu(self, index: int, use: GpuUse) -> Gpu:
        gpu = super()._gpu(index, use)
        if index in self.silent:
            return replace(gpu, health=GpuHealth.LOST, why=WHY)
        return replace(gpu, health=GpuHealth.SICK, why=WHY) if index in self.sick else gpu

    def have(self, count: int) -> None:
        """So many GPUs are there."""
        self.gpus = {f"GPU-{number}": 80 * GIB for number in range(count)}

    def turn(self, tick: float) -> None:
        super().turn(tick)
        if not self.gone and self.d.live is not None:
            now = route(self.d, self.seen(), self.now)
            reached = sum(len(t.endpoints) for t in now.clusters if t.revision == now.revision)
            self.ready_least = min(self.ready_least, reached)

    def on(self, body: str = "body-1") -> list[int]:
        """The GPUs that running replicas of a body are on."""
        found = [r.found for r in self.replicas.values() if r.running and r.found.body == body]
        return sorted(int(uuid.removeprefix("GPU-")) for one in found for uuid in one.gpus)

    def state(self) -> tuple[DeploymentState, str]:
        waits = waits_for(self.d, self.asks, None, self.seen(), self.now)
        wall = datetime(2026, 11, 23, tzinfo=UTC)
        facts = Facts("e", "/", wall, "ada", "docker", waits=waits)
        status = deployment_status(self.d, self.seen(), facts, self.now, wall)
        return status.state, status.summary


def serving(on: tuple[int, ...] = (0,), count: int = 2, vram: int | None = None, warm: float = 600.0) -> GpuWorld:
    """A host on which one revision serves, with its replicas on these GPUs."""
    plain = serving_without(1, replicas=len(on), warm=warm)
    world = GpuWorld(plain.d, plain.replicas, asks=Resources(gpus=1, vram=vram), staged=plain.staged)
    world.have(count)
    for (name, replica), number in zip(list(world.replicas.items()), on, strict=True):
        placed = replace(replica.found, gpus=(f"GPU-{number}",), vram=vram, exclusive=vram is None)
        world.replicas[name] = replace(replica, found=placed)
    return world


def test_a_replica_moves_off_a_sick_gpu_and_the_first_goes_when_the_second_is_ready() -> None:
    world = serving()
    world.sick = {0}
    world.run()
    assert world.on() == [1]
    assert world.names() == ["Start", "Stop"]
    assert world.ready_least == 1
    assert world.state()[0] is DeploymentState.SERVING


def test_the_first_replica_serves_on_until_the_second_is_ready() -> None:
    world = serving()
    world.sick, world.never_ready = {0}, frozenset({"body-1"})
    world.run(passes=40)
    assert world.on() == [0, 1]
    assert world.names() == ["Start"]
    assert world.ready_least == 1
    state, summary = world.state()
    assert state is DeploymentState.DEGRADED
    assert (
        summary
        == f"1 of 1 replicas ready, on gpu0, which is sick ({WHY}); another replica takes over from it elsewhere"
    )


def test_without_another_place_it_stays_and_says_why_and_nothing_moves() -> None:
    world = serving(on=(0, 1))
    world.sick = {0}
    world.run(passes=400)
    assert world.taken == []
    assert world.on() == [0, 1]
    state, summary = world.state()
    assert state is DeploymentState.DEGRADED
    assert "gpu0, which is sick" in summary and "no other place: needs one GPU for itself" in summary


def test_it_moves_once_a_place_comes_free() -> None:
    world = serving(on=(0, 1), count=2)
    world.sick = {0}
    world.run(passes=50)
    world.have(3)
    world.run()
    assert world.on() == [1, 2]
    assert world.ready_least == 2


def test_a_gpu_that_is_trusted_again_gets_nothing_back() -> None:
    world = serving()
    world.sick = {0}
    world.run()
    before = list(world.taken)
    world.sick = set()
    world.run(passes=50)
    assert world.taken == before
    assert world.on() == [1]


def test_a_gpu_that_gets_well_before_the_move_is_through_keeps_its_replica() -> None:
    world = serving()
    world.sick, world.never_ready = {0}, frozenset({"body-1"})
    world.run(passes=20)
    assert world.on() == [0, 1]
    world.sick = set()
    world.run(passes=50)
    assert world.on() == [0]
    assert world.ready_least == 1


def test_shared_gpus_move_only_those_that_are_ill() -> None:
    world = serving(on=(0, 0, 1), count=3, vram=20 * GIB)
    world.sick = {0}
    world.run()
    assert world.on() == [1, 2, 2] or world.on() == [1, 1, 2]
    assert world.ready_least == 3
    assert world.names() == ["Start", "Start", "Stop", "Stop"]


def ended(world: GpuWorld) -> GpuWorld:
    """The same host just after every live replica crashed."""
    for name, replica in world.replicas.items():
        gone = replace(replica.found, life=Life.EXITED, exit_code=1)
        world.replicas[name] = replace(replica, found=gone, ready=False, ready_since=None)
    return world


@pytest.mark.parametrize("asked", [Action.RESET, Action.REBOOT])
def test_nothing_is_started_again_on_a_gpu_on_which_nothing_works_before_a_reset(asked: Action) -> None:
    world = serving(count=1)
    world.sick, world.asked = {0}, asked
    ended(world).run(passes=200)
    assert world.names() == ["Bury"]
    assert "gpu0 is sick: Xid 79" in waits_for(world.d, world.asks, None, world.seen(), world.now)


@pytest.mark.parametrize("asked", [None, Action.DRAIN])
@pytest.mark.parametrize("vram", [None, 20 * GIB])
def test_a_replica_that_crashes_on_a_sick_gpu_and_has_nowhere_else_to_go_comes_back_there_once(
    asked: Action | None, vram: int | None
) -> None:
    world = serving(count=1, vram=vram)
    world.sick, world.asked = {0}, asked
    ended(world).run(passes=200)
    assert world.names() == ["Bury", "Start"]
    assert world.on() == [0]
    state, summary = world.state()
    assert state is DeploymentState.DEGRADED
    assert summary.startswith("1 of 1 replicas ready, on gpu0, which is sick (Xid 79 ")
    assert summary.count(WHY) == 1
    assert "; no other place: needs" in summary and summary.endswith("gpu0 is sick")


def test_what_came_back_on_a_sick_gpu_moves_once_there_is_a_place() -> None:
    world = serving(count=1)
    world.sick = {0}
    ended(world).run(passes=200)
    world.have(2)
    world.run()
    assert world.on() == [1]


def test_what_crashes_on_a_sick_gpu_goes_elsewhere_where_there_is_a_place() -> None:
    world = serving(count=2)
    world.sick = {0}
    ended(world).run(passes=200)
    assert world.on() == [1]
    assert [step.gpus for step in world.taken if isinstance(step, Start)] == [("GPU-1",)]


def test_a_lost_gpu_takes_nothing_back() -> None:
    world = serving(count=1)
    world.silent = {0}
    ended(world).run(passes=200)
    assert world.names() == ["Bury"]


def test_more_replicas_that_are_asked_for_do_not_go_to_a_sick_gpu() -> None:
    world = serving(count=2)
    world.sick, world.left = {1}, {"body-1": (("GPU-1",),)}
    live = world.d.live
    assert live is not None
    more = replace(live, spec=replace(live.spec, replicas=2))
    world.d = replace(world.d, live=more, target=more)
    world.run(passes=50)
    assert world.on() == [0] and "Start" not in world.names()


def test_the_old_revision_comes_back_to_a_gpu_that_got_sick_under_its_successor() -> None:
    world = serving(count=1)
    deploying(world, revision(2, handover="hold"))
    world.breaks = frozenset({"body-2"})
    while world.on("body-2") != [0]:
        for step in world.steps():
            world.perform(step)
        if world.on("body-2") != [0]:
            world.turn(0.5)
    world.sick = {0}
    world.run(passes=600)
    assert world.d.live is not None and world.d.live.number == 1 and not world.d.holding
    assert world.on() == [0]


def test_an_xid_in_the_middle_of_a_deploy_sends_the_new_replica_elsewhere_before_the_switch() -> None:
    world = serving(count=3)
    deploying(world, revision(2))
    for _ in range(100):
        for step in world.steps():
            world.perform(step)
        if world.running("body-2"):
            break
        world.turn(0.5)
    world.turn(0.5)
    [first] = world.on("body-2")
    world.sick = {first}
    world.run()
    assert world.d.live is not None and world.d.live.number == 2
    assert world.on("body-2") == [3 - first]
    assert None not in world.served


def test_a_deploy_is_not_switched_to_a_gpu_that_does_not_answer_until_it_does() -> None:
    world = serving(count=2)
    deploying(world, revision(2))
    for _ in range(100):
        for step in world.steps():
            world.perform(step)
        if world.running("body-2"):
            break
        world.turn(0.5)
    world.silent = {1}
    for _ in range(60):
        for step in world.steps():
            world.perform(step)
        world.turn(0.5)
    assert world.d.live is not None and world.d.live.number == 1
    assert world.on("body-2") == [1]
    world.silent = set()
    world.run()
    assert world.d.live is not None and world.d.live.number == 2


def test_a_deploy_whose_gpu_gets_sick_with_no_other_fails_at_its_deadline_and_the_old_one_serves_on() -> None:
    world = serving(count=2)
    deploying(world, revision(2, deadline=130.0))
    for _ in range(100):
        for step in world.steps():
            world.perform(step)
        if world.running("body-2"):
            break
        world.turn(0.5)
    world.sick = {1}
    world.run(passes=10, rest=100)
    state, summary = world.state()
    assert state is DeploymentState.DEPLOYING
    assert "start (0 of 1; needs one GPU for itself; " in summary and "gpu1 is sick: Xid 79" in summary
    world.run(passes=200, rest=200)
    failed = [step for step in world.taken if type(step).__name__ == "Fail"]
    assert [step.reason for step in failed] == [FailureReason.NO_GPU]  # type: ignore[union-attr]
    assert "gpu1 is sick" in failed[0].message  # type: ignore[union-attr]
    assert world.d.live is not None and world.d.live.number == 1
    assert world.on() == [0] and world.on("body-2") == []
    assert None not in world.served


def test_a_gpu_that_gets_sick_in_the_middle_of_a_hold_does_not_leave_nobody_to_serve() -> None:
    world = serving(count=1)
    deploying(world, revision(2, handover="hold"))
    while world.on("body-2") != [0]:
        for step in world.steps():
            world.perform(step)
        world.turn(0.5)
    world.sick = {0}
    world.run(passes=600)
    assert world.d.live is not None and world.d.live.number == 2 and not world.d.holding
    assert world.on("body-2") == [0] and "Check" in world.names()
    assert world.state()[0] is DeploymentState.DEGRADED


def test_a_rollback_to_a_warm_revision_on_a_sick_gpu_is_at_once_and_moves_then() -> None:
    world = serving(count=3, warm=600.0)
    deploying(world, revision(2, warm=600.0)).run()
    assert world.d.previous is not None
    world.sick = set(world.on("body-1"))
    back = replace(revision(3, "body-1", warm=600.0), passed=True, image="")
    deploying(world, back)
    world.perform(next(step for step in world.steps() if type(step).__name__ == "Promote"))
    assert world.d.live is not None and world.d.live.number == 3
    world.run()
    assert not world.sick.intersection(world.on("body-1"))
    assert None not in world.served


def test_a_stopped_deployment_moves_nothing() -> None:
    world = serving()
    world.d = replace(world.d, removing=True)
    world.sick = {0}
    world.run()
    assert "Start" not in world.names()


# --- containers that lost their GPUs -----------------------------------------------------------------------------


def lost(world: GpuWorld, *names: str) -> GpuWorld:
    for name in names or tuple(world.replicas):
        world.replicas[name] = replace(world.replicas[name], gpu_lost="Failed to initialize NVML: Unknown Error")
    return world


def test_a_container_that_lost_its_gpu_is_made_anew_on_the_same_gpu_and_counts_as_a_crash() -> None:
    world = lost(serving(count=1))
    [bury] = world.steps()
    assert isinstance(bury, Bury)
    assert bury.reason is FailureReason.GPU_LOST
    assert "Unknown Error" in bury.message
    world.run()
    assert world.on() == [0]
    assert world.names() == ["Bury", "Start"]
    assert world.d.live is not None and len(world.d.live.crashes) == 1


def test_what_takes_the_gpus_from_all_containers_at_once_counts_once_and_those_that_serve_go_one_by_one() -> None:
    world = lost(serving(on=(0, 1, 2), count=3))
    assert [type(step).__name__ for step in world.steps()] == ["Bury"]
    world.run()
    assert world.names() == ["Bury", "Start", "Stop", "Start", "Stop", "Start"]
    assert world.on() == [0, 1, 2] and world.ready_least == 2
    assert world.d.live is not None and len(world.d.live.crashes) == 1


def test_containers_that_do_not_serve_any_more_are_all_made_anew_at_once() -> None:
    world = lost(serving(on=(0, 1, 2), count=3))
    for name, replica in world.replicas.items():
        world.replicas[name] = replace(replica, ready=False)
    assert [type(step).__name__ for step in world.steps()] == ["Bury", "Stop", "Stop"]


@pytest.mark.parametrize(("started", "kind"), [(0.0, Stop), (95.0, Bury)])
def test_a_loss_of_one_that_was_there_before_the_last_loss_belongs_to_that(started: float, kind: type[Step]) -> None:
    world = lost(crashed(serving(count=1), (10.0,)))
    (name, replica), *_ = world.replicas.items()
    world.replicas[name] = replace(replica, found=replace(replica.found, started=started))
    assert [type(step) for step in world.steps() if not isinstance(step, Start)] == [kind]


def test_what_a_new_container_did_not_cure_is_left_as_it_is_for_a_while() -> None:
    world = crashed(serving(count=1), tuple(50.0 - 10 * n for n in range(MOST_CURES)))
    (name, replica), *_ = world.replicas.items()
    world.replicas[name] = replace(replica, found=replace(replica.found, started=95.0))
    assert lost(world).steps() == ()


def crashed(world: GpuWorld, ago: tuple[float, ...]) -> GpuWorld:
    """The live revision's containers have lost their GPUs so many seconds ago."""
    assert world.d.live is not None
    crashes = tuple(Instant(BOOT, world.now - age) for age in ago)
    live = replace(world.d.live, crashes=crashes, reason=FailureReason.GPU_LOST)
    world.d = replace(world.d, live=live, target=live)
    return world


def test_a_container_on_a_gpu_that_is_ill_itself_is_moved_and_not_made_anew_in_place() -> None:
    world = lost(serving(count=1))
    world.sick = {0}
    world.run(passes=50)
    assert world.taken == []
    world.have(2)
    world.run()
    assert world.names() == ["Start", "Stop"]


def test_nothing_is_ended_on_the_word_of_a_container_while_the_host_cannot_see_its_gpus() -> None:
    world = lost(serving(count=1))
    seen = replace(world.seen(), gpu_trouble="NVML does not answer")
    assert plan(world.d, world.asks, seen, world.now) == ()


# --- rules for any host ------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    on=st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True),
    count=st.integers(4, 6),
    story=st.lists(st.sets(st.integers(0, 5), max_size=4), min_size=1, max_size=4),
    shared=st.booleans(),
)
def test_whatever_gets_sick_nobody_stops_serving_and_all_comes_to_rest(
    on: list[int], count: int, story: list[set[int]], shared: bool
) -> None:
    world = serving(on=tuple(on), count=count, vram=30 * GIB if shared else None)
    for sick in story:
        world.sick = {number for number in sick if number < count}
        world.run(passes=200)
        taken = len(world.taken)
        world.run(passes=30)
        assert len(world.taken) == taken, "it did not come to rest"
        well = count - len(world.sick)
        running = [r for r in world.replicas.values() if r.running]
        ill = sum(1 for r in running if on_ailing(r, world.seen()))
        assert len(running) == len(on)
        room = well * 2 if shared else well
        assert ill == max(0, len(on) - room)
        assert (world.state()[0] is DeploymentState.DEGRADED) is (ill > 0)
    assert world.ready_least >= len(on)
