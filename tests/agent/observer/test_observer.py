"""What the observer makes of an engine's lists, of probes and of the gateway; the replicas are only values."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest

from quarterdeck_agent.clock import Clock, SystemClock
from quarterdeck_agent.drivers.base import Engine, Found, Gateway, GatewaySeen, Inventory, Life, RoutingResources
from quarterdeck_agent.drivers.probe import ProbeResult
from quarterdeck_agent.errors import EngineUnresponsive, GatewayError, NotFound
from quarterdeck_agent.gpus.placement import Sight
from quarterdeck_agent.observer import Memory, Observer
from quarterdeck_agent.protocol import Gpu, GpuHealth, PartState
from quarterdeck_agent.routing import Route, Target
from quarterdeck_agent.seen import SeenReplica
from tests.agent.plan.world import found


@dataclass
class Host:
    """A pretend engine, gateway and probe, each of which does what its field says at that moment."""

    replicas: dict[str, Found] = field(default_factory=dict)
    answers: dict[str, ProbeResult] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    engine_error: Exception | None = None
    gateway_error: Exception | None = None
    health_path_error: Exception | None = None
    gateway_seen: GatewaySeen = field(default_factory=lambda: GatewaySeen("digest"))
    revived: int = 0
    changes: int = 0
    probing: asyncio.Event = field(default_factory=asyncio.Event)
    name: str = "pretended"
    sight: Sight = field(default_factory=Sight)
    clock: Clock = field(default_factory=SystemClock)

    async def version(self) -> str:
        return "1"

    async def inventory(self) -> Inventory:
        if self.engine_error:
            raise self.engine_error
        return Inventory(tuple(self.replicas.values()))

    async def ensure(self) -> None:
        self.revived += 1

    async def apply(self, resources: RoutingResources) -> None:
        raise NotImplementedError

    async def observe(self) -> GatewaySeen:
        if self.gateway_error:
            raise self.gateway_error
        return self.gateway_seen

    async def close(self) -> None:
        return

    async def health_path(self, one: Found) -> str:
        if self.health_path_error:
            raise self.health_path_error
        return f"/{one.handle}"

    async def probe(self, address: tuple[str, int], path: str, deadline: float) -> ProbeResult:
        self.asked.append(path)
        await self.probing.wait()
        return self.answers.get(path, ProbeResult(True))

    def changed(self) -> None:
        self.changes += 1

    def observer(self) -> Observer:
        engine: Engine = self  # type: ignore[assignment]  # only what an observer calls
        gateway: Gateway = self
        return Observer(
            engine,
            gateway,
            self.clock,
            self.probe,
            self.health_path,
            lambda: Memory(100, 50),
            lambda: self.sight,
            self.changed,
            interval=0.02,
            deadline=1.0,
        )


@contextlib.asynccontextmanager
async def observing(host: Host) -> AsyncIterator[Observer]:
    observer = host.observer()
    task = asyncio.create_task(observer.run())
    try:
        yield observer
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], object], what: str) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"not within 10 s: {what}")


def only(observer: Observer) -> SeenReplica:
    (one,) = observer.seen().replicas
    return one


def gateway_state(observer: Observer) -> PartState:
    return observer.parts["gateway"].state


def test_nothing_is_planned_before_replicas_of_an_earlier_agent_have_been_judged() -> None:
    async def check() -> None:
        host = Host({"a": found("a", "body")})
        async with observing(host) as observer:
            await until(lambda: host.asked, "the adopted replica is asked")
            assert observer.seen().replicas
            assert not observer.listed, "its state is not known: a plan made now would take its requests away"
            before = host.changes
            host.probing.set()
            await until(lambda: observer.listed, "planning begins once it has answered")
            assert only(observer).ready
            assert host.changes > before, "and the reconciler is told"

    asyncio.run(check())


def test_a_replica_that_answers_wrong_or_ends_holds_up_planning_no_longer_than_that_takes() -> None:
    async def check() -> None:
        host = Host({"a": found("a", "body"), "b": found("b", "body")}, {"/a:1": ProbeResult(False, "503")})
        async with observing(host) as observer:
            await until(lambda: len(host.asked) == 2, "both are asked")
            host.replicas["b"] = replace(host.replicas["b"], life=Life.EXITED, exit_code=1)
            observer.look()
            await until(lambda: any(not r.running for r in observer.seen().replicas), "the end of one is seen")
            assert not observer.listed
            host.probing.set()
            await until(lambda: observer.listed, "the other one has failed twice")
            assert [r.ready for r in observer.seen().replicas] == [False, False]
            assert observer.seen().replicas[0].unready_since is not None

    asyncio.run(check())


def test_a_replica_whose_health_path_cannot_be_found_out_is_asked_again_until_it_can() -> None:
    async def check() -> None:
        host = Host({"a": found("a", "body")}, health_path_error=NotFound("there is no runtime mine"))
        host.probing.set()
        async with observing(host) as observer:
            await until(lambda: only(observer).detail if observer.seen().replicas else "", "the reason is told")
            assert only(observer).detail == "there is no runtime mine"
            assert only(observer).unready_since is None, "it has not been found unready, so it is not ended for that"
            host.health_path_error = None
            await until(lambda: only(observer).ready, "it is probed as soon as that is known")

    asyncio.run(check())


def test_one_failed_probe_is_forgiven_and_two_are_not() -> None:
    async def check() -> None:
        host = Host({"a": found("a", "body")})
        host.probing.set()
        async with observing(host) as observer:
            await until(lambda: observer.listed and only(observer).ready, "it is ready")
            host.answers["/a:1"] = ProbeResult(False, "answered 503")
            asked = len(host.asked)
            await until(lambda: len(host.asked) == asked + 1, "the first probe that fails")
            assert only(observer).ready
            await until(lambda: not only(observer).ready, "the second makes it unready")
            assert len(host.asked) >= asked + 2
            assert only(observer).detail == "answered 503"
            assert only(observer).unready_since is not None

    asyncio.run(check())


def test_another_process_under_the_same_name_starts_from_nothing_and_the_old_probe_ends() -> None:
    async def check() -> None:
        host = Host({"a": found("a", "body")}, {"/a:2": ProbeResult(False, "loading")})
        host.probing.set()
        async with observing(host) as observer:
            await until(lambda: observer.listed and only(observer).ready, "the first one is ready")
            host.replicas["a"] = replace(host.replicas["a"], handle="a:2")
            observer.look()
            await until(lambda: only(observer).found.handle == "a:2", "the second one is seen")
            await until(lambda: only(observer).detail == "loading", "and judged by its own answers")
            assert (only(observer).ready, only(observer).was_ready) == (False, False)
            old = host.asked.count("/a:1")
            await until(lambda: host.asked.count("/a:2") > 5, "it is asked again and again")
            assert host.asked.count("/a:1") == old

    asyncio.run(check())


def test_a_list_that_a_step_overtook_does_not_bring_back_what_the_step_ended() -> None:
    async def check() -> None:
        host = Host({"a": found("a", "body")})
        host.probing.set()
        async with observing(host) as observer:
            await until(lambda: observer.listed, "it is seen")
            listing, listed = asyncio.Event(), asyncio.Event()
            stale = Inventory(tuple(host.replicas.values()))

            async def slow() -> Inventory:
                listing.set()
                await listed.wait()
                return stale

            fresh, host.inventory = host.inventory, slow  # type: ignore[method-assign]
            observer.look()
            await asyncio.wait_for(listing.wait(), 10)
            host.replicas.clear()
            observer.gone(stale.replicas[0])
            host.inventory = fresh  # type: ignore[method-assign]
            listed.set()
            for _ in range(20):
                await asyncio.sleep(0.005)
                assert observer.seen().replicas == ()

    asyncio.run(check())


def test_where_a_replica_was_is_remembered_for_the_next_one_of_its_body() -> None:
    async def story() -> None:
        host = Host()
        for name, gpu in (("one", "a"), ("two", "b")):
            host.replicas[name] = replace(found(name, "body"), gpus=(gpu,))
        host.replicas["plain"] = found("plain", "other")
        host.probing.set()
        async with observing(host) as observer:
            await until(lambda: len(observer.found()) == 3, "the replicas are listed")
            for name in ("one", "two", "plain"):
                observer.gone(host.replicas.pop(name))
            assert observer.seen().left == {"body": (("b",), ("a",))}

    asyncio.run(story())


def test_since_when_files_are_there_does_not_change_when_they_are_staged_again() -> None:
    observer = Host().observer()
    observer.staged("v")
    since = observer.seen().staged_since["v"]
    observer.staged("v")
    assert observer.seen().staged_since == {"v": since} and observer.seen().staged == {"v"}
    observer.unstaged("v")
    assert observer.seen().staged_since == {}


def test_an_engine_that_hangs_keeps_what_it_last_told_and_says_since_when() -> None:
    async def check() -> None:
        host = Host({"a": found("a", "body")})
        host.probing.set()
        async with observing(host) as observer:
            await until(lambda: observer.listed, "it is seen")
            host.engine_error = EngineUnresponsive("no answer within 5 s")
            observer.look()
            await until(lambda: not observer.seen().engine_ok, "the engine's state is told")
            part = observer.parts["pretended"]
            assert (part.state, part.detail) == (PartState.UNRESPONSIVE, "no answer within 5 s")
            assert only(observer).ready

    asyncio.run(check())


def test_a_gateway_that_is_gone_is_started_again() -> None:
    async def check() -> None:
        host = Host(gateway_error=GatewayError("nobody listens"))
        async with observing(host) as observer:
            await until(lambda: host.revived, "it is started")
            assert observer.seen().gateway is None
            assert gateway_state(observer) is PartState.FAILED
            host.gateway_error = None
            observer.busy = True
            await until(lambda: observer.seen().gateway is not None, "it answers")
            assert gateway_state(observer) is PartState.OK

    asyncio.run(check())


def test_a_replica_counts_as_sent_nothing_only_once_the_gateway_has_confirmed_that() -> None:
    async def check() -> None:
        host = Host({"a": found("a", "body")})
        host.probing.set()
        async with observing(host) as observer:
            await until(lambda: observer.listed, "it is seen")
            address = only(observer).found.address
            assert address is not None
            assert (only(observer).routed, only(observer).unrouted_since) == (True, None), "it may be getting requests"
            busy = GatewaySeen("next", requests={f"{address[0]}:{address[1]}": 2})
            observer.applied((Route("m", 2, clusters=(Target(1, (address,)), Target(2, ()))),), busy)
            assert only(observer).unrouted_since is not None
            assert only(observer).requests == 2, "what it still has to answer"
            observer.applied((Route("m", 1, clusters=(Target(1, (address,)),)),), busy)
            assert only(observer).unrouted_since is None

    asyncio.run(check())


def test_a_gateway_that_refuses_its_routes_is_not_well_until_it_takes_them() -> None:
    async def check() -> None:
        host = Host()
        async with observing(host) as observer:
            observer.busy = True
            await until(lambda: observer.seen().gateway is not None, "it answers")
            observer.refused("cannot bind 127.0.0.1:8080: Address already in use")
            host.gateway_seen = GatewaySeen("other")
            await until(lambda: observer.seen().gateway == host.gateway_seen, "it is asked again, and answers")
            assert gateway_state(observer) is PartState.FAILED
            assert "already in use" in observer.parts["gateway"].detail
            observer.applied((), GatewaySeen("next"))
            assert gateway_state(observer) is PartState.OK

    asyncio.run(check())


@pytest.mark.parametrize("turns", range(4))
def test_ending_the_observer_is_never_lost_on_a_look_that_was_just_asked_for(turns: int) -> None:
    async def check() -> None:
        observer = Host().observer()
        task = asyncio.create_task(observer.run())
        await until(lambda: observer.listed, "it pauses between two looks")
        await asyncio.sleep(0.02)
        observer.look()
        for _ in range(turns):  # at one of these moments the look is granted and not yet taken
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=3)
        task.cancel()
        assert done

    asyncio.run(check())


class Hands:
    """A clock that a test turns."""

    boot_id = "boot"

    def __init__(self) -> None:
        self.seconds = 100.0

    def now(self) -> float:
        return self.seconds

    def wall(self) -> datetime:
        return datetime(2026, 11, 23, tzinfo=UTC)


def test_replicas_are_to_leave_a_sick_gpu_at_once_and_a_lost_one_after_a_while() -> None:
    clock = Hands()
    host = Host(clock=clock)
    observer = host.observer()
    sick, lost, well = (
        Gpu(n, f"GPU-{n}", "H", health=GpuHealth(h)) for n, h in enumerate(("sick", "lost", "degraded"))
    )
    host.sight = Sight((sick, lost, well))
    assert observer.seen().ailing == {"GPU-0"}
    clock.seconds += 40
    assert observer.seen().ailing == {"GPU-0", "GPU-1"}
    host.sight = Sight((sick, replace(lost, health=GpuHealth.OK), well))
    assert observer.seen().ailing == {"GPU-0"}
    host.sight = Sight((sick, lost, well))
    clock.seconds += 4
    assert observer.seen().ailing == {"GPU-0"}


def test_nothing_leaves_a_gpu_on_the_word_of_a_driver_in_trouble() -> None:
    host = Host(sight=Sight((Gpu(0, "GPU-0", "H", health=GpuHealth.SICK),), trouble="NVML does not answer"))
    assert host.observer().seen().ailing == frozenset()


def test_what_a_replica_said_of_its_gpus_lasts_as_long_as_its_container() -> None:
    async def whole() -> None:
        host = Host(replicas={"a": found("a", "body")})
        async with observing(host) as observer:
            await until(observer.found, "the list")
            changes = host.changes
            observer.gpu_lost(host.replicas["a"], "Unknown Error")
            assert [r.gpu_lost for r in observer.seen().replicas] == ["Unknown Error"]
            assert host.changes == changes + 1
            observer.gpu_lost(host.replicas["a"], "Unknown Error")
            assert host.changes == changes + 1
            observer.gpu_lost(replace(host.replicas["a"], handle="older"), "")
            assert [r.gpu_lost for r in observer.seen().replicas] == ["Unknown Error"]
            host.replicas["a"] = replace(host.replicas["a"], handle="another")
            observer.look()
            await until(lambda: observer.seen().replicas[0].gpu_lost == "", "the new container")

    asyncio.run(whole())


def test_a_device_that_nvml_names_no_more_is_left_like_a_lost_one_while_nvml_answers() -> None:
    async def check() -> None:
        clock = Hands()
        there = replace(found("m-1-0", "b"), gpus=("MIG-7",))
        host = Host({"m-1-0": there}, clock=clock, sight=Sight((Gpu(0, "GPU-0", "x"),)))
        async with observing(host) as observer:
            await until(lambda: observer.seen().replicas, "the replica is seen")
            assert observer.seen().ailing == frozenset()
            clock.seconds += 6.0
            assert observer.seen().ailing == {"MIG-7"}
            host.sight = Sight()
            assert observer.seen().ailing == frozenset(), "without NVML nothing is known"

    asyncio.run(check())
