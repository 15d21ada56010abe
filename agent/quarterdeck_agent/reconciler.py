"""The one loop that makes the host what is wanted: observe, plan, perform, publish.

One task is in flight per deployment and one towards the gateway; the loop itself waits for neither. It keeps no
position: after a restart the first pass plans from the facts alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from quarterdeck_agent.clock import Clock
from quarterdeck_agent.counts import rolling
from quarterdeck_agent.drivers.base import Gateway, Resources, RoutingResources
from quarterdeck_agent.errors import AgentError
from quarterdeck_agent.failpoints import failpoint
from quarterdeck_agent.gpus.placement import STARTING, Claim
from quarterdeck_agent.observer import Observer
from quarterdeck_agent.performing import Performer
from quarterdeck_agent.places import ask_of, room_by, warm_on_gpus
from quarterdeck_agent.plan import plan
from quarterdeck_agent.promises import foreseen, kept, kept_for_hold, promised
from quarterdeck_agent.protocol import OperationState
from quarterdeck_agent.reporting import Reporter
from quarterdeck_agent.routing import Route
from quarterdeck_agent.seen import Seen
from quarterdeck_agent.steps import Hold, Start, Step, Stop
from quarterdeck_agent.store import Store
from quarterdeck_agent.traffic import routes
from quarterdeck_agent.wanted import Instant, Wanted, WantedDeployment, WantedRevision

log = logging.getLogger(__name__)

IDLE_TICK = 2.0
"""Seconds between two looks while all is well; every change that is seen or asked for wakes the loop at once."""

WAITING_TICK = 0.5
"""The same while replicas are missing, which may wait for nothing but the time of their next start."""

BUSY_TICK = 0.1
PAUSE_AFTER_FAILURE = 1.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What the reconciler works with. `configuration` turns routes into the gateway's resources, `alive` is called
    after every pass that went through."""

    store: Store
    gateway: Gateway
    observer: Observer
    performer: Performer
    reporter: Reporter
    clock: Clock
    configuration: Callable[[tuple[Route, ...]], RoutingResources]
    alive: Callable[[], None]


class Reconciler:
    """Runs the loop. `wake` may be called from the loop's own thread at any time."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._wake = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._starting: dict[str, tuple[Claim, ...]] = {}
        self._gateway_task: asyncio.Task[None] | None = None
        self._applied: tuple[str, tuple[Route, ...]] | None = None
        self._finished: set[str] = set()
        self._curious: list[asyncio.Future[None]] = []
        self.promised: tuple[Claim, ...] = ()
        """What is about to be claimed on the GPUs, or kept for somebody, as of the last pass. For who asks for room."""
        self.looked = asyncio.Event()
        """Set once the board tells what the engine runs."""

    def wake(self) -> None:
        """Ask for a pass now."""
        self._wake.set()

    async def told(self) -> None:
        """Ask for a pass now and return once the board tells what it found."""
        waiter = asyncio.get_running_loop().create_future()
        self._curious.append(waiter)
        self.wake()
        await waiter

    async def run(self) -> None:
        """Reconcile until cancelled. Steps that are under way are cancelled with it and planned again at the start."""
        try:
            while True:
                pause = WAITING_TICK
                try:
                    pause = await self._pass()
                    self._parts.alive()
                except AgentError as error:
                    log.warning("a pass was cut short: %s", error.detail)
                except Exception:
                    log.exception("a pass failed")
                await self._rest(pause)
        finally:
            tasks = [*self._tasks.values(), *([self._gateway_task] if self._gateway_task else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):  # wait_for loses a cancellation that comes as the event is set
                await self._wake.wait()
        except TimeoutError:
            return
        finally:
            self._wake.clear()

    async def _pass(self) -> float:
        """One look at everything. Returns in how many seconds the next one is due if nothing happens before."""
        parts = self._parts
        curious, self._curious = self._curious, []
        wanted = await asyncio.to_thread(parts.store.wanted)
        seen, now = parts.observer.seen(), parts.clock.now()
        if not parts.observer.listed:
            await parts.reporter.publish(wanted, seen)
            return BUSY_TICK
        routed = self._route(wanted, seen, now)
        asks = await self._all_asks(wanted)
        keeping = kept(wanted.deployments, asks, seen, self._starting, now)
        seen = promised(keeping, self._starting, seen)
        seen = replace(seen, needed=self._needed(wanted, seen, now))
        for deployment in wanted.deployments:
            await self._take_steps(deployment, seen, now)
            seen = promised(keeping, self._starting, seen)
        self.promised = foreseen(wanted.deployments, asks, seen, keeping, self._starting)
        await self._finish_operations(wanted, seen, routed)
        await parts.reporter.publish(wanted, seen)
        self.looked.set()
        for waiter in curious:
            if not waiter.done():
                waiter.set_result(None)
        busy = bool(self._tasks) or not routed or any(_in_motion(d, seen) for d in wanted.deployments)
        parts.observer.busy = busy
        if busy:
            return BUSY_TICK
        return IDLE_TICK if all(_complete(d, seen) for d in wanted.deployments) else WAITING_TICK

    # --- steps -------------------------------------------------------------------------------------------------

    async def _take_steps(self, d: WantedDeployment, seen: Seen, now: float) -> None:
        if d.name in self._tasks:
            return
        asks = await self._asks(d.target)
        live_asks = await self._asks(d.live) if d.live is not None and d.live.body != d.target.body else None
        steps = plan(d, asks, seen, now, live_asks)
        if steps:
            self._starting[d.name] = _claims(d, steps, asks, live_asks, seen)
            task = asyncio.create_task(self._perform(d, steps), name=f"steps of {d.name}")
            self._tasks[d.name] = task

    async def _perform(self, d: WantedDeployment, steps: tuple[Step, ...]) -> None:
        try:
            well = True
            for step in steps:
                well &= await self._performed(d, step)
            if not well:
                await asyncio.sleep(PAUSE_AFTER_FAILURE)
        except AgentError as error:
            log.warning("%s: %s", d.name, error.detail)
            await asyncio.sleep(PAUSE_AFTER_FAILURE)
        except Exception:
            log.exception("a step of %s failed", d.name)
            await asyncio.sleep(PAUSE_AFTER_FAILURE)
        finally:
            del self._tasks[d.name]
            self._starting.pop(d.name, None)
            self.wake()

    async def _performed(self, d: WantedDeployment, step: Step) -> bool:
        """Perform one step. False where a replica could not be ended: a driver that hangs may hold it for ever, and no
        other step of the plan waits for it."""
        name = type(step).__name__.lower()
        log.debug("%s: %s", d.name, name)
        failpoint(f"{name}.begins")
        try:
            await self._parts.performer.perform(d, step)
        except AgentError as error:
            if not isinstance(step, Stop):
                raise
            log.warning("%s: %s", d.name, error.detail)
            return False
        failpoint(f"{name}.done")
        return True

    def _needed(self, wanted: Wanted, seen: Seen, now: float) -> frozenset[str]:
        """The deployments whose warm revision has to make room for another one."""
        warm = {d.name: ids for d in wanted.deployments if (ids := warm_on_gpus(d, seen))}
        needed: set[str] = set()
        for d in wanted.deployments if warm else ():
            asks = self._parts.reporter.known_asks(d.target)
            live_asks = self._parts.reporter.known_asks(d.live) if d.live is not None else None
            if asks is not None and d.name not in self._tasks:
                others = {name: ids for name, ids in warm.items() if name != d.name}
                needed.update(room_by(d, asks, live_asks, seen, now, others))
        return frozenset(needed)

    async def _all_asks(self, wanted: Wanted) -> dict[str, Resources]:
        """What a replica of every target and every live revision claims, by body."""
        revisions = {r.body: r for d in wanted.deployments for r in (d.target, d.live) if r is not None}
        return {body: await self._asks(revision) for body, revision in revisions.items()}

    async def _asks(self, revision: WantedRevision) -> Resources:
        reporter = self._parts.reporter
        known = reporter.known_asks(revision)
        return await asyncio.to_thread(reporter.asks, revision) if known is None else known

    # --- the gateway -------------------------------------------------------------------------------------------

    def _route(self, wanted: Wanted, seen: Seen, now: float) -> bool:
        """See that the gateway has the routes of this moment. Returns whether it has confirmed them."""
        if seen.gateway is None:
            return False
        current = routes(wanted, seen, now)
        if self._applied == (seen.gateway.applied, current):
            return True
        if self._gateway_task is None:
            resources = self._parts.configuration(current)
            self._gateway_task = asyncio.create_task(self._apply(resources, current), name="gateway")
        return False

    async def _apply(self, resources: RoutingResources, current: tuple[Route, ...]) -> None:
        try:
            failpoint("gateway.begins")
            await self._parts.gateway.apply(resources)
            failpoint("gateway.applied")
            seen = await self._parts.gateway.observe()
            if seen.applied == resources.digest:
                self._applied = (resources.digest, current)
                self._parts.observer.applied(current, seen)
        except AgentError as error:
            self._parts.observer.refused(error.detail)
            await asyncio.sleep(PAUSE_AFTER_FAILURE)
        except Exception:
            log.exception("configuring the gateway failed")
            await asyncio.sleep(PAUSE_AFTER_FAILURE)
        finally:
            self._gateway_task = None
            self.wake()

    async def _finish_operations(self, wanted: Wanted, seen: Seen, routed: bool) -> None:
        """An operation has succeeded when its revision is live, all its replicas are ready, and the gateway has
        confirmed the routes of this. One whose new replicas crash instead (more of the same were asked for) has failed.
        """
        if not routed:
            return
        for d in wanted.deployments:
            live = d.live
            if live is None or (d.holding and rolling(d)) or d.removing or live.operation in self._finished:
                continue  # during a hold the routes that were confirmed are the target's
            if rolling(d) or _complete(d, seen):
                await self._finish(live.operation, OperationState.SUCCEEDED)
            elif live.crashes and _later(live.crashes[-1], live.created):
                code = live.reason.value if live.reason else None
                await self._finish(live.operation, OperationState.FAILED, code, "its replicas end again and again")

    async def _finish(
        self, operation: str, state: OperationState, code: str | None = None, detail: str | None = None
    ) -> None:
        await self._parts.reporter.close(operation, failed=state is OperationState.FAILED)
        await asyncio.to_thread(self._parts.store.finish_operation, operation, state, code, detail)
        self._finished.add(operation)


def _claims(
    d: WantedDeployment, steps: tuple[Step, ...], asks: Resources, live_asks: Resources | None, seen: Seen
) -> tuple[Claim, ...]:
    """What the replicas that these steps start, or make room for, will claim, before the engine tells of them."""
    claims: list[Claim] = []
    for step in steps:
        if isinstance(step, Hold):
            claims.extend(kept_for_hold(d, asks, seen))
        if isinstance(step, Start):
            theirs = asks if step.revision.body == d.target.body else live_asks or asks
            claims.extend(ask_of(d, step.revision, theirs).claims(step.replica, step.gpus, STARTING))
    return tuple(claims)


def _complete(d: WantedDeployment, seen: Seen) -> bool:
    """Whether as many replicas are ready as the live revision asks for."""
    if d.live is None or d.live.spec.stopped:
        return True
    ready = sum(1 for replica in seen.of(d.name) if replica.ready and replica.found.body == d.live.body)
    return ready >= d.live.spec.replicas


def _later(one: Instant, other: Instant) -> bool:
    return one.boot_id == other.boot_id and one.seconds > other.seconds


def _in_motion(d: WantedDeployment, seen: Seen) -> bool:
    """Whether a deployment is on its way somewhere, and so needs to be looked at often."""
    live = d.live.body if d.live else None
    leaving = any(r.found.body != live and r.requests for r in seen.of(d.name))
    return rolling(d) or d.removing or d.holding or leaving
