"""The loop's own promises, with a real store and everything else pretended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from quarterdeck_agent.clock import SystemClock
from quarterdeck_agent.drivers.base import GatewaySeen, Life, Resources, RoutingResources
from quarterdeck_agent.errors import EngineUnresponsive
from quarterdeck_agent.gpus.placement import Sight
from quarterdeck_agent.protocol import FailureReason, OperationState
from quarterdeck_agent.reconciler import Parts, Reconciler
from quarterdeck_agent.seen import Seen, SeenReplica
from quarterdeck_agent.steps import Fail, Promote, Start, Step, Stop
from quarterdeck_agent.store import NewRevision, Store
from quarterdeck_agent.wanted import Instant, WantedDeployment, WantedRevision
from tests.agent.placement.rack import GIB, Card, sight
from tests.agent.plan.world import seen_replica
from tests.agent.store.making import at, deploy, failure, new_operation, spec


@dataclass
class Pretended:
    """Observer, gateway, reporter and performer in one; it remembers what it was asked for."""

    replicas: tuple[Any, ...] = ()
    listed: bool = True
    busy: bool = False
    applied: RoutingResources | None = None
    took: str | None = None
    asked: list[tuple[str, Step]] = field(default_factory=list)
    hangs: asyncio.Event | None = None
    error: Exception | None = None
    alive: int = 0
    cancelled: int = 0
    closed: list[str] = field(default_factory=list)
    undying: bool = False
    claims: Resources = field(default_factory=Resources)
    sight: Sight = field(default_factory=Sight)

    @property
    def steps(self) -> list[Step]:
        return [step for _, step in self.asked]

    def seen(self) -> Seen:
        boot = SystemClock().boot_id
        return Seen(
            boot,
            self.replicas,
            gateway=GatewaySeen(self.took),
            staged=frozenset({"a" * 64}),
            gpus=self.sight.gpus,
            gpu_uses=self.sight.uses,
        )

    async def apply(self, resources: Any) -> None:
        self.took = resources.digest

    async def observe(self) -> GatewaySeen:
        return GatewaySeen(self.took)

    def confirmed(self, *_: object) -> None:
        return

    async def publish(self, *_: object) -> None:
        if self.error:
            raise self.error

    def asks(self, _: WantedRevision) -> Resources:
        return self.claims

    def known_asks(self, _: WantedRevision) -> Resources | None:
        return self.claims if self.claims.gpus else None

    async def close(self, operation: str, *, failed: bool = False) -> None:
        self.closed.append(operation)

    async def perform(self, d: WantedDeployment, step: Step) -> None:
        self.asked.append((d.name, step))
        if isinstance(step, Stop) and self.undying:
            raise EngineUnresponsive("it does not end")
        try:
            if self.hangs is not None:
                await self.hangs.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "store.sqlite", tmp_path / "backups", SystemClock())
    yield opened
    opened.close()


def made(store: Store, host: Pretended) -> Reconciler:
    observer = SimpleNamespace(
        seen=host.seen, listed=host.listed, applied=host.confirmed, refused=host.confirmed, busy=False
    )

    def alive() -> None:
        host.alive += 1

    parts: Any = Parts(
        store=store,
        gateway=host,  # type: ignore[arg-type]
        observer=observer,  # type: ignore[arg-type]
        performer=host,  # type: ignore[arg-type]
        reporter=host,  # type: ignore[arg-type]
        clock=SystemClock(),
        configuration=lambda routes: SimpleNamespace(digest=repr(routes)),  # type: ignore[arg-type,return-value]
        alive=alive,
    )
    return Reconciler(parts)


async def running(reconciler: Reconciler, condition: Any) -> None:
    """Run the loop until a condition holds, and end it."""
    task = asyncio.create_task(reconciler.run())
    try:
        async with asyncio.timeout(10):
            while not condition():
                reconciler.wake()
                await asyncio.sleep(0.01)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_an_operation_succeeds_once_its_routes_are_confirmed_also_when_the_next_rollout_has_begun(
    store: Store,
) -> None:
    first = deploy(store, "one")
    assert first.revision is not None and store.promote("digits", first.revision, at())
    second = deploy(store, "two")
    host = Pretended(hangs=asyncio.Event())
    asyncio.run(running(made(store, host), lambda: store.operation(first.id).finished_at))
    assert store.operation(first.id).state is OperationState.SUCCEEDED
    assert store.operation(second.id).finished_at is None


def test_one_task_is_in_flight_per_deployment_and_a_step_that_hangs_does_not_hold_up_the_others(store: Store) -> None:
    deploy(store, "one", name="slow")
    host = Pretended(hangs=asyncio.Event())
    reconciler = made(store, host)

    def both() -> bool:
        if len(host.steps) == 1 and host.alive > 3:
            deploy(store, "one", name="other")
        return len(host.steps) == 2 and host.alive > 20

    asyncio.run(running(reconciler, both))
    assert len(host.steps) == 2, "each asked for its first step once, however many passes went by"


def test_replicas_that_are_being_started_have_their_gpus_though_the_engine_does_not_tell_yet(store: Store) -> None:
    """Three deployments of whole GPUs and two GPUs: whichever pass plans them, no GPU is given twice."""
    for name in ("one", "two", "three"):
        deploy(store, "one", name=name)
        store.set_image(name, 1, "")
    host = Pretended(claims=Resources(gpus=1), sight=sight(Card(), Card()), hangs=asyncio.Event())
    reconciler = made(store, host)
    asyncio.run(running(reconciler, lambda: host.alive > 20))
    starts = [step.gpus for step in host.steps if isinstance(step, Start)]
    assert sorted(starts) == [("gpu-0",), ("gpu-1",)]


def test_a_pass_that_fails_does_not_count_as_alive_and_the_next_one_is_made(store: Store) -> None:
    host = Pretended(error=EngineUnresponsive("no answer"))
    seen: list[int] = []

    def recovered() -> bool:
        seen.append(host.alive)
        if len(seen) == 10:
            host.error = None
        return host.alive > 0

    asyncio.run(running(made(store, host), recovered))
    assert seen[:10] == [0] * 10, "the watchdog would have noticed"


def test_nothing_is_performed_or_routed_before_the_engine_has_been_listed(store: Store) -> None:
    deploy(store, "one")
    host = Pretended(listed=False)
    asyncio.run(running(made(store, host), lambda: host.alive > 3))
    assert host.steps == []
    assert host.took is None


def test_steps_under_way_are_cancelled_with_the_loop(store: Store) -> None:
    deploy(store, "one")
    host = Pretended(hangs=asyncio.Event())
    asyncio.run(running(made(store, host), lambda: host.steps))
    assert host.cancelled == 1


def test_a_warm_rollback_is_promoted_in_the_pass_that_sees_it(store: Store) -> None:
    number = deploy(store, "one").revision
    assert number is not None and store.promote("digits", number, at())
    replica = seen_replica("digits-1-0", "one", number)
    found = replace(replica.found, deployment="digits")
    again = deploy(store, "one").revision
    host = Pretended(replicas=(replace(replica, found=found),))
    asyncio.run(running(made(store, host), lambda: host.steps))
    first = host.steps[0]
    assert isinstance(first, Promote) and first.revision.number == again


def ready_replica(name: str, body: str) -> Any:
    found = seen_replica(name, body)
    return replace(found, found=replace(found.found, deployment="digits"))


def test_more_replicas_are_there_when_they_are_ready_not_when_they_are_asked_for(store: Store) -> None:
    more = deploy(store, "one", replicas=2)
    assert more.revision is not None and store.promote("digits", more.revision, at())
    host = Pretended(replicas=(ready_replica("digits-1-0", "one"),), hangs=asyncio.Event())
    asyncio.run(running(made(store, host), lambda: host.alive > 20))
    assert store.operation(more.id).finished_at is None
    host = Pretended(replicas=tuple(ready_replica(f"digits-1-{slot}", "one") for slot in range(2)))
    asyncio.run(running(made(store, host), lambda: store.operation(more.id).finished_at))
    assert store.operation(more.id).state is OperationState.SUCCEEDED


def test_more_replicas_that_end_again_and_again_end_the_change_as_failed(store: Store) -> None:
    more = deploy(store, "one", replicas=2)
    assert more.revision is not None and store.promote("digits", more.revision, at())
    crash = failure(FailureReason.OUT_OF_MEMORY)
    created = store.wanted().deployments[0].target.created
    store.record_crash("digits", "one", Instant(created.boot_id, created.seconds + 1), crash)
    host = Pretended(replicas=(ready_replica("digits-1-0", "one"),), hangs=asyncio.Event())
    asyncio.run(running(made(store, host), lambda: store.operation(more.id).finished_at))
    ended = store.operation(more.id)
    assert (ended.state, ended.code) == (OperationState.FAILED, "out_of_memory")


# --- places on GPUs that others must leave alone ---------------------------------------------------------------------


def serves(store: Store, name: str) -> None:
    number = deploy(store, "one", name=name).revision
    assert number is not None and store.promote(name, number, at())
    store.set_image(name, number, "")


def rolls_out(store: Store, name: str, handover: Literal["overlap", "hold"] = "overlap") -> None:
    number = store.propose(NewRevision(name, spec(), "two", handover), new_operation(target=name))[0].revision
    assert number is not None
    store.set_image(name, number, "")


def on_gpu(name: str, index: int = 0, *, vram: int | None = None, **changes: object) -> SeenReplica:
    """The live replica of a deployment, with a whole GPU or with so many GiB of it."""
    replica = seen_replica(f"{name}-1-0", "one")
    size = None if vram is None else vram * GIB
    there = replace(replica.found, deployment=name, gpus=(f"gpu-{index}",), vram=size, exclusive=vram is None)
    return replace(replica, found=replace(there, **changes))  # type: ignore[arg-type]


def taken(store: Store, host: Pretended) -> list[tuple[str, str]]:
    """The steps that the loop takes while the first ones do not come back: their kinds, and of which deployment."""
    host.hangs = asyncio.Event()
    asyncio.run(running(made(store, host), lambda: host.alive > 20))
    return sorted((type(step).__name__, name) for name, step in host.asked)


def test_nobody_takes_the_place_of_a_live_replica_that_is_being_buried(store: Store) -> None:
    serves(store, "one")
    deploy(store, "one", name="two")
    store.set_image("two", 1, "")
    ended = on_gpu("one", life=Life.EXITED, exit_code=1)
    host = Pretended(replicas=(ended,), claims=Resources(gpus=1), sight=sight(Card()))
    assert taken(store, host) == [("Bury", "one")]


def test_what_is_kept_is_told_to_whoever_asks_for_room(store: Store) -> None:
    serves(store, "one")
    ended = on_gpu("one", life=Life.EXITED, exit_code=1)
    host = Pretended(replicas=(ended,), claims=Resources(gpus=1), sight=sight(Card()), hangs=asyncio.Event())
    reconciler = made(store, host)
    asyncio.run(running(reconciler, lambda: host.alive > 5))
    assert [(claim.uuid, claim.deployment, claim.size) for claim in reconciler.promised] == [("gpu-0", "one", None)]


def test_after_a_boot_a_rollout_does_not_take_what_another_live_revision_comes_back_to(store: Store) -> None:
    for name in ("one", "two"):
        serves(store, name)
    rolls_out(store, "one")
    host = Pretended(claims=Resources(gpus=1), sight=sight(Card(), Card()))
    assert taken(store, host) == [("Start", "one"), ("Start", "two")]
    assert sorted(step.revision.number for step in host.steps if isinstance(step, Start)) == [1, 1]


def test_two_deployments_do_not_hold_for_the_same_room(store: Store) -> None:
    for name in ("one", "two"):
        serves(store, name)
        rolls_out(store, name, "hold")
    seen = sight(Card(held=(("one-1-0", 30), ("two-1-0", 30))))
    host = Pretended(
        replicas=(on_gpu("one", vram=30), on_gpu("two", vram=30)),
        claims=Resources(gpus=1, vram=50 * GIB),
        sight=seen,
    )
    assert taken(store, host) == [("Hold", "one")]


def test_nobody_takes_the_room_that_a_hold_makes(store: Store) -> None:
    serves(store, "one")
    rolls_out(store, "one", "hold")
    store.set_holding("one", Instant(SystemClock().boot_id, SystemClock().now()))
    old = on_gpu("one", vram=30, body="zero")
    deploy(store, "one", name="two")
    store.set_image("two", 1, "")
    host = Pretended(
        replicas=(replace(old, routed=False),),
        claims=Resources(gpus=1, vram=50 * GIB),
        sight=sight(Card(held=(("one-1-0", 30),))),
    )
    assert taken(store, host) == [("Stop", "one")]


def test_a_replica_that_does_not_end_keeps_no_other_step_waiting(store: Store) -> None:
    serves(store, "one")
    rolls_out(store, "one", "hold")
    now = SystemClock()
    store.set_holding("one", Instant(now.boot_id, now.now() - 1000.0))
    old = replace(on_gpu("one"), routed=False)
    host = Pretended(replicas=(old,), claims=Resources(gpus=1), sight=sight(Card()), undying=True)
    asyncio.run(running(made(store, host), lambda: any(isinstance(step, Fail) for step in host.steps)))
    assert isinstance(host.steps[0], Stop)
