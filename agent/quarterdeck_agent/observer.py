"""Keeps what is seen current: lists the engine's replicas, probes them, and asks the gateway, each at its own pace.

A part that hangs holds up only its own task: what it last told stays, with its state beside it. The observer changes
nothing on the host; steps tell it what they have just done, so that nobody acts on a stale look.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from quarterdeck_agent.clock import Clock
from quarterdeck_agent.drivers.base import Engine, Found, Gateway, GatewaySeen, Life
from quarterdeck_agent.errors import AgentError
from quarterdeck_agent.gpus.placement import Place, Sight
from quarterdeck_agent.performing import Verdict
from quarterdeck_agent.protocol import Gpu, GpuHealth, Part, PartState
from quarterdeck_agent.routing import Route
from quarterdeck_agent.seen import Seen, SeenReplica

log = logging.getLogger(__name__)

FIRST_PROBES = 0.05
FIRST_PROBES_FOR = 5.0
FAILURES_TO_UNREADY = 2
READY_PROBE_FACTOR = 5
"""A replica that is ready is probed this many intervals apart: the gateway's traffic tells of trouble sooner."""

LIST_INTERVAL = 1.0
GATEWAY_INTERVAL = 1.0
GATEWAY_BUSY_INTERVAL = 0.1
PLACES_KEPT, BODIES_KEPT = 64, 256

LOST_FOR = 5.0
"""Seconds after which replicas leave a GPU that is lost: while a driver is loaded anew they all are for a moment."""


Probe = Callable[[tuple[str, int], str, float], Awaitable[Verdict]]
"""Asks (ip, port) and a path whether a replica is ready, within seconds."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What the host has and could give, in bytes."""

    total: int | None = None
    available: int | None = None


class Observer:
    """Holds the latest facts. `changed` is called when something that a plan may depend on is different.

    `listed` gets every fresh inventory.
    """

    def __init__(
        self,
        engine: Engine,
        gateway: Gateway,
        clock: Clock,
        probe: Probe,
        health_path: Callable[[Found], Awaitable[str]],
        memory: Callable[[], Memory],
        gpus: Callable[[], Sight],
        changed: Callable[[], None],
        *,
        listed: Callable[[tuple[Found, ...]], None] = lambda _: None,
        interval: float = 1.0,
        deadline: float = 2.0,
    ) -> None:
        self._engine = engine
        self._gateway = gateway
        self._clock = clock
        self._ask = probe
        self._health_path = health_path
        self._memory = memory
        self._gpus = gpus
        self._changed = changed
        self._tell = listed
        self._interval = interval
        self._deadline = deadline
        self._replicas: dict[str, SeenReplica] = {}
        self._ours: set[str] = set()
        self._edits = 0
        self._staged: dict[str, float] = {}
        self._left: dict[str, tuple[Place, ...]] = {}
        self._lost: dict[str, float] = {}
        self._gateway_seen: GatewaySeen | None = None
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._look = asyncio.Event()
        self._listed = False
        self._unjudged: set[str] = set()
        self._refused: str | None = None
        self.busy = False
        self.parts: dict[str, Part] = {}

    # --- what is told ------------------------------------------------------------------------------------------

    @property
    def listed(self) -> bool:
        """Whether the engine has been listed and every replica found then has been judged: before, nothing is planned.

        A replica from before this agent may be serving: were it taken for unready until its first probe comes back, the
        gateway would be told to send it nothing, and a busy one would lose its requests whenever the agent starts.
        """
        return self._listed and not self._unjudged

    def seen(self) -> Seen:
        """Everything last seen, as one value."""
        memory, sight = self._memory(), self._gpus()
        engine = self.parts.get(self._engine.name)
        return Seen(
            boot_id=self._clock.boot_id,
            replicas=tuple(self._replicas.values()),
            engine_ok=engine is not None and engine.state is PartState.OK,
            gateway=self._gateway_seen,
            staged=frozenset(self._staged),
            gpus=sight.gpus,
            memory_total=memory.total,
            memory_available=memory.available,
            gpu_uses=sight.uses,
            gpu_facts=sight.facts,
            gpu_trouble=sight.trouble,
            left=dict(self._left),
            staged_since=dict(self._staged),
            ailing=self._ailing(sight),
        )

    def _ailing(self, sight: Sight) -> frozenset[str]:
        """The devices that replicas are to leave. Nothing is to be left on the word of a driver in trouble.

        A device that NVML does not name is as lost as one that it calls lost: when the agent starts, a GPU that is
        silent has no name yet.
        """
        if sight.trouble or not sight.gpus:
            return frozenset()
        now = self._clock.now()
        held = {uuid for each in self._replicas.values() if each.running for uuid in each.found.gpus}
        lost = {g.uuid for g in sight.gpus if g.health is GpuHealth.LOST} | (held - {g.uuid for g in sight.gpus})
        self._lost = {uuid: self._lost.get(uuid, now) for uuid in lost}
        sick = {gpu.uuid for gpu in sight.gpus if gpu.health is GpuHealth.SICK}
        return frozenset(sick | {uuid for uuid, since in self._lost.items() if now - since >= LOST_FOR})

    def found(self) -> tuple[Found, ...]:
        """The replicas as the engine last told."""
        return tuple(replica.found for replica in tuple(self._replicas.values()))  # may be asked from other threads

    def gpus(self) -> tuple[Gpu, ...]:
        return self._gpus().gpus

    # --- what steps have done ----------------------------------------------------------------------------------

    def started(self, found: Found) -> None:
        """A replica was started by this agent: nobody can have sent it requests yet."""
        self._edits += 1
        self._ours.add(found.id)
        self._put(found)

    def gone(self, found: Found) -> None:
        self._edits += 1
        self._drop(found.id)

    def gpu_lost(self, found: Found, why: str) -> None:
        """What a replica said inside of its GPUs: why they are lost, or nothing."""
        known = self._replicas.get(found.id)
        if known is not None and known.found.handle == found.handle and known.gpu_lost != why:
            self._replicas[found.id] = replace(known, gpu_lost=why)
            self._changed()

    def staged(self, version: str) -> None:
        self._staged.setdefault(version, self._clock.now())

    def unstaged(self, version: str) -> None:
        self._staged.pop(version, None)

    def refused(self, why: str) -> None:
        """The gateway runs but did not take its routes: it is not well before it does, whatever else it answers."""
        if why != self._refused:
            log.warning("the gateway did not take its configuration: %s", why)
        self._refused = why
        self._part("gateway", PartState.FAILED, "", why)

    def applied(self, routes: tuple[Route, ...], gateway: GatewaySeen) -> None:
        """The gateway confirmed these routes: replicas in them may get requests, the others get none any more."""
        self._gateway_seen = gateway
        self._refused = None
        self._part("gateway", PartState.OK, gateway.version)
        now = self._clock.now()
        endpoints = {e for route in routes for target in route.clusters for e in target.endpoints}
        reachable = {e for route in routes for t in route.clusters for e in t.endpoints if t.revision == route.revision}
        for key, replica in self._replicas.items():
            address = replica.found.address
            if address in reachable:
                self._replicas[key] = replace(replica, routed=True, unrouted_since=None)
            elif replica.unrouted_since is None:
                routed = replica.routed or address in endpoints
                self._replicas[key] = replace(replica, routed=routed, unrouted_since=now)
        self._count_requests()

    # --- the tasks ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch_engine())
                group.create_task(self._watch_gateway())
        finally:
            for task in self._probes.values():
                task.cancel()
            await asyncio.gather(*self._probes.values(), return_exceptions=True)

    def look(self) -> None:
        """List the engine again now instead of at the next interval."""
        self._look.set()

    async def _watch_engine(self) -> None:
        version = ""
        while True:
            edits = self._edits
            try:
                version = version or await self._engine.version()
                inventory = await self._engine.inventory()
            except AgentError as error:
                state = PartState.UNRESPONSIVE if error.status == 503 else PartState.FAILED
                self._part(self._engine.name, state, version, error.detail)
            else:
                self._part(self._engine.name, PartState.OK, version)
                if edits == self._edits:  # a look that a step overtook tells yesterday's news
                    self._adopt(inventory.replicas)
                    self._tell(inventory.replicas)
                else:
                    self._look.set()
            await self._pause(self._look, LIST_INTERVAL)

    async def _watch_gateway(self) -> None:
        while True:
            try:
                seen = await self._gateway.observe()
                if self._refused is None:
                    self._part("gateway", PartState.OK, seen.version)
                changed = self._gateway_seen is None or seen.applied != self._gateway_seen.applied
                emptied = self._gateway_seen is not None and seen.active != self._gateway_seen.active
                self._gateway_seen = seen
                self._count_requests()
                if changed or (emptied and self.busy):
                    self._changed()
            except AgentError as error:
                self._gateway_seen = None
                self._part("gateway", PartState.FAILED, "", error.detail)
                await self._revive_gateway()
            await asyncio.sleep(GATEWAY_BUSY_INTERVAL if self.busy else GATEWAY_INTERVAL)

    async def _revive_gateway(self) -> None:
        try:
            await self._gateway.ensure()
        except AgentError as error:
            self._part("gateway", PartState.FAILED, "", error.detail)
            await asyncio.sleep(GATEWAY_INTERVAL)
        self._changed()

    async def _pause(self, event: asyncio.Event, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):  # wait_for loses a cancellation that comes as the event is set
                await event.wait()
        except TimeoutError:
            return
        event.clear()

    def _part(self, name: str, state: PartState, version: str, detail: str = "") -> None:
        before = self.parts.get(name)
        if before is not None and (before.state, before.version, before.detail) == (state, version, detail):
            return
        since = before.since if before is not None and before.state is state else self._clock.wall()
        self.parts[name] = Part(name, state, since, version, detail)
        if before is None or before.state is not state:
            log.log(logging.INFO if state is PartState.OK else logging.WARNING, "%s is %s %s", name, state, detail)
            self._changed()

    # --- replicas ----------------------------------------------------------------------------------------------

    def _adopt(self, found: tuple[Found, ...]) -> None:
        before = {key: replica.found for key, replica in self._replicas.items()}
        for one in found:
            self._put(one)
        for key in before.keys() - {one.id for one in found}:
            self._drop(key)
        if not self._listed:
            self._unjudged = self._probes.keys() - self._ours
            self._listed = True
            self._changed()
        elif before != {key: replica.found for key, replica in self._replicas.items()}:
            self._changed()

    def _put(self, found: Found) -> None:
        known = self._replicas.get(found.id)
        if known is None or known.found.handle != found.handle:
            self._replicas[found.id] = SeenReplica(found, routed=found.id not in self._ours)
            self._stop_probe(found.id)
        elif known.found != found:
            ended = found.life is Life.EXITED
            self._replicas[found.id] = replace(known, found=found, ready=known.ready and not ended)
        if found.life is Life.RUNNING and found.address and found.id not in self._probes:
            self._probes[found.id] = asyncio.get_running_loop().create_task(self._probe(found))
        elif found.life is Life.EXITED:
            self._stop_probe(found.id)

    def _drop(self, key: str) -> None:
        gone = self._replicas.pop(key, None)
        if gone is not None and gone.found.gpus:
            self._leave(gone.found)
        self._ours.discard(key)
        self._stop_probe(key)

    def _leave(self, gone: Found) -> None:
        """Remember where a replica was, for the next one of its body: the places of as many as there may be at once."""
        before = (place for place in self._left.pop(gone.body, ()) if place != gone.gpus)
        self._left[gone.body] = (gone.gpus, *before)[:PLACES_KEPT]
        while len(self._left) > BODIES_KEPT:
            del self._left[next(iter(self._left))]

    def _stop_probe(self, key: str) -> None:
        task = self._probes.pop(key, None)
        if task is not None:
            task.cancel()
        self._judged(key)

    def _judged(self, key: str) -> None:
        """This replica's state is known; when it was the last of those found at the start, planning may begin."""
        if key in self._unjudged:
            self._unjudged.discard(key)
            if not self._unjudged:
                self._changed()

    async def _probe(self, found: Found) -> None:
        """Probe one replica until it ends: often while it starts, seldom while all is well."""
        assert found.address is not None
        began, failures, path = self._clock.now(), 0, ""
        while True:
            try:
                path = path or await self._health_path(found)
                result = await self._ask(found.address, path, self._deadline)
                ok, detail = result.ok, result.detail
            except AgentError as error:  # where to ask is not known now: its runtime's file may be broken or gone
                ok, detail = False, error.detail
            failures = 0 if ok else failures + 1
            known = self._replicas.get(found.id)
            if known is None:
                return
            self._note(known, ok, failures, detail, asked=bool(path))
            if ok or failures >= FAILURES_TO_UNREADY:
                self._judged(found.id)
            if not ok and known.was_ready:
                self.look()
            await asyncio.sleep(self._probe_pause(ok, known.was_ready, self._clock.now() - began))

    def _probe_pause(self, ok: bool, was_ready: bool, age: float) -> float:
        if ok:
            return self._interval * READY_PROBE_FACTOR
        if was_ready or age > FIRST_PROBES_FOR:
            return self._interval
        return FIRST_PROBES

    def _note(self, known: SeenReplica, ok: bool, failures: int, detail: str, *, asked: bool) -> None:
        now = self._clock.now()
        if not ok and not known.ready and known.unready_since is None and asked:
            # Counted from the first answer that it is not ready: one that nobody knows how to ask is not to be ended.
            known = self._replicas[known.found.id] = replace(known, unready_since=now)
        if ok and not known.ready:
            update = replace(known, ready=True, was_ready=True, ready_since=now, unready_since=None, detail="")
        elif not ok and known.ready and failures >= FAILURES_TO_UNREADY:
            update = replace(known, ready=False, ready_since=None, unready_since=now, detail=detail)
        elif not ok and not known.ready and detail != known.detail:
            update = replace(known, detail=detail)
        else:
            return
        self._replicas[known.found.id] = update
        if update.ready is not known.ready:
            self._changed()

    def _count_requests(self) -> None:
        """Requests in flight with each replica; without per-replica figures, its whole cluster's."""
        gateway = self._gateway_seen
        for key, replica in self._replicas.items():
            requests = gateway.requests_with(replica.found) if gateway is not None else None
            if requests != replica.requests:
                self._replicas[key] = replace(replica, requests=requests)
